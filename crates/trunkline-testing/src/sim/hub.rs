//! What lies between the hosts: packets on their way, the world's dice and its trace.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::distr::uniform::SampleRange;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use trunkline::core::engine::Boxed;

use super::site::Site;
use super::world::HostId;

/// What a packet is about, which says what may go wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Append,
    Read,
    Remove,
    Commit,
    Scan,
    Open,
    Topology,
    Settle,
    /// A settlement that nobody waits for.
    Ack,
    /// Live messages, which promise nothing.
    Live,
    /// A reader's demand, and the end of one.
    Demand,
    /// What a follower, a watch or a listener is told.
    Told,
    /// Deliveries of a shared consumer.
    Deliveries,
}

impl Call {
    /// Whether it may be lost without anybody being told: a call has a deadline, and who asks for
    /// deliveries asks again. Readers are mended by the connection itself.
    pub(crate) fn may_be_lost(self) -> bool {
        !matches!(self, Call::Demand | Call::Told)
    }
}

/// Carried out by the server when the packet arrives.
pub(crate) type Work = Box<dyn FnOnce(Arc<Site>) -> Boxed<'static, ()> + Send>;

/// Carried out in a host when the packet arrives.
pub(crate) type Answer = Box<dyn FnOnce(Arrival) + Send>;

/// How an answer arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Whole,
    /// The reader that it is for learns first that it broke.
    Broken,
}

pub(crate) enum Cargo {
    Up(Work),
    Down(Answer),
}

/// Something under way between a host and the server.
pub(crate) struct Packet {
    /// The host, whichever end it is.
    pub(crate) host: HostId,
    /// Which life of it.
    pub(crate) life: u32,
    pub(crate) sent: Duration,
    pub(crate) call: Call,
    /// Packets of one lane do not overtake each other.
    pub(crate) lane: Option<u64>,
    pub(crate) cargo: Cargo,
}

pub(crate) struct Hub {
    /// Whether the trace keeps texts, and not only their fingerprint.
    pub(crate) is_verbose: bool,
    random: Mutex<SmallRng>,
    sent: Mutex<Vec<Packet>>,
    trace: Mutex<Trace>,
    lanes: Mutex<u64>,
}

#[derive(Default)]
struct Trace {
    fingerprint: u64,
    lines: Vec<Line>,
}

/// One line of a trace.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) at: Duration,
    pub(crate) host: String,
    pub(crate) text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_secs_f64();
        write!(f, "{at:>10.4} {:<10} {}", self.host, self.text)
    }
}

impl Hub {
    pub(crate) fn new(seed: u64, is_verbose: bool) -> Self {
        Self {
            is_verbose,
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            sent: Mutex::default(),
            trace: Mutex::default(),
            lanes: Mutex::default(),
        }
    }

    pub(crate) fn chance(&self, share: f64) -> bool {
        share > 0.0 && self.random.lock().random_bool(share.min(1.0))
    }

    pub(crate) fn pick(&self, range: impl SampleRange<u64>) -> u64 {
        self.random.lock().random_range(range)
    }

    /// A duration from `low` to `high`, by the microsecond.
    pub(crate) fn between(&self, low: Duration, high: Duration) -> Duration {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.pick(micros(low)..=micros(high.max(low))))
    }

    /// From -1 to 1.
    pub(crate) fn spread(&self) -> f64 {
        self.random.lock().random_range(-1.0..=1.0)
    }

    pub(crate) fn lane(&self) -> u64 {
        let mut lanes = self.lanes.lock();
        *lanes += 1;
        *lanes
    }

    pub(crate) fn send(&self, packet: Packet) {
        self.sent.lock().push(packet);
    }

    pub(crate) fn take_sent(&self) -> Vec<Packet> {
        std::mem::take(&mut self.sent.lock())
    }

    /// Notes that something happened: `what` as a number always, as a text only if that is kept.
    pub(crate) fn note(&self, at: Duration, host: &str, what: u64, text: impl FnOnce() -> String) {
        let mut trace = self.trace.lock();
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let bytes = host.bytes().map(u64::from);
        for value in [nanos, what].into_iter().chain(bytes) {
            trace.fingerprint =
                (trace.fingerprint.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        if self.is_verbose {
            let (host, text) = (host.to_owned(), text());
            trace.lines.push(Line { at, host, text });
        }
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.trace.lock().fingerprint
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        self.trace.lock().lines.clone()
    }
}
