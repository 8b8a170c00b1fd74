//! A publisher: lanes of events with ids that anybody can tell, of which none is given up.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::{AFTER_COMMAND, Order, Orders, Process, STOP_COMMAND, Voice, tracing_note};
use crate::dice::Dice;
use crate::event;
use crate::record::{Consumer, PUBLISHED, Publishing, Told, read};

/// Lanes of each kind, and how long each pauses between two events: 8 × 3 keyed events a second, and
/// 2 × 12 without keys, for each publisher.
const KEYED: (u32, u64, u64) = (8, 100, 550);
const UNKEYED: (u32, u64, u64) = (2, 20, 140);

/// Where each lane of this publisher goes on, by what it wrote down in former lives: an event of which it
/// does not know what became comes again.
fn positions(told: &[Told], process: &Process) -> BTreeMap<String, u32> {
    let mut next = BTreeMap::new();
    let own = |told: &&Told| (told.who.role, told.who.slot) == (process.role, process.slot);
    for told in told.iter().filter(own) {
        let (id, done) = match &told.what {
            Publishing::Ask { id } => (id, 0),
            Publishing::Ack { id, .. } | Publishing::Refused { id, .. } => (id, 1),
            Publishing::Stopped | Publishing::After { .. } | Publishing::Serves => continue,
        };
        if let Some((lane, n)) = event::parts(id) {
            next.insert(lane.to_owned(), n + done);
        }
    }
    next
}

/// Publishes until it is told to stop, then waits to be ended.
///
/// # Errors
/// When the files of the run cannot be read or written.
pub(crate) async fn run(process: Process) -> std::io::Result<ExitCode> {
    let mut orders = Orders::listen()?;
    let told: Vec<Told> = read(&process.dir.join(PUBLISHED)).map_err(std::io::Error::other)?;
    let positions = positions(&told, &process);
    let bus = tokio::select! {
        bus = process.connect() => match bus {
            Ok(bus) => bus,
            Err(error) => {
                tracing_note(&format!("cannot connect: {error}"));
                return Ok(ExitCode::FAILURE);
            }
        },
        _ = orders.next() => return Ok(ExitCode::SUCCESS),
    };
    let voice = Arc::new(Voice::new(bus, &process)?);
    let (stop, stopping) = watch::channel(false);
    let mut lanes = JoinSet::new();
    for (consumer, (count, low, high)) in [(Consumer::Ordered, KEYED), (Consumer::Shared, UNKEYED)]
    {
        for number in 0..count {
            let lane = event::lane(consumer, &process.who().client(), number);
            let mut next = positions.get(&lane).copied().unwrap_or(0);
            let (voice, mut stopping) = (Arc::clone(&voice), stopping.clone());
            let mut dice = Dice::about(process.seed, &lane, u32::MAX);
            lanes.spawn(async move {
                while !*stopping.borrow() {
                    voice.publish(&lane, next).await;
                    next += 1;
                    let pause = sleep(Duration::from_millis(dice.from(low, high)));
                    tokio::select! {
                        () = pause => {}
                        _ = stopping.wait_for(|stop| *stop) => {}
                    }
                }
            });
        }
    }
    let mut round = 0;
    loop {
        match orders.next().await {
            Order::Command(command) if command == STOP_COMMAND => {
                stop.send_replace(true);
                while lanes.join_next().await.is_some() {}
                voice.tell(Publishing::Stopped);
            }
            Order::Command(command) if command == AFTER_COMMAND => {
                voice.after(round).await;
                round += 1;
            }
            Order::Command(_) => {}
            Order::Terminate => break,
            Order::Orphaned => return Ok(ExitCode::FAILURE),
        }
    }
    // What was acknowledged is stored, whatever closing says.
    let _ = voice.bus.close().await;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Role, Who};

    #[test]
    fn a_new_life_goes_on_where_the_last_one_was_and_repeats_what_is_unknown() {
        let process = |slot| Process {
            dir: "none".into(),
            role: Role::Publisher,
            slot,
            life: 2,
            seed: 1,
            url: "memory:".to_owned(),
        };
        let told = |what| Told {
            at: 0,
            who: Who {
                role: Role::Publisher,
                slot: 0,
                life: 1,
            },
            what,
        };
        let ask = |id: &str| told(Publishing::Ask { id: id.to_owned() });
        let ack = |id: &str| {
            told(Publishing::Ack {
                id: id.to_owned(),
                seq: 1,
            })
        };
        let lines = [
            ask("k.p0.0-0"),
            ask("k.p0.1-0"),
            ack("k.p0.0-0"),
            ask("k.p0.0-1"),
            ack("k.p0.1-0"),
        ];
        let found = positions(&lines, &process(0));
        assert_eq!(
            found,
            BTreeMap::from([("k.p0.0".to_owned(), 1), ("k.p0.1".to_owned(), 1)])
        );
        assert!(positions(&lines, &process(1)).is_empty());
    }
}
