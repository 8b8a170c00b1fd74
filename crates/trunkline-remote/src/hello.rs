//! The handshake: one message each way, as JSON, so that every version can read it.

use std::ops::RangeInclusive;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use trunkline_core::engine::{Capabilities, Durability, Fact, Limits, Reach};
use trunkline_core::{Error, ErrorKind, Result};

use crate::session::PacketNumber;

/// The versions of the protocol that this release speaks.
pub(crate) const VERSIONS: RangeInclusive<u32> = 1..=1;

/// What this program calls itself.
pub(crate) const SOFTWARE: &str = concat!("trunkline ", env!("CARGO_PKG_VERSION"));

/// What a client says first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// Tells the protocol from others: always `engine`.
    pub(crate) trunkline: String,
    pub(crate) oldest: u32,
    pub(crate) newest: u32,
    pub(crate) software: String,
    /// The session to go on with.
    pub(crate) session: Option<SessionState>,
}

/// How far one end of a session is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SessionState {
    pub(crate) id: String,
    pub(crate) received: PacketNumber,
}

/// What the server says to it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Greeting {
    pub(crate) trunkline: String,
    pub(crate) oldest: u32,
    pub(crate) newest: u32,
    pub(crate) software: String,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
}

/// What every release says, whatever else it does.
#[derive(Debug, Deserialize)]
struct Versions {
    trunkline: String,
    oldest: u32,
    newest: u32,
    software: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Welcome(Welcome),
    Refused { code: String, message: String },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) version: u32,
    pub(crate) session: SessionState,
    /// Whether that is the session that the client asked for.
    pub(crate) resumed: bool,
    /// Names what is stored. Another name means that what was stored before is gone.
    pub(crate) bus: String,
    pub(crate) engine: String,
    pub(crate) durability: String,
    pub(crate) reach: String,
    pub(crate) max_message: usize,
    pub(crate) max_batch: usize,
    pub(crate) max_value: usize,
    /// What the engine knows of itself. Older servers do not say.
    #[serde(default)]
    pub(crate) facts: Vec<Told>,
}

/// A fact as it crosses the connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) name: String,
    pub(crate) value: String,
}

const PROTOCOL: &str = "engine";
/// Facts that are taken from a server at most; nobody would read more.
const MAX_FACTS: usize = 64;

impl Hello {
    pub(crate) fn new(session: Option<SessionState>) -> Self {
        Self {
            trunkline: PROTOCOL.to_owned(),
            oldest: *VERSIONS.start(),
            newest: *VERSIONS.end(),
            software: SOFTWARE.to_owned(),
            session,
        }
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        to_bytes(self)
    }

    /// Reads what a client said, and which version it and this release share.
    pub(crate) fn read(bytes: &[u8]) -> Result<(Self, u32)> {
        let hello: Self =
            serde_json::from_slice(bytes).map_err(|error| not_ours().caused_by(error))?;
        if hello.trunkline != PROTOCOL {
            return Err(not_ours());
        }
        let version = shared(hello.oldest..=hello.newest, &hello.software)?;
        Ok((hello, version))
    }
}

impl Greeting {
    pub(crate) fn new(verdict: Verdict) -> Self {
        Self {
            trunkline: PROTOCOL.to_owned(),
            oldest: *VERSIONS.start(),
            newest: *VERSIONS.end(),
            software: SOFTWARE.to_owned(),
            verdict,
        }
    }

    pub(crate) fn refusal(error: &Error) -> Self {
        Self::new(Verdict::Refused {
            code: error.code().to_owned(),
            message: error.message().to_owned(),
        })
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        to_bytes(self)
    }

    /// Reads what a server said.
    pub(crate) fn read(bytes: &[u8]) -> Result<Welcome> {
        // The versions first: a later release may give a verdict that this one cannot read.
        let versions: Versions =
            serde_json::from_slice(bytes).map_err(|error| not_ours().caused_by(error))?;
        if versions.trunkline != PROTOCOL {
            return Err(not_ours());
        }
        shared(versions.oldest..=versions.newest, &versions.software)?;
        let greeting: Self =
            serde_json::from_slice(bytes).map_err(|error| not_ours().caused_by(error))?;
        match greeting.verdict {
            Verdict::Welcome(welcome) if VERSIONS.contains(&welcome.version) => Ok(welcome),
            Verdict::Welcome(welcome) => {
                Err(apart(welcome.version..=welcome.version, &greeting.software))
            }
            Verdict::Refused { code, message } => {
                let rows = trunkline_core::error::CODES.iter();
                let kind = rows
                    .map(|row| (row.code, row.kind))
                    .find(|(known, _)| *known == code);
                let kind = kind.map_or(ErrorKind::Internal, |(_, kind)| kind);
                Err(Error::new(kind, message).at("the bus refused the connection"))
            }
        }
    }
}

