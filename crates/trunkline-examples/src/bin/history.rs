//! Writes the commits of a git repository as CloudEvents, one JSON object a line, oldest first.
//!
//! ```text
//! history path/to/repository > history.ndjson
//! ```
//!
//! `git log` runs beside it and one commit is in memory at a time, however long the history is.

use std::error::Error;
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use trunkline::core::envelope::JsonText;
use trunkline::core::subject::encode_token;
use trunkline::core::wire::encode_structured;
use trunkline::{Data, Envelope, Event, EventId, Timestamp};
use trunkline_examples::{FileChange, GitCommit};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// What every commit begins with: no path and no count can contain it.
const COMMIT: u8 = 0x01;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(repository), None) = (args.next(), args.next()) else {
        return fail("usage: history <path of a git repository>", 2);
    };
    match run(Path::new(&repository)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough, as `head` has.
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), 1),
    }
}

fn fail(message: &str, code: u8) -> ExitCode {
    // When standard error is gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "history: {message}");
    ExitCode::from(code)
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn run(repository: &Path) -> Result<()> {
    let source = format!("/{}", encode_token(&name(repository)?));
    let mut git = Git::log(repository)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut commit: Option<Commit> = None;
    let mut entry = Vec::new();
    while git.next(&mut entry)? {
        match (entry.strip_prefix(&[COMMIT]), &mut commit) {
            (Some(header), _) => {
                let begun = Commit::begin(&String::from_utf8_lossy(header))?;
                if let Some(done) = commit.replace(begun) {
                    done.write(&source, &mut out)?;
                }
            }
            (None, Some(commit)) => commit.add(&String::from_utf8_lossy(&entry))?,
            (None, None) => return Err("`git log` does not begin with a commit".into()),
        }
    }
    git.finish()?;
    if let Some(done) = commit {
        done.write(&source, &mut out)?;
    }
    Ok(out.flush()?)
}

/// The repository's name: that of its folder, without `.git`.
fn name(repository: &Path) -> Result<String> {
    let command = git(repository)
        .args(["rev-parse", "--path-format=absolute", "--git-common-dir"])
        .output();
    let output = command.map_err(|error| format!("cannot run git: {error}"))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{} is no git repository: {}",
            repository.display(),
            reason.trim()
        )
        .into());
    }
    let directory = String::from_utf8_lossy(&output.stdout);
    let directory = Path::new(directory.trim_end());
    let named = if directory.ends_with(".git") {
        directory.parent()
    } else {
        Some(directory)
    };
    let name = named
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| "repository".to_owned());
    Ok(name.strip_suffix(".git").unwrap_or(&name).to_owned())
}

fn git(repository: &Path) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(repository);
    command
}

/// A running `git log`. Its entries end in NUL: a commit's header, then one for each file.
struct Git {
    child: Child,
    entries: BufReader<std::process::ChildStdout>,
}

impl Git {
    fn log(repository: &Path) -> Result<Self> {
        let mut child = git(repository)
            .args([
                "log",
                "--reverse",
                "--encoding=UTF-8",
                "-z",
                "--numstat",
                "--no-renames",
                "--no-show-signature",
            ])
            .arg("--format=tformat:%x01%H%x1f%ct%x1f%ae%x1f%an%x1f%s")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot run git: {error}"))?;
        let stdout = child.stdout.take().ok_or("git has no standard output")?;
        Ok(Self {
            child,
            entries: BufReader::with_capacity(1 << 16, stdout),
        })
    }

    /// Reads the next entry; false at the end.
    fn next(&mut self, entry: &mut Vec<u8>) -> Result<bool> {
        entry.clear();
        self.entries.read_until(0, entry)?;
        if entry.last() == Some(&0) {
            entry.pop();
            return Ok(true);
        }
        Ok(!entry.is_empty())
    }

    fn finish(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("`git log` ended with {status}").into())
        }
    }
}

/// A commit as far as it has been read.
struct Commit {
    seconds: i64,
    data: GitCommit,
    path_bytes: usize,
}

impl Commit {
    fn begin(header: &str) -> Result<Self> {
        let mut fields = header.splitn(5, '\x1f');
        let mut field = || {
            fields
                .next()
                .ok_or_else(|| format!("{header:?} is no commit"))
        };
        let (hash, seconds, email, author) = (field()?, field()?, field()?, field()?);
        let data = GitCommit {
            hash: hash.to_owned(),
            author_name: author.to_owned(),
            author_email: if email.is_empty() { "unknown" } else { email }.to_owned(),
            subject: field()?.to_owned(),
            file_count: 0,
            added: 0,
            deleted: 0,
            files: Vec::new(),
        };
        Ok(Self {
            seconds: seconds.parse()?,
            data,
            path_bytes: 0,
        })
    }

    /// Adds a file: `added`, `deleted` (both `-` if it is binary) and its path.
    fn add(&mut self, entry: &str) -> Result<()> {
        let mut fields = entry.trim_start_matches('\n').splitn(3, '\t');
        let (Some(added), Some(deleted), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            return Err(format!("{entry:?} is no change of a file").into());
        };
        let (added, deleted) = (added.parse().ok(), deleted.parse().ok());
        self.data.file_count += 1;
        self.data.added += added.unwrap_or(0);
        self.data.deleted += deleted.unwrap_or(0);
        self.path_bytes += path.len();
        if self.data.files.len() < GitCommit::MAX_FILES
            && self.path_bytes <= GitCommit::MAX_PATH_BYTES
        {
            self.data.files.push(FileChange {
                path: path.to_owned(),
                added,
                deleted,
            });
        }
        Ok(())
    }

    fn write(self, source: &str, out: &mut impl Write) -> Result<()> {
        let data = Data::Json(JsonText::trusted(serde_json::to_vec(&self.data)?.into()));
        let envelope = Envelope::new(
            EventId::new(&self.data.hash)?,
            source,
            GitCommit::TYPE,
            data,
        )?
        .with_time(Timestamp::from_nanos(
            self.seconds.saturating_mul(1_000_000_000),
        ))
        .with_version(GitCommit::VERSION)
        .with_key(self.data.author_email);
        out.write_all(&encode_structured(&envelope)?)?;
        Ok(out.write_all(b"\n")?)
    }
}
