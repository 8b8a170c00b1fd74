//! How the command ends. The numbers are part of its interface.

use std::io::Write;
use std::process::ExitCode;

use trunkline::{Error, ErrorKind};

use crate::plain::lines_without_controls;
use crate::sink::is_pipe_closed;

/// Every way to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It did what it was asked.
    Done = 0,
    /// It did not, or what it waited for did not come.
    Failed = 1,
    /// It was asked for what makes no sense, or pointed at what is no bus. The parser of arguments
    /// ends with it too.
    Usage = 2,
    /// Some of the events were refused, the others are stored; or a repair was planned and not done.
    PartlyRefused = 3,
    /// The bus cannot be reached or went away, or an outcome is unknown.
    Unreachable = 4,
    /// The bus does not allow it.
    NotPermitted = 5,
    /// ctrl-c or SIGTERM ended it before it was done; 128 and the number of SIGINT, as shells have it.
    Interrupted = 130,
    /// Whoever read its output went away; 128 and the number of SIGPIPE.
    PipeClosed = 141,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidUrl
            // Something else answers there, so it is the URL that is wrong.
            | ErrorKind::WrongProtocol
            | ErrorKind::InvalidConfig
            | ErrorKind::InvalidName
            | ErrorKind::InvalidFilter
            | ErrorKind::InvalidEventType
            | ErrorKind::InvalidPosition => Self::Usage,
            ErrorKind::Closed | ErrorKind::Disconnected | ErrorKind::TimedOut => Self::Unreachable,
            ErrorKind::NotPermitted => Self::NotPermitted,
            _ => Self::Failed,
        }
    }
}

/// Says on standard error what went wrong and what to do, and gives the way to end. A reader that
/// went away is nothing to talk about.
pub(crate) fn failed(error: &Error) -> Exit {
    if is_pipe_closed(error) {
        return Exit::PipeClosed;
    }
    // What an event holds may be part of a message. If not even standard error can be written,
    // the code must do.
    let text = format!("{error:?}");
    let _ = writeln!(
        std::io::stderr(),
        "error: {}\n  remedy: {}",
        lines_without_controls(&text),
        remedy(error.kind())
    );
    error.kind().into()
}

/// What to do. A command gives up where a program waits, so that it is told something else.
pub(crate) fn remedy(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Disconnected => {
            "Is the bus running? `trunkline up` starts one on this host; --url or TRUNKLINE_URL says where another is."
        }
        kind => kind.entry().remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_usage_from_failure_from_absence() {
        for (kind, expected) in [
            (ErrorKind::InvalidUrl, 2),
            (ErrorKind::InvalidPosition, 2),
            (ErrorKind::WrongProtocol, 2),
            (ErrorKind::WrongVersion, 1),
            (ErrorKind::InUse, 1),
            (ErrorKind::DrainIncomplete, 1),
            (ErrorKind::Disconnected, 4),
            (ErrorKind::Closed, 4),
            (ErrorKind::NotPermitted, 5),
        ] {
            assert_eq!(Exit::from(kind) as u8, expected, "{kind:?}");
        }
    }
}
