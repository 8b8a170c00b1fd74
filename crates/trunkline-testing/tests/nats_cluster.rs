//! Three servers that are one: their leader is killed under load, and a stream grows to all of them.

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
use tokio::task::JoinSet;
use tokio::time::sleep;
use trunkline::core::engine::{Change, Credit, Engine, Followed, StreamSpec, Topology};
use trunkline::{Context, Filter, Item, Start};
use trunkline_nats_server::{Cluster, ServerOptions, obtain};
use trunkline_testing::fixture::{Noted, OrderPlaced};

use on_nats::{
    Writer, attach, check_writers, keyed, name, order_of, publish, soon, state_of, unkeyed, until,
    watching,
};

type Shared = Arc<Mutex<Cluster>>;

async fn start() -> Shared {
    let started = || Cluster::start(&obtain().unwrap(), 3, ServerOptions::default()).unwrap();
    let cluster = tokio::task::spawn_blocking(started).await.unwrap();
    Arc::new(Mutex::new(cluster))
}

/// Which server leads a stream.
async fn leader_of(cluster: &Shared, stream: &str) -> usize {
    let urls = cluster.lock().url();
    let urls: Vec<&str> = urls.split(',').collect();
    let client = async_nats::connect(urls).await.unwrap();
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let asking = async {
        loop {
            let answer = client.request(subject.clone(), "".into()).await;
            let answer: serde_json::Value = match &answer {
                Ok(answer) => serde_json::from_slice(&answer.payload).unwrap(),
                // None at the moment.
                Err(_) => continue,
            };
            if let Some(leader) = answer["cluster"]["leader"].as_str() {
                let cluster = cluster.lock();
                let mut servers = cluster.servers().iter();
                return servers
                    .position(|server| server.name() == Some(leader))
                    .unwrap();
            }
        }
    };
    soon("a leader", asking).await
}

