//! Readers on other threads, while the stream goes on to new segments and forgets old ones.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps in vain")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::{append, create, spec, subject, time};
use trunkline_core::Filter;
use trunkline_core::engine::{AppendMode, Credit, Position, Removal, Retention, Seq};
use trunkline_log::Selection;
use trunkline_log::sim::{Random, SimDisk};
use trunkline_log::stream::Reader;

/// Ends the reading threads also when the writer fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn follow(reader: &Reader, selection: &Selection, ended: &AtomicBool) -> u64 {
    let (mut next, mut last, mut seen): (Seq, Seq, u64) = (1, 0, 0);
    loop {
        let is_last = ended.load(Ordering::Acquire);
        let mut page = Vec::new();
        let credit = Credit {
            items: 40,
            bytes: 3_000,
        };
        next = reader.read(next, selection, credit, &mut page).unwrap();
        let standing = reader.standing();
        for event in page {
            assert!(event.seq > last, "{} after {last}", event.seq);
            let number = event.seq.to_le_bytes();
            let body = event.body.to_bytes().unwrap();
            assert!(
                body.chunks(8).all(|part| part == number),
                "wrong bytes in {}",
                event.seq
            );
            assert_eq!(event.subject, subject(event.seq));
            assert!(selection.matches(&event.subject));
            // What is missing in between has left the stream.
            let is_next = event.seq == last + 1 || standing.first >= event.seq;
            assert!(
                is_next || *selection != Selection::All,
                "{last} {}",
                event.seq
            );
            last = event.seq;
            seen += 1;
        }
        assert!(
            standing.first <= standing.tail && standing.events <= standing.tail - standing.first
        );
        let count = reader.count(selection, 0).unwrap();
        assert!(count <= 600, "{count}");
        let (start, _) = reader.start(Position::Time(time(0)), selection).unwrap();
        assert!(start <= reader.standing().tail);
        if is_last && next >= standing.tail {
            return seen;
        }
    }
}

#[test]
fn readers_see_all_that_is_there_in_order_and_as_it_was() {
    for seed in 0..8 {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(seed);
        let mut spec = spec(Retention::DiscardOld);
        spec.max_events = Some(500);
        let mut stream = create(&disk, spec, seed, time(0)).unwrap();
        let reader = stream.reader();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let rare = Selection::Subjects(vec![subject(6), subject(2)]);
            let filters = Selection::Filters(vec![Filter::new("s.a.*").unwrap()]);
            let readers: Vec<_> = [Selection::All, rare, filters, Selection::All]
                .into_iter()
                .map(|selection| {
                    let (reader, ended) = (reader.clone(), &ended);
                    scope.spawn(move || follow(&reader, &selection, ended))
                })
                .collect();
            let ended = Ended(&ended);
            for commit in 0..1_500 {
                let tail = stream.tail();
                let batch = (tail..tail + 1 + random.below(10)).map(|seq| {
                    let len = 1 + random.index(30);
                    Ok(append(subject(seq), seq.to_le_bytes().repeat(len)))
                });
                let batch: Vec<_> = batch.collect();
                let now = time(commit / 100);
                stream.stage(now, batch, AppendMode::Each).unwrap();
                if random.below(100) == 0 {
                    let before = Removal::Before(stream.tail().saturating_sub(30));
                    stream.stage_remove(now, &before).unwrap();
                }
                stream.commit().unwrap();
            }
            drop(ended);
            let seen: Vec<u64> = readers
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .collect();
            assert!(seen.iter().all(|seen| *seen > 0), "{seen:?}");
        });
    }
}
