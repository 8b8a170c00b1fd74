//! The monitoring endpoint of one server, over plain HTTP.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::Asking;
use crate::doctor::snapshot::{JetStreamSettings, Monitor, NotSeen, Subscription};

/// Bytes of one answer at most.
const MOST_BYTES: u64 = 64 << 20;
/// Connections of one page, and pages.
const PAGE: usize = 1_000;
const PAGES: usize = 20;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Jsz {
    disabled: bool,
    storage: u64,
    config: Option<JszConfig>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JszConfig {
    sync_always: bool,
    sync_interval: u64,
    max_storage: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Connz {
    total: usize,
    connections: Vec<Connection>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Connection {
    cid: u64,
    name: String,
    subscriptions_list_detail: Vec<Subscription>,
}

pub(super) async fn look(
    asking: &Asking<'_>,
    url: &str,
    own: u64,
    not_seen: &mut Vec<NotSeen>,
) -> Monitor {
    let mut missing = |part: &str, why: String| {
        not_seen.push(NotSeen {
            part: part.to_owned(),
            why,
            denied: false,
        });
    };
    let mut monitor = Monitor::default();
    match get::<Jsz>(asking, url, "/jsz?config=1").await {
        Ok(jsz) if !jsz.disabled => {
            monitor.jetstream = jsz.config.map(|config| JetStreamSettings {
                sync_always: config.sync_always,
                sync_interval: config.sync_interval,
                max_storage: config.max_storage,
                storage: jsz.storage,
            });
            missing(
                "whether max_file_store is the whole volume",
                "the server does not tell the size of its volume; keep it at 80 % or below"
                    .to_owned(),
            );
        }
        Ok(_) => {}
        Err(why) => missing("disk settings", why),
    }
    let mut connections = Vec::new();
    for _ in 0..PAGES {
        let path = format!(
            "/connz?subs=detail&limit={PAGE}&offset={}",
            connections.len()
        );
        match get::<Connz>(asking, url, &path).await {
            Ok(page) => {
                let empty = page.connections.is_empty();
                connections.extend(page.connections);
                if empty || connections.len() >= page.total {
                    break;
                }
            }
            Err(why) => {
                missing("live subscriptions", why);
                return monitor;
            }
        }
    }
    if connections.len() >= PAGE * PAGES {
        missing(
            "some live subscriptions",
            format!("only {} connections are looked at", PAGE * PAGES),
        );
    }
    let account = connections
        .iter()
        .find(|connection| connection.cid == own)
        .and_then(|connection| connection.subscriptions_list_detail.first())
        .map(|own| own.account.clone());
    let all = connections.into_iter().filter(|one| one.cid != own);
    let subscriptions = all.flat_map(|connection| {
        let (cid, client) = (connection.cid, connection.name);
        let details = connection.subscriptions_list_detail.into_iter();
        details.map(move |one| Subscription {
            cid,
            client: client.clone(),
            ..one
        })
    });
    // Subjects of another account are other subjects.
    monitor.subscriptions = Some(
        subscriptions
            .filter(|one| account.as_ref().is_none_or(|own| one.account == *own))
            .collect(),
    );
    monitor
}

/// One page of the endpoint as JSON. HTTP/1.0, so that the body simply ends with the connection.
async fn get<T: DeserializeOwned>(asking: &Asking<'_>, url: &str, path: &str) -> Result<T, String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| {
        "the monitoring endpoint is read over plain http only; name it as http://HOST:PORT"
            .to_owned()
    })?;
    let (authority, base) = match rest.split_once('/') {
        Some((authority, base)) => (authority, base.trim_end_matches('/')),
        None => (rest, ""),
    };
    let slash = if base.is_empty() { "" } else { "/" };
    if authority.contains(['@', '\r', '\n', ' ']) || base.contains(['\r', '\n', ' ']) {
        return Err(
            "the monitoring endpoint is named as http://HOST:PORT, without credentials".to_owned(),
        );
    }
    let target = if authority
        .rsplit(']')
        .next()
        .is_some_and(|tail| tail.contains(':'))
    {
        authority.to_owned()
    } else {
        format!("{authority}:8222")
    };
    let until = asking
        .until
        .min(Instant::now() + asking.options.answer_within);
    let exchange = async {
        let mut stream = TcpStream::connect(&target).await?;
        let request = format!("GET {slash}{base}{path} HTTP/1.0\r\nHost: {authority}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MOST_BYTES).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = match timeout_at(until, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(format!("http://{target} cannot be read: {error}")),
        Err(_) => return Err(format!("http://{target} did not answer in time")),
    };
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = match end {
        Some(end) => (&answer[..end], &answer[end + 4..]),
        None => return Err(format!("http://{target} does not speak HTTP")),
    };
    let head = String::from_utf8_lossy(head);
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        return Err(format!("http://{target} answers {status}"));
    }
    serde_json::from_slice(body)
        .map_err(|error| format!("http://{target} is no NATS monitoring: {error}"))
}