/// Kills the leader of a stream, lets the others go on for a while, and brings it back.
async fn kill_leader(cluster: &Shared, stream: &str, down: Duration) {
    let leader = leader_of(cluster, stream).await;
    let killed = Arc::clone(cluster);
    let kill = move || killed.lock().servers_mut()[leader].kill().unwrap();
    tokio::task::spawn_blocking(kill).await.unwrap();
    sleep(down).await;
    let restarted = Arc::clone(cluster);
    let restart = move || restarted.lock().servers_mut()[leader].restart().unwrap();
    tokio::task::spawn_blocking(restart).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f1_a_cluster_loses_its_leaders_and_nothing_else() {
    let cluster = start().await;
    let url = cluster.lock().url();
    let reader = attach(&url).await;
    let handled: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let client = attach(&url).await;
        let (orders, notes) = (Arc::clone(&handled), Arc::clone(&handled));
        let consumer = client
            .bus
            .consumer("work")
            .ack_wait(Duration::from_secs(5))
            .on(move |order: OrderPlaced, _: Context| {
                let id = format!("{}-{}", order.order, order.n);
                *orders.lock().entry(id).or_default() += 1;
                async {}
            })
            .on(move |note: Noted, _: Context| {
                *notes.lock().entry(format!("note-{}", note.n)).or_default() += 1;
                async {}
            });
        soon("a member", consumer.start()).await.unwrap();
        clients.push(client);
    }
    let everything = Filter::new("testing.>").unwrap();
    let mut follow = reader.bus.follow(&everything, Start::First).await.unwrap();
    let watcher = attach(&url).await;
    let watch = watching(&watcher, "cluster").await;
    let inspection = reader.engine.inspect().await.unwrap();
    let streams = inspection.streams.iter().map(|stream| &stream.spec);
    assert!(
        streams.clone().all(|spec| spec.replicas == 3),
        "{streams:?}"
    );

    let stop = Arc::new(AtomicBool::new(false));
    let going = || {
        let stop = Arc::clone(&stop);
        move || !stop.load(Ordering::Relaxed)
    };
    let mut publishers = JoinSet::new();
    for number in 0..4_u32 {
        let client = attach(&url).await;
        let (going, batch) = (going(), [1, 20][number as usize % 2]);
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
                sleep(Duration::from_millis(5)).await;
            }
            (client, key, n)
        });
    }
    let (client, still) = (attach(&url).await, going());
    publishers.spawn(async move {
        let mut n = 0;
        while still() {
            publish(&client.bus, (n..n + 20).map(unkeyed).collect()).await;
            n += 20;
            sleep(Duration::from_millis(20)).await;
        }
        (client, "note".to_owned(), n)
    });
    let mut writers = JoinSet::new();
    for _ in 0..3 {
        let (client, going) = (attach(&url).await, going());
        let mut writer = Writer::new(&client, "cluster").await;
        writers.spawn(async move {
            while going() {
                writer.write().await;
            }
            (client, writer)
        });
    }

    sleep(Duration::from_secs(1)).await;
    kill_leader(&cluster, "EVENTS", Duration::from_secs(4)).await;
    sleep(Duration::from_secs(1)).await;
    kill_leader(&cluster, "KV_cluster", Duration::from_secs(4)).await;
    sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);

    let mut published: BTreeMap<String, u32> = BTreeMap::new();
    while let Some(done) = soon("publishers", publishers.join_next()).await {
        let (client, key, n) = done.unwrap();
        published.insert(key, n);
        clients.push(client);
    }
    let mut states = Vec::new();
    while let Some(done) = soon("writers", writers.join_next()).await {
        let (client, writer) = done.unwrap();
        states.push(writer);
        clients.push(client);
    }
    let all: u32 = published.values().sum();
    let won: usize = states.iter().map(Writer::won).sum();
    println!("{all} events, {won} commits");
    assert!(all > 500 && won > 20, "next to nothing was done");

    let mut last = 0;
    let mut next = BTreeMap::new();
    for _ in 0..all {
        match soon("the follower", follow.recv()).await {
            Some(Item::Event(event)) => {
                let seq = event.stored.as_ref().unwrap().seq;
                assert!(seq > last, "{seq} came after {last}");
                last = seq;
                order_of(&mut next, &event.envelope.id().to_string());
            }
            other => panic!("the follower lost its way: {other:?}"),
        }
    }
    assert_eq!(next, published);
    until("handlers", || handled.lock().len() >= all as usize).await;
    let twice = handled.lock().values().filter(|times| **times > 1).count();
    println!("{twice} were handled more than once");

    // From a connection that wrote nothing, with a barrier: what was told is there.
    let scanned = state_of(&reader, "cluster").await;
    check_writers(&states, &scanned);
    until("the watch", || *watch.lock() == scanned).await;
    clients.extend([reader, watcher]);
    for (number, client) in clients.iter().enumerate() {
        let mut writer = Writer::new(client, "cluster").await;
        for n in 0..5 {
            publish(&client.bus, vec![keyed(&format!("after{number}"), n)]).await;
            writer.write().await;
        }
        soon("inspect", client.bus.inspect()).await.unwrap();
    }
    let count = all as usize + 5 * clients.len();
    until("handlers", || handled.lock().len() >= count).await;
    for client in clients {
        soon("close", client.bus.close()).await.unwrap();
    }
}

