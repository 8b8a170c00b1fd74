//! Idempotent handling: an event that comes twice runs once.
//!
//! A key of the state bucket says for each event how its handling stands. It is claimed before the
//! handler runs and says *done* before the event is settled:
//!
//! ```text
//!   absent ──► running ── Ok ──► outputs stored ──► done ──► settled     a later one: acked unseen
//!              ▲  ▲  │
//!   not renewed┘  └──┴─ Err ───► failed                                  a later one: runs
//! ```
//!
//! *running* lives as long as a lease, by the engine's clock, and is renewed while the handler runs:
//! it ends by itself when its member does. An event that finds it waits and counts nothing.
//!
//! This is effectively once, within the time to live. A crash between the handler's effect and *done*
//! repeats the effect, unless the handler's own transaction stores
//! [`Context::idempotency_key`](crate::Context::idempotency_key).

mod claim;
mod commits;
mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use smol_str::{SmolStr, format_smolstr};
use trunkline_core::engine::{Credit, Entry, StateKey};
use trunkline_core::plan::duration_text;
use trunkline_core::{Envelope, Error, ErrorKind, Name, Result};

use super::Policy;
use crate::bus::Bus;
use crate::failure::{Disposition, Failure};
use crate::handler::Delivered;
use claim::Claim;
use commits::{Answer, Commits};
use record::{Record, Run, State};

/// How long an event waits that another run is at.
const ELSEWHERE: Duration = Duration::from_millis(500);
/// How long an event waits when its key cannot be read or written.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a key may change under our eyes before the event waits.
const LOOKS: usize = 8;
/// The longest that a key may live.
const LONGEST_TTL: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Whether a consumer handles events idempotently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idempotency {
    /// Every event that is delivered runs.
    Off,
    /// An event that was done runs no more for that long.
    For(Duration),
}

/// The text that [`Context::idempotency_key`](crate::Context::idempotency_key) gives.
pub(crate) fn idempotency_key(consumer: &Name, generation: u64, event: &Envelope) -> String {
    format!("{consumer}.{generation}.{}", identity(event))
}

/// What is above the keys of a consumer in one of its generations.
pub(super) fn keys(consumer: &Name, generation: u64) -> Result<StateKey> {
    StateKey::new(format!("{consumer}.{generation}.idem"))
}

/// An event's identity, `source` and `id` together, in 32 hexadecimal digits. `WIRE.md` states it.
fn identity(event: &Envelope) -> SmolStr {
    let mut hash = Sha256::new();
    let mut field = |text: &str| {
        hash.update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        hash.update(text);
    };
    field(event.source());
    field(
        event
            .id()
            .text(&mut [0; trunkline_core::EventId::UUID_BYTES]),
    );
    let digest: [u8; 32] = hash.finalize().into();
    let (first, _) = digest.split_at(16);
    let number = first
        .iter()
        .fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    format_smolstr!("{number:032x}")
}

/// Refuses a time to live that could end while an event still waits for an attempt: its duplicate
/// would then run beside it.
pub(super) fn check(ttl: Duration, policy: &Policy) -> Result<()> {
    let horizon = whole_seconds(policy.horizon());
    let least = horizon.max(Duration::from_secs(1));
    let refuse = |fault: String| Err(Error::new(ErrorKind::InvalidConfig, fault));
    if ttl < least {
        return refuse(format!(
            "an idempotency of {} is shorter than the {} over which the attempts of one event may stretch; give it {} or more, or retry for less long",
            duration_text(ttl),
            duration_text(least),
            duration_text(least),
        ));
    }
    if ttl > LONGEST_TTL {
        return refuse(format!(
            "an idempotency of {}; {} is the most, because every event leaves a key for that long",
            duration_text(ttl),
            duration_text(LONGEST_TTL),
        ));
    }
    Ok(())
}

/// Rounded up, because some engines count time to live in whole seconds.
fn whole_seconds(duration: Duration) -> Duration {
    let seconds = duration.as_secs();
    Duration::from_secs(seconds.saturating_add(u64::from(duration.subsec_nanos() > 0)))
}

/// What a member knows and does about events that come twice.
pub(super) struct Idempotent {
    consumer: Name,
    bus: Bus,
    commits: Arc<Commits>,
    /// The member, as its records name it.
    member: SmolStr,
    /// Numbers the runs of the member.
    runs: AtomicU64,
    ttl: Duration,
    lease: Duration,
    duplicates: Arc<AtomicU64>,
}

