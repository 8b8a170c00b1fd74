//! Calling listeners in the same process without any bus: a map of names to callbacks.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pair::{Result, Side, expect_count};
use crate::payload::Tick;
use crate::stopwatch::Stopwatch;

type Listener = Box<dyn Fn(&Tick)>;

const NAME: &str = "tick.made";

/// The event emitter that everyone has written once: looked up by name on every emit, and called in
/// turn on the emitting thread.
pub fn by_name(listeners: u64) -> Result<impl Side> {
    let calls = Arc::new(AtomicU64::new(0));
    let mut by_name: HashMap<String, Vec<Listener>> = HashMap::new();
    for _ in 0..listeners {
        let calls = Arc::clone(&calls);
        by_name
            .entry(NAME.to_owned())
            .or_default()
            .push(Box::new(move |tick| {
                black_box(tick.sequence);
                // A plain load and store: one thread writes, and a locked add would be most of the cost.
                calls.store(calls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }));
    }
    let tick = Tick::new(1);
    Ok(move |events: u64, watch: &mut Stopwatch| {
        calls.store(0, Ordering::Relaxed);
        watch.time(|| {
            for _ in 0..events {
                if let Some(listeners) = by_name.get(black_box(NAME)) {
                    listeners
                        .iter()
                        .for_each(|listener| listener(black_box(&tick)));
                }
            }
        });
        expect_count(calls.load(Ordering::Relaxed), events * listeners)
    })
}
