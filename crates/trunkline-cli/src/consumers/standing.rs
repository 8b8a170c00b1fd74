//! How a consumer stands: what is before it, who works on it, and what that comes to.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use trunkline::consumer::WaitingFor;
use trunkline::core::engine::Gauge;
use trunkline::core::{Clock, SystemClock};
use trunkline::explain::ConsumerTerms;
use trunkline::{
    Bus, ConsumerStatus, Error, ErrorKind, Filter, MemberStatus, Name, Result, Timestamp,
};

/// How long a member is silent before it is taken for dead; its heartbeat comes every 0.5 s.
const SILENT: Duration = Duration::from_secs(3);
/// How long two looks are apart that tell who lives whatever the clocks of the hosts say.
pub(super) const BETWEEN_LOOKS: Duration = Duration::from_millis(1_500);

/// In a word how a consumer stands on one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Somebody paused it.
    Paused,
    /// Nobody works on it, and something is before it.
    NoMembers,
    /// Nothing is before it.
    Idle,
    /// All that is before it waits beside the main flow for another attempt.
    Waiting,
    /// It works, or would if it could.
    Running,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::NoMembers => "no members",
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Running => "running",
        }
    }
}

/// One consumer on one stream.
pub(super) struct Standing {
    pub(super) terms: ConsumerTerms,
    pub(super) status: ConsumerStatus,
    /// What it handles as commands are told it: without the root.
    pub(super) asked: Vec<String>,
    /// The members that are heard of.
    alive: BTreeSet<String>,
    now: Timestamp,
}

/// Every consumer, by name and stream.
///
/// # Errors
/// The bus's own.
pub(super) async fn all(bus: &Bus) -> Result<Vec<Standing>> {
    let now = SystemClock.now();
    let first = bus.consumer_status().await?;
    let members = || first.iter().flat_map(|status| &status.members);
    let doubtful = members().any(|member| is_doubtful(member, now));
    let again = if doubtful {
        Some(after_a_while(bus).await?)
    } else {
        None
    };
    standing(bus, &first, again).await
}

/// As [`all`], seen twice for certain: the earlier look, and how everything stands after it.
pub(super) async fn all_moving(bus: &Bus) -> Result<(Vec<ConsumerStatus>, Vec<Standing>)> {
    let first = bus.consumer_status().await?;
    let again = after_a_while(bus).await?;
    let standing = standing(bus, &first, Some(again)).await?;
    Ok((first, standing))
}

async fn after_a_while(bus: &Bus) -> Result<Vec<ConsumerStatus>> {
    tokio::time::sleep(BETWEEN_LOOKS).await;
    bus.consumer_status().await
}

/// Whether a member may be dead, or this host's clock is not the bus's.
fn is_doubtful(member: &MemberStatus, now: Timestamp) -> bool {
    now.since(member.heard_of) >= SILENT || member.heard_of.since(now) >= Duration::from_secs(1)
}

async fn standing(
    bus: &Bus,
    first: &[ConsumerStatus],
    again: Option<Vec<ConsumerStatus>>,
) -> Result<Vec<Standing>> {
    let heard = |all: &[ConsumerStatus]| -> BTreeSet<(String, Timestamp)> {
        let members = all.iter().flat_map(|status| &status.members);
        members
            .map(|member| (member.id.clone(), member.heard_of))
            .collect()
    };
    let before = heard(first);
    let moved = again.is_some();
    let last = again.unwrap_or_else(|| first.to_vec());
    // With two looks whoever was heard of in between lives; with one, whoever is there at all.
    let lives =
        |member: &MemberStatus| !moved || !before.contains(&(member.id.clone(), member.heard_of));
    let explanation = bus.explain().await?;
    let (roots, terms) = (explanation.roots, explanation.consumers);
    let without_root = |filter: &Filter| {
        let text = filter.as_str();
        let below = roots
            .events
            .as_deref()
            .and_then(|root| text.strip_prefix(root)?.strip_prefix('.'));
        below.unwrap_or(text).to_owned()
    };
    let now = SystemClock.now();
    let mut all = Vec::with_capacity(last.len());
    for status in last {
        let is_it =
            |terms: &&ConsumerTerms| terms.name == status.name && terms.stream == status.stream;
        // It may have been deleted in between.
        let Some(terms) = terms.iter().find(is_it) else {
            continue;
        };
        let alive = status.members.iter().filter(|member| lives(member));
        all.push(Standing {
            terms: terms.clone(),
            asked: status.filters.iter().map(without_root).collect(),
            alive: alive.map(|member| member.id.clone()).collect(),
            status,
            now,
        });
    }
    Ok(all)
}

