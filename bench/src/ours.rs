//! The Trunkline sides. `None` means that the path does not exist yet; the harness then measures
//! the baseline alone.
//!
//! Each function sets up what an application would use, with full guarantees on, and handles its
//! events exactly as the rival beside it in [`pairs`](crate::pairs) does: same payload, same window,
//! same [`Countdown`](crate::countdown::Countdown), the same part inside the stopwatch.

use crate::pair::Contender;
use crate::rivals::ruststream_memory::{Handler, Producing};
use crate::runtime::Flavour;

/// `publish` of a [`Tick`](crate::payload::Tick) to `receivers` handlers that each get every event.
pub fn typed(_flavour: Flavour, _receivers: u64, _events: u64) -> Option<Contender> {
    None
}

/// The same to one consumer that takes batches.
pub fn typed_batches(_flavour: Flavour, _events: u64) -> Option<Contender> {
    None
}

/// A `Tick` to a handler and one back, each round trip given to
/// [`Stopwatch::latencies`](crate::stopwatch::Stopwatch::latencies).
pub fn ping_pong(_flavour: Flavour, _events: u64) -> Option<Contender> {
    None
}

/// JSON decoded for the handler: one at a time or four at once, with the producer as `producing`
/// says.
pub fn json(
    _flavour: Flavour,
    _handler: Handler,
    _producing: Producing,
    _events: u64,
) -> Option<Contender> {
    None
}

/// `emit` through a resolved publisher handle to `listeners` in the same process.
pub fn emit(_listeners: u64, _events: u64) -> Option<Contender> {
    None
}

/// The matcher on [`subjects`](crate::subjects), asked for a subject for the first time.
pub fn route_first_time(_events: u64) -> Option<Contender> {
    None
}

/// The same through resolved publisher handles.
pub fn route_resolved(_events: u64) -> Option<Contender> {
    None
}
