//! One running member of an ordered consumer: ties partitions to the reader and the handlers.

mod burials;
mod drain;
mod handovers;
mod intake;
mod leases;
mod ownership;
mod reading;
mod runs;
mod standing;
mod tasks;
mod writes;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use smol_str::format_smolstr;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use trunkline_core::engine::{ConsumerRef, Credit, Position, Rev, Seq};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use super::super::partitions::{PARTITIONS, SHARED_PARTITIONS};
use super::super::{Control, Shared, StopReport};
use super::claim::{Place, define};
use super::gauge::Keeper;
use super::membership::{Membership, Says};
use super::partition::Partition;
use super::reader::Reader;
use super::record::{Definition, Keys, Layout, Mode};
use super::store::Store;
use crate::consumer::pool::Vitals;
use crate::handler::MemberContext;
use handovers::Handovers;
pub(in crate::consumer) use intake::Intake;
use ownership::Hold;
use runs::{RunId, Runs};
use standing::{Asked, News, Requests, Taken};
use tasks::{Done, is_about_ownership};
use writes::Group;

/// How long to leave an engine alone that failed to read.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a member looks at what it should own, if nothing happens.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The sequence at which a new consumer begins.
pub(in crate::consumer) async fn start(
    store: &Store,
    stream: &Name,
    filters: &[Filter],
    from: Position,
) -> Result<Seq> {
    let one = Credit::items(1);
    let log = store.engine.log();
    match from {
        Position::First => Ok(1),
        Position::Seq(seq) => Ok(seq.max(1)),
        Position::New => Ok(log.read(stream, Position::First, filters, one).await?.tail),
        Position::LastPerSubject => Err(Error::new(
            ErrorKind::InvalidPosition,
            "a consumer in key order cannot start at the last event of each subject: it has one place in \
             the stream; start it at first, new, a sequence, a time or last:N",
        )),
        other => {
            let page = log.read(stream, other, filters, one).await?;
            Ok(page.events.first().map_or(page.tail, |event| event.seq))
        }
    }
}

/// A member of an ordered consumer.
pub(in crate::consumer) struct Member {
    shared: Arc<Shared>,
    place: Arc<Place>,
    membership: Membership,
    /// Of an ordered consumer; a shared one is a durable of the engine itself.
    gauge: Option<Keeper>,
    control: watch::Receiver<Control>,
    stopping: watch::Sender<bool>,
    /// How often the consumer had been reset when it joined.
    joined: u64,
    /// What the member works by; none until it has seen it.
    definition: Option<Definition>,
    /// Since which revision it has been divided how, as far as the member was there.
    layouts: Vec<(Rev, Layout)>,
    filters: Arc<[Filter]>,
    partitions: BTreeMap<u16, Partition>,
    /// Partitions that are being claimed or given up, or not to be claimed yet.
    holds: BTreeMap<u16, Hold>,
    runs: Runs,
    /// Where the events of a shared consumer come from.
    intake: Option<Intake>,
    handovers: Option<Handovers>,
    group: Group,
    /// Where those of an ordered one come from.
    reader: Reader,
    /// Not before then is the stream read again: it failed a moment ago.
    read_from: Instant,
    /// What is being read for partitions that fell behind, at most.
    catching_up: Option<Credit>,
    tasks: JoinSet<Done>,
    /// Dead letters that operators want to be run again, who tells of them, and what was told last.
    asked: BTreeMap<Seq, Asked>,
    requests: Option<Requests>,
    heard_of: Rev,
    /// Replays that are about to begin, and those that were taken on.
    beginning: BTreeSet<Seq>,
    taken: BTreeMap<Seq, Taken>,
    /// Heartbeats of dead members that are being removed.
    swept: BTreeSet<u64>,
    report: StopReport,
}

