//! async-nats by hand, as its own examples use it, with JSON encoded by serde.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{Context, PublishAckFuture};
use async_nats::jetstream::stream;
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde::Serialize;
use trunkline::EventId;
use trunkline::core::{Clock, SystemClock};

use super::WINDOW;
use crate::countdown::Countdown;
use crate::pair::{Result, expect_count};
use crate::payload::{Due, Order};
use crate::schedule::Schedule;
use crate::site::Site;
use crate::stopwatch::Stopwatch;

pub(super) const SUBJECT: &str = "raw.order";
const STREAM: &str = "RAW";
/// As many as the client's own default of a pull.
pub(super) const PULL: usize = 1_000;

pub(super) async fn connect(url: &str) -> Result<Client> {
    Ok(async_nats::connect(url).await?)
}

/// A stream as Trunkline makes one, so that the server has the same to do.
pub(super) async fn stored(client: &Client) -> Result<(Context, stream::Stream)> {
    let context = async_nats::jetstream::new(client.clone());
    let stream = context
        .get_or_create_stream(stream::Config {
            name: STREAM.to_owned(),
            subjects: vec![SUBJECT.to_owned()],
            max_age: Duration::from_secs(7 * 24 * 3_600),
            duplicate_window: Duration::from_secs(120),
            allow_direct: true,
            ..stream::Config::default()
        })
        .await?;
    Ok((context, stream))
}

fn json(event: &impl Serialize) -> Result<Bytes> {
    Ok(serde_json::to_vec(event)?.into())
}

/// One publish after the other; the clock stops when the server has answered a last one.
pub fn core_publish(site: &Site, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let url = site.url.clone();
    let (client, mut answers) = site.run(async move {
        let client = connect(&url).await?;
        let answers = client.subscribe("raw.echo").await?;
        client.flush().await?;
        Ok((client, answers))
    })?;
    watch.time(|| {
        site.run(async move {
            for _ in 0..events {
                client.publish(SUBJECT, json(&Order::sample())?).await?;
            }
            client.publish("raw.echo", Bytes::new()).await?;
            answers.next().await.ok_or("the connection ended")?;
            Ok(())
        })
    })
}

/// Two connections, one decoding what the other encodes.
pub fn core_subscribe(site: &Site, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let url = site.url.clone();
    let (publisher, mut orders) = site.run(async move {
        let subscriber = connect(&url).await?;
        let orders = subscriber.subscribe(SUBJECT).await?;
        subscriber.flush().await?;
        Ok((connect(&url).await?, orders))
    })?;
    let seen = Arc::new(AtomicU64::new(0));
    let handled = watch.time(|| {
        site.run(async move {
            let counting = Arc::clone(&seen);
            let reader = tokio::spawn(async move {
                for count in 1..=events {
                    let message = orders.next().await.ok_or("the connection ended")?;
                    black_box(serde_json::from_slice::<Order>(&message.payload)?);
                    counting.store(count, Ordering::Relaxed);
                }
                Result::Ok(events)
            });
            for sent in 0..events {
                while sent - seen.load(Ordering::Relaxed) >= WINDOW {
                    tokio::task::yield_now().await;
                }
                publisher.publish(SUBJECT, json(&Order::sample())?).await?;
            }
            publisher.flush().await?;
            reader.await?
        })
    })?;
    expect_count(handled, events)
}

/// What is written by hand where others are to read it, and a repeat is to be recognised.
#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'a str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    time: String,
    correlationid: &'a str,
    dataversion: u32,
    data: Order,
}

/// A publish and its window.
#[derive(Clone, Copy)]
pub struct Publishing {
    /// Acknowledgements outstanding at most.
    pub depth: u64,
    pub form: Form,
}

/// What is written of an event besides its body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Bare,
    /// An id that the server remembers.
    Identified,
    /// An envelope, and an id that the server remembers.
    Enveloped,
}

impl Publishing {
    async fn send(self, context: &Context) -> Result<PublishAckFuture> {
        if self.form == Form::Bare {
            return Ok(context.publish(SUBJECT, json(&Order::sample())?).await?);
        }
        let now = SystemClock.now();
        let id = EventId::generate(now).to_string();
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id.as_str());
        if self.form == Form::Identified {
            let body = json(&Order::sample())?;
            let sent = context.publish_with_headers(SUBJECT, headers, body);
            return Ok(sent.await?);
        }
        headers.insert("content-type", "application/cloudevents+json");
        let body = json(&CloudEvent {
            specversion: "1.0",
            id: &id,
            source: "/bench",
            kind: "order.placed",
            time: now.to_string(),
            correlationid: &id,
            dataversion: 1,
            data: Order::sample(),
        })?;
        let sent = context.publish_with_headers(SUBJECT, headers, body);
        Ok(sent.await?)
    }
}

