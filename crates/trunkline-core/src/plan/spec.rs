//! Streams as they are declared where nobody says otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use super::OWNER_KEY;
use crate::engine::{Limits, Retention, StreamSpec};
use crate::name::Name;
use crate::subject::Filter;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl StreamSpec {
    /// A stream of Trunkline's with its defaults: 7 days, no limit in count or bytes, the oldest
    /// leave first, ids remembered for 2 minutes, 3 copies where there are hosts for them.
    pub fn new(name: Name, subjects: Vec<Filter>) -> Self {
        Self {
            name,
            subjects,
            retention: Retention::DiscardOld,
            max_events: None,
            max_bytes: None,
            max_age: Some(7 * DAY),
            max_message: Limits::default().max_message,
            duplicate_window: Duration::from_secs(120),
            replicas: 3,
            metadata: BTreeMap::from([(OWNER_KEY.to_owned(), "1".to_owned())]),
        }
    }

    /// A stream for dead letters: 30 days, refuses when full, and takes a message of every other
    /// stream together with its story.
    pub fn dead_letters(name: Name, subjects: Vec<Filter>) -> Self {
        let spec = Self::new(name, subjects);
        Self {
            retention: Retention::RefuseWhenFull,
            max_age: Some(30 * DAY),
            max_message: spec.max_message + (32 << 10),
            ..spec
        }
    }

    /// A stream for commands: each leaves when it is done.
    pub fn work_queue(name: Name, subjects: Vec<Filter>) -> Self {
        Self {
            retention: Retention::WorkQueue,
            ..Self::new(name, subjects)
        }
    }
}