impl Welcome {
    /// What the engine behind the server promises. Whatever it shares, nothing is shared over a
    /// connection; and nobody but the processes of a host can connect.
    pub(crate) fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: match self.durability.as_str() {
                "power" => Durability::Power,
                "crash" => Durability::Crash,
                _ => Durability::Process,
            },
            reach: match self.reach.as_str() {
                "network" => Reach::Network,
                _ => Reach::Host,
            },
            shares_values: false,
        }
    }

    /// What there is to know of the bus behind the server. The facts of its engine have `bus ` before
    /// them, to be told from those of the connection.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        let own = Fact::new("bus", self.engine.as_str());
        let told = |told: &Told| Fact::new(format!("bus {}", told.name), told.value.as_str());
        let told = self.facts.iter().take(MAX_FACTS).map(told);
        [own].into_iter().chain(told).collect()
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_message: self.max_message,
            max_batch: self.max_batch,
            max_value: self.max_value,
        }
    }
}

pub(crate) fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::Power => "power",
        Durability::Crash => "crash",
        _ => "process",
    }
}

pub(crate) fn reach(reach: Reach) -> &'static str {
    match reach {
        Reach::Network => "network",
        Reach::Host => "host",
        _ => "process",
    }
}

/// The newest version that both know.
fn shared(theirs: RangeInclusive<u32>, software: &str) -> Result<u32> {
    let newest = (*theirs.end()).min(*VERSIONS.end());
    if theirs.contains(&newest) && VERSIONS.contains(&newest) {
        Ok(newest)
    } else {
        Err(apart(theirs, software))
    }
}

fn apart(theirs: RangeInclusive<u32>, software: &str) -> Error {
    let range = |versions: &RangeInclusive<u32>| match (versions.start(), versions.end()) {
        (one, other) if one == other => format!("version {one}"),
        (oldest, newest) => format!("versions {oldest} to {newest}"),
    };
    let advice = if theirs.start() > VERSIONS.end() {
        "this end is older: upgrade it"
    } else {
        "the other end is older: upgrade that"
    };
    Error::new(
        ErrorKind::WrongVersion,
        format!(
            "{SOFTWARE} speaks {} of the engine protocol and the other end, {software:?}, {}; {advice}",
            range(&VERSIONS),
            range(&theirs),
        ),
    )
}

fn not_ours() -> Error {
    Error::new(
        ErrorKind::WrongProtocol,
        "the other end opened a WebSocket but does not speak as Trunkline does",
    )
}

fn to_bytes(value: &impl Serialize) -> Bytes {
    // Text and numbers only: there is nothing in it that could fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(oldest: u32, newest: u32) -> Vec<u8> {
        let hello = Hello {
            oldest,
            newest,
            ..Hello::new(None)
        };
        hello.to_bytes().to_vec()
    }

    #[test]
    fn versions_are_agreed_on_and_older_and_newer_ends_are_told_who_should_upgrade() {
        assert_eq!(Hello::read(&hello(1, 1)).unwrap().1, 1);
        assert_eq!(Hello::read(&hello(0, 7)).unwrap().1, 1);
        for (oldest, newest, advice) in [
            (2, 3, "this end is older: upgrade it"),
            (0, 0, "the other end is older: upgrade that"),
        ] {
            let error = Hello::read(&hello(oldest, newest)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongVersion);
            assert!(error.message().contains(advice), "{error}");
        }
    }

    #[test]
    fn facts_are_told_and_their_absence_is_no_fault() {
        let mut welcome = serde_json::json!({
            "version": 1, "session": {"id": "s", "received": 0}, "resumed": false, "bus": "b",
            "engine": "nats", "durability": "power", "reach": "network",
            "max_message": 1, "max_batch": 1, "max_value": 1,
        });
        let facts = |welcome: &serde_json::Value| {
            let welcome: Welcome = serde_json::from_value(welcome.clone()).unwrap();
            let facts = welcome.facts().into_iter();
            facts
                .map(|fact| format!("{}: {}", fact.name, fact.value))
                .collect::<Vec<_>>()
        };
        assert_eq!(facts(&welcome), ["bus: nats"]);
        welcome["facts"] = serde_json::json!([{"name": "server", "value": "2.15.1"}]);
        assert_eq!(facts(&welcome), ["bus: nats", "bus server: 2.15.1"]);
    }

    #[test]
    fn what_is_no_handshake_is_told_from_a_refusal() {
        for noise in [
            "",
            "PONG",
            "{}",
            r#"{"trunkline":"other","oldest":1,"newest":1,"software":"x"}"#,
        ] {
            assert_eq!(
                Hello::read(noise.as_bytes()).unwrap_err().kind(),
                ErrorKind::WrongProtocol
            );
            assert_eq!(
                Greeting::read(noise.as_bytes()).unwrap_err().kind(),
                ErrorKind::WrongProtocol
            );
        }
        let refusal = Greeting::refusal(&Error::new(ErrorKind::NotPermitted, "no"));
        assert_eq!(
            Greeting::read(&refusal.to_bytes()).unwrap_err().kind(),
            ErrorKind::NotPermitted
        );
    }
}
