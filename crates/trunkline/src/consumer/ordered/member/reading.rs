//! What an ordered consumer's member reads, and for which of its partitions.
//!
//! It reads the stream once for all of them. A partition that has no room falls behind, and is read for
//! by itself until it has caught up.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;
use trunkline_core::engine::{Credit, Gap, Page, Seq};
use trunkline_core::{Error, ErrorKind, Result, key};

use super::super::partition::{Lane, Partition};
use super::super::reader::{self, BATCH, Read};
use super::tasks::Done;
use super::{Member, PAUSE};
use crate::consumer::pool::Appetite;
use crate::consumer::turn::InHand;

impl Member {
    /// Whether to read on: there is somebody to read for.
    pub(super) fn wants_events(&self) -> bool {
        let mut readers = self
            .partitions
            .values()
            .filter(|one| !one.lagging && !one.stopping);
        self.intake.is_none()
            && !self.is_paused()
            && !self.claims_are_under_way()
            && Instant::now() >= self.read_from
            && (readers.any(Partition::has_room))
    }

    /// How much to read: what the windows leave, and nothing while the breaker is open or what is given
    /// up cannot be stored. A read gives one event even if that is larger than the credit, so the largest
    /// that there may be must fit, or be alone.
    pub(super) fn room(&self) -> Credit {
        let none = Credit { items: 0, bytes: 0 };
        // What is on its way to partitions that lag is as good as held.
        let Credit {
            items: mut held,
            bytes: mut held_bytes,
        } = self.catching_up.unwrap_or(none);
        for partition in self.partitions.values() {
            held += partition.held_events();
            held_bytes += partition.held_bytes();
        }
        let control = self.control.borrow();
        let window = control.window_events.unwrap_or(usize::MAX);
        let room = Credit {
            items: BATCH.items.min(window.saturating_sub(held)),
            bytes: BATCH
                .bytes
                .min(control.window_bytes.saturating_sub(held_bytes)),
        };
        let largest = self.shared.bus.inner.engine.limits().max_message;
        let fits = held == 0 || room.bytes >= largest.min(BATCH.bytes);
        match self.runs.appetite() {
            Appetite::Any | Appetite::One if fits && room.bytes > 0 && self.shared.buries() => room,
            _ => none,
        }
    }

    /// Where the reader has to begin, if it is to be opened.
    pub(super) fn read_next(&mut self) -> Seq {
        if !self.reader.is_open() && self.partitions.values().all(|one| one.lagging) {
            // Nobody is ahead of them, so that nobody is behind either.
            for partition in self.partitions.values_mut() {
                partition.lagging = false;
            }
        }
        let reading = self.partitions.values().filter(|one| !one.lagging);
        reading
            .map(|one| one.cursor().read() + 1)
            .min()
            .unwrap_or(1)
    }

    pub(super) fn read(&mut self, read: Read, now: Instant) -> Result<()> {
        match read {
            Read::Opened => {
                // Some were perhaps claimed since it was told where to begin.
                let at = self.reader.at;
                for partition in self.partitions.values_mut() {
                    partition.lagging |= partition.cursor().read() + 1 < at;
                }
                Ok(())
            }
            Read::Events => {
                let events = std::mem::take(&mut self.reader.batch);
                for event in &events {
                    self.offer(event, now, |partition| !partition.lagging)?;
                }
                self.reader.batch = events;
                self.reader.batch.clear();
                self.pass_on();
                Ok(())
            }
            Read::Gap(gap) => {
                for partition in self.partitions.values_mut().filter(|one| !one.lagging) {
                    partition.expired(gap.from, gap.to);
                }
                self.missed(gap);
                Ok(())
            }
            Read::Reset => Err(Error::new(
                ErrorKind::Drift,
                format!(
                    "stream {} began anew with other events; start the consumer again",
                    self.place.stream
                ),
            )),
            Read::Closed => Err(Error::new(
                ErrorKind::Closed,
                "the bus was closed under the member",
            )),
            Read::Failed(error) if error.retryable() => {
                tracing::warn!(
                    consumer = %self.shared.name, stream = %self.place.stream, %error, again_in = ?PAUSE,
                    "the stream could not be read"
                );
                self.read_from = now + PAUSE;
                Ok(())
            }
            Read::Failed(error) => Err(error),
        }
    }

