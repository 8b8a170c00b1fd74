//! Each mis-wiring is built on a real nats-server, and the doctor names exactly it; the set-up
//! beside it, put right, is found healthy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of a test that panics has failed its test"
)]

#[path = "doctor/server.rs"]
mod server;

#[path = "doctor/bench.rs"]
mod bench;

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::Client;
use bench::Step::{Bare, Consumer, Fetch, Publish, Stream, Update};
use bench::{Bench, DAY, SECOND, found, merge};
use futures_util::StreamExt;
use serde_json::{Value, json};
use server::{Server, jetstream};
use trunkline_core::engine::LinkOptions;
use trunkline_nats::NatsOptions;
use trunkline_nats::doctor::{Denials, Options, Snapshot, examine, judge};
use trunkline_nats_server::ServerOptions;

#[tokio::test]
async fn a_healthy_set_up_gives_no_finding_and_says_what_it_did_not_see() {
    let bench = Bench::new(jetstream()).await;
    bench
        .build(&[
            Stream(json!({})),
            Stream(json!({"name": "COMMANDS", "subjects": ["commands.>"], "retention": "workqueue", "discard": "new"})),
            Stream(json!({"name": "EVENTS_DLQ", "subjects": ["dlq.*.*.*"], "max_age": 30 * DAY, "discard": "new"})),
            Consumer("EVENTS", json!({"filter_subject": "events.order.placed"})),
            Consumer("COMMANDS", json!({"filter_subject": "commands.bill"})),
            Publish("events.order.placed", 1),
            Fetch("EVENTS", "billing", 1),
        ])
        .await;
    let mut options = Options::default();
    options.idle_after = Duration::ZERO;
    let snapshot = bench.seen(options).await;
    found(&snapshot, &[]);
    let parts: Vec<&str> = snapshot
        .not_seen
        .iter()
        .map(|not| not.part.as_str())
        .collect();
    assert_eq!(
        parts,
        ["live subscriptions, disk settings", "what is published"]
    );
    // What was seen can be kept and judged elsewhere.
    let kept: Snapshot = serde_json::from_value(serde_json::to_value(&snapshot).unwrap()).unwrap();
    assert_eq!(kept, snapshot);
}

