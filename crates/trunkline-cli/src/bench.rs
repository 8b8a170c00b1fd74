//! `trunkline bench`: quick figures of the bus at hand, on a type of its own, cleaned up after.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use serde::Serialize;
use trunkline::core::engine::{
    Change, ConsumerRef, ConsumerSpec, Credit, Fetched, Removal, Settle,
};
use trunkline::core::envelope::JsonText;
use trunkline::core::{Clock, SystemClock};
use trunkline::{
    Bus, Data, Envelope, Error, ErrorKind, EventId, Filter, Item, Name, RawEvent, Result, Start,
};

use crate::console::Console;
use crate::exit::Exit;
use crate::figures::{bytes, duration, grouped, rate};
use crate::interrupt::Interrupt;
use crate::table::Facts;

/// Events that are published one at a time, at most: each is a round trip.
const MAX_SINGLE: u64 = 2_000;

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Events that are published in batches; one at a time it is a tenth of them, 2 000 at most.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(10..=10_000_000))]
    events: u64,
    /// Bytes of the data of an event.
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    size: u64,
}

/// What was measured. Durations are in microseconds.
#[derive(Debug, Serialize)]
struct Figures {
    engine: String,
    /// What the engine knows of itself and of the server behind it.
    facts: BTreeMap<String, String>,
    event_type: String,
    events: u64,
    single_events: u64,
    data_bytes: u64,
    publish_p50_us: f64,
    publish_p99_us: f64,
    batch_events_per_second: u64,
    receive_p50_us: f64,
    receive_p99_us: f64,
    consume_events_per_second: u64,
    events_removed: u64,
}

/// Where the bench works: a type of its own, so that it meets nobody's events.
struct Place {
    event_type: String,
    filter: Filter,
    subject: Filter,
    stream: Name,
    consumer: Name,
    data: Bytes,
}

pub(crate) async fn run(
    bus: &Bus,
    options: &Bench,
    console: &mut Console,
    mut interrupt: Interrupt,
) -> Result<Exit> {
    let place = place(bus, options.size).await?;
    console.note(format_args!(
        "measuring on {} of stream {}; its events are removed afterwards",
        place.event_type, place.stream
    ));
    let measured = tokio::select! {
        measured = measure(bus, options, &place, console) => Some(measured),
        () = interrupt.asked() => None,
    };
    console.clear_progress();
    // Cleaned up whatever came before, or the next bench finds what this one left.
    let removed = clean_up(bus, &place, console).await;
    let Some(measured) = measured else {
        return Ok(Exit::Interrupted);
    };
    let mut figures = measured?;
    figures.events_removed = removed;
    if console.json {
        console.json_document(&figures)?;
    } else {
        console.out.text(facts(&figures).render(console.look))?;
        console.out.flush()?;
    }
    Ok(Exit::Done)
}

async fn place(bus: &Bus, size: u64) -> Result<Place> {
    let random: String = EventId::generate(SystemClock.now())
        .to_string()
        .chars()
        .rev()
        .take(8)
        .collect();
    let event_type = format!("trunkline.bench.r{random}");
    let explanation = bus.explain_types(&[&event_type]).await?;
    let terms = explanation.types.into_iter().next();
    let (subject, stream) = terms
        .and_then(|terms| Some((terms.subject, terms.stream?)))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotStored,
                format!("no stream stores {event_type}, so there is nothing to measure; give one a filter that covers trunkline.bench.>"),
            )
        })?;
    let text = "x".repeat(usize::try_from(size).unwrap_or(0).saturating_sub(2));
    Ok(Place {
        filter: Filter::new(&event_type)?,
        consumer: Name::new(format!("trunkline-bench-{random}"))?,
        data: format!("\"{text}\"").into(),
        event_type,
        subject,
        stream,
    })
}

impl Place {
    fn event(&self, bus: &Bus) -> Result<RawEvent> {
        let id = EventId::generate(SystemClock.now());
        let data = Data::Json(JsonText::trusted(self.data.clone()));
        Envelope::new(id, bus.source(), self.event_type.as_str(), data).map(RawEvent::from)
    }

