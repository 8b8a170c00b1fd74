//! What is published, and what each event is called.

use serde::{Deserialize, Serialize};
use trunkline::Event;

use crate::record::Consumer;

/// An event with a key.
#[derive(Event, Serialize, Deserialize, Clone, Debug)]
#[event(type = "chaos.step", key = "lane")]
pub(crate) struct Step {
    pub(crate) lane: String,
    pub(crate) n: u32,
}

/// An event without one.
#[derive(Event, Serialize, Deserialize, Clone, Debug)]
#[event(type = "chaos.note")]
pub(crate) struct Note {
    pub(crate) lane: String,
    pub(crate) n: u32,
}

/// Events that one client publishes one after another, numbered from 0: `k.p0.3` is the fourth keyed lane
/// of the first publisher, `u.p0.1` its second one without keys.
pub(crate) fn lane(consumer: Consumer, client: &str, number: u32) -> String {
    let kind = match consumer {
        Consumer::Ordered => 'k',
        Consumer::Shared => 'u',
    };
    format!("{kind}.{client}.{number}")
}

/// The id of an event.
pub(crate) fn id(lane: &str, n: u32) -> String {
    format!("{lane}-{n}")
}

/// The lane and number of an id.
pub(crate) fn parts(id: &str) -> Option<(&str, u32)> {
    let (lane, n) = id.rsplit_once('-')?;
    Some((lane, n.parse().ok()?))
}

/// Who handles the events of a lane.
pub(crate) fn consumer_of(lane: &str) -> Consumer {
    match lane.starts_with('k') {
        true => Consumer::Ordered,
        false => Consumer::Shared,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_what_it_is_of() {
        let lane = lane(Consumer::Ordered, "p1", 3);
        let id = id(&lane, 17);
        assert_eq!(parts(&id), Some(("k.p1.3", 17)));
        assert_eq!(consumer_of(&lane), Consumer::Ordered);
        assert_eq!(consumer_of("u.p1.3"), Consumer::Shared);
        assert_eq!(parts("foreign"), None);
    }
}
