//! The suite can fail: each engine here breaks one promise, and the property that guards it says so.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use trunkline::core::engine::{
    Admission, Admitted, Append, AppendMode, Batch, Boxed, Bucket, Capabilities, Commit, Committed,
    Consume, ConsumerRef, Credit, Delivery, Engine, Entries, Fact, Feed, Fetched, Follow, Followed,
    Gauges, Heard, Limits, Link, Listener, Live, Log, Message, Outcome, Page, Position, Removal,
    Rev, Route, Settle, Settler, State, StateKey, StoredEvent, Token, Topology, Watch,
};
use trunkline::core::{Clock, Headers, Subject};
use trunkline::{Connect, ErrorKind, Filter, Name, Published, Result, Timestamp};
use trunkline_testing::contract::{Harness, MemoryHarness, Verdict, property};
use trunkline_testing::fixture::OrderPlaced;

/// What an engine does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// None, so that what is noticed is the fault and not the wrapper.
    None,
    /// Says that every tenth event is stored, and does not store it.
    LosesAppends,
    /// Stores a batch from its end.
    StoresBackwards,
    /// Forgets ids, so that a repeat is stored twice.
    ForgetsIds,
    /// Delivers every seventh event again although it was acknowledged.
    RedeliversAcked,
    /// Keeps what is given back until its lease ends.
    KeepsGivenBack,
    /// Leases more than it is asked for, when it is asked for little.
    IgnoresCredit,
    /// Takes a last `*` for `>`.
    TakesStarForRest,
    /// Says nothing of what a slow listener lost.
    HidesLag,
    /// Loses the user's headers of stored events.
    LosesHeaders,
    /// Skips what retention removed without a word.
    HidesGaps,
    /// Skips every fifth event that a follower should see.
    SkipsEvents,
    /// Commits whatever the fences say.
    IgnoresFences,
    /// Commits a repeat again.
    ForgetsCommits,
    /// Refuses the whole of the first batch and takes the second.
    FailsFirstBatch,
}

#[derive(Debug)]
struct Broken {
    inner: Arc<dyn Engine>,
    fault: Fault,
    count: Arc<AtomicU64>,
}

impl Broken {
    fn every(&self, nth: u64) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) % nth == nth - 1
    }
}

struct BrokenHarness(MemoryHarness, Fault);

impl Harness for BrokenHarness {
    fn name(&self) -> &str {
        "broken"
    }

    fn connect<'a>(
        &'a self,
        place: &'a str,
        clock: Arc<dyn Clock>,
    ) -> Boxed<'a, Result<Arc<dyn Engine>>> {
        Box::pin(async move {
            let inner = self.0.connect(place, clock).await?;
            let broken: Arc<dyn Engine> = Arc::new(Broken {
                inner,
                fault: self.1,
                count: Arc::default(),
            });
            Ok(broken)
        })
    }

    fn crash<'a>(&'a self, place: &'a str) -> Boxed<'a, ()> {
        self.0.crash(place)
    }

    fn allows_virtual_time(&self) -> bool {
        true
    }
}

fn verdict(fault: Fault, name: &str) -> std::thread::Result<Verdict> {
    let harness: Arc<dyn Harness> = Arc::new(BrokenHarness(MemoryHarness::new(""), fault));
    catch_unwind(AssertUnwindSafe(|| property(name).check(&harness)))
}

macro_rules! noticed {
    ($($test:ident: $fault:ident by $property:ident;)*) => {
        $(#[test]
        fn $test() {
            let name = stringify!($property);
            assert!(verdict(Fault::$fault, name).is_err(), "{name} does not notice {:?}", Fault::$fault);
        })*

        #[test]
        fn a_wrapper_without_a_fault_passes_where_the_others_fail() {
            for name in [$(stringify!($property)),*] {
                assert_eq!(verdict(Fault::None, name).unwrap(), Verdict::Kept, "{name}");
            }
        }
    };
}