#[tokio::test]
async fn wrong_streams_are_named() {
    let bench = Bench::new(jetstream()).await;
    let good = || vec![Stream(json!({})), Publish("events.order.placed", 1)];
    // Way 9.
    let without = json!({"name": "orders", "subjects": null});
    bench.check("TD-03", vec![Stream(without)], good()).await;
    // Way 8: 7 days in milliseconds, and in microseconds.
    let age = |age: u64| {
        vec![Stream(
            json!({"max_age": age, "duplicate_window": age.min(120 * SECOND)}),
        )]
    };
    bench.check("TD-04", age(604_800_000), good()).await;
    bench
        .check("TD-04", age(604_800_000_000), age(600 * SECOND))
        .await;
    // Way 4.
    let dlq = |filter: &str| {
        let dlq = json!({"name": "DLQ", "subjects": [filter]});
        vec![
            Stream(json!({})),
            Stream(dlq),
            Publish("events.execution.started", 1),
        ]
    };
    bench.check("TD-02", dlq("dlq.*"), dlq("dlq.>")).await;
    // Way 18.
    let subjects = |subjects: Value| vec![Stream(json!({"subjects": subjects}))];
    bench
        .check("TD-05", subjects(json!(["events.>", "live.>"])), good())
        .await;
    bench.check("TD-05", subjects(json!(["*"])), good()).await;
    // Way 17.
    let queue = json!({"retention": "workqueue"});
    let commands =
        json!({"name": "COMMANDS", "subjects": ["commands.>"], "retention": "workqueue"});
    bench
        .check("TD-10", vec![Stream(queue)], vec![Stream(commands.clone())])
        .await;
    // What ways 6 and 7 leave behind.
    let filled = |filter: &str| {
        let consumer = Consumer("COMMANDS", json!({"filter_subject": filter}));
        vec![
            Stream(commands.clone()),
            consumer,
            Publish("commands.bill", 1),
        ]
    };
    let mut taken = filled("commands.bill");
    taken.push(Fetch("COMMANDS", "billing", 1));
    bench.check("TD-09", filled("commands.ship"), taken).await;
    // The second half of way 12.
    bench
        .check("TD-15", vec![Stream(json!({})), Bare("events.a")], good())
        .await;
    let window = json!({"duplicate_window": SECOND});
    bench.check("TD-16", vec![Stream(window)], good()).await;
    let full = |discard: &str, limit: u64, count: u64| {
        let with = json!({"discard": discard, "max_msgs": limit});
        vec![Stream(with), Publish("events.a", count)]
    };
    bench
        .check("TD-23", full("new", 3, 3), full("old", 3, 3))
        .await;
    bench
        .check("TD-21", full("new", 10, 9), full("new", 10, 8))
        .await;
    let sealed = vec![
        Stream(json!({})),
        Publish("events.a", 1),
        Update(
            json!({"sealed": true, "discard": "new", "deny_delete": true, "deny_purge": true, "max_age": 0}),
        ),
    ];
    bench.check("TD-36", sealed, good()).await;
    bench
        .check("TD-38", vec![Stream(json!({"no_ack": true}))], good())
        .await;
    let interest = json!({"name": "NEWS", "subjects": ["news.>"], "retention": "interest"});
    let heard = vec![
        Stream(interest.clone()),
        Consumer("NEWS", json!({"filter_subject": "news.a"})),
    ];
    bench.check("TD-39", vec![Stream(interest)], heard).await;
    bench
        .check("TD-42", vec![Stream(json!({"storage": "memory"}))], good())
        .await;
    bench
        .check(
            "TD-43",
            vec![Stream(json!({"max_age": 0}))],
            vec![Stream(json!({"max_age": 0, "max_bytes": 1 << 20}))],
        )
        .await;
    let capped = |most: u64| {
        let mut steps = vec![Stream(json!({"max_consumers": most}))];
        let names = ["a", "b", "c", "d", "e"]
            .map(|name| json!({"durable_name": name, "filter_subject": format!("events.{name}")}));
        steps.extend(names.map(|with| Consumer("EVENTS", with)));
        steps
    };
    bench.check("TD-27", capped(5), capped(10)).await;
    let mirror = |of: &str| {
        let mirror = json!({"name": "COPY", "subjects": null, "mirror": {"name": of}, "duplicate_window": 0});
        vec![Stream(json!({})), Publish("events.a", 1), Stream(mirror)]
    };
    bench.build(&mirror("NOWHERE")).await;
    found(&bench.seen(bench.options()).await, &["TD-40"]);
}