    fn consumer_ref(&self) -> ConsumerRef {
        ConsumerRef {
            stream: self.stream.clone(),
            consumer: self.consumer.clone(),
        }
    }
}

async fn measure(
    bus: &Bus,
    options: &Bench,
    place: &Place,
    console: &mut Console,
) -> Result<Figures> {
    let single = (options.events / 10).clamp(1, MAX_SINGLE);
    let create = Change::CreateConsumer(ConsumerSpec {
        at: place.consumer_ref(),
        filters: vec![place.subject.clone()],
        start: Start::First,
        ack_wait: Duration::from_secs(60),
        max_in_flight: 10_000,
    });
    bus.engine().topology().apply(vec![create]).await?;

    let (mut published, mut received) = one_at_a_time(bus, place, single, console).await?;
    let began = Instant::now();
    in_batches(bus, place, options.events, console).await?;
    let batch = began.elapsed();
    let began = Instant::now();
    consume(bus, place, single + options.events, console).await?;
    let consumed = began.elapsed();
    published.sort_unstable();
    received.sort_unstable();
    Ok(Figures {
        engine: bus.engine().name().to_owned(),
        facts: bus
            .engine()
            .facts()
            .into_iter()
            .map(|fact| (fact.name.into(), fact.value))
            .collect(),
        event_type: place.event_type.clone(),
        events: options.events,
        single_events: single,
        data_bytes: options.size,
        publish_p50_us: micros(percentile(&published, 50)),
        publish_p99_us: micros(percentile(&published, 99)),
        batch_events_per_second: rate(options.events, batch),
        receive_p50_us: micros(percentile(&received, 50)),
        receive_p99_us: micros(percentile(&received, 99)),
        consume_events_per_second: rate(single + options.events, consumed),
        events_removed: 0,
    })
}

/// How long publishing took, and how long it was until a follower had the event.
async fn one_at_a_time(
    bus: &Bus,
    place: &Place,
    count: u64,
    console: &mut Console,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let mut follower = bus.follow(&place.filter, Start::New).await?;
    let (mut published, mut received) = (Vec::new(), Vec::new());
    for number in 0..count {
        let event = place.event(bus)?;
        let began = Instant::now();
        let publish = async {
            for outcome in bus.publish_raw(vec![event]).await {
                outcome.stored()?;
            }
            Ok(began.elapsed())
        };
        let receive = async {
            loop {
                match follower.recv().await {
                    Some(Item::Event(_)) => return Ok(began.elapsed()),
                    Some(_) => {}
                    None => return Err(gone()),
                }
            }
        };
        // Tried together, so that nobody waits for an event that was refused.
        let (took, arrived) = tokio::try_join!(publish, receive)?;
        published.push(took);
        received.push(arrived);
        console.progress(|| format!("one at a time: {} of {}", grouped(number), grouped(count)));
    }
    Ok((published, received))
}

async fn in_batches(bus: &Bus, place: &Place, count: u64, console: &mut Console) -> Result<()> {
    let max_batch = bus.engine().limits().max_batch.max(1) as u64;
    let mut done = 0;
    while done < count {
        let size = (count - done).min(max_batch);
        let events: Vec<RawEvent> = (0..size).map(|_| place.event(bus)).collect::<Result<_>>()?;
        for outcome in bus.publish_raw(events).await {
            outcome.stored()?;
        }
        done += size;
        console.progress(|| format!("in batches: {} of {}", grouped(done), grouped(count)));
    }
    Ok(())
}

/// Fetches and settles everything with one durable consumer.
async fn consume(bus: &Bus, place: &Place, count: u64, console: &mut Console) -> Result<()> {
    let at = place.consumer_ref();
    let (mut feed, settler) = bus.engine().consume().open(&at).await?;
    let (mut done, mut deliveries) = (0, Vec::new());
    while done < count {
        match feed.fetch(Credit::items(1_000), &mut deliveries).await? {
            Fetched::Deliveries(_) => {}
            // A bounded stream may have dropped some already; they cannot be consumed.
            Fetched::Gap(gap) => done += gap.at_most(),
            Fetched::Gone | Fetched::Closed => return Err(gone()),
        }
        done += deliveries.len() as u64;
        let batch = deliveries
            .drain(..)
            .map(|delivery| (delivery.token, Settle::Ack));
        for settled in settler.settle(batch.collect(), false).completed().await? {
            settled?;
        }
        console.progress(|| format!("consuming: {} of {}", grouped(done), grouped(count)));
    }
    Ok(())
}

