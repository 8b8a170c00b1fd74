//! The ordered consumer on an engine whose answers do not always come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use trunkline::core::engine::{
    Admitted, Append, AppendMode, Batch, Boxed, Capabilities, Consume, Credit, Engine, Fact,
    Follow, Limits, Live, Log, Outcome, Page, Removal, State as StateGroup, Topology,
};
use trunkline::{Bus, Connect, Error, ErrorKind, Event, Filter, Link, Name, Result, Start};

#[derive(Event, Serialize, Deserialize, Clone, Debug)]
#[event(type = "step.taken", key = "key")]
struct Step {
    key: u32,
}

/// An engine of which so many reads time out.
#[derive(Debug)]
struct Silent {
    inner: Arc<dyn Engine>,
    reads: AtomicU32,
}

impl Engine for Silent {
    fn name(&self) -> &'static str {
        "silent"
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn facts(&self) -> Vec<Fact> {
        self.inner.facts()
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.inner.link()
    }

    fn live(&self) -> &dyn Live {
        self.inner.live()
    }

    fn log(&self) -> &dyn Log {
        self
    }

    fn consume(&self) -> &dyn Consume {
        self.inner.consume()
    }

    fn state(&self) -> &dyn StateGroup {
        self.inner.state()
    }

    fn topology(&self) -> &dyn Topology {
        self.inner.topology()
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.inner.close()
    }
}

impl Log for Silent {
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        self.inner.log().append(stream, batch, mode)
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Start,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        let less = |left: u32| left.checked_sub(1);
        let left = self
            .reads
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if left.is_ok() {
            let error = Error::new(ErrorKind::TimedOut, "made to be silent");
            return Box::pin(std::future::ready(Err(error)));
        }
        self.inner.log().read(stream, from, filters, max)
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Start,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        self.inner.log().follow(stream, from, filters)
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        self.inner.log().remove(stream, what)
    }
}

#[tokio::test(start_paused = true)]
async fn c1_a_member_outlives_reads_that_time_out_while_it_claims() {
    let inner = Arc::clone(Bus::connect("memory:").await.unwrap().engine());
    let silent = Arc::new(Silent {
        inner,
        reads: AtomicU32::new(0),
    });
    let bus = Connect::with_engine(Arc::clone(&silent) as Arc<dyn Engine>)
        .await
        .unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    let note = move |step: Step| {
        let _ = seen.send(step.key);
        async {}
    };
    silent.reads.store(40, Ordering::Relaxed);
    let member = bus.consumer("steps").on(note).start().await.unwrap();
    for key in 0..50 {
        bus.publish(Step { key }).await.unwrap();
    }
    for _ in 0..50 {
        let next = tokio::time::timeout(Duration::from_secs(60), handled.recv()).await;
        let report = member.is_running();
        assert!(next.is_ok_and(|key| key.is_some()), "running: {report}");
    }
    assert_eq!(silent.reads.load(Ordering::Relaxed), 0);
    let report = member.stop().await;
    assert!(report.failed.is_none(), "{report:?}");
    bus.close().await.unwrap();
}
