//! Who serves a directory to other processes, when the program has several runtimes.
#![cfg(all(unix, feature = "log", feature = "remote"))]
#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::runtime::Runtime;
use trunkline::Bus;

/// Whether somebody at the socket answers the handshake of a client.
fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let hello = "GET /v1/engine HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(hello.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).is_ok() && &answer == b"HTTP/1.1 101"
}

#[test]
fn a_directory_is_served_for_as_long_as_anybody_in_the_process_has_it_open() {
    let dir = std::env::temp_dir().join(format!("trunkline-serving-{}", std::process::id()));
    let (url, socket) = (format!("file:{}", dir.display()), dir.join("bus.sock"));
    let [first, second] = [Runtime::new().unwrap(), Runtime::new().unwrap()];
    let opened = first.block_on(async { Bus::connect(&url).await }).unwrap();
    let joined = second.block_on(async { Bus::connect(&url).await }).unwrap();
    assert!(answers(&socket));
    // A program that ends the runtime on which it opened the directory first.
    drop(opened);
    first.shutdown_timeout(Duration::from_secs(30));
    assert!(answers(&socket), "the other one has it open still");
    second.block_on(joined.close()).unwrap();
    assert!(!answers(&socket), "nobody has it open any more");
    std::fs::remove_dir_all(&dir).unwrap();
}
