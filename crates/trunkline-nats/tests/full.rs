//! No room: a stream, an account, a server and a disk that are full, and room again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test panics where it fails, and says what it skipped"
)]

mod servers;

use trunkline_core::ErrorKind;
use trunkline_core::engine::{Change, Credit, Engine, Outcome, Position, Removal, StreamSpec};
use trunkline_nats::{Auth, NatsEngine, NatsOptions};
use trunkline_nats_server::{Binary, NatsServer, ServerOptions, obtain};

use servers::{append, at, connect, error_of, event, is, make, name, server_with, soon, spec};

fn seq(outcome: &Outcome) -> Option<u64> {
    match outcome {
        Outcome::Stored { seq, .. } => Some(*seq),
        _ => None,
    }
}

/// How many events the stream holds.
async fn held(engine: &NatsEngine) -> u64 {
    let inspection = soon(engine.topology().inspect()).await.unwrap();
    inspection.streams[0].events
}

#[tokio::test(flavor = "multi_thread")]
async fn f2_a_stream_is_full() {
    let server = servers::server("");
    let engine = connect(&at(&server.url())).await.unwrap();
    let full = StreamSpec {
        max_events: Some(100),
        ..spec("LOG", "log.*")
    };
    make(&engine, full).await.unwrap();
    let events = (0..150)
        .map(|n| event(&format!("log.{n}"), n, 10))
        .collect();
    let outcomes = append(&engine, "LOG", events).await;
    assert_eq!(outcomes.iter().filter_map(seq).count(), 100);
    for outcome in outcomes.iter().filter(|outcome| seq(outcome).is_none()) {
        is(error_of(outcome), ErrorKind::StreamFull, &["limit"]);
    }
    assert_eq!(held(&engine).await, 100);
    soon(engine.log().remove(&name("LOG"), Removal::Before(51)))
        .await
        .unwrap();
    let again = (150..200)
        .map(|n| event(&format!("log.{n}"), n, 10))
        .collect();
    let again = append(&engine, "LOG", again).await;
    assert!(
        again.iter().all(|outcome| seq(outcome).is_some()),
        "{again:?}"
    );
    assert_eq!(held(&engine).await, 100);
}

/// Fills it until it is refused, which is said so, and goes on after a purge.
async fn fills(engine: &NatsEngine, kind: ErrorKind, limit: usize) {
    make(engine, spec("LOG", "log.*")).await.unwrap();
    let mut stored = 0;
    let mut refusals = 0;
    let event_bytes = 64 << 10;
    let mut number = 0;
    while refusals < 5 {
        let events = (0..16)
            .map(|n| event(&format!("log.{n}"), number + n, event_bytes))
            .collect();
        number += 16;
        let outcomes = append(engine, "LOG", events).await;
        let now = outcomes.iter().filter_map(seq).count();
        stored += now as u64;
        for outcome in outcomes.iter().filter(|outcome| seq(outcome).is_none()) {
            is(error_of(outcome), kind, &["limit"]);
        }
        refusals += usize::from(now < 16);
        assert!(
            number * event_bytes < 4 * limit,
            "{number} events and no end"
        );
    }
    assert!(stored > 0);
    assert_eq!(
        held(engine).await,
        stored,
        "what was acknowledged, and nothing else"
    );
    let purged = soon(
        engine
            .log()
            .remove(&name("LOG"), Removal::Before(u64::MAX >> 1)),
    )
    .await;
    assert_eq!(purged.unwrap(), stored);
    for _ in 0..5 {
        let events = (0..4)
            .map(|n| event(&format!("log.{n}"), number + n, event_bytes))
            .collect();
        number += 4;
        let outcomes = append(engine, "LOG", events).await;
        assert!(
            outcomes.iter().all(|outcome| seq(outcome).is_some()),
            "{outcomes:?}"
        );
    }
    assert_eq!(held(engine).await, 20);
}

