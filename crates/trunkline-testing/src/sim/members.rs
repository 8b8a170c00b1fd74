//! The programs of a scenario: members of one consumer, and a publisher.

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use trunkline::core::engine::{Boxed, Engine};
use trunkline::{Bus, Connect, Context, ErrorKind, EventId, Failure, FailureExt, Result, Retry};

use super::controller::Order;
use super::host::{Once, Process};
use super::journal::{Ended, Journal, Run};
use super::script::Script;
use crate::fixture::OrderPlaced;

/// The consumer's name.
pub(crate) const CONSUMER: &str = "simulated";

/// How the members of a consumer share its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Whoever is free takes the next.
    Shared,
    /// Each key has one owner at a time, who keeps its order.
    Ordered,
}

type Before = dyn Fn(Arc<dyn Engine>) -> Arc<dyn Engine> + Send + Sync;

/// What stands between each member and its engine: nothing, unless somebody breaks something there to
/// see whether the judge notices.
#[derive(Clone, Default)]
pub struct Lens(Option<Arc<Before>>);

impl Lens {
    /// Puts that before every member's engine.
    pub fn new(
        before: impl Fn(Arc<dyn Engine>) -> Arc<dyn Engine> + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(before)))
    }

    fn before(&self, engine: Arc<dyn Engine>) -> Arc<dyn Engine> {
        match &self.0 {
            Some(before) => before(engine),
            None => engine,
        }
    }
}

impl fmt::Debug for Lens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "Lens(something)",
            None => "Lens(nothing)",
        })
    }
}

/// An event to be published.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) n: u32,
    pub(crate) key: String,
    pub(crate) at: Duration,
    pub(crate) script: Script,
}

/// What the programs of a scenario have in common.
pub(crate) struct Common {
    pub(crate) journal: Arc<Journal>,
    /// By number. The later ones are published when everything is well again.
    pub(crate) plan: Vec<Planned>,
    pub(crate) later: Vec<Planned>,
    pub(crate) well_again: Once,
    /// Events of which the publisher does not know yet that they are stored.
    pub(crate) unpublished: AtomicUsize,
    pub(crate) sharing: Sharing,
    pub(crate) holds_keys: bool,
    /// From then on every dead letter is dealt with.
    pub(crate) at_last: Once,
    pub(crate) lens: Lens,
    pub(crate) concurrency: usize,
    pub(crate) retry: Retry,
    pub(crate) ack_wait: Duration,
    /// When what is done to the consumer.
    pub(crate) orders: Vec<(Duration, Order)>,
}

impl Common {
    pub(crate) fn script(&self, n: u32) -> Script {
        let later = self.plan.len();
        match usize::try_from(n).unwrap_or(usize::MAX) {
            n if n < later => self.plan[n].script,
            n => self.later[n - later].script,
        }
    }
}

pub(crate) async fn connect(process: &Process, engine: Arc<dyn Engine>) -> Result<Bus> {
    Connect::with_engine(engine)
        .clock(process.clock())
        .source("/simulated")
        .await
}

/// A member: connects, consumes until it is told to stop or its member ends by itself, and closes.
/// It ends at the first failure; who runs it starts it again, as an orchestrator would.
pub(crate) fn member(process: Process, common: Arc<Common>) -> Boxed<'static, ()> {
    Box::pin(async move {
        let name = process.port.name.clone();
        let consume = async {
            let bus = connect(&process, common.lens.before(process.engine())).await?;
            let handler = {
                let (process, common) = (process.clone(), Arc::clone(&common));
                move |event: Arc<OrderPlaced>, cx: Context| {
                    handle(process.clone(), Arc::clone(&common), event, cx)
                }
            };
            let consumer = bus
                .consumer(CONSUMER)
                .on(handler)
                .concurrency(common.concurrency)
                .retry(common.retry.clone())
                .ack_wait(common.ack_wait);
            let consumer = match common.holds_keys {
                true => consumer.hold_key(),
                false => consumer,
            };
            let member = match common.sharing {
                Sharing::Shared => consumer.unordered().start().await?,
                Sharing::Ordered => consumer.ordered().start().await?,
            };
            tokio::select! {
                biased;
                () = process.told_to_stop() => {}
                report = member.ended() => {
                    process.port.note(30, || format!("its member ended: {:?}", report.failed));
                }
            }
            bus.close().await
        };
        tokio::select! {
            biased;
            result = consume => {
                if let Err(error) = result {
                    process.port.note(31, || format!("{name} gives up: {error}"));
                }
            }
            // Told so before it had started; one that has drains for as long as it likes.
            () = patience(&process) => {}
        }
    })
}

