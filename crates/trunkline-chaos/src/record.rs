//! What the processes of a run write down: one JSON object a line, in files that all of them append to.
//!
//! A line is one write to a file that was opened for appending, so the order of lines is the order in which
//! things happened, whichever process wrote them, and a process that is killed leaves no half of one.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) const EFFECTS: &str = "effects.jsonl";
pub(crate) const PUBLISHED: &str = "published.jsonl";
pub(crate) const FAULTS: &str = "faults.jsonl";
pub(crate) const STORED: &str = "stored.jsonl";
pub(crate) const DEAD: &str = "dead.jsonl";
pub(crate) const CLOSING: &str = "closing.json";

/// Microseconds since 1970, by the clock of the host that all processes share.
pub(crate) type Micros = u64;

pub(crate) fn now() -> Micros {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The two consumers, by their names.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Consumer {
    /// Of events with a key.
    Ordered,
    /// Of events without.
    Shared,
}

impl Consumer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Consumer::Ordered => "ordered",
            Consumer::Shared => "shared",
        }
    }
}

/// A process: the place it has in the run, and how often that was filled before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Who {
    pub(crate) role: Role,
    pub(crate) slot: u32,
    pub(crate) life: u32,
}

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Publisher,
    Worker,
}

impl Who {
    /// What it is called in lanes: the same in every life.
    pub(crate) fn client(self) -> String {
        match self.role {
            Role::Publisher => format!("p{}", self.slot),
            Role::Worker => format!("w{}", self.slot),
        }
    }
}

/// Generation and revision of an ownership.
pub(crate) type Epoch = (u64, u64);

/// A line of the workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Effect {
    pub(crate) at: Micros,
    pub(crate) who: Who,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// It consumes.
    Ready { pid: u32 },
    /// A handler begins.
    Start(Start),
    /// The run of that number ends.
    End { run: u64, how: How },
    /// The process did not get to run for so long.
    Stall { ms: u64 },
    /// Its member ended by itself.
    Gone { consumer: Consumer, why: String },
    /// It could not even begin, and never will.
    Refused { why: String },
    /// It was told to end, and did; not well if there is a reason.
    Left { why: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Of this process.
    pub(crate) run: u64,
    pub(crate) consumer: Consumer,
    pub(crate) id: String,
    pub(crate) seq: u64,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) attempt: u32,
}

/// How a run ended. One of a process that was killed has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    Ok,
    Failed,
    Permanent,
    /// Its future was dropped.
    Cancelled,
}

/// A line of whoever publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) at: Micros,
    pub(crate) who: Who,
    pub(crate) what: Publishing,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Publishing {
    /// It is about to be published, for the first time in this life of its publisher.
    Ask { id: String },
    /// It is stored there, as the bus says.
    Ack { id: String, seq: u64 },
    /// The bus says that it never will be.
    Refused { id: String, why: String },
    /// All that it began is acknowledged, and it begins nothing more.
    Stopped,
    /// So many operations succeeded when all was well again.
    After { events: u32 },
    /// It has the directory, and is the server of all others: it came while there was none.
    Serves,
}

/// A line of the runner: what was done, and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) kind: Kind,
    /// The process, of faults that are one's own.
    pub(crate) who: Option<Who>,
    /// When it began, and when it was over.
    pub(crate) from: Micros,
    pub(crate) to: Micros,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Term,
    /// SIGSTOP, and SIGCONT at the end.
    Stop,
    /// A new one.
    Join,
    ServerKill,
    /// SIGTERM, and another start at the end.
    ServerRestart,
    ServerStop,
    LameDuck,
    /// Every connection through a proxy breaks.
    Cut,
    /// Each packet through a proxy takes longer.
    Slow,
    /// Nothing passes the proxies.
    Block,
    /// A process ended and nobody had told it to.
    Died,
}

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) seq: u64,
    pub(crate) id: String,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dead {
    pub(crate) consumer: String,
    pub(crate) seq: u64,
    pub(crate) reason: String,
}

/// How it ended, once faults were over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Closing {
    /// When all faults were over.
    pub(crate) healed: Micros,
    /// What did not come about in time, in words.
    pub(crate) faults: Vec<String>,
}

/// A file to append lines to.
#[derive(Debug)]
pub(crate) struct Lines(File);

impl Lines {
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(file))
    }

    /// Appends it. A process that cannot write down what it does is of no use and ends.
    pub(crate) fn write(&self, line: &impl Serialize) {
        let written = serde_json::to_vec(line)
            .map_err(std::io::Error::from)
            .and_then(|mut bytes| {
                bytes.push(b'\n');
                (&self.0).write_all(&bytes)
            });
        if written.is_err() {
            std::process::exit(70);
        }
    }
}

/// All lines of a file; none if there is no file.
///
/// # Errors
/// The first line that is none, with its number.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| format!("{}:{}: {error}", path.display(), number + 1))
    };
    text.lines().enumerate().map(line).collect()
}