impl Idempotent {
    /// Makes sure that the bucket can be used, so that a consumer which cannot does not start.
    ///
    /// # Errors
    /// The engine's own.
    pub(super) async fn new(
        bus: &Bus,
        consumer: &Name,
        ttl: Duration,
        lease: Duration,
        duplicates: Arc<AtomicU64>,
    ) -> Result<Self> {
        let member = format_smolstr!("{:016x}", trunkline_core::random::random::<u64>());
        let bucket = bus.inner.settings.bucket.clone();
        let idempotent = Self {
            consumer: consumer.clone(),
            bus: bus.clone(),
            commits: Arc::new(Commits::new(bus, bucket, member.clone())),
            member,
            runs: AtomicU64::new(1),
            ttl: whole_seconds(ttl),
            lease: whole_seconds(lease),
            duplicates,
        };
        let nobody = StateKey::new(format!("{consumer}.start"))?;
        idempotent
            .read(&nobody)
            .await
            .map_err(|error| error.at(format!("consumer {consumer} is to be idempotent")))?;
        Ok(idempotent)
    }

    /// Runs what handles an event, unless that was done before or is being done elsewhere.
    pub(super) async fn once(
        &self,
        delivered: &Delivered,
        running: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        let envelope = &delivered.incoming().envelope;
        let Some(claim) = self.claim(delivered).await? else {
            self.duplicates.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(
                consumer = %self.consumer, event_id = %envelope.id(), event_type = envelope.event_type(),
                "done before; settled unseen"
            );
            return Ok(());
        };
        let result = claim.held_while(running).await;
        match result {
            Ok(()) => claim.done().await,
            Err(_) => claim.failed().await,
        }
        result
    }

    /// The right to run an event; none if it is done.
    async fn claim(&self, delivered: &Delivered) -> Result<Option<Claim<'_>>, Failure> {
        let envelope = &delivered.incoming().envelope;
        let generation = delivered.generation();
        let key = keys(&self.consumer, generation)
            .and_then(|keys| StateKey::new(format!("{keys}.{}", identity(envelope))))
            .map_err(not_known)?;
        let run = Run::new(
            delivered,
            self.member.clone(),
            self.runs.fetch_add(1, Ordering::Relaxed),
        );
        let mut claim = Claim::new(self, key, run);
        // Most events are new; what failed before has a key.
        let mut is_known = delivered.attempt() > 1;
        for _ in 0..LOOKS {
            if is_known {
                match self.read(claim.key()).await.map_err(not_known)? {
                    None => claim.found(None),
                    Some((entry, record)) => match record.state {
                        State::Done => return Ok(None),
                        State::Failed => claim.found(Some(entry.rev)),
                        // Our own, whose outcome we did not hear.
                        State::Running if claim.is_mine(&record) => {
                            claim.take(entry.rev);
                            return Ok(Some(claim));
                        }
                        State::Running if claim.supersedes(&record) => claim.found(Some(entry.rev)),
                        State::Running => {
                            let message = format!("member {} is at it", record.member);
                            return Err(Failure::new(
                                Disposition::Snooze(ELSEWHERE),
                                "running_elsewhere",
                                message,
                            ));
                        }
                    },
                }
            }
            match claim.put(State::Running).await.map_err(not_known)? {
                Answer::Done(rev) => {
                    claim.take(rev);
                    return Ok(Some(claim));
                }
                Answer::Conflict | Answer::Repeated => is_known = true,
            }
        }
        let message = format!("its key {} kept changing", claim.key());
        Err(Failure::new(
            Disposition::Snooze(ELSEWHERE),
            "running_elsewhere",
            message,
        ))
    }

    async fn read(&self, key: &StateKey) -> Result<Option<(Entry, Record)>> {
        let state = self.bus.inner.engine.state();
        let bucket = self.commits.bucket();
        let found = state
            .scan(
                bucket,
                Some(key),
                None,
                self.commits.seen(),
                Credit::items(1),
            )
            .await?;
        // A key that lies below ours, which is nobody's, would come after it.
        match found.entries.into_iter().find(|entry| entry.key == *key) {
            None => Ok(None),
            Some(entry) => {
                let record = Record::read(&entry)?;
                Ok(Some((entry, record)))
            }
        }
    }
}