/// How long a process that is told to stop is waited for.
async fn patience(process: &Process) {
    process.told_to_stop().await;
    sleep(Duration::from_secs(40)).await;
}

async fn handle(
    process: Process,
    common: Arc<Common>,
    event: Arc<OrderPlaced>,
    cx: Context,
) -> Result<(), Failure> {
    if process.port.is_dead() {
        // Another handler has just killed the process, which the runtime does not know yet.
        std::future::pending::<()>().await;
    }
    let (attempt, seq) = (cx.attempt(), cx.meta().seq().unwrap_or(0));
    let run = Run {
        host: process.port.host,
        life: process.port.life,
        seq,
        n: event.n,
        key: event.order.clone(),
        attempt,
        epoch: epoch(&cx),
        began: process.now(),
        ended: None,
    };
    let (run, starts) = common.journal.begin(&process.port, run);
    match common.script(event.n) {
        _ if common.journal.is_mended(seq) => {}
        Script::Works(time) => {
            if !time.is_zero() {
                sleep(time).await;
            }
        }
        Script::Fails(times) if attempt <= times => {
            run.end(Ended::Failed);
            return Err("scripted".into());
        }
        Script::Panics(times) if attempt <= times => {
            run.end(Ended::Failed);
            // Past the hook: nobody needs to read of it.
            resume_unwind(Box::new("scripted".to_owned()));
        }
        Script::NeverWorks => {
            run.end(Ended::Failed);
            return Err("scripted".into());
        }
        Script::Permanent => {
            run.end(Ended::Failed);
            return Err("scripted".permanent());
        }
        Script::Kills(times) if starts < times => process.die().await,
        Script::Fails(_) | Script::Panics(_) | Script::Kills(_) => {}
    }
    run.end(Ended::Ok);
    Ok(())
}

/// The ownership under which a handler runs, if its consumer has that.
fn epoch(cx: &Context) -> Option<(u64, u64)> {
    cx.epoch().map(|epoch| (epoch.generation, epoch.revision))
}

/// Publishes the plan, each key's events in order, again and again until each is stored.
pub(crate) fn publisher(process: Process, common: Arc<Common>) -> Boxed<'static, ()> {
    Box::pin(async move {
        let bus = loop {
            match connect(&process, process.engine()).await {
                Ok(bus) => break bus,
                Err(_) => sleep(Duration::from_millis(300)).await,
            }
        };
        publish(&process, &common, &bus, &common.plan).await;
        common.well_again.wait().await;
        publish(&process, &common, &bus, &common.later).await;
        process.told_to_stop().await;
    })
}

async fn publish(process: &Process, common: &Arc<Common>, bus: &Bus, plan: &[Planned]) {
    let mut keys: Vec<(&str, Vec<Planned>)> = Vec::new();
    for planned in plan {
        match keys.iter_mut().find(|(key, _)| *key == planned.key) {
            Some((_, events)) => events.push(planned.clone()),
            None => keys.push((&planned.key, vec![planned.clone()])),
        }
    }
    let mut publishing = JoinSet::new();
    for (_, events) in keys {
        let (process, common, bus) = (process.clone(), Arc::clone(common), bus.clone());
        publishing.spawn(async move {
            for planned in events {
                sleep(planned.at.saturating_sub(process.now())).await;
                publish_one(&process, &common, &bus, &planned).await;
            }
        });
    }
    while publishing.join_next().await.is_some() {}
}

async fn publish_one(process: &Process, common: &Common, bus: &Bus, planned: &Planned) {
    let id = EventId::new(format!("event-{}", planned.n)).expect("a short id");
    loop {
        let event = OrderPlaced {
            order: planned.key.clone(),
            n: planned.n,
        };
        match bus.publish(event).id(id.clone()).await {
            Ok(receipt) => {
                process.port.note(32, || {
                    let Planned { n, key, .. } = planned;
                    format!("event {n} of {key} is stored as {}", receipt.seq)
                });
                common.journal.acknowledge(planned.n, receipt.seq);
                break;
            }
            Err(error) if error.retryable() || error.kind() == ErrorKind::Conflict => {
                sleep(Duration::from_millis(200)).await;
            }
            Err(error) => {
                common.journal.refuse(planned.n, error.to_string());
                break;
            }
        }
    }
    common.unpublished.fetch_sub(1, Ordering::AcqRel);
}
