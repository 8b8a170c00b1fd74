//! Operators: whoever looks after dead letters, in a hurry and without much thought.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use trunkline::core::engine::Boxed;
use trunkline::dead_letter::{Discard, Id, Letter, Page, Record, Selection, Stands};
use trunkline::{DeadLetters, Name, Result, Seq};

use super::host::Process;
use super::members::{CONSUMER, Common, connect};
use super::world::World;

/// Replays and discards dead letters, some of them more than once and some of them too early, until the
/// world is well; from then on every one, so that it works.
pub(crate) fn operator(process: Process, common: Arc<Common>) -> Boxed<'static, ()> {
    Box::pin(async move {
        let work = async {
            let letters = loop {
                match connect(&process, process.engine()).await {
                    Ok(bus) => break bus.dead_letters(),
                    Err(_) => sleep(Duration::from_millis(300)).await,
                }
            };
            let hub = Arc::clone(&process.port.hub);
            loop {
                let (low, high) = (Duration::from_millis(100), Duration::from_millis(1_500));
                sleep(hub.between(low, high)).await;
                // What fails is tried again in the next round.
                let _ = look_after(&process, &common, &letters).await;
            }
        };
        tokio::select! {
            biased;
            () = process.told_to_stop() => {}
            () = work => {}
        }
    })
}

async fn look_after(process: &Process, common: &Common, letters: &DeadLetters) -> Result<()> {
    let of_consumer = Selection::new().consumer(Name::new(CONSUMER)?);
    let list = letters.list(&of_consumer, &Page::default()).await?;
    for letter in &list.letters {
        let Id::Event { seq, .. } = letter.id else {
            continue;
        };
        let (hub, at_last) = (&process.port.hub, common.at_last.has_happened());
        match letter.stands() {
            Stands::Dead if !at_last && hub.chance(0.5) => {}
            Stands::Dead if hub.chance(0.6) => {
                if at_last || hub.chance(0.5) {
                    common.journal.mend(seq);
                }
                process.port.note(33, || format!("replays sequence {seq}"));
                let _ = letters.replay(letter).await?;
            }
            Stands::Dead => discard(process, common, letters, letter, seq).await?,
            Stands::Replaying if !at_last && hub.chance(0.1) => {
                discard(process, common, letters, letter, seq).await?;
            }
            Stands::Replaying | Stands::Replayed | Stands::Discarded => {}
        }
    }
    Ok(())
}

async fn discard(
    process: &Process,
    common: &Common,
    letters: &DeadLetters,
    letter: &Letter,
    seq: Seq,
) -> Result<()> {
    process.port.note(34, || format!("discards sequence {seq}"));
    common.journal.discard(seq, process.now());
    let why = Discard::because("scripted").also_replaying();
    letters.discard(letter, &why).await.map(drop)
}

/// How the dead letters stand, as the server knows it, by the sequence of their events.
pub(crate) fn standings(world: &World) -> Result<BTreeMap<u64, Record>> {
    let mut standings = BTreeMap::new();
    for entry in world.records(None)? {
        if let Some((above, seq)) = entry.key.as_str().rsplit_once('.')
            && above.ends_with(".dlq")
            && let Ok(seq) = seq.parse()
        {
            standings.insert(seq, Record::decode(&entry.value)?);
        }
    }
    Ok(standings)
}