/// How that stands which tools of the bus's own server see, in a word.
fn gauge(gauge: Gauge) -> &'static str {
    match gauge {
        Gauge::Absent => "absent",
        Gauge::Shown => "shown",
        Gauge::Paused => "paused",
        Gauge::Taken => "taken",
        Gauge::Unfit => "unfit",
    }
}

fn waiting_for(one: &WaitingFor) -> Value {
    json!({
        "reason": one.reason,
        "events": one.events,
        "seq": one.seq,
        "failures": one.failures,
        "error": one.error,
        "at": one.at.to_string(),
    })
}

/// Those of one name.
///
/// # Errors
/// [`ErrorKind::NoSuchConsumer`] with the names that there are.
pub(super) fn of_name(all: Vec<Standing>, name: &Name) -> Result<Vec<Standing>> {
    let mut known: Vec<String> = all.iter().map(|one| one.status.name.to_string()).collect();
    known.dedup();
    let found: Vec<Standing> = all
        .into_iter()
        .filter(|one| one.status.name == *name)
        .collect();
    if found.is_empty() {
        return Err(unknown(&known, name));
    }
    Ok(found)
}

pub(super) fn unknown(known: &[String], name: &Name) -> Error {
    let hint = if known.is_empty() {
        "there is none at all".to_owned()
    } else {
        format!("there are {}", known.join(", "))
    };
    Error::new(
        ErrorKind::NoSuchConsumer,
        format!("there is no consumer {name}; {hint}"),
    )
}

impl Standing {
    pub(super) fn is_alive(&self, member: &MemberStatus) -> bool {
        self.alive.contains(&member.id)
    }

    /// Members that live; none where the bus cannot tell, because no member has made records yet.
    pub(super) fn members(&self) -> Option<usize> {
        self.status.has_records.then_some(self.alive.len())
    }

    /// Events before it, those beside the main flow among them.
    pub(super) fn lag(&self) -> u64 {
        let status = &self.status;
        status.pending_at_most + status.waiting + status.running + status.replaying
    }

    /// Whether [`lag`](Self::lag) is a bound: what a filter leaves out of a stretch is not counted.
    pub(super) fn lag_is_at_most(&self) -> bool {
        self.status.ordered && self.status.pending_at_most > 0
    }

    /// How long the first of them has been stored, beside the main flow or not told.
    pub(super) fn behind(&self) -> Duration {
        self.since(self.status.oldest_pending)
    }

    /// How long ago a member was last heard of.
    pub(super) fn silent(&self, member: &MemberStatus) -> Duration {
        self.since(Some(member.heard_of))
    }

    pub(super) fn since(&self, at: Option<Timestamp>) -> Duration {
        at.map_or(Duration::ZERO, |at| self.now.since(at))
    }

    pub(super) fn state(&self) -> State {
        let status = &self.status;
        if !status.paused.is_empty() {
            State::Paused
        } else if self.lag() == 0 {
            State::Idle
        } else if self.members() == Some(0) {
            State::NoMembers
        } else if status.pending_at_most == 0 && status.running == 0 {
            State::Waiting
        } else {
            State::Running
        }
    }

    pub(super) fn mode(&self) -> &'static str {
        if self.status.ordered {
            "ordered"
        } else {
            "shared"
        }
    }

    /// Everything, for programs: what `explain` has of it, and how it stands.
    pub(super) fn json(&self) -> Result<Value> {
        let mut whole = serde_json::to_value(&self.terms).map_err(|error| {
            Error::new(ErrorKind::Internal, "a consumer cannot be written as JSON").caused_by(error)
        })?;
        let status = &self.status;
        let member = |member: &MemberStatus| {
            json!({
                "id": member.id,
                "alive": self.is_alive(member),
                "partitions": member.partitions,
                "heard_of": member.heard_of.to_string(),
                "confirmed": member.confirmed,
                "leaving": member.leaving,
            })
        };
        let more = json!({
            "mode": self.mode(),
            "state": self.state().name().replace(' ', "_"),
            "paused": status.paused,
            "members": status.members.iter().map(member).collect::<Vec<_>>(),
            "partitions": status.ordered.then_some(status.partitions),
            "unowned": status.unowned,
            "lag": self.lag(),
            "lag_at_most": self.lag_is_at_most(),
            "lag_seconds": self.behind().as_secs_f64(),
            "waiting": status.waiting,
            "waiting_for": status.waiting_for.iter().map(waiting_for).collect::<Vec<_>>(),
            "holding": status.holding,
            "full": status.full,
            "running": status.running,
            "replaying": status.replaying,
            "handled": status.ordered.then_some(status.handled),
            "last_progress": status.last_progress.map(|at| at.to_string()),
            "dead": status.has_records.then_some(status.dead),
            "gauge": status.gauge.map(gauge),
        });
        if let (Value::Object(whole), Value::Object(more)) = (&mut whole, more) {
            whole.extend(more);
        }
        Ok(whole)
    }
}
