//! A served door, and an HTTP client over a real connection.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use trunkline::Bus;
use trunkline_gateway::{Door, DoorConfig, serve};

/// No test should need a fraction of this.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(30);

pub(crate) struct Served {
    pub(crate) bus: Bus,
    pub(crate) authority: String,
    pub(crate) stop: oneshot::Sender<()>,
    pub(crate) serving: JoinHandle<trunkline::Result<()>>,
}

pub(crate) async fn served(bus: Bus, config: DoorConfig) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    let door = Door::new(bus.clone(), config).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve(listener, door, async {
        let _ = stopped.await;
    }));
    Served {
        bus,
        authority,
        stop,
        serving,
    }
}

pub(crate) async fn memory() -> Served {
    served(
        Bus::connect("memory:").await.unwrap(),
        DoorConfig::default(),
    )
    .await
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Incoming,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) async fn text(self) -> String {
        let body = tokio::time::timeout(WATCHDOG, self.body.collect())
            .await
            .expect("the body ends")
            .unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    pub(crate) async fn json(self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    pub(crate) fn blocks(self, end: &'static str) -> Blocks {
        Blocks {
            body: self.body,
            end,
            rest: String::new(),
        }
    }
}

/// A body in parts: blocks of server-sent events, or lines.
pub(crate) struct Blocks {
    body: Incoming,
    end: &'static str,
    rest: String,
}

impl Blocks {
    /// The next part, or none at the body's proper end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.rest.find(self.end) {
                let block = self.rest[..at].to_owned();
                self.rest.drain(..at + self.end.len());
                return Some(block);
            }
            let frame = tokio::time::timeout(WATCHDOG, self.body.frame())
                .await
                .expect("something comes");
            let Some(frame) = frame else {
                assert_eq!(self.rest, "", "the body ends with a whole part");
                return None;
            };
            self.rest
                .push_str(str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
        }
    }

    /// The next server-sent event that has data, as its id and its data.
    pub(crate) async fn event(&mut self) -> Option<(String, Value)> {
        loop {
            let block = self.next().await?;
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map(str::to_owned)
            };
            if let Some(data) = field("data: ") {
                return Some((
                    field("id: ").unwrap_or_default(),
                    serde_json::from_str(&data).unwrap(),
                ));
            }
        }
    }
}

impl Served {
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let stream = TcpStream::connect(&self.authority).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", &self.authority);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let response = tokio::time::timeout(WATCHDOG, sender.send_request(request))
            .await
            .expect("an answer")
            .unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::GET, path, headers, "").await
    }

    pub(crate) async fn post(
        &self,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Answer {
        self.send(Method::POST, path, &[("content-type", content_type)], body)
            .await
    }

    /// Publishes an event of this id and type, and checks that it is stored.
    pub(crate) async fn put(&self, id: &str, event_type: &str) {
        let answer = self
            .post(
                "/v1/events",
                "application/cloudevents+json",
                event(id, event_type),
            )
            .await;
        assert_eq!(answer.status, 200);
    }

    pub(crate) async fn tail(&self, query: &str, last_event_id: Option<&str>) -> Blocks {
        let mut headers = vec![("accept", "text/event-stream")];
        headers.extend(last_event_id.map(|id| ("last-event-id", id)));
        let answer = self.get(&format!("/v1/events{query}"), &headers).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, "text/event-stream")
        );
        answer.blocks("\n\n")
    }

    pub(crate) async fn ids(&self, query: &str) -> Vec<String> {
        let text = self
            .get(&format!("/v1/events{query}"), &[])
            .await
            .text()
            .await;
        let id = |line: &str| {
            serde_json::from_str::<Value>(line).unwrap()["id"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        text.lines().map(id).collect()
    }
}

pub(crate) fn event(id: &str, event_type: &str) -> String {
    format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"{event_type}","data":{{"n":"{id}"}}}}"#
    )
}
