//! A lone nats-server dies, freezes, restarts and is sent away under load, and connections to it are
//! cut, at times from a seed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test panics where it fails, and says what it did"
)]

mod on_nats;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use trunkline::core::engine::{Engine, Link, LinkOptions};
use trunkline::{Bus, Context, ErrorKind, Filter, Item, Start};
use trunkline_nats_server::{NatsServer, ServerOptions, obtain};
use trunkline_testing::fixture::{Moved, Noted, OrderPlaced};
use trunkline_testing::{Cuts, Proxy};

use on_nats::{
    Client, Writer, attach, attach_with, emit, keyed, order_of, patient, publish, soon, state_of,
    unkeyed, watching,
};

/// A server that a thread for blocking work changes.
type Shared = Arc<Mutex<NatsServer>>;

async fn start() -> Shared {
    let started = || NatsServer::start(&obtain().unwrap(), ServerOptions::default()).unwrap();
    let server = tokio::task::spawn_blocking(started).await.unwrap();
    Arc::new(Mutex::new(server))
}

async fn change(server: &Shared, change: impl FnOnce(&mut NatsServer) + Send + 'static) {
    let server = Arc::clone(server);
    tokio::task::spawn_blocking(move || change(&mut server.lock()))
        .await
        .unwrap();
}

/// Does something bad to the server, and makes it good again.
async fn fault(server: &Shared, fault: usize, random: &mut SmallRng) -> &'static str {
    let short = Duration::from_millis(random.random_range(0..800));
    match fault {
        0 => {
            change(server, |server| server.kill().unwrap()).await;
            sleep(short).await;
            change(server, |server| server.restart().unwrap()).await;
            "killed"
        }
        1 => {
            change(server, |server| server.pause().unwrap()).await;
            sleep(3 * short).await;
            change(server, |server| server.resume().unwrap()).await;
            "paused"
        }
        2 => {
            change(server, |server| server.stop().unwrap()).await;
            sleep(short).await;
            change(server, |server| server.restart().unwrap()).await;
            "restarted"
        }
        _ => {
            change(server, |server| server.lame_duck().unwrap()).await;
            sleep(2 * short).await;
            change(server, |server| {
                server.kill().unwrap();
                server.restart().unwrap();
            })
            .await;
            "sent away"
        }
    }
}

/// How often each event was handled.
type Handled = Arc<Mutex<BTreeMap<String, usize>>>;

async fn member(bus: &Bus, handled: &Handled) {
    let orders = Arc::clone(handled);
    let notes = Arc::clone(handled);
    let consumer = bus
        .consumer("work")
        .ack_wait(Duration::from_secs(2))
        .on(move |order: OrderPlaced, _: Context| {
            let handled = Arc::clone(&orders);
            async move {
                let id = format!("{}-{}", order.order, order.n);
                *handled.lock().entry(id).or_default() += 1;
            }
        })
        .on(move |note: Noted, _: Context| {
            let handled = Arc::clone(&notes);
            async move {
                *handled
                    .lock()
                    .entry(format!("note-{}", note.n))
                    .or_default() += 1;
            }
        });
    consumer.start().await.unwrap();
}

/// Hears live events, and says how often it was told that some are missing.
async fn listener(bus: &Bus) -> JoinHandle<usize> {
    let mut moves = bus.subscribe::<Moved>().await.unwrap();
    tokio::spawn(async move {
        let mut resumed = 0;
        while let Some(item) = moves.recv().await {
            match item {
                Item::Resumed => resumed += 1,
                Item::Event(moved) if moved.n == u32::MAX => break,
                _ => {}
            }
        }
        resumed
    })
}

