//! How the command ends: 0 done, 1 failed, 2 wrong usage, 3 partly refused, 4 unreachable,
//! 5 not permitted.

use std::io::Write;
use std::process::ExitCode;

use trunkline::{Error, ErrorKind};

/// Says on standard error what went wrong and what to do, and gives the exit code.
pub(crate) fn failed(error: &Error) -> ExitCode {
    // If not even standard error can be written, the code must do.
    let _ = writeln!(
        std::io::stderr(),
        "error: {error:?}\n  remedy: {}",
        error.kind().entry().remedy
    );
    code(error.kind()).into()
}

fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidUrl
        | ErrorKind::InvalidConfig
        | ErrorKind::InvalidName
        | ErrorKind::InvalidFilter => 2,
        ErrorKind::Disconnected | ErrorKind::TimedOut => 4,
        ErrorKind::NotPermitted => 5,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_usage_from_failure_from_absence() {
        for (kind, expected) in [
            (ErrorKind::InvalidUrl, 2),
            (ErrorKind::InUse, 1),
            (ErrorKind::DrainIncomplete, 1),
            (ErrorKind::Disconnected, 4),
            (ErrorKind::NotPermitted, 5),
        ] {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }
}
