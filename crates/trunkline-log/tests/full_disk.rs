//! A disk that is filled to its last byte: what cannot be stored is refused, what was acknowledged stays, and
//! all goes on when there is room.
//!
//! The disk is a small one in memory, in a namespace of its own. Where the machine forbids that, it is the
//! simulated one.
#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use support::engine::{append, commit, committed, events, make, name, open, work};
use trunkline_core::engine::{Batch, Credit, Engine, Fetched, Retention, Seq, Settle};
use trunkline_core::{Error, ErrorKind, Result, SystemClock};
use trunkline_log::inspect::Directory;
use trunkline_log::sim::SimDisk;
use trunkline_log::{LogEngine, LogOptions, SyncPolicy};

/// Tells the test that it is the one within the namespace, and where the small disk is.
const WITHIN: &str = "TRUNKLINE_SMALL_DISK";
const NAME: &str = "f2_a_disk_that_is_full_to_the_last_byte_refuses_and_serves_again";
/// Room for the journal and some segments.
const SIZE: &str = "size=64m";

enum Small {
    Real(PathBuf),
    Simulated(SimDisk),
}

impl Small {
    fn open(&self) -> Result<LogEngine> {
        match self {
            Self::Real(dir) => {
                let options = LogOptions {
                    segment_bytes: LogOptions::MIN_SEGMENT_BYTES,
                    ..LogOptions::new(dir.join("data"))
                };
                LogEngine::connect(&options, Arc::new(SystemClock))
            }
            Self::Simulated(disk) => open(disk, SyncPolicy::Always),
        }
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        match self {
            Self::Real(dir) => {
                let mut filler = fs::File::create(dir.join("filler")).unwrap();
                for size in [64 << 10, 1] {
                    while filler.write_all(&vec![7; size]).is_ok() {}
                }
            }
            Self::Simulated(disk) => disk.set_capacity(Some(disk.used())),
        }
    }

    fn free(&self) {
        match self {
            Self::Real(dir) => fs::remove_file(dir.join("filler")).unwrap(),
            Self::Simulated(disk) => disk.set_capacity(None),
        }
    }

    fn verify(&self) {
        let found = match self {
            Self::Real(dir) => Directory::at(dir.join("data")).unwrap(),
            // It has no file that says whose it is.
            Self::Simulated(_) => return,
        };
        let found = found.verify(&mut |_| {}).unwrap();
        assert_eq!(found.damage().count(), 0, "{:#?}", found.findings);
    }
}

fn is_full(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::OverQuota, "{error:?}");
    assert!(error.retryable());
}

async fn live(small: &Small) {
    let engine = small.open().unwrap();
    let (stream, queue) = (name("EVENTS"), name("COMMANDS"));
    make(&engine, &stream, Retention::DiscardOld).await;
    make(&engine, &queue, Retention::WorkQueue).await;
    let commands = [Bytes::from("one"), Bytes::from("two"), Bytes::from("three")];
    append(&engine, &queue, &commands).await.unwrap();
    let mut known: BTreeMap<Seq, Bytes> = BTreeMap::new();
    let mut publish = async |engine: &LogEngine, size: usize| {
        let body = Bytes::from(vec![known.len().to_le_bytes()[0]; size]);
        let seqs = append(engine, &stream, std::slice::from_ref(&body)).await?;
        known.insert(seqs[0], body);
        Ok::<_, Error>(())
    };
    small.fill();
    // Large ones first, then whatever fits into the room that the segment has reserved.
    for size in [1 << 19, 1 << 12, 1] {
        let refused = loop {
            if let Err(error) = publish(&engine, size).await {
                break error;
            }
        };
        is_full(&refused);
    }
    for _ in 0..20 {
        is_full(&publish(&engine, 100).await.unwrap_err());
    }
    let mut keys = 0;
    let refused = loop {
        keys += 1;
        if let Err(error) = commit(&engine, keys).await {
            break error;
        }
        if keys > 200_000 {
            panic!("the journal takes keys for ever");
        }
    };
    is_full(&refused);
    assert_eq!(committed(&engine).await, Some(keys - 1));
    // Reading goes on, and commands can be given. Whether they can be acknowledged depends on the room that is
    // kept; who is refused is owed it.
    let mut given = Vec::new();
    let (mut feed, settler) = engine.consume().open(&work(&queue)).await.unwrap();
    let fetched = feed.fetch(Credit::items(3), &mut given).await.unwrap();
    assert!(matches!(fetched, Fetched::Deliveries(3)));
    for delivery in &given[..2] {
        let batch = Batch::from_iter([(delivery.token, Settle::Ack)]);
        if let Err(error) = settler.settle(batch, true).completed().await {
            is_full(&error);
        }
    }
    engine.close().await;
    drop((feed, settler, engine));
    // A full disk does not keep it from being opened, or it says that it is full.
    match small.open() {
        Ok(engine) => {
            is_full(&publish(&engine, 100).await.unwrap_err());
            engine.close().await;
        }
        Err(error) => is_full(&error),
    }
    small.verify();
    small.free();
    let engine = small.open().unwrap();
    for size in [100, 1 << 19] {
        publish(&engine, size).await.unwrap();
    }
    commit(&engine, keys).await.unwrap();
    assert_eq!(
        events(&engine, &stream).await,
        known,
        "nothing is lost, nothing is there twice"
    );
    let left = events(&engine, &queue).await.len();
    let pending = engine
        .topology()
        .backlog(&work(&queue))
        .await
        .unwrap()
        .pending;
    assert!(
        (1..=3).contains(&left) && pending == left as u64,
        "{left} {pending}"
    );
    engine.close().await;
    small.verify();
    let engine = small.open().unwrap();
    assert_eq!(events(&engine, &stream).await, known);
    assert_eq!(committed(&engine).await, Some(keys));
    engine.close().await;
    #[expect(
        clippy::print_stdout,
        reason = "how much went in is what the run is for"
    )]
    {
        println!("{} events and {keys} commits on a full disk", known.len());
    }
}

/// Runs a command with a small disk at `dir`, which is gone with it.
fn within(dir: &Path, command: &[&str]) -> Command {
    let mut unshare = Command::new("unshare");
    let mount = format!("mount -t tmpfs -o {SIZE} none \"$1\" && shift && exec \"$@\"");
    unshare.args(["-Urm", "sh", "-c", &mount, "sh"]).arg(dir);
    unshare.args(command);
    unshare
}

#[test]
fn f2_a_disk_that_is_full_to_the_last_byte_refuses_and_serves_again() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    if let Some(dir) = std::env::var_os(WITHIN) {
        return runtime.block_on(live(&Small::Real(dir.into())));
    }
    let dir = std::env::temp_dir().join(format!("trunkline-full-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let can = within(&dir, &["true"]).output();
    if can.is_ok_and(|can| can.status.success()) {
        let own = std::env::current_exe().unwrap();
        let own = own.to_str().unwrap();
        let done = within(&dir, &[own, "--exact", NAME, "--nocapture"])
            .env(WITHIN, &dir)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        println!("{said}{}", String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success());
        assert!(said.contains("on a full disk"), "it was not run");
    } else {
        println!("this machine lends no small disk, so it is a simulated one");
        runtime.block_on(live(&Small::Simulated(SimDisk::new(1))));
    }
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn f2_a_simulated_disk_that_is_full_refuses_and_serves_again() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(live(&Small::Simulated(SimDisk::new(1))));
}
