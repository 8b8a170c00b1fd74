use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use trunkline_nats_server::obtain;

use super::*;

/// No test should need a fraction of this.
const WATCHDOG: Duration = Duration::from_secs(30);

const QUICK: Pace = Pace {
    first_wait: Duration::from_millis(1),
    restarts: 3,
    steady_after: Duration::from_secs(60),
};

/// A server under watch, and what is told of it.
fn start(binary: &Binary) -> (Child, Receiver<String>, PathBuf) {
    let server = NatsServer::start(binary, ServerOptions::default()).unwrap();
    let log = server.log_path();
    let (sender, told) = mpsc::channel();
    let tell = move |text| sender.send(text).unwrap_or_default();
    (Child::watched(binary, server, QUICK, tell), told, log)
}

/// The process that wrote the last line of the log, `[PID] DATE ...`.
fn writer(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap();
    let last = text.lines().rev().find(|line| line.starts_with('['));
    let (pid, _) = last.unwrap()[1..].split_once(']').unwrap();
    pid.to_owned()
}

fn kill(pid: &str) {
    assert!(
        Command::new("kill")
            .args(["-KILL", pid])
            .status()
            .unwrap()
            .success()
    );
}

fn accepts(child: &Child) -> bool {
    let address = child.url().replace("nats://", "");
    TcpStream::connect(address).is_ok()
}

#[tokio::test]
async fn a_server_that_is_killed_runs_again_at_the_same_address_and_is_stopped() {
    let (child, told, log) = start(&obtain().unwrap());
    let pid = writer(&log);
    kill(&pid);
    let lost = told.recv_timeout(WATCHDOG).unwrap();
    for part in [
        &format!("nats-server {pid} ended"),
        "Server is ready",
        "again in 1 ms",
    ] {
        assert!(lost.contains(part), "{part} in {lost}");
    }
    let back = told.recv_timeout(WATCHDOG).unwrap();
    assert!(back.contains("runs again"), "{back}");
    assert!(accepts(&child));
    let url = child.url();
    child.stop().await.unwrap();
    assert!(TcpStream::connect(url.replace("nats://", "")).is_err());
}

#[tokio::test]
async fn a_server_that_does_not_come_back_is_given_up() {
    // It runs once; a second server refuses.
    let folder = std::env::temp_dir().join(format!("trunkline-once-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let real = obtain().unwrap();
    let program = folder.join("nats-server");
    let script = format!(
        "#!/bin/sh\n[ -e '{0}/ran' ] && echo out of luck && exit 1\n: > '{0}/ran'\nexec '{1}' \"$@\"\n",
        folder.display(),
        real.path.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let binary = Binary {
        path: program,
        ..real
    };
    let (mut child, told, log) = start(&binary);
    kill(&writer(&log));
    child.gave_up().await;
    assert!(!accepts(&child));
    let error = child.stop().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(error.to_string().contains("3 restarts"), "{error}");
    let told: Vec<String> = told.iter().collect();
    assert_eq!(told.len(), 4, "{told:#?}");
    assert!(
        told[1..].iter().all(|text| text.contains("out of luck")),
        "{told:#?}"
    );
    fs::remove_dir_all(folder).unwrap();
}