#[tokio::test]
async fn wrong_consumers_are_named() {
    let bench = Bench::new(jetstream()).await;
    let one = |with: Value| vec![Stream(json!({})), Consumer("EVENTS", with)];
    let good = || one(json!({"filter_subject": "events.a"}));
    // Way 5.
    let kinds = |with: Value| {
        let mut steps = vec![
            Stream(json!({})),
            Publish("events.a", 1),
            Publish("events.b", 1),
            Consumer("EVENTS", with),
        ];
        steps.push(Fetch("EVENTS", "billing", 1));
        steps
    };
    bench
        .check(
            "TD-07",
            kinds(json!({})),
            kinds(json!({"filter_subject": "events.>"})),
        )
        .await;
    // Way 7.
    let queue = |filter: &str| {
        let commands =
            json!({"name": "COMMANDS", "subjects": ["commands.>"], "retention": "workqueue"});
        vec![
            Stream(commands),
            Consumer("COMMANDS", json!({"filter_subject": filter})),
        ]
    };
    bench
        .check("TD-08", queue("commands.>"), queue("commands.bill"))
        .await;
    // Way 11.
    let filter = |filter: &str| one(json!({"filter_subject": filter}));
    bench.check("TD-11", filter("orders.a"), good()).await;
    // Way 19.
    let agent = |filter: &str| {
        vec![
            Stream(json!({})),
            Publish("events.agent.message.writer.done", 1),
            Consumer("EVENTS", json!({"filter_subject": filter})),
        ]
    };
    let mut heard = agent("events.agent.message.>");
    heard.push(Fetch("EVENTS", "billing", 1));
    bench
        .check("TD-12", agent("events.agent.message.*"), heard)
        .await;
    bench.build(&agent("events.order.cancelled")).await;
    found(&bench.seen(bench.options()).await, &[]);
    // Way 12.
    let pair = |names: [&str; 2]| {
        let mut steps = vec![Stream(json!({}))];
        steps.extend(names.map(|name| {
            Consumer(
                "EVENTS",
                json!({"durable_name": name, "filter_subject": "events.a"}),
            )
        }));
        steps
    };
    bench
        .check(
            "TD-14",
            pair(["worker-1", "worker-2"]),
            pair(["worker-v1", "worker-v2"]),
        )
        .await;
    // Way 15.
    let mut idle = good();
    idle.push(Publish("events.a", 2));
    bench.check("TD-17", idle, good()).await;
    let stalled = |most: u64| {
        vec![
            Stream(json!({})),
            Publish("events.a", 3),
            Consumer(
                "EVENTS",
                json!({"filter_subject": "events.a", "max_ack_pending": most}),
            ),
            Fetch("EVENTS", "billing", 2),
        ]
    };
    bench.check("TD-20", stalled(2), stalled(3)).await;
    let filtered = |with: Value| {
        let mut all = json!({"filter_subject": "events.a"});
        merge(&mut all, &with);
        one(all)
    };
    bench
        .check("TD-28", filtered(json!({"max_deliver": 5})), good())
        .await;
    bench
        .build(&filtered(
            json!({"backoff": [SECOND, 5 * SECOND], "max_deliver": 3}),
        ))
        .await;
    found(&bench.seen(bench.options()).await, &["TD-28", "TD-29"]);
    bench
        .check(
            "TD-30",
            filtered(json!({"ack_wait": 30_000_000})),
            filtered(json!({"ack_wait": 30 * SECOND})),
        )
        .await;
    bench
        .check(
            "TD-35",
            filtered(json!({"pause_until": "2200-01-01T00:00:00Z"})),
            good(),
        )
        .await;
    bench
        .check("TD-41", filtered(json!({"ack_policy": "none"})), good())
        .await;
    bench
        .check(
            "TD-45",
            filtered(json!({"inactive_threshold": 3600 * SECOND})),
            good(),
        )
        .await;
}

#[tokio::test]
async fn subjects_that_miss_their_stream_are_named() {
    let bench = Bench::new(jetstream()).await;
    // Ways 1, 2, 3 and 10, by what the consumers ask for.
    for (short, subject, long) in [
        ("workflow.*", "workflow.execution.requested", "workflow.>"),
        ("vector.*", "vector.index.updated", "vector.>"),
        ("model.token.*", "model.token.stream.7", "model.token.>"),
        (
            "hodei.events.*",
            "hodei.events.job.created",
            "hodei.events.>",
        ),
    ] {
        let steps = |filter: &str| {
            let config = json!({"subjects": [filter]});
            vec![
                Stream(config),
                Consumer("EVENTS", json!({"filter_subject": subject})),
            ]
        };
        bench.check("TD-01", steps(short), steps(long)).await;
        // By what is declared.
        let mut options = bench.options();
        options.expected.durable = vec![subject.to_owned()];
        bench.build(&[Stream(json!({"subjects": [short]}))]).await;
        let snapshot = bench.seen(options.clone()).await;
        found(&snapshot, &["TD-01"]);
        let finding = &judge(&snapshot)[0];
        assert_eq!(
            finding.remedy,
            format!("nats stream edit EVENTS --subjects '{long}'")
        );
        bench.build(&[Stream(json!({"subjects": [long]}))]).await;
        found(&bench.seen(options).await, &[]);
    }
    let mut options = bench.options();
    options.expected.durable = vec!["orders.placed".to_owned()];
    bench.build(&[Stream(json!({}))]).await;
    found(&bench.seen(options).await, &["TD-44"]);
    let mut options = bench.options();
    options.expected.requests = vec!["events.ask".to_owned()];
    found(&bench.seen(options).await, &["TD-06"]);
    let mut options = bench.options();
    options.expected.ephemeral = vec!["events.tick".to_owned()];
    found(&bench.seen(options).await, &["TD-05"]);
}