/// Removes what the bench made, as far as it can, and says what it could not.
async fn clean_up(bus: &Bus, place: &Place, console: &mut Console) -> u64 {
    if let Err(error) = bus
        .delete_consumer(&place.consumer, Some(&place.stream))
        .await
        && error.kind() != ErrorKind::NoSuchConsumer
    {
        console.say(format_args!(
            "consumer {} is left over: {error}",
            place.consumer
        ));
    }
    let what = Removal::Matching(place.subject.clone());
    match bus.engine().log().remove(&place.stream, what).await {
        Ok(removed) => removed,
        Err(error) => {
            console.say(format_args!(
                "events of {} are left over: {error}",
                place.event_type
            ));
            0
        }
    }
}

fn facts(figures: &Figures) -> Facts {
    let micros = |micros: f64| duration(Duration::from_secs_f64(micros / 1e6));
    let mut facts = Facts::default();
    facts.add("engine", &figures.engine);
    for (name, value) in &figures.facts {
        facts.add(name.clone(), value);
    }
    facts.add(
        "events",
        format!(
            "{} in batches, {} one at a time, {} of data each",
            grouped(figures.events),
            grouped(figures.single_events),
            bytes(figures.data_bytes)
        ),
    );
    facts.add(
        "publish one",
        format!(
            "p50 {}, p99 {}",
            micros(figures.publish_p50_us),
            micros(figures.publish_p99_us)
        ),
    );
    facts.add(
        "publish batches",
        format!("{} events/s", grouped(figures.batch_events_per_second)),
    );
    facts.add(
        "until received",
        format!(
            "p50 {}, p99 {}",
            micros(figures.receive_p50_us),
            micros(figures.receive_p99_us)
        ),
    );
    facts.add(
        "consume",
        format!("{} events/s", grouped(figures.consume_events_per_second)),
    );
    facts.add(
        "cleaned up",
        format!("the consumer, {} events", grouped(figures.events_removed)),
    );
    facts
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// Of a sorted list.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

fn gone() -> Error {
    Error::new(ErrorKind::Closed, "the bus went away while it was measured")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::kept;
    use crate::filled::filled;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 50), Duration::from_millis(50));
        assert_eq!(percentile(&sorted, 99), Duration::from_millis(99));
        assert_eq!(percentile(&sorted[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[tokio::test]
    async fn it_measures_and_leaves_nothing_behind() {
        let bus = filled().await;
        let (mut console, out, talk) = kept(80);
        console.json = true;
        let options = crate::parsed::<Bench>(&["--events", "1500", "--size", "10"]);
        let exit = run(&bus, &options, &mut console, Interrupt::never()).await;
        assert_eq!(exit.unwrap(), Exit::Done);
        let figures: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(figures["events_removed"], 1_650);
        assert!(figures["consume_events_per_second"].as_u64().unwrap() > 0);
        assert!(talk.text().contains("trunkline.bench."));
        let found = bus.inspect().await.unwrap();
        assert!(found.consumers.is_empty());
        assert_eq!(
            found
                .streams
                .iter()
                .map(|stream| stream.events)
                .sum::<u64>(),
            4
        );
    }

    #[tokio::test]
    async fn it_cleans_up_when_it_is_interrupted() {
        let bus = filled().await;
        let (mut console, out, _) = kept(80);
        let options = crate::parsed::<Bench>(&["--events", "10"]);
        let exit = run(&bus, &options, &mut console, Interrupt::asked_already()).await;
        // Which of the two is first is open; what is left over is not.
        assert!(
            matches!(exit, Ok(Exit::Interrupted | Exit::Done)),
            "{}",
            out.text()
        );
        let found = bus.inspect().await.unwrap();
        assert!(found.consumers.is_empty());
        assert_eq!(
            found
                .streams
                .iter()
                .map(|stream| stream.events)
                .sum::<u64>(),
            4
        );
    }
}
