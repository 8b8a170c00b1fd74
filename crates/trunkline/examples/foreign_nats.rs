//! What `interop/run.py` needs of this side of a NATS server and no command does: handlers, ephemeral
//! events and state. It reads what to do from its arguments, `foreign_nats WORD [COUNT]`, and where from
//! the environment, as any program with a configuration.
#![allow(clippy::print_stdout, reason = "what it prints is what it is run for")]

use serde::{Deserialize, Serialize};
use trunkline::core::engine::{Commit, Committed, Expectation, Op, StateKey};
use trunkline::{
    Bus, Config, Error, ErrorKind, Event, FailureExt, Item, Meta, Name, Result, Retry,
};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "work.ordered", key = "order_id")]
struct WorkOrdered {
    order_id: String,
}

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "page.viewed", ephemeral)]
struct PageViewed {
    page: String,
}

/// The type is the one of those programs, the subject that of WIRE.md.
#[derive(Event, Serialize, Deserialize)]
#[event(type = "TaskCreated", subject = "task.created")]
struct TaskCreated {
    title: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let word = arguments.next().unwrap_or_default();
    let count = arguments.next().and_then(|count| count.parse().ok());
    let count = count.unwrap_or(1);
    let loaded = Config::load()?;
    let bus = Bus::from_config(&loaded.config).source("/foreign").await?;
    match word.as_str() {
        "emit" => emit(&bus, count).await?,
        "hear" => hear(&bus, count).await?,
        "handle" => handle(&bus, count).await?,
        "make" => {} // Streams are made by connecting.
        "legacy" => legacy(&bus, count).await?,
        "state" => state(&bus).await?,
        _ => {
            let message =
                format!("there is no {word:?}; use make, emit, hear, handle, legacy or state");
            return Err(Error::new(ErrorKind::Internal, message));
        }
    }
    bus.close().await
}

/// Sends ephemeral events.
async fn emit(bus: &Bus, count: usize) -> Result<()> {
    for number in 0..count {
        let page = format!("/größe/{number}");
        bus.emit(PageViewed { page }).await?;
    }
    Ok(())
}

/// Prints the pages of ephemeral events, once it has said that it listens.
async fn hear(bus: &Bus, count: usize) -> Result<()> {
    let mut viewed = bus.subscribe::<PageViewed>().await?;
    println!("listening");
    for _ in 0..count {
        match viewed.recv().await {
            Some(Item::Event(view)) => println!("{} {}", view.meta.id(), view.page),
            other => println!("{other:?}"),
        }
    }
    Ok(())
}

/// Handles orders as the durable consumer `billing` and prints them; the one called `bad` becomes a
/// dead letter.
async fn handle(bus: &Bus, count: usize) -> Result<()> {
    let (told, mut handled) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |order: WorkOrdered, meta: Meta| {
        let told = told.clone();
        async move {
            let line = format!("{} {}", meta.id(), order.order_id);
            let bad = order.order_id == "bad";
            let _ = told.send(line);
            match bad {
                true => Err("it is bad".permanent()),
                false => Ok(()),
            }
        }
    };
    // A consumer in key order has no durable on the server, and this one is there to be seen.
    let consumer = bus.consumer("billing").unordered();
    let consumer = consumer.on(handler).retry(Retry::never());
    let consumer = consumer.start().await?;
    for _ in 0..count {
        if let Some(line) = handled.recv().await {
            println!("{line}");
        }
    }
    consumer.stop().await;
    Ok(())
}

/// Handles what programs from before CloudEvents say of tasks, as the durable consumer `legacy`, and
/// prints it.
async fn legacy(bus: &Bus, count: usize) -> Result<()> {
    let (told, mut handled) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |task: TaskCreated, meta: Meta| {
        let told = told.clone();
        async move {
            let _ = told.send(format!("{} {}", meta.id(), task.title));
        }
    };
    let consumer = bus.consumer("legacy").on(handler).start().await?;
    for _ in 0..count {
        if let Some(line) = handled.recv().await {
            println!("{line}");
        }
    }
    consumer.stop().await;
    Ok(())
}

/// Writes three keys and takes one back.
async fn state(bus: &Bus) -> Result<()> {
    let bucket = Name::new("FOREIGN")?;
    let put = |key: &str, value: &'static str| -> Result<Op> {
        Ok(Op::Put {
            key: StateKey::new(key)?,
            value: value.into(),
            expect: Expectation::Any,
            ttl: None,
        })
    };
    let ops = vec![
        put("billing.cursor", "17")?,
        put("billing.name", "größe \u{1f600}")?,
        put("billing.gone", "1")?,
    ];
    commit(bus, &bucket, "1", ops).await?;
    let gone = Op::Delete {
        key: StateKey::new("billing.gone")?,
        expect: Expectation::Any,
    };
    commit(bus, &bucket, "2", vec![gone]).await
}

async fn commit(bus: &Bus, bucket: &Name, id: &str, ops: Vec<Op>) -> Result<()> {
    let commit = Commit {
        id: id.into(),
        fences: Vec::new(),
        ops,
    };
    match bus.engine().state().commit(bucket, commit).await?.await? {
        Committed::Done(_) => Ok(()),
        other => Err(Error::new(ErrorKind::Internal, format!("{other:?}"))),
    }
}