noticed! {
    the_suite_notices_events_that_are_not_stored: LosesAppends by p7_closing_after_the_last_publish_loses_nothing;
    the_suite_notices_events_that_a_consumer_never_gets: LosesAppends by c2_a_cleanly_restarted_consumer_sees_no_finished_event_again;
    the_suite_notices_a_batch_out_of_order: StoresBackwards by p3_a_batch_keeps_its_order_and_each_item_its_outcome;
    the_suite_notices_a_repeat_that_is_stored_twice: ForgetsIds by p4_a_repeated_id_is_stored_once;
    the_suite_notices_an_acked_event_that_comes_again: RedeliversAcked by c1_members_of_a_consumer_share_its_events;
    the_suite_notices_progress_that_is_lost: RedeliversAcked by c2_a_cleanly_restarted_consumer_sees_no_finished_event_again;
    the_suite_notices_what_is_not_given_back: KeepsGivenBack by c9_stopping_gives_back_at_once;
    the_suite_notices_a_window_that_is_exceeded: IgnoresCredit by c3_what_a_member_holds_is_bounded;
    the_suite_notices_a_star_that_matches_the_rest: TakesStarForRest by p2_ten_thousand_mixed_subscriptions_get_exactly_their_own;
    the_suite_notices_a_lag_that_is_hidden: HidesLag by p6_a_slow_subscriber_loses_its_own_oldest_and_learns_of_it;
    the_suite_notices_headers_that_are_lost: LosesHeaders by p1_a_published_event_arrives_once_and_whole;
    the_suite_notices_a_gap_that_is_hidden: HidesGaps by c14_a_trimmed_start_is_a_gap;
    the_suite_notices_a_replay_that_skips: SkipsEvents by c14_replay_from_every_position_is_exact_and_ordered;
    the_suite_notices_a_follower_that_skips: SkipsEvents by e3_follow_has_no_gaps_and_dropping_it_loses_nothing;
    the_suite_notices_a_fence_that_does_not_hold: IgnoresFences by e6_a_commit_happens_whole_or_not_at_all;
    the_suite_notices_two_winners_of_a_race: IgnoresFences by e6_racing_commits_behind_one_fence_have_one_winner;
    the_suite_notices_a_commit_that_repeats: ForgetsCommits by e6_a_commit_happens_whole_or_not_at_all;
}

#[tokio::test]
async fn p3_a_key_waits_behind_a_whole_run_that_failed() {
    let harness = BrokenHarness(MemoryHarness::new(""), Fault::FailsFirstBatch);
    let engine = harness
        .connect("runs", Arc::new(trunkline::core::SystemClock))
        .await
        .unwrap();
    let bus = Connect::with_engine(Arc::clone(&engine)).await.unwrap();
    let count = u32::try_from(engine.limits().max_batch).unwrap() + 2;
    let order = |n: u32| OrderPlaced {
        order: if n == count - 1 {
            "other".into()
        } else {
            "o".into()
        },
        n,
    };
    let published = bus.publish_batch((0..count).map(order)).await.unwrap();
    let kind = |index: usize| match &published[index] {
        Published::Refused(error) => Some(("refused", error.kind())),
        Published::Unknown(error) => Some(("unknown", error.kind())),
        Published::Stored(_) => None,
        other => panic!("{other:?}"),
    };
    let last = published.len() - 1;
    assert_eq!(
        [kind(0), kind(last - 1), kind(last)],
        [
            Some(("unknown", ErrorKind::Disconnected)),
            Some(("refused", ErrorKind::BehindFailed)),
            None
        ]
    );
}

impl Engine for Broken {
    fn name(&self) -> &'static str {
        "broken"
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
        self
    }

    fn log(&self) -> &dyn Log {
        self
    }

    fn consume(&self) -> &dyn Consume {
        self
    }

    fn state(&self) -> &dyn State {
        self
    }

    fn topology(&self) -> &dyn Topology {
        self.inner.topology()
    }

    fn gauges(&self) -> Option<&dyn Gauges> {
        self.inner.gauges()
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.inner.close()
    }
}

impl Log for Broken {
    fn append(
        &self,
        stream: &Name,
        mut batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        let first = self.count.load(Ordering::Relaxed) == 0;
        match self.fault {
            Fault::LosesAppends if batch.len() == 1 && self.every(10) => {
                let stored = Outcome::Stored {
                    seq: 1,
                    duplicate: false,
                };
                return Admitted::done(Ok(vec![stored]));
            }
            Fault::LosesAppends if batch.len() > 1 => {
                let (stream, inner) = (stream.clone(), Arc::clone(&self.inner));
                batch.remove(0);
                return Admitted::waiting(async move {
                    let appended = inner.log().append(&stream, batch, mode).completed().await;
                    Ok(Admission::waiting(std::future::ready(appended.map(
                        |mut outcomes| {
                            outcomes.insert(
                                0,
                                Outcome::Stored {
                                    seq: 1,
                                    duplicate: false,
                                },
                            );
                            outcomes
                        },
                    ))))
                });
            }
            Fault::StoresBackwards => batch.reverse(),
            Fault::ForgetsIds => batch.iter_mut().for_each(|append| append.id = None),
            Fault::FailsFirstBatch if first && self.every(1) => {
                let error = trunkline::Error::new(ErrorKind::Disconnected, "made to fail");
                return Admitted::done(Err(error));
            }
            _ => {}
        }
        self.inner.log().append(stream, batch, mode)
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        self.inner.log().read(stream, from, filters, max)
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        Box::pin(async move {
            let inner = self.inner.log().follow(stream, from, filters).await?;
            let follow: Box<dyn Follow> = Box::new(BrokenFollow {
                inner,
                fault: self.fault,
                seen: 0,
            });
            Ok(follow)
        })
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        self.inner.log().remove(stream, what)
    }
}

struct BrokenFollow {
    inner: Box<dyn Follow>,
    fault: Fault,
    seen: u64,
}