const LIMIT: usize = 8 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn f2_a_servers_store_is_full() {
    let server = server_with(ServerOptions {
        max_file_store: Some(LIMIT as u64),
        ..ServerOptions::default()
    });
    let engine = connect(&at(&server.url())).await.unwrap();
    fills(&engine, ErrorKind::OverQuota, LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f2_an_account_is_over_its_quota() {
    let server = servers::server(&format!(
        "accounts {{ A {{ jetstream {{ max_file: {LIMIT}, max_streams: 2 }}, \
         users: [{{ user: a, password: s3cret-w0rd }}] }} }}"
    ));
    let options = NatsOptions {
        auth: Auth::User {
            user: "a".to_owned(),
            password: servers::SECRET.to_owned(),
        },
        ..at(&server.url())
    };
    let engine = connect(&options).await.unwrap();
    fills(&engine, ErrorKind::OverQuota, LIMIT).await;
    make(&engine, spec("SECOND", "second")).await.unwrap();
    let error = make(&engine, spec("THIRD", "third")).await.unwrap_err();
    is(&error, ErrorKind::OverQuota, &["THIRD", "limit"]);
}

/// A nats-server whose store is a volume of this size that only it sees. None where namespaces are
/// not permitted.
#[cfg(target_os = "linux")]
fn on_a_small_volume(folder: &std::path::Path, mebibytes: usize) -> Option<Binary> {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    let mount = format!("mount -t tmpfs -o size={mebibytes}m tmpfs");
    let store = folder.join("store");
    std::fs::create_dir(&store).unwrap();
    let tried = Command::new("unshare")
        .args(["-rm", "sh", "-c", &format!("{mount} '{}'", store.display())])
        .output();
    match tried {
        Ok(output) if output.status.success() => {}
        other => {
            println!("skipped, no volume of its own can be had here: {other:?}");
            return None;
        }
    }
    let real = obtain().unwrap();
    let script = folder.join("nats-server-on-a-small-volume");
    let text = format!(
        "#!/bin/sh\nexec unshare -rm sh -c '{mount} \"{}\" && exec \"{}\" \"$@\"' sh \"$@\"\n",
        store.display(),
        real.path.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    Some(Binary {
        path: script,
        ..real
    })
}

/// The server is allowed more than its volume has. It cannot even purge then: what is left is to say
/// so, and to have lost nothing.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn f2_a_disk_is_really_full() {
    let folder = std::env::temp_dir().join(format!("trunkline-full-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    if let Some(binary) = on_a_small_volume(&folder, 12) {
        let options = ServerOptions {
            store_dir: Some(folder.join("store")),
            max_file_store: Some(1 << 30),
            ..ServerOptions::default()
        };
        let server = NatsServer::start(&binary, options).unwrap();
        let engine = connect(&at(&server.url())).await.unwrap();
        make(&engine, spec("LOG", "log.*")).await.unwrap();
        let (mut stored, mut failed) = (Vec::new(), 0);
        for number in (0..640).step_by(16) {
            let events: Vec<_> = (0..16)
                .map(|n| event(&format!("log.{n}"), number + n, 64 << 10))
                .collect();
            let outcomes = append(&engine, "LOG", events).await;
            stored.extend(outcomes.iter().filter_map(seq));
            for outcome in &outcomes {
                match outcome {
                    Outcome::Stored { .. } => {}
                    Outcome::Refused(error) | Outcome::Unknown(error) => {
                        let kind = error.kind();
                        println!("{error}");
                        let typed = [
                            ErrorKind::OverQuota,
                            ErrorKind::TimedOut,
                            ErrorKind::Disconnected,
                            ErrorKind::BehindFailed,
                        ];
                        assert!(typed.contains(&kind), "{error}");
                        failed += 1;
                    }
                }
            }
            if failed > 0 {
                break;
            }
        }
        assert!(
            failed > 0 && stored.len() > 20,
            "{failed} failed, {} stored",
            stored.len()
        );
        println!("{} stored, {failed} failed", stored.len());
        // What was acknowledged can still be read.
        let (mut read, mut from) = (Vec::new(), Position::First);
        loop {
            let stream = name("LOG");
            let page = engine.log().read(&stream, from, &[], Credit::items(64));
            let page = soon(page).await.unwrap();
            if page.events.is_empty() {
                break;
            }
            from = Position::Seq(page.next);
            read.extend(page.events.iter().map(|event| event.seq));
        }
        let lost: Vec<_> = stored.iter().filter(|seq| !read.contains(seq)).collect();
        assert!(lost.is_empty(), "{lost:?} were acknowledged and are gone");
        soon(engine.close()).await;
    }
    let _ = std::fs::remove_dir_all(&folder);
}

// With its last stream the server removes the folder of its streams, a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_made_as_the_last_one_goes() {
    let server = servers::server("");
    let engine = connect(&at(&server.url())).await.unwrap();
    for round in 0..500 {
        make(&engine, spec("LOG", "log.*")).await.unwrap();
        append(&engine, "LOG", vec![event("log.a", round, 1)]).await;
        let gone = vec![Change::DeleteStream(name("LOG"))];
        soon(engine.topology().apply(gone)).await.unwrap();
    }
    soon(engine.close()).await;
}