impl Member {
    /// Makes the consumer on that stream, or joins it; from then on the member lives, and works once it
    /// is run.
    pub(in crate::consumer) async fn join(
        shared: Arc<Shared>,
        stream: Name,
        filters: &[Filter],
        (from, partitions): (Position, Option<u16>),
        control: watch::Receiver<Control>,
        intake: Option<Intake>,
    ) -> Result<Self> {
        let inner = &shared.bus.inner;
        let store = Store {
            engine: Arc::clone(&inner.engine),
            bucket: inner.settings.bucket.clone(),
        };
        let keys = Keys::new(&shared.name, &stream);
        let made_at = inner.engine.topology().made_at(&stream).await?;
        let text = |filter: &Filter| format_smolstr!("{filter}");
        let wanted = Definition {
            mode: match intake {
                Some(_) => Mode::Shared,
                None => Mode::Ordered,
            },
            generation: 0,
            partitions: match intake {
                Some(_) => SHARED_PARTITIONS,
                None => partitions.unwrap_or(PARTITIONS),
            },
            earlier: Vec::new(),
            // Where the engine keeps how far the consumer is, it knows where that begins, too.
            start: match intake {
                Some(_) => 1,
                None => start(&store, &stream, filters, from).await?,
            },
            stream_made_at: made_at.map(|at| format_smolstr!("{at}")),
            filters: filters.iter().map(text).collect(),
            paused: Vec::new(),
        };
        let (definition, layout) = define(&store, &keys, &wanted, filters, made_at)
            .await
            .map_err(|error| error.at(format_args!("consumer {} of {stream}", shared.name)))?;
        let (is_ordered, has) = (intake.is_none(), layout.partitions);
        if let Some(wanted) = partitions.filter(|wanted| is_ordered && *wanted != has) {
            tracing::warn!(
                consumer = %shared.name, %stream, wanted, has,
                "the consumer is there already and keeps the number of partitions that it has; to change it, \
                 say `trunkline consumers divide {} --partitions {wanted}`", shared.name
            );
        }
        let me = format_smolstr!("{:032x}", trunkline_core::random::random::<u128>());
        tracing::info!(consumer = %shared.name, %stream, member = %me, "member joins");
        let membership = Membership::begin(store.clone(), keys.clone(), me.clone());
        membership.says.send_replace(Says {
            definition,
            leaving: false,
        });
        let place = Place {
            store,
            keys,
            stream,
            made_at,
            me,
            lease: Arc::clone(&membership.lease),
            sides: Arc::default(),
        };
        let place = Arc::new(place);
        let at = ConsumerRef {
            stream: place.stream.clone(),
            consumer: shared.name.clone(),
        };
        let gauge = intake
            .is_none()
            .then(|| Keeper::begin(Arc::clone(&place), at, membership.view.clone()));
        let stopping = watch::Sender::new(false);
        let context = MemberContext {
            consumer: shared.name.clone(),
            bus: shared.bus.clone(),
            generation: layout.generation,
            stopping: stopping.subscribe(),
        };
        Ok(Self {
            runs: Runs::new(
                Arc::clone(&shared),
                Place::clone(&place),
                Arc::new(context),
                control.clone(),
            ),
            shared,
            place,
            membership,
            gauge,
            control,
            stopping,
            joined: layout.generation,
            definition: None,
            layouts: Vec::new(),
            filters: Arc::default(),
            partitions: BTreeMap::new(),
            holds: BTreeMap::new(),
            intake,
            handovers: None,
            group: Group::default(),
            reader: Reader::new(),
            read_from: Instant::now(),
            catching_up: None,
            tasks: JoinSet::new(),
            asked: BTreeMap::new(),
            requests: None,
            heard_of: 0,
            beginning: BTreeSet::new(),
            taken: BTreeMap::new(),
            swept: BTreeSet::new(),
            report: StopReport::default(),
        })
    }

    /// What tells how the member is, for as long as it is.
    pub(in crate::consumer) fn vitals(&self) -> Weak<dyn Vitals> {
        self.runs.vitals()
    }

    /// Works until it is told to stop, or cannot go on.
    pub(in crate::consumer) async fn run(mut self) -> StopReport {
        let failed = self.work().await.err();
        if let Some(error) = &failed {
            tracing::error!(consumer = %self.shared.name, %error, "the member ends; its consumer needs another");
        }
        let deadline = self.control.borrow().stop.unwrap_or(Duration::ZERO);
        self.drain(deadline).await;
        StopReport {
            failed,
            ..self.report
        }
    }
}

