//! `divide`: into how many partitions a consumer's keys are divided.

use clap::Args;
use trunkline::{Bus, Divided, Name, Result};

use crate::console::Console;
use crate::exit::Exit;
use crate::replay::name;

#[derive(Debug, Args)]
pub(crate) struct Divide {
    /// The consumer.
    #[arg(value_name = "NAME", value_parser = name)]
    consumer: Name,
    /// How many partitions it is to have: 1, 2, 4, 8, 16, 32, 64, 128 or 256.
    #[arg(long, value_name = "N")]
    partitions: u16,
}

pub(super) async fn divide(bus: &Bus, options: &Divide, console: &mut Console) -> Result<Exit> {
    let Divide {
        consumer,
        partitions,
    } = options;
    let divided = bus.divide_consumer(consumer, *partitions).await?;
    if console.json {
        let document = |one: &Divided| {
            serde_json::json!({
                "name": consumer.as_str(),
                "stream": one.stream.as_str(),
                "from": one.from,
                "to": one.to,
            })
        };
        let documents: Vec<_> = divided.iter().map(document).collect();
        console.json_document(&documents)?;
    } else {
        for Divided {
            stream, from, to, ..
        } in &divided
        {
            let line = match from == to {
                true => {
                    format!("consumer {consumer} of stream {stream} has {to} partitions already")
                }
                false => format!(
                    "divided consumer {consumer} of stream {stream} into {to} partitions; it had {from}"
                ),
            };
            console.out.line(line)?;
        }
    }
    console.out.flush()?;
    Ok(Exit::Done)
}
