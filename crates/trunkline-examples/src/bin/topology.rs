//! Guide: topology.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

// guide: use
use std::time::Duration;

use trunkline::core::engine::StreamSpec;
use trunkline::{Bus, Name};
// guide: end

// guide: managed
#[tokio::main]
async fn main() -> trunkline::Result<()> {
    let bus = Bus::connect("memory:shop").await?; // makes EVENTS, which keeps 7 days

    let mut events = StreamSpec::new(Name::new("EVENTS")?, vec![]); // no subjects: the usual ones
    events.max_age = Some(Duration::from_secs(14 * 24 * 60 * 60));
    let declared = || Bus::connect("memory:shop").stream(events.clone());
    if let Err(error) = declared().await {
        println!("refused: {}", error.code());
    }

    let topology = declared().manage().await?; // refuses nothing and changes nothing yet
    let plan = topology.plan().await?;
    for stream in plan.drift() {
        for row in &stream.differences {
            println!("{}: {row}", stream.name());
        }
    }
    let applied = topology.apply(&plan, &[]).await?; // `&[name]` adopts what others made
    if let Some((_, error)) = applied.failed {
        return Err(error);
    }
    println!("{} done, {} left", applied.done.len(), applied.left.len());
    topology.close().await;

    declared().await?.close().await?; // as it is declared now
    bus.close().await
}
// guide: end