#[tokio::test]
async fn wrong_listeners_are_named() {
    let bench = Bench::new(jetstream()).await;
    bench
        .build(&[Stream(json!({})), Publish("events.agent.message.a.b", 1)])
        .await;
    // Way 16, and two services that each want it.
    let (one, two, other) = (
        bench.named("web").await,
        bench.named("web").await,
        bench.named("mail").await,
    );
    let first = one.subscribe("live.tick").await.unwrap();
    let _other = other.subscribe("live.tick").await.unwrap();
    one.flush().await.unwrap();
    other.flush().await.unwrap();
    found(&bench.seen(bench.options()).await, &[]);
    let second = two.subscribe("live.tick").await.unwrap();
    two.flush().await.unwrap();
    found(&bench.seen(bench.options()).await, &["TD-18"]);
    drop((first, second));
    one.flush().await.unwrap();
    two.flush().await.unwrap();
    let grouped = [
        one.queue_subscribe("live.tick", "web".into()).await,
        two.queue_subscribe("live.tick", "web".into()).await,
    ];
    one.flush().await.unwrap();
    two.flush().await.unwrap();
    found(&bench.seen(bench.options()).await, &[]);
    drop(grouped);
    // Way 19.
    let short = one.subscribe("events.agent.message.*").await.unwrap();
    one.flush().await.unwrap();
    found(&bench.seen(bench.options()).await, &["TD-13"]);
    drop(short);
    let _long = one.subscribe("events.agent.message.>").await.unwrap();
    one.flush().await.unwrap();
    found(&bench.seen(bench.options()).await, &[]);
    // Way 13, as it is seen without any request.
    let _responder = two
        .queue_subscribe("events.ask", "web".into())
        .await
        .unwrap();
    two.flush().await.unwrap();
    found(&bench.seen(bench.options()).await, &["TD-06"]);
}

