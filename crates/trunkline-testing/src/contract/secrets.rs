//! What must never be seen: B2.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use trunkline::core::engine::LinkOptions;
use trunkline::{Bus, FailureExt};

use super::Trial;
use crate::TrackedSession;
use crate::fixture::Noted;

const SECRET: &str = "hunter2";

/// Log lines, kept.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// A client that writes every byte of the wire into its log when it is asked for everything; our
/// binary never asks it to.
const CLIENT_THAT_LOGS_ITS_BYTES: &str = "async_nats";

pub(super) async fn b2_no_credential_is_ever_printed(trial: Trial) {
    // On a thread of its own, because there a subscriber hears everything that the bus's tasks log.
    let life = move || {
        let lines = Lines::default();
        let captured = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(format!(
                "trace,{CLIENT_THAT_LOGS_ITS_BYTES}=info"
            )))
            .with_writer(lines.clone())
            .finish();
        let _captured = tracing::subscriber::set_default(captured);
        // Of one dispatcher alone `tracing` asks only the thread that comes to an event first, which is
        // perhaps that of another test, and remembers the answer for all.
        let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(say_everything(trial, lines));
    };
    tokio::task::spawn_blocking(life).await.unwrap();
}

async fn say_everything(trial: Trial, lines: Lines) {
    let mut said = Vec::new();
    for scheme in [
        "memory",
        "nats",
        "tls",
        "file",
        "http",
        "https",
        "ws",
        "unheard-of",
    ] {
        for rest in [
            format!("//user:{SECRET}@127.0.0.1:1/place"),
            format!("//{SECRET}@127.0.0.1:1"),
            format!("place?password={SECRET}"),
            format!("place?encode={SECRET}"),
            format!("place?max_events={SECRET}"),
        ] {
            // What connects after all has nothing to refuse; all that it says is checked below.
            if let Err(error) = Bus::connect(format!("{scheme}:{rest}"))
                .link(LinkOptions {
                    first_connect: Some(Duration::ZERO),
                    ..LinkOptions::default()
                })
                .await
            {
                said.push(format!("{error} {error:?} {error:#?}"));
                let mut cause = error.source();
                while let Some(error) = cause {
                    said.push(format!("{error} {error:?}"));
                    cause = error.source();
                }
            }
        }
    }
    assert!(!said.is_empty());
    // A life of a bus with everything that logs in it.
    let session = TrackedSession::new(1);
    let bus = trial
        .connect()
        .await
        .publish_layer(session.clone())
        .handle_layer(session.clone())
        .await
        .unwrap();
    let handler = |_: Noted| async { Err::<(), _>("refused".permanent()) };
    let consumer = bus.consumer("logging").on(handler);
    said.push(format!("{consumer:?}"));
    let handle = consumer.start().await.unwrap();
    bus.publish(Noted { n: 1 })
        .header("authorization", SECRET)
        .await
        .unwrap();
    session.settled().await;
    said.push(format!(
        "{bus:?} {:?} {:?} {handle:?} {:?}",
        bus.engine(),
        bus.engine().facts(),
        bus.inspect().await.unwrap()
    ));
    said.push(format!(
        "{:?} {:?}",
        bus.link().borrow(),
        handle.stop().await
    ));
    bus.close().await.unwrap();
    let logged = String::from_utf8_lossy(&lines.0.lock()).into_owned();
    assert!(
        logged.contains("dead letter"),
        "the log was not captured: {logged}"
    );
    for text in said.iter().chain([&logged]) {
        assert!(!text.contains(SECRET), "a credential was printed: {text}");
    }
}
