//! What goes wrong, and how often.

use std::time::Duration;

/// What goes wrong in a world, and how often: chances from 0 to 1, and rates by the minute of the
/// world's time.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// The longest that a packet is under way if nothing is wrong with it.
    pub latency: Duration,
    /// The chance that a packet takes up to 1.5 s.
    pub slow: f64,
    /// The chance that a call never reaches the engine.
    pub lost_requests: f64,
    /// The chance that the answer of a call never reaches its caller, who gives up after a while.
    pub lost_answers: f64,
    /// The chance that a call is carried out 1 to 15 s later, when its caller has given up or is
    /// dead.
    pub late: f64,
    /// The chance that a scan which asks for no newer revision is answered by a replica that lags.
    pub stale_scans: f64,
    /// The chance that a follower or a watch fails, in a way that may be tried again, before it
    /// goes on.
    pub broken_readers: f64,
    /// The chance that what a follower or a watch is told comes up to 2 s late.
    pub lagging_readers: f64,
    /// The chance that an unconfirmed acknowledgement is lost.
    pub lost_acks: f64,
    /// The chance that the server's count of deliveries misses one.
    pub lost_hints: f64,
    /// How often a member is killed.
    pub kills: f64,
    /// How often a member stands still for 1 to 10 s and then goes on, as with SIGSTOP.
    pub freezes: f64,
    /// How often a member is told to stop and started again later, as in a deployment.
    pub stops: f64,
    /// How often one process loses its connection for up to 8 s.
    pub cuts: f64,
    /// How often the server is away for up to 6 s.
    pub outages: f64,
    /// How much faster or slower a member's clock may run, as a share.
    pub drift: f64,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self {
            latency: Duration::from_millis(5),
            slow: 0.0,
            lost_requests: 0.0,
            lost_answers: 0.0,
            late: 0.0,
            stale_scans: 0.0,
            broken_readers: 0.0,
            lagging_readers: 0.0,
            lost_acks: 0.0,
            lost_hints: 0.0,
            kills: 0.0,
            freezes: 0.0,
            stops: 0.0,
            cuts: 0.0,
            outages: 0.0,
            drift: 0.0,
        }
    }

    /// Nothing goes wrong, and members are stopped and started all the time.
    pub fn deployments() -> Self {
        Self {
            stops: 20.0,
            ..Self::none()
        }
    }

    /// Members are killed, and nothing else goes wrong.
    pub fn crashes() -> Self {
        Self {
            kills: 12.0,
            ..Self::none()
        }
    }

    /// Everything goes wrong.
    pub fn all() -> Self {
        Self {
            latency: Duration::from_millis(8),
            slow: 0.02,
            lost_requests: 0.01,
            lost_answers: 0.01,
            late: 0.01,
            stale_scans: 0.3,
            broken_readers: 0.02,
            lagging_readers: 0.05,
            lost_acks: 0.02,
            lost_hints: 0.1,
            kills: 6.0,
            freezes: 5.0,
            stops: 5.0,
            cuts: 4.0,
            outages: 1.5,
            drift: 0.03,
        }
    }

    /// Whether packets arrive, readers read on and members run or stop as they are told.
    pub fn is_calm(&self) -> bool {
        *self
            == Self {
                latency: self.latency,
                stops: self.stops,
                drift: self.drift,
                ..Self::none()
            }
    }
}