    /// Whoever reads with the member has seen everything below the reader.
    fn pass_on(&mut self) {
        for partition in self.partitions.values_mut().filter(|one| !one.lagging) {
            partition.passed(self.reader.at - 1);
        }
    }

    /// Gives an event to the partition that it belongs to, if that is ours and takes part.
    fn offer(
        &mut self,
        event: &trunkline_core::engine::StoredEvent,
        now: Instant,
        takes_part: impl Fn(&Partition) -> bool,
    ) -> Result<()> {
        let Some(definition) = &self.definition else {
            return Ok(());
        };
        // What is no event has no key; its turn will find out.
        let envelope = self.shared.bus.envelope(&self.place.stream, event).ok();
        let key = envelope.as_ref().and_then(|one| one.ordering_key());
        let slot = match &key {
            Some(key) => key::slot(key),
            None => Lane::new(None, event.seq).slot(),
        };
        let id = definition.layout().partition(slot);
        let Some(partition) = self.partitions.get_mut(&id).filter(|one| takes_part(one)) else {
            return Ok(());
        };
        if partition.stopping || !partition.has_room() {
            // The others go on; it reads for itself once it has room.
            partition.lagging = true;
            return Ok(());
        }
        partition.offer(InHand::decoded(event.clone(), envelope), key, now)
    }

    /// Reads a stretch for partitions that fell behind and have room again.
    pub(super) fn catch_up(&mut self) {
        if self.catching_up.is_some() || self.is_paused() || !self.reader.is_open() {
            return;
        }
        let room = self.room();
        if room.items == 0 {
            return;
        }
        let behind = |one: &&Partition| one.lagging && !one.stopping && one.has_much_room();
        let starts = self.partitions.values().filter(behind);
        if let Some(from) = starts.map(|one| one.cursor().read() + 1).min() {
            self.catching_up = Some(room);
            let (place, filters) = (Arc::clone(&self.place), Arc::clone(&self.filters));
            self.tasks.spawn(async move {
                Done::Page(from, reader::page(&place, &filters, from, room).await)
            });
        }
    }

    pub(super) fn caught_up(&mut self, from: Seq, page: &Page, now: Instant) -> Result<()> {
        // Who is further than this page began reads it in its turn, or begins in its middle.
        let reading: BTreeSet<u16> = self
            .partitions
            .values()
            .filter(|one| one.lagging && !one.stopping && one.has_much_room())
            .filter(|one| one.cursor().read() + 1 >= from)
            .map(|one| one.id)
            .collect();
        let mut full = BTreeSet::new();
        if let Some(gap) = page.gap {
            for id in &reading {
                if let Some(partition) = self.partitions.get_mut(id) {
                    partition.expired(gap.from, gap.to);
                }
            }
            self.missed(gap);
        }
        for event in &page.events {
            let full_before = full.clone();
            self.offer(event, now, |one| {
                one.lagging && reading.contains(&one.id) && !full_before.contains(&one.id)
            })?;
            full.extend(
                self.partitions
                    .values()
                    .filter(|one| !one.has_room())
                    .map(|one| one.id),
            );
        }
        for id in reading.difference(&full) {
            if let Some(partition) = self.partitions.get_mut(id) {
                partition.passed(page.next - 1);
                partition.lagging = partition.cursor().read() + 1 < self.reader.at;
            }
        }
        Ok(())
    }

    pub(super) fn missed(&self, gap: Gap) {
        tracing::warn!(
            consumer = %self.shared.name, stream = %self.place.stream, from = gap.from, to = gap.to,
            "retention removed events before they were handled; at most {} are expired", gap.at_most()
        );
        if let Some(observe) = &self.shared.on_gap {
            observe(&self.place.stream, gap);
        }
    }
}
