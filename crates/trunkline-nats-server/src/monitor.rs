//! Asking a server how it is: its greeting, and its HTTP monitor.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// A server on loopback that has not answered by then is asked again.
const PATIENCE: Duration = Duration::from_millis(500);

/// The most bytes of an answer that are read.
const MAX_ANSWER: u64 = 1024 * 1024;

fn connect(port: u16) -> Option<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}

/// Whether a connection can be made at all.
pub(crate) fn accepts(port: u16) -> bool {
    connect(port).is_some()
}

/// Whether a NATS server greets there.
pub(crate) fn greets(port: u16) -> bool {
    let greeting = || {
        let stream = connect(port)?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_ANSWER))
            .read_line(&mut line)
            .ok()?;
        Some(line)
    };
    greeting().is_some_and(|line| line.starts_with("INFO {"))
}

/// What the monitor says under that path.
pub(crate) fn get(port: u16, path: &str) -> Option<Value> {
    let mut stream = connect(port)?;
    // HTTP/1.0, so that the answer ends with the connection and comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if head.split_whitespace().nth(1) != Some("200") {
        return None;
    }
    serde_json::from_str(body).ok()
}

/// JetStream's own state, as one server sees it.
pub(crate) struct Meta {
    /// The name of the leader.
    pub(crate) leader: String,
    /// How many servers there are.
    pub(crate) size: u64,
    /// How many others have what the leader has, if it is the leader that is asked. Others know only
    /// of the leader.
    pub(crate) current: usize,
}

/// JetStream's own state as that server sees it, if it knows a leader.
pub(crate) fn meta(port: u16) -> Option<Meta> {
    let answer = get(port, "/jsz")?;
    let meta = answer.get("meta_cluster")?;
    let leader = meta.get("leader")?.as_str()?;
    let size = meta.get("cluster_size")?.as_u64()?;
    let replicas = meta.get("replicas").and_then(Value::as_array);
    let is_current = |replica: &&Value| replica["current"].as_bool() == Some(true);
    let current = replicas.map_or(0, |all| all.iter().filter(is_current).count());
    (!leader.is_empty()).then(|| Meta {
        leader: leader.to_owned(),
        size,
        current,
    })
}
