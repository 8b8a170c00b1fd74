//! The command of a worker: found before anything is started, and told of each event.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{Access, access};
use tokio::process::Command;
use trunkline::{Context, Error, ErrorKind, Name, Result};

/// The longest value that a variable is given; what is longer is in the event.
const MAX_VARIABLE_BYTES: usize = 32 * 1024;

/// A file that can be run, with its arguments.
#[derive(Debug)]
pub(super) struct Program {
    file: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// Finds the command as a shell would: on the PATH, unless it is a path itself.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] with the path when there is none or it cannot be run.
    pub(super) fn find(exec: &[OsString]) -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let (name, arguments) = exec
            .split_first()
            .ok_or_else(|| refused("--exec wants a command".to_owned()))?;
        Ok(Self {
            file: find(name, &path)?,
            arguments: arguments.to_vec(),
        })
    }

    /// The command for one event, in a group of its own.
    pub(super) fn command(&self, context: &Context) -> Command {
        let mut command = Command::new(&self.file);
        command
            .args(&self.arguments)
            .process_group(0)
            .stdout(Stdio::inherit())
            .stderr(Stdio::piped());
        let event = context.meta();
        let attempt = context.attempt().to_string();
        let seq = event.seq().map(|seq| seq.to_string());
        let id = event.id().to_string();
        let once = context.idempotency_key();
        let epoch = context
            .epoch()
            .map(|epoch| format!("{}.{}", epoch.generation, epoch.revision));
        for (name, value) in [
            ("TRUNKLINE_CONSUMER", Some(context.consumer().as_str())),
            ("TRUNKLINE_STREAM", event.stream().map(Name::as_str)),
            ("TRUNKLINE_SEQ", seq.as_deref()),
            ("TRUNKLINE_ATTEMPT", Some(attempt.as_str())),
            ("TRUNKLINE_EVENT_ID", Some(id.as_str())),
            ("TRUNKLINE_IDEMPOTENCY_KEY", Some(once.as_str())),
            ("TRUNKLINE_EPOCH", epoch.as_deref()),
            ("TRUNKLINE_EVENT_TYPE", Some(event.event_type())),
            ("TRUNKLINE_KEY", event.key()),
        ] {
            // With one value that no environment holds, the command could never be started.
            match value.filter(|value| value.len() <= MAX_VARIABLE_BYTES && !value.contains('\0')) {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())
    }
}

fn find(name: &OsStr, path: &OsStr) -> Result<PathBuf> {
    let file = Path::new(name);
    if file.components().count() > 1 || file.is_absolute() {
        return match fault(file) {
            None => Ok(file.to_owned()),
            Some(fault) => Err(refused(format!(
                "{} cannot be run: {fault}",
                file.display()
            ))),
        };
    }
    let mut found = env::split_paths(path).map(|folder| folder.join(file));
    found
        .find(|candidate| fault(candidate).is_none())
        .ok_or_else(|| {
            refused(format!(
                "there is no command {} on the PATH; give its path, as in ./{}",
                file.display(),
                file.display()
            ))
        })
}

/// Why a file cannot be run.
fn fault(file: &Path) -> Option<String> {
    match file.metadata() {
        Err(error) => Some(error.to_string()),
        Ok(found) if !found.is_file() => Some("it is no file".to_owned()),
        Ok(_) => access(file, Access::EXEC_OK)
            .err()
            .map(|_| "it is not executable; chmod +x makes it so".to_owned()),
    }
}

fn refused(fault: String) -> Error {
    Error::new(ErrorKind::InvalidConfig, fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_found_as_a_shell_finds_it() {
        let found = |name: &str, path: &str| find(name.as_ref(), path.as_ref());
        assert_eq!(found("sh", "/nowhere:/bin").unwrap(), Path::new("/bin/sh"));
        assert_eq!(found("/bin/sh", "").unwrap(), Path::new("/bin/sh"));
        for (name, said) in [
            ("sh", "no command sh on the PATH"),
            ("./nothing-here", "./nothing-here cannot be run"),
            ("/", "/ cannot be run: it is no file"),
            (
                "/etc/passwd",
                "/etc/passwd cannot be run: it is not executable",
            ),
        ] {
            let error = found(name, "/nowhere").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.message().contains(said), "{error}");
        }
    }
}
