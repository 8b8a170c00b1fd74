//! What only the engine itself can see.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use trunkline_core::SystemClock;

use super::{LogEngine, LogOptions, directory, slot};

#[test]
fn opening_one_directory_waits_for_no_other() {
    let root = std::env::temp_dir().join(format!("trunkline-slots-{}", std::process::id()));
    let options = |name: &str| LogOptions {
        segment_bytes: LogOptions::MIN_SEGMENT_BYTES,
        ..LogOptions::new(root.join(name))
    };
    let slow = slot(&directory::place(&options("slow").dir).unwrap());
    // As long as this is held, somebody is opening that directory.
    let opening = slow.lock();
    let (done, opened) = mpsc::channel();
    let other = options("other");
    std::thread::spawn(move || {
        let engine = LogEngine::connect(&other, Arc::new(SystemClock));
        let again = LogEngine::connect(&other, Arc::new(SystemClock));
        done.send(engine.is_ok() && again.is_ok()).unwrap();
    });
    assert_eq!(opened.recv_timeout(Duration::from_secs(30)), Ok(true));
    drop(opening);
    std::fs::remove_dir_all(&root).unwrap();
}