async fn survives(seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let server = start().await;
    let direct = server.lock().url();
    let address = direct.strip_prefix("nats://").unwrap().parse().unwrap();
    let cuts = Cuts::new(seed);
    let cut = format!("nats://{}", Proxy::start(address, cuts.clone()).await);

    let handled = Handled::default();
    let mut clients: Vec<Client> = Vec::new();
    for url in [&direct, &cut] {
        let client = attach(url).await;
        member(&client.bus, &handled).await;
        clients.push(client);
    }
    let reader = attach(&cut).await;
    let everything = Filter::new("testing.>").unwrap();
    let mut follow = reader.bus.follow(&everything, Start::First).await.unwrap();
    let listens = [listener(&reader.bus).await, listener(&clients[0].bus).await];
    let watcher = attach(&cut).await;
    let watch = watching(&watcher, "faults").await;

    let stop = Arc::new(AtomicBool::new(false));
    let going = || {
        let stop = Arc::clone(&stop);
        move || !stop.load(Ordering::Relaxed)
    };
    let mut publishers = JoinSet::new();
    for number in 0..6_u32 {
        let client = attach([&direct, &cut][number as usize % 2]).await;
        let (going, batch) = (going(), [1, 1, 20][number as usize / 2]);
        publishers.spawn(async move {
            let key = format!("k{number}");
            let mut n = 0;
            while going() {
                publish(
                    &client.bus,
                    (n..n + batch).map(|n| keyed(&key, n)).collect(),
                )
                .await;
                n += batch;
                emit(&client.bus, Moved { n }).await;
                sleep(Duration::from_millis(2)).await;
            }
            (client, key, n)
        });
    }
    let (unkeyed_client, unkeyed_going) = (attach(&cut).await, going());
    publishers.spawn(async move {
        let mut n = 0;
        while unkeyed_going() {
            publish(&unkeyed_client.bus, (n..n + 50).map(unkeyed).collect()).await;
            n += 50;
            sleep(Duration::from_millis(10)).await;
        }
        (unkeyed_client, "note".to_owned(), n)
    });
    let mut writers = JoinSet::new();
    for url in [&direct, &cut] {
        let (client, going) = (attach(url).await, going());
        let mut writer = Writer::new(&client, "faults").await;
        writers.spawn(async move {
            while going() {
                writer.write().await;
            }
            (client, writer)
        });
    }

    // Each kind, in any order, and then whatever comes.
    let mut kinds = vec![0, 1, 2, 3, random.random_range(0..4), 0];
    let mut faults = Vec::new();
    while !kinds.is_empty() {
        let kind = kinds.swap_remove(random.random_range(0..kinds.len()));
        sleep(Duration::from_millis(random.random_range(50..1_000))).await;
        faults.push(fault(&server, kind, &mut random).await);
    }
    stop.store(true, Ordering::Relaxed);
    let mut published: BTreeMap<String, u32> = BTreeMap::new();
    while let Some(done) = soon("publishers", publishers.join_next()).await {
        let (client, key, n) = done.unwrap();
        published.insert(key, n);
        clients.push(client);
    }
    let (mut won, mut writer_states) = (0, Vec::new());
    while let Some(done) = soon("writers", writers.join_next()).await {
        let (client, writer) = done.unwrap();
        won += writer.won();
        writer_states.push(writer);
        clients.push(client);
    }
    let all: u32 = published.values().sum();
    println!(
        "seed {seed}: {faults:?}, {} cuts, {all} events, {won} commits",
        cuts.made()
    );
    assert!(
        all > 500 && won > 20,
        "seed {seed}: next to nothing was done"
    );

    // Followed: each once, each key in its order, nothing else.
    let mut last = 0;
    let mut next: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..all {
        let Some(item) = soon("the follower", follow.recv()).await else {
            panic!("seed {seed}: the follower ended");
        };
        let Item::Event(event) = item else {
            panic!("seed {seed}: the follower lost its way: {item:?}");
        };
        let seq = event.stored.as_ref().unwrap().seq;
        assert!(seq > last, "seed {seed}: {seq} came after {last}");
        last = seq;
        order_of(&mut next, &event.envelope.id().to_string());
    }
    assert_eq!(next, published, "seed {seed}");
    // Handled: all of them, some twice.
    let count = all as usize;
    on_nats::until(&format!("seed {seed}: handlers"), || {
        handled.lock().len() >= count
    })
    .await;
    let twice = handled.lock().values().filter(|times| **times > 1).count();
    println!("seed {seed}: {twice} of {count} were handled more than once");

    // Five more of everything, by everybody.
    clients.push(reader);
    clients.push(watcher);
    for (number, client) in clients.iter().enumerate() {
        for n in 0..5 {
            publish(&client.bus, vec![keyed(&format!("after{number}"), n)]).await;
            soon("emit", emit(&client.bus, Moved { n })).await;
            soon("inspect", client.bus.inspect()).await.unwrap();
        }
        let mut writer = Writer::new(client, "faults").await;
        for _ in 0..5 {
            soon("commit", writer.write()).await;
        }
    }
    for n in 0..5 * clients.len() {
        let item = soon("the follower", follow.recv()).await;
        assert!(
            matches!(item, Some(Item::Event(_))),
            "seed {seed}: {n}: {item:?}"
        );
    }
    let count = count + 5 * clients.len();
    on_nats::until(&format!("seed {seed}: handlers"), || {
        handled.lock().len() >= count
    })
    .await;
    assert_eq!(handled.lock().len(), count);

    // The state is what was written last, to who scans and to who watched all along.
    let scanned = state_of(&clients[0], "faults").await;
    on_nats::check_writers(&writer_states, &scanned);
    on_nats::until(&format!("seed {seed}: the watch"), || {
        *watch.lock() == scanned
    })
    .await;

    emit(&clients[0].bus, Moved { n: u32::MAX }).await;
    for listen in listens {
        let resumed = soon("a listener", listen).await.unwrap();
        assert!(resumed > 0, "seed {seed}: nobody told a listener");
    }
    for client in clients {
        soon("close", client.bus.close()).await.unwrap();
    }
}