/// The event is not to blame: it waits and counts nothing.
fn not_known(error: Error) -> Failure {
    Failure::new(
        Disposition::Throttled(PAUSE),
        "idempotency_not_stored",
        error,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Retry;
    use crate::handler::{Epoch, MemberContext};
    use crate::raw::{Incoming, Stored};
    use trunkline_core::{Data, EventId, Headers, Subject, Timestamp};

    #[derive(serde::Deserialize)]
    struct Row {
        consumer: String,
        generation: u64,
        source: String,
        id: String,
        key: String,
    }

    #[test]
    fn keys_are_those_of_the_wire_format() {
        let rows = include_str!("../../../trunkline-core/testdata/idempotency-keys.json");
        let rows: Vec<Row> = serde_json::from_str(rows).unwrap();
        assert!(rows.len() >= 5);
        for row in rows {
            let id = EventId::new(&row.id).unwrap();
            let event = Envelope::new(id, row.source.as_str(), "t", Data::None).unwrap();
            let consumer = Name::new(&row.consumer).unwrap();
            assert_eq!(idempotency_key(&consumer, row.generation, &event), row.key);
        }
    }

    #[test]
    fn a_key_must_outlive_every_attempt() {
        let check = |ttl: u64, policy: Policy, fault: &str| match check(
            Duration::from_secs(ttl),
            &policy,
        ) {
            Ok(()) => assert_eq!(fault, "", "{ttl} s"),
            Err(error) => assert!(
                !fault.is_empty() && error.message().contains(fault),
                "{ttl} s: {error}"
            ),
        };
        let of = |retry| Policy::default().time_out(None).retry(retry);
        // 1.2 × (1 + 5 + 30 + 300) s = 403.2 s
        check(404, of(Retry::default()), "");
        check(
            403,
            of(Retry::default()),
            "of 6m43s is shorter than the 6m44s",
        );
        // Five runs of five minutes each come on top.
        check(1_903, Policy::default(), "is shorter than the 31m44s");
        check(1, of(Retry::never()), "");
        check(0, of(Retry::never()), "of 0s is shorter than the 1s");
        let slow = Retry::fixed(3, Duration::from_secs(60)).jitter(0.0);
        check(119, of(slow.clone()), "of 1m59s is shorter than the 2m");
        check(120, of(slow), "");
        check(
            31 * 24 * 60 * 60,
            of(Retry::never()),
            "of 31d; 30d is the most",
        );
    }

    fn delivered(bus: &Bus, seq: u64, revision: u64) -> Delivered {
        let id = EventId::new("e-1").unwrap();
        let envelope = Envelope::new(id, "/shop", "order.placed", Data::None).unwrap();
        let incoming = Incoming {
            envelope: Arc::new(envelope),
            headers: Headers::new(),
            subject: Subject::new("events.order.placed").unwrap(),
            stored: Some(Stored {
                stream: Name::new("EVENTS").unwrap(),
                seq,
                at: Timestamp::from_nanos(0),
            }),
        };
        let member = MemberContext {
            consumer: Name::new("owned").unwrap(),
            bus: bus.clone(),
            generation: 0,
            stopping: tokio::sync::watch::channel(false).1,
        };
        Delivered {
            incoming: Arc::new(incoming),
            dead_letter: None,
            attempt: 1,
            epoch: Some(Epoch {
                generation: 3,
                revision,
            }),
            member: Arc::new(member),
            outputs: Arc::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_owner_goes_on_where_the_former_one_was() {
        let bus = Bus::connect("memory:").await.unwrap();
        let consumer = Name::new("owned").unwrap();
        let (ttl, lease) = (Duration::from_secs(3_600), Duration::from_secs(30));
        let member = async || {
            Idempotent::new(&bus, &consumer, ttl, lease, Arc::default())
                .await
                .unwrap()
        };
        let (former, owner) = (member().await, member().await);
        let claim = former
            .claim(&delivered(&bus, 7, 10))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(claim.key().as_str().split('.').nth(1), Some("3"));
        // Neither an owner as old nor a duplicate of the event may go on meanwhile.
        for (seq, revision) in [(7, 10), (7, 9), (8, 11)] {
            let waits = owner.claim(&delivered(&bus, seq, revision)).await;
            let failure = waits.map(drop).unwrap_err();
            assert_eq!(failure.reason(), "running_elsewhere");
            assert_eq!(failure.disposition(), Some(Disposition::Snooze(ELSEWHERE)));
        }
        let newer = owner.claim(&delivered(&bus, 7, 11)).await.unwrap().unwrap();
        // What the former one has to say does not count any more.
        claim.failed().await;
        assert!(former.claim(&delivered(&bus, 8, 12)).await.is_err());
        newer.done().await;
        for seq in [7, 8] {
            assert!(
                former
                    .claim(&delivered(&bus, seq, 12))
                    .await
                    .unwrap()
                    .is_none()
            );
        }
        bus.close().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_is_dropped_gives_its_claim_back() {
        let bus = Bus::connect("memory:").await.unwrap();
        let consumer = Name::new("owned").unwrap();
        let (ttl, lease) = (Duration::from_secs(3_600), Duration::from_secs(30));
        let member = Idempotent::new(&bus, &consumer, ttl, lease, Arc::default());
        let member = member.await.unwrap();
        let (one, duplicate) = (delivered(&bus, 7, 10), delivered(&bus, 8, 10));
        let hangs = member.once(&one, std::future::pending());
        let long = tokio::time::timeout(Duration::from_secs(100), hangs).await;
        assert!(long.is_err());
        // The one that gives back is a task of its own.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let once = member.once(&duplicate, std::future::ready(Ok(())));
        assert!(once.await.is_ok());
        assert_eq!(member.duplicates.load(Ordering::Relaxed), 0);
        bus.close().await.unwrap();
    }
}