impl Member {
    /// Works until it is told to stop.
    async fn work(&mut self) -> Result<()> {
        let mut look = Instant::now();
        // Who should own what changes seldom, and is looked at only when it may have.
        let mut looks = true;
        loop {
            let now = Instant::now();
            self.see(now)?;
            if look <= now || looks {
                look = now + LOOK_EVERY;
                self.own(now)?;
            }
            looks = false;
            self.step(now)?;
            let due = self.next_due().into_iter().chain([look]).min();
            let room = self.room();
            let reads = room.items > 0 && self.wants_events();
            let from = self.read_next();
            let lapse = self.lapse_due();
            let credit = self.credit(now);
            tokio::select! {
                biased;
                changed = self.control.changed() => {
                    changed.map_err(|_| Error::new(ErrorKind::Closed, "nobody holds this member any more"))?;
                    if self.control.borrow_and_update().stop.is_some() {
                        return Ok(());
                    }
                    self.runs.adjust();
                }
                () = self.runs.changed() => {}
                Some(done) = self.tasks.join_next() => {
                    looks |= is_about_ownership(&done);
                    self.done(done, Instant::now())?;
                }
                changed = self.membership.view.changed() => {
                    looks = true;
                    changed.map_err(|_| Error::new(ErrorKind::Closed, "the member's runtime was shut down"))?;
                }
                news = next_request(&mut self.requests) => self.heard(news, Instant::now())?,
                heard = handovers::next(&mut self.handovers) => self.heard_of_handover(heard),
                () = sleep_until(lapse) => looks = true,
                () = sleep_until(due) => {}
                fetched = intake::fetch(&mut self.intake, credit) => {
                    self.came(fetched, Instant::now())?;
                }
                read = self.reader.next(&self.place, &self.filters, from, room), if reads => {
                    self.read(read, Instant::now())?;
                }
            }
            let now = Instant::now();
            self.delivered(now);
            for ran in self.runs.take() {
                self.ran(ran, now)?;
            }
            while let Some(done) = self.tasks.try_join_next() {
                looks |= is_about_ownership(&done);
                self.done(done, now)?;
            }
        }
    }

    /// The partition that a run was started for, if it is still held as it was then.
    fn mine(&mut self, run: RunId) -> Option<&mut Partition> {
        let partition = self.partitions.get_mut(&run.partition)?;
        (partition.epoch == run.epoch).then_some(partition)
    }

    /// What runs for long goes on beside the main flow.
    fn outlast(&mut self, now: Instant) -> Result<()> {
        for run in self.runs.outlasting(now) {
            if let Some(partition) = self.mine(run) {
                partition.outlasts(run.seq, now)?;
            }
        }
        Ok(())
    }

    /// Everything that can be done without waiting.
    fn step(&mut self, now: Instant) -> Result<()> {
        for partition in self.partitions.values_mut() {
            partition.wake(now)?;
        }
        self.outlast(now)?;
        self.serve_replays();
        self.take_on();
        self.tend(now)?;
        self.open();
        self.start(now)?;
        self.write(now)?;
        self.catch_up();
        Ok(())
    }

    /// Lets others begin once the outcome of what ran alone is stored, or another owner's matter.
    fn open(&mut self) {
        if let Some(run) = self.runs.ended_alone()
            && self.mine(run).is_none_or(|one| one.is_told(run.seq))
        {
            self.runs.open();
        }
    }

    /// Starts what may start, as far as the permits go, the oldest of all partitions first: so one
    /// partition starves no other, and with one permit events run in the order of the stream.
    fn start(&mut self, now: Instant) -> Result<()> {
        let started = self.start_ready(now);
        self.runs.go();
        started
    }

    fn start_ready(&mut self, now: Instant) -> Result<()> {
        if self.is_paused() || !self.place.lease.holds(now) {
            self.runs.want_no_permit();
            return Ok(());
        }
        let at = self.shared.bus.inner.clock.now();
        let next = |partition: &Partition| {
            let (seq, alone) = partition.next_start(now)?;
            Some(Reverse((seq, partition.id, alone)))
        };
        let mut ready: BinaryHeap<_> = self.partitions.values().filter_map(next).collect();
        while let Some(Reverse((_, id, alone))) = ready.pop() {
            let Some(partition) = self.partitions.get_mut(&id) else {
                continue;
            };
            // What must run alone waits until the others are done, and they for it.
            if !self.runs.permit(alone.0) {
                return Ok(());
            }
            match partition.start(at, now)? {
                Some((seq, start)) => {
                    let run = RunId {
                        partition: id,
                        epoch: partition.epoch,
                        seq,
                    };
                    self.runs.begin(run, start, alone.0, now);
                }
                None => self.runs.give_back(alone.0),
            }
            ready.extend(next(partition));
        }
        self.runs.want_no_permit();
        Ok(())
    }

    /// The earliest moment at which there is something to do.
    fn next_due(&self) -> Option<Instant> {
        let due = self.partitions.values().filter_map(Partition::next_due);
        due.chain(self.runs.next_outlasting())
            .chain(self.intake_due())
            .min()
    }

    fn is_paused(&self) -> bool {
        self.definition
            .as_ref()
            .is_none_or(|definition| !definition.paused.is_empty())
    }
}

async fn next_request(requests: &mut Option<Requests>) -> News {
    match requests {
        Some(requests) => requests.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