/// Publishes with at most so many acknowledgements outstanding; each is awaited in its turn.
pub fn durable(
    how: Publishing,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let context = site.run(async move { Ok(stored(&connect(&url).await?).await?.0) })?;
        let took_ns = watch.time(|| site.run(async move { fill(&context, events, how).await }))?;
        if how.depth == 1 {
            watch.latencies(took_ns);
        }
        Ok(())
    }
}

/// Gives how long each publish took where there is but one at a time.
async fn fill(context: &Context, events: u64, how: Publishing) -> Result<Vec<u64>> {
    let depth = usize::try_from(how.depth)?;
    let mut outstanding = VecDeque::with_capacity(depth);
    let mut took_ns = Vec::new();
    for _ in 0..events {
        let began = Instant::now();
        let sent = how.send(context).await?;
        if depth == 1 {
            sent.await?;
            took_ns.push(u64::try_from(began.elapsed().as_nanos())?);
            continue;
        }
        outstanding.push_back(sent);
        if outstanding.len() == depth
            && let Some(oldest) = outstanding.pop_front()
        {
            oldest.await?;
        }
    }
    for sent in outstanding {
        sent.await?;
    }
    Ok(took_ns)
}

/// A durable pull consumer on a stream that was filled before.
pub fn consume(
    concurrency: usize,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let consumer = site.run(async move {
            let client = connect(&url).await?;
            let (context, mut stream) = stored(&client).await?;
            let first = stream.info().await?.state.last_sequence + 1;
            let how = Publishing {
                depth: 1_024,
                form: Form::Bare,
            };
            fill(&context, events, how).await?;
            pulled(&stream, first).await
        })?;
        let handled = watch.time(|| site.run(handle(consumer, events, concurrency)))?;
        expect_count(handled, events)
    }
}

/// All the way: published within a window, pulled, handled and acknowledged.
pub fn through(
    how: Publishing,
    concurrency: usize,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let (context, consumer) = site.run(both(url))?;
        let handled = watch.time(|| {
            site.run(async move {
                let handling = tokio::spawn(handle(consumer, events, concurrency));
                fill(&context, events, how).await?;
                handling.await?
            })
        })?;
        expect_count(handled, events)
    }
}

/// Who publishes, and a durable consumer from here on with a connection of its own, as another
/// program would have.
async fn both(url: String) -> Result<(Context, PullConsumer)> {
    let (context, mut stream) = stored(&connect(&url).await?).await?;
    let first = stream.info().await?.state.last_sequence + 1;
    let (_, stream) = stored(&connect(&url).await?).await?;
    Ok((context, pulled(&stream, first).await?))
}

/// Takes so many events, so many at once, and acknowledges each.
async fn handle(consumer: PullConsumer, events: u64, concurrency: usize) -> Result<u64> {
    let countdown = Countdown::default();
    countdown.expect(events);
    let messages = consumer
        .stream()
        .max_messages_per_batch(PULL)
        .messages()
        .await?
        .map_err(Box::<dyn std::error::Error + Send + Sync>::from);
    let handled = messages
        .take(usize::try_from(events)?)
        .try_for_each_concurrent(concurrency, |message| {
            let countdown = countdown.clone();
            async move {
                let order: Order = serde_json::from_slice(&message.payload)?;
                black_box((&order.order_id, order.total_cents));
                countdown.handled();
                message.ack().await
            }
        });
    handled.await?;
    Ok(events - countdown.remaining())
}

pub(super) async fn pulled(stream: &stream::Stream, first: u64) -> Result<PullConsumer> {
    let config = pull::Config {
        durable_name: Some(format!("bench-{first}")),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(30),
        max_ack_pending: 10_000,
        deliver_policy: async_nats::jetstream::consumer::DeliverPolicy::ByStartSequence {
            start_sequence: first,
        },
        filter_subject: SUBJECT.to_owned(),
        ..pull::Config::default()
    };
    Ok(stream.create_consumer(config).await?)
}

/// Events that are due `per_s` times a second, published by tasks, handled and acknowledged.
pub fn latency(per_s: u64) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let (context, consumer) = site.run(both(url))?;
        let schedule = Schedule::new(events, per_s);
        let handling = schedule.clone();
        let handler = site.programs.spawn(async move {
            let mut messages = consumer.messages().await?;
            while let Some(message) = messages.try_next().await? {
                handling.handled(&serde_json::from_slice::<Due>(&message.payload)?);
                message.ack().await?;
            }
            Result::Ok(())
        });
        watch.time(|| {
            let _runtime = site.programs.enter();
            schedule.each(|sequence| {
                let context = context.clone();
                tokio::spawn(async move {
                    let sent = context.publish(SUBJECT, json(&Due::new(sequence))?).await?;
                    sent.await?;
                    Result::Ok(())
                });
            });
            site.programs.block_on(schedule.done());
        });
        handler.abort();
        watch.latencies(schedule.latencies_ns());
        Ok(())
    }
}