/// Samples while `publish` is done over and over.
async fn sampled(
    bench: &Bench,
    seconds: u64,
    publisher: &Client,
    requests: &[&'static str],
    plain: &[&'static str],
) -> Snapshot {
    let mut options = bench.options();
    options.sample = Duration::from_secs(seconds);
    let looking = bench.seen(options);
    let publishing = async {
        loop {
            for subject in plain {
                publisher.publish(*subject, "{}".into()).await.unwrap();
            }
            for subject in requests {
                let reply = publisher.new_inbox();
                publisher
                    .publish_with_reply(*subject, reply, "?".into())
                    .await
                    .unwrap();
            }
            publisher.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        snapshot = looking => snapshot,
        () = publishing => unreachable!("it publishes until the sample is over"),
    }
}

#[tokio::test]
async fn what_is_published_is_compared_with_what_is_there() {
    let bench = Bench::new(jetstream()).await;
    let web = bench.named("web").await;
    let ids = |code: &'static str| ["TD-15", code];
    // Way 1, by traffic alone.
    bench
        .build(&[Stream(json!({"subjects": ["workflow.*"]}))])
        .await;
    let seen = sampled(&bench, 1, &web, &[], &["workflow.execution.requested"]).await;
    found(&seen, &["TD-01"]);
    // Published into the void, until somebody listens.
    let seen = sampled(&bench, 1, &web, &[], &["nowhere.at.all"]).await;
    found(&seen, &["TD-19"]);
    let _listener = web.subscribe("nowhere.>").await.unwrap();
    let seen = sampled(&bench, 1, &web, &[], &["nowhere.at.all"]).await;
    found(&seen, &[]);
    // Way 13: the store and the service answer one request.
    bench.build(&[Stream(json!({}))]).await;
    let mut asked = web.subscribe("events.ask").await.unwrap();
    let answering = web.clone();
    let service = tokio::spawn(async move {
        while let Some(request) = asked.next().await {
            let Some(reply) = request.reply else { continue };
            answering.publish(reply, "yes".into()).await.unwrap();
        }
    });
    let seen = sampled(&bench, 1, &web, &["events.ask"], &[]).await;
    // Stored in the meantime, and of course without an id.
    let findings: BTreeSet<&str> = judge(&seen).iter().map(|finding| finding.code).collect();
    assert!(findings.contains("TD-06"), "{findings:?}");
    assert!(
        findings.iter().all(|code| ids("TD-06").contains(code)),
        "{findings:?}"
    );
    service.abort();
    // Way 14: the answer is an event on a subject of its own.
    bench.build(&[Stream(json!({}))]).await;
    let mut asked = web.subscribe("requests.key").await.unwrap();
    let answering = web.clone();
    let service = tokio::spawn(async move {
        while asked.next().await.is_some() {
            answering
                .publish("nowhere.answer", "yes".into())
                .await
                .unwrap();
        }
    });
    let seen = sampled(&bench, 4, &web, &["requests.key"], &[]).await;
    found(&seen, &["TD-46"]);
    service.abort();
    let mut asked = web.subscribe("requests.look").await.unwrap();
    let answering = web.clone();
    tokio::spawn(async move {
        while let Some(request) = asked.next().await {
            answering
                .publish(request.reply.unwrap(), "yes".into())
                .await
                .unwrap();
        }
    });
    let seen = sampled(&bench, 3, &web, &["requests.look"], &[]).await;
    found(&seen, &[]);
}

#[tokio::test]
async fn a_server_that_syncs_late_or_has_no_jetstream_is_named() {
    let bench = Bench::new(ServerOptions::default()).await;
    found(&bench.seen(bench.options()).await, &["TD-26"]);
    let bench = Bench::new(ServerOptions {
        jetstream: false,
        ..ServerOptions::default()
    })
    .await;
    found(&bench.seen(bench.options()).await, &["TD-37"]);
}

#[tokio::test]
async fn storage_that_is_nearly_full_is_named() {
    let bench = Bench::new(ServerOptions {
        max_file_store: Some(1_000),
        ..jetstream()
    })
    .await;
    let stream = || Stream(json!({"max_age": DAY}));
    bench.build(&[stream(), Publish("events.a", 3)]).await;
    found(&bench.seen(bench.options()).await, &[]);
    bench.build(&[stream(), Publish("events.a", 12)]).await;
    found(&bench.seen(bench.options()).await, &["TD-22"]);
}

#[tokio::test]
async fn what_is_not_permitted_is_told_at_once() {
    let server = Server::start(ServerOptions {
        extra: "authorization { users [ { user: u, password: p, permissions { \
                publish: [\"$JS.API.INFO\"], subscribe: [\"_INBOX.>\"] } } ] }"
            .to_owned(),
        ..jetstream()
    });
    let denials = Denials::default();
    let url = server.url.replace("nats://", "nats://u:p@");
    let options = NatsOptions::default().with_url(&url).unwrap();
    let client = denials.connect(&options, &LinkOptions::default()).await;
    let client = client.unwrap();
    let mut options = Options::default();
    options.denials = Some(denials);
    options.answer_within = Duration::from_secs(20);
    options.sample = Duration::from_secs(20);
    let began = std::time::Instant::now();
    let snapshot = examine(&client, options).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(snapshot.account.is_some());
    let denied = |part: &str| {
        let mut not_seen = snapshot.not_seen.iter();
        not_seen.any(|not| not.part == part && not.why.contains("not permitted"))
    };
    assert!(
        denied("streams and their consumers"),
        "{:?}",
        snapshot.not_seen
    );
    assert!(denied("what is published"), "{:?}", snapshot.not_seen);
}