impl Follow for BrokenFollow {
    fn next<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<StoredEvent>,
    ) -> Boxed<'a, Result<Followed>> {
        Box::pin(async move {
            loop {
                let mut events = Vec::new();
                let followed = self.inner.next(credit, &mut events).await?;
                if matches!(followed, Followed::Gap(_)) && self.fault == Fault::HidesGaps {
                    continue;
                }
                for mut event in events {
                    self.seen += 1;
                    if self.fault == Fault::LosesHeaders {
                        event.headers = Headers::new();
                    }
                    if self.fault != Fault::SkipsEvents || !self.seen.is_multiple_of(5) {
                        out.push(event);
                    }
                }
                return Ok(followed);
            }
        })
    }
}

impl Consume for Broken {
    fn open<'a>(
        &'a self,
        consumer: &'a ConsumerRef,
    ) -> Boxed<'a, Result<(Box<dyn Feed>, Arc<dyn Settler>)>> {
        Box::pin(async move {
            let (feed, settler) = self.inner.consume().open(consumer).await?;
            let feed: Box<dyn Feed> = Box::new(BrokenFeed {
                inner: feed,
                fault: self.fault,
            });
            let settler: Arc<dyn Settler> = Arc::new(BrokenSettler {
                inner: settler,
                fault: self.fault,
            });
            Ok((feed, settler))
        })
    }
}

struct BrokenFeed {
    inner: Box<dyn Feed>,
    fault: Fault,
}

impl Feed for BrokenFeed {
    fn fetch<'a>(
        &'a mut self,
        mut credit: Credit,
        out: &'a mut Vec<Delivery>,
    ) -> Boxed<'a, Result<Fetched>> {
        if self.fault == Fault::IgnoresCredit {
            credit = Credit::items(usize::MAX);
        }
        self.inner.fetch(credit, out)
    }
}

struct BrokenSettler {
    inner: Arc<dyn Settler>,
    fault: Fault,
}

impl Settler for BrokenSettler {
    fn settle(
        &self,
        mut batch: Batch<(Token, Settle)>,
        confirm: bool,
    ) -> Admitted<'_, Vec<Result<()>>> {
        for (token, settle) in &mut batch {
            match (self.fault, *settle) {
                (Fault::RedeliversAcked, Settle::Ack) if token.seq % 7 == 0 => {
                    *settle = Settle::GiveBack;
                }
                (Fault::KeepsGivenBack, Settle::GiveBack) => *settle = Settle::Extend,
                _ => {}
            }
        }
        self.inner.settle(batch, confirm)
    }
}

impl Live for Broken {
    fn send(&self, batch: Batch<Message>) -> Admitted<'_, ()> {
        self.inner.live().send(batch)
    }

    fn route(&self, subject: &Subject) -> Arc<dyn Route> {
        self.inner.live().route(subject)
    }

    fn listen(
        &self,
        filters: &[Filter],
        share: Option<&Name>,
        capacity: usize,
    ) -> Boxed<'_, Result<Box<dyn Listener>>> {
        let mistaken = |filter: &Filter| match filter.as_str().strip_suffix('*') {
            Some(before) => Filter::new(format!("{before}>")).unwrap_or_else(|_| filter.clone()),
            None => filter.clone(),
        };
        let filters = match self.fault {
            Fault::TakesStarForRest => filters.iter().map(mistaken).collect(),
            _ => filters.to_vec(),
        };
        let share = share.cloned();
        Box::pin(async move {
            let inner = self
                .inner
                .live()
                .listen(&filters, share.as_ref(), capacity)
                .await?;
            let listener: Box<dyn Listener> = Box::new(BrokenListener {
                inner,
                fault: self.fault,
            });
            Ok(listener)
        })
    }
}

struct BrokenListener {
    inner: Box<dyn Listener>,
    fault: Fault,
}

impl Listener for BrokenListener {
    fn receive<'a>(&'a mut self, max: usize, out: &'a mut Vec<Message>) -> Boxed<'a, Heard> {
        Box::pin(async move {
            loop {
                match self.inner.receive(max, out).await {
                    Heard::Lagged { .. } if self.fault == Fault::HidesLag => {}
                    heard => return heard,
                }
            }
        })
    }
}

impl State for Broken {
    fn commit(&self, bucket: &Bucket, mut commit: Commit) -> Admitted<'_, Committed> {
        match self.fault {
            Fault::IgnoresFences => commit.fences.clear(),
            Fault::ForgetsCommits => {
                commit.id = Timestamp::from(std::time::SystemTime::now())
                    .to_string()
                    .into();
            }
            _ => {}
        }
        self.inner.state().commit(bucket, commit)
    }

    fn scan<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        after: Option<&'a StateKey>,
        at_least: Rev,
        max: Credit,
    ) -> Boxed<'a, Result<Entries>> {
        self.inner
            .state()
            .scan(bucket, prefix, after, at_least, max)
    }

    fn watch<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        from: Rev,
    ) -> Boxed<'a, Result<Box<dyn Watch>>> {
        self.inner.state().watch(bucket, prefix, from)
    }
}
