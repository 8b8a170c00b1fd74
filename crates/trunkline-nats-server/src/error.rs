//! The one error type.

use std::error::Error as StdError;
use std::fmt;

/// What did not work: what, where, and what to do about it.
///
/// `Display` never repeats the [source](StdError::source).
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<std::io::Error>,
}

/// What class of error it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no nats-server to run.
    Missing,
    /// What was named as nats-server cannot be run, or is something else.
    Unusable,
    /// The release is older than [`OLDEST`](crate::OLDEST).
    TooOld,
    /// A release could not be downloaded, or is none that this crate knows.
    Unobtainable,
    /// Another process has the port.
    PortInUse,
    /// Another server has the folder.
    DirectoryInUse,
    /// A folder can be read or entered by others.
    NotPrivate,
    /// The options contradict each other, or the server refused its configuration.
    InvalidConfig,
    /// The server ended, or was not running.
    Ended,
    /// What was waited for did not come in time.
    TimedOut,
    /// The operating system refused something.
    Io,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An operation on a file, folder or process that the system refused.
    pub(crate) fn io(what: impl fmt::Display, error: impl Into<std::io::Error>) -> Self {
        Self::new(ErrorKind::Io, format!("{what} failed")).caused_by(error)
    }

    pub(crate) fn caused_by(mut self, error: impl Into<std::io::Error>) -> Self {
        self.source = Some(error.into());
        self
    }

    /// Says in front of the message where it arose.
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What class of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What `unwrap` and `main` print: readable, with the cause.
        write!(f, "{:?}: {}", self.kind, self.message)?;
        match &self.source {
            Some(source) => write!(f, "\n  caused by: {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.source {
            Some(source) => Some(source),
            None => None,
        }
    }
}