/// A few, or the one that `SEED` names, or those below `SEEDS`.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(2),
    }
}

#[test]
fn f1_everything_survives_a_server_that_fails_at_random() {
    for seed in seeds() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(survives(seed));
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_that_is_longer_than_every_time_out_is_told_and_survived() {
    let server = start().await;
    let url = server.lock().url();
    let link = LinkOptions {
        request_timeout: Duration::from_secs(1),
        publish_timeout: Duration::from_secs(2),
        ..patient()
    };
    let client = attach_with(&url, link).await;
    let handled = Handled::default();
    member(&client.bus, &handled).await;
    let mut follow = client
        .bus
        .follow(&Filter::new("testing.>").unwrap(), Start::New)
        .await
        .unwrap();
    let resumed = listener(&client.bus).await;
    let watch = watching(&client, "outage").await;
    let mut writer = Writer::new(&client, "outage").await;
    writer.write().await;
    publish(&client.bus, vec![keyed("k", 0)]).await;

    for round in 1..=2_u32 {
        change(&server, |server| server.kill().unwrap()).await;
        let mut state = client.bus.link();
        let lost = state.wait_for(|link| matches!(link, Link::Disconnected { .. }));
        drop(soon("the link", lost).await.unwrap());
        // Far more than may wait: all are refused, and nobody waits longer than the deadline.
        let begun = tokio::time::Instant::now();
        let mut waiting = JoinSet::new();
        for n in 0..10_000 {
            let bus = client.bus.clone();
            waiting.spawn(async move { bus.publish(Noted { n: 1_000_000 + n }).await });
        }
        while let Some(outcome) = soon("a publisher", waiting.join_next()).await {
            let error = outcome.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
            assert!(error.event_id().is_some(), "{error}");
        }
        let error = client.bus.emit(Moved { n: 0 }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
        let (state, key) = (client.engine.state(), on_nats::key("a"));
        let bucket = on_nats::name("outage");
        let scan = state.scan(
            &bucket,
            Some(&key),
            None,
            0,
            trunkline::core::engine::Credit::items(1),
        );
        let error = soon("a scan", scan).await.unwrap_err();
        assert!(error.retryable(), "{error}");
        // Several deadlines of everything that waits in the background pass.
        sleep(Duration::from_secs(8).saturating_sub(begun.elapsed())).await;
        match &*client.bus.link().borrow() {
            Link::Disconnected { reason, .. } => assert!(!reason.is_empty()),
            other => panic!("the link says {other:?}"),
        }
        change(&server, |server| server.restart().unwrap()).await;
        publish(&client.bus, vec![keyed("k", round)]).await;
        writer.write().await;
        on_nats::until("handlers", || handled.lock().len() > round as usize).await;
    }
    let mut next = BTreeMap::new();
    for _ in 0..3 {
        match soon("the follower", follow.recv()).await {
            Some(Item::Event(event)) => order_of(&mut next, &event.envelope.id().to_string()),
            other => panic!("the follower lost its way: {other:?}"),
        }
    }
    let scanned = state_of(&client, "outage").await;
    on_nats::until("the watch", || *watch.lock() == scanned).await;
    emit(&client.bus, Moved { n: u32::MAX }).await;
    assert!(soon("the listener", resumed).await.unwrap() >= 2);
    assert_eq!(handled.lock().len(), 3, "what was refused is not stored");
    soon("close", client.bus.close()).await.unwrap();
}
