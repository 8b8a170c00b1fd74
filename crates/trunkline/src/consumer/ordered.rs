//! The ordered consumer: events of one key one after another, whatever dies.
//!
//! A key belongs to one of the consumer's partitions, and a partition to one member. Its owner reads
//! the log itself, without acknowledgements, and keeps in the state bucket how far it got. Every write
//! of an owner is fenced by the revision of its ownership, so that one who was taken for dead can move
//! nothing any more. An event that fails leaves the main flow: it is written beside it, later events of
//! its key follow it there, and everything else goes on.
//!
//! ```text
//!   membership   heartbeat, lease, who is there         (a task)
//!   assign       who should own what                    (pure)
//!   claim        taking a partition over
//!   earlier      what was settled before the consumer was divided as it is   (pure)
//!   partition    turns, failures, what to write         (pure)
//!   gauge        what other tools see of it             (a task)
//!   member       ties them to the reader and the handlers
//! ```
//!
//! **Invariant:** nothing starts and nothing is written for a partition after the lease of the member
//! has passed, until the partition has been claimed anew.

mod assign;
mod body;
mod claim;
mod cursor;
pub(super) mod earlier;
mod gauge;
mod member;
mod membership;
mod partition;
mod reader;
pub(super) mod record;
pub(super) mod store;

pub(super) use member::{Intake, Member as Ordered, start};
pub(super) use membership::TTL;
pub(super) use partition::MAX_SIDES;
pub(super) use record::CONTROL;
