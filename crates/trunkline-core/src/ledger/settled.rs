//! What of a consumer's progress outlives a process.

use std::collections::BTreeMap;

use crate::engine::Seq;

/// The progress of a consumer that outlives a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The sequence up to which everything is settled.
    pub(super) floor: Seq,
    /// Stretches above the floor in which everything is settled, first and last: they neither
    /// overlap nor touch each other or the floor.
    pub(super) above: BTreeMap<Seq, Seq>,
}

impl Settled {
    /// Everything up to `floor`.
    pub fn up_to(floor: Seq) -> Self {
        Self {
            floor,
            above: BTreeMap::new(),
        }
    }

    /// The sequence up to which everything is settled.
    pub fn floor(&self) -> Seq {
        self.floor
    }

    /// Stretches above the floor in which everything is settled, first and last, in order.
    pub fn above(&self) -> impl ExactSizeIterator<Item = (Seq, Seq)> {
        self.above.iter().map(|(from, to)| (*from, *to))
    }

    /// Adds everything from `from` to `to`.
    pub fn add(&mut self, from: Seq, to: Seq) {
        let (mut from, mut to) = (from.max(1), to);
        if from > to || to <= self.floor {
            return;
        }
        // The stretch that begins before it, if it reaches it, and all that begin within it.
        if let Some((first, last)) = self.above.range(..from).next_back()
            && *last >= from - 1
        {
            (from, to) = (*first, to.max(*last));
        }
        while let Some((first, last)) = self.above.range(from..=to.saturating_add(1)).next() {
            let first = *first;
            to = to.max(*last);
            self.above.remove(&first);
        }
        if from <= self.floor.saturating_add(1) {
            self.floor = to;
        } else {
            self.above.insert(from, to);
        }
    }

    /// The stretch above the floor in which `seq` lies.
    pub(super) fn stretch(&self, seq: Seq) -> Option<(Seq, Seq)> {
        let (from, to) = self.above.range(..=seq).next_back()?;
        (*to >= seq).then_some((*from, *to))
    }
}
