//! Three servers that are one.
#![cfg(unix)]
// Helpers of tests are tests to a reader, though not to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use trunkline_nats_server::{Cluster, ErrorKind, ServerOptions, obtain};

/// Two elections on a busy machine; both have a deadline of 30 s of their own.
const WATCHDOG: Duration = Duration::from_secs(70);

fn in_time(what: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        what();
        sender.send(())
    });
    if receiver.recv_timeout(WATCHDOG).is_err() {
        assert!(thread.is_finished(), "it hangs");
        thread.join().unwrap().unwrap();
    }
}

#[test]
fn three_servers_have_one_leader_and_another_one_when_it_is_killed() {
    in_time(|| {
        let mut cluster = Cluster::start(&obtain().unwrap(), 3, ServerOptions::default()).unwrap();
        assert_eq!(cluster.servers().len(), 3);
        assert_eq!(cluster.url().split(',').count(), 3);
        let leader = cluster.meta_leader().unwrap();
        cluster.servers_mut()[leader].kill().unwrap();
        cluster.wait_for_leader().unwrap();
        assert_ne!(cluster.meta_leader().unwrap(), leader);
        cluster.servers_mut()[leader].restart().unwrap();
        cluster.wait_for_leader().unwrap();
    });
}

#[test]
fn options_that_servers_cannot_share_are_refused() {
    let binary = obtain().unwrap();
    let fixed = ServerOptions {
        port: 4222,
        ..ServerOptions::default()
    };
    let memory = ServerOptions {
        jetstream: false,
        ..ServerOptions::default()
    };
    for (n, options) in [(1, ServerOptions::default()), (3, fixed), (3, memory)] {
        let error = Cluster::start(&binary, n, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }
}
