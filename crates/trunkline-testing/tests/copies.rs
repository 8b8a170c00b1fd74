//! Streams that have fewer copies than they should: told, and no reason to stop.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing_subscriber::fmt::MakeWriter;
use trunkline::core::engine::{
    Boxed, Capabilities, Change, Consume, Engine, Fact, Gauges, Limits, Link, Live, Log, Reach,
    State, StreamSpec, Topology,
};
use trunkline::{Connect, Name};
use trunkline_memory::{MemoryEngine, MemoryOptions};
use trunkline_testing::VirtualClock;

/// A lone server of an engine that could have peers.
#[derive(Debug)]
struct Lone(MemoryEngine);

impl Engine for Lone {
    fn name(&self) -> &'static str {
        "lone"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            reach: Reach::Network,
            ..self.0.capabilities()
        }
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn facts(&self) -> Vec<Fact> {
        vec![Fact::new("server", "1.2.3"), Fact::new("peers", "none")]
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.0.link()
    }

    fn live(&self) -> &dyn Live {
        self.0.live()
    }

    fn log(&self) -> &dyn Log {
        self.0.log()
    }

    fn consume(&self) -> &dyn Consume {
        self.0.consume()
    }

    fn state(&self) -> &dyn State {
        self.0.state()
    }

    fn topology(&self) -> &dyn Topology {
        self.0.topology()
    }

    fn gauges(&self) -> Option<&dyn Gauges> {
        self.0.gauges()
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.0.close()
    }
}

/// Log lines, kept.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock())).unwrap()
    }
}

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

#[test]
fn fewer_copies_than_asked_for_are_told_at_every_start_and_refuse_nothing() {
    let lines = Lines::default();
    let captured = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(lines.clone())
        .finish();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    tracing::subscriber::with_default(captured, || runtime.block_on(starts(lines)));
}

async fn starts(lines: Lines) {
    let clock = Arc::new(VirtualClock::default());
    let memory = MemoryEngine::connect(MemoryOptions::default(), clock).unwrap();
    let lone = || Connect::with_engine(Arc::new(Lone(memory.clone())));
    let warning = "stream EVENTS runs with 1 of 3 copies; `trunkline topology apply` grows it once there are peers";
    // Also when it is made, and whoever declares it.
    for _ in 0..2 {
        let bus = lone().await.unwrap();
        let log = lines.take();
        assert!(log.contains(warning), "{log}");
        let facts = "facts=\"server: 1.2.3, peers: none\"";
        assert!(log.contains(facts), "{log}");
        let streams = bus.explain().await.unwrap().streams;
        let copies =
            |stream: &trunkline::explain::StreamTerms| (stream.replicas, stream.replicas_declared);
        assert!(streams.iter().all(|stream| copies(stream) == (1, Some(3))));
    }
    // Who asks for one is told of none.
    let name = Name::new("EVENTS").unwrap();
    let one = StreamSpec {
        replicas: 1,
        ..StreamSpec::new(name, Vec::new())
    };
    lone().stream(one).await.unwrap();
    assert!(!lines.take().contains("stream EVENTS runs"));

    // To grow is a plan, and that there is nobody to grow to is told by carrying it out.
    let topology = lone().manage().await.unwrap();
    let plan = topology.plan().await.unwrap();
    assert_eq!(plan.drift().count(), 0);
    let updates = plan.steps(&[]).unwrap().changes;
    assert!(matches!(&updates[..], [Change::UpdateStream(_), ..]));
    let applied = topology.apply(&plan, &[]).await.unwrap();
    assert_eq!((applied.done.len(), applied.short.len()), (3, 3));
    assert_eq!(applied.short[0].1.found, 1);
}