/// How many consumers of a stream each server has.
async fn seats(cluster: &Shared, stream: &str) -> Vec<usize> {
    let (url, names): (String, Vec<String>) = {
        let cluster = cluster.lock();
        let names = cluster.servers().iter().map(|server| server.name());
        let names = names.map(|name| name.unwrap().to_owned()).collect();
        (cluster.servers()[0].url(), names)
    };
    let client = async_nats::connect(url).await.unwrap();
    let subject = format!("$JS.API.CONSUMER.LIST.{stream}");
    let answer = soon("a list", client.request(subject, "".into())).await;
    let answer: serde_json::Value = serde_json::from_slice(&answer.unwrap().payload).unwrap();
    let consumers = answer["consumers"].as_array().unwrap();
    let of = |name: &String| {
        let leads = |one: &&serde_json::Value| one["cluster"]["leader"] == name.as_str();
        consumers.iter().filter(leads).count()
    };
    names.iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_server_is_gone_notices_it_however_briefly_it_is_waited_for() {
    let cluster = start().await;
    let url = cluster.lock().servers()[0].url();
    let client = attach(&url).await;
    publish(&client.bus, vec![keyed("k", 0)]).await;
    let mut follows = Vec::new();
    for _ in 0..12 {
        let log = client.engine.log();
        let filters = [Filter::new("events.testing.>").unwrap()];
        let (stream, mut events) = (name("EVENTS"), Vec::new());
        let follow = log.follow(&stream, Start::First, &filters);
        let mut follow = soon("following", follow).await.unwrap();
        let first = follow.next(Credit::items(10), &mut events);
        soon("the first event", first).await.unwrap();
        follows.push(follow);
    }
    // The connection stays: what they read from is on another server than they are connected to.
    let seats = seats(&cluster, "EVENTS").await;
    let gone = (1..3).max_by_key(|server| seats[*server]).unwrap();
    assert!(seats[gone] > 0, "{seats:?}");
    let killed = Arc::clone(&cluster);
    let kill = move || killed.lock().servers_mut()[gone].kill().unwrap();
    tokio::task::spawn_blocking(kill).await.unwrap();
    publish(&client.bus, vec![keyed("k", 1)]).await;
    for (number, follow) in follows.iter_mut().enumerate() {
        let waiting = async {
            loop {
                // As a loop does that has other things to look after too.
                let brief = Duration::from_millis(200);
                let mut events = Vec::new();
                let next = follow.next(Credit::items(10), &mut events);
                if let Ok(next) = tokio::time::timeout(brief, next).await {
                    return (next.unwrap(), events.len());
                }
            }
        };
        let found = soon(&format!("follower {number} of {seats:?}"), waiting).await;
        assert!(
            matches!(found, (Followed::Events { .. }, 1)),
            "{number}: {found:?}"
        );
    }
    soon("close", client.bus.close()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_an_id_that_several_publish_at_once_is_stored_once_and_all_are_told() {
    let cluster = start().await;
    let url = cluster.lock().url();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(attach(&url).await);
    }
    for n in 0..200 {
        let mut publishing = JoinSet::new();
        for client in &clients {
            let bus = client.bus.clone();
            publishing.spawn(async move { bus.publish_raw(vec![keyed("k", n)]).await.remove(0) });
        }
        let mut seqs = Vec::new();
        while let Some(published) = soon("a publish", publishing.join_next()).await {
            seqs.push(published.unwrap().stored().unwrap().seq);
        }
        seqs.dedup();
        assert_eq!(seqs.len(), 1, "event {n}");
    }
    for client in clients {
        soon("close", client.bus.close()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_grows_to_three_copies() {
    let cluster = start().await;
    let url = cluster.lock().url();
    let client = attach(&url).await;
    let spec = StreamSpec {
        replicas: 1,
        ..StreamSpec::new(name("GROWS"), vec![Filter::new("grows.>").unwrap()])
    };
    let topology: &dyn Topology = client.engine.topology();
    let create = topology.apply(vec![Change::CreateStream(spec.clone())]);
    soon("creating", create).await.unwrap();
    let copies = async || {
        let inspection = soon("inspecting", topology.inspect()).await.unwrap();
        let mut streams = inspection.streams.into_iter();
        let found = streams.find(|stream| stream.spec.name == spec.name);
        found.unwrap().spec.replicas
    };
    assert_eq!(copies().await, 1);
    let grown = StreamSpec {
        replicas: 3,
        ..spec.clone()
    };
    let update = topology.apply(vec![Change::UpdateStream(grown)]);
    soon("growing", update).await.unwrap();
    assert_eq!(copies().await, 3);
    soon("close", client.bus.close()).await.unwrap();
}
