use serde_json::{Value, json};
use trunkline::core::engine::{Removal, StreamSpec};
use trunkline::{Bus, Filter, Name};
use trunkline_gateway::DoorConfig;

use crate::support::{Blocks, Served, event, memory, served};

/// A bus with a stream for orders and one for the rest.
async fn two_streams() -> Served {
    let spec = |name, filter| {
        StreamSpec::new(Name::new(name).unwrap(), vec![Filter::new(filter).unwrap()])
    };
    let bus = Bus::connect("memory:")
        .stream(spec("ORDERS", "events.order.>"))
        .stream(spec("USERS", "events.user.>"));
    served(bus.await.unwrap(), DoorConfig::default()).await
}

async fn next_id(tail: &mut Blocks) -> (String, String) {
    let (position, event) = tail.event().await.expect("an event");
    (
        position,
        event["id"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn a_range_starts_where_asked_and_ends_at_the_tail_or_the_limit() {
    let served = memory().await;
    for id in ["a", "b", "c"] {
        served.put(id, "order.placed").await;
    }
    served.put("u", "user.seen").await;
    assert_eq!(served.ids("").await, ["a", "b", "c", "u"]);
    assert_eq!(served.ids("?filter=order.*").await, ["a", "b", "c"]);
    assert_eq!(served.ids("?filter=order.*&limit=2").await, ["a", "b"]);
    assert_eq!(served.ids("?from=3").await, ["c", "u"]);
    assert_eq!(served.ids("?from=last:1&filter=order.%3E").await, ["c"]);
    assert_eq!(served.ids("?from=new").await, [""; 0]);
    assert_eq!(served.ids("?from=99").await, [""; 0]);
    assert_eq!(
        served.ids("?from=2001-01-01T00:00:00Z&limit=1").await,
        ["a"]
    );
    assert_eq!(served.ids("?last-event-id=EVENTS:3").await, ["u"]);
    let answer = served
        .get("/v1/events?limit=1", &[("accept", "application/json")])
        .await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    assert_eq!(answer.text().await.matches('\n').count(), 1);
}

#[tokio::test]
async fn a_range_may_be_server_sent_events_and_following_may_be_lines() {
    let served = memory().await;
    served.put("a", "order.placed").await;
    let mut range = served.tail("?follow=false", None).await;
    assert_eq!(
        next_id(&mut range).await,
        ("EVENTS:1".to_owned(), "a".to_owned())
    );
    assert_eq!(range.event().await, None);

    let answer = served.get("/v1/events?follow=true&limit=2", &[]).await;
    let mut lines = answer.blocks("\n");
    assert!(lines.next().await.unwrap().contains("\"id\":\"a\""));
    served.put("b", "order.placed").await;
    assert!(lines.next().await.unwrap().contains("\"id\":\"b\""));
    assert_eq!(lines.next().await, None, "the limit is reached");
}

#[tokio::test]
async fn line_breaks_in_data_do_not_break_the_framing() {
    let served = memory().await;
    let pretty = "{\r\n  \"specversion\": \"1.0\", \"id\": \"p\", \"source\": \"/s\", \"type\": \"a.b\",\n \"data\": {\n\"text\":\r\"a\\nb\"\n}}";
    assert_eq!(
        served
            .post("/v1/events", "application/cloudevents+json", pretty)
            .await
            .status,
        200
    );
    assert_eq!(served.ids("").await, ["p"]);
    let (_, event) = served
        .tail("?from=first", None)
        .await
        .event()
        .await
        .unwrap();
    assert_eq!(event["data"], json!({"text": "a\nb"}));
}

#[tokio::test]
async fn two_readers_resume_exactly_after_their_last_event_over_two_streams() {
    let served = two_streams().await;
    let mut eager = served.tail("", None).await;
    let mut late = served.tail("?filter=*.*", None).await;
    for n in 0..6 {
        served.put(&format!("o{n}"), "order.placed").await;
        served.put(&format!("u{n}"), "user.seen").await;
    }
    let (mut eager_seen, mut late_seen) = (Vec::new(), Vec::new());
    let mut position = String::new();
    for _ in 0..5 {
        let (at, id) = next_id(&mut eager).await;
        position = at;
        eager_seen.push(id);
    }
    assert!(
        position.starts_with("ORDERS:") && position.contains(",USERS:"),
        "{position}"
    );
    drop(eager);
    served.put("o6", "order.placed").await;
    let mut eager = served.tail("", Some(&position)).await;
    for _ in 5..13 {
        eager_seen.push(next_id(&mut eager).await.1);
    }
    // The other one comes back after every single event.
    for _ in 0..13 {
        let (at, id) = next_id(&mut late).await;
        late_seen.push(id);
        late = served.tail("?filter=*.*", Some(&at)).await;
    }
    for seen in [&eager_seen, &late_seen] {
        let of = |start: char| {
            seen.iter()
                .filter(|id| id.starts_with(start))
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(of('o'), ["o0", "o1", "o2", "o3", "o4", "o5", "o6"]);
        assert_eq!(of('u'), ["u0", "u1", "u2", "u3", "u4", "u5"]);
    }
}

#[tokio::test]
async fn a_reader_that_saw_no_event_yet_resumes_where_it_began() {
    let served = memory().await;
    served.put("before", "a.b").await;
    let mut tail = served.tail("", None).await;
    let first = tail.next().await.unwrap();
    assert_eq!(first, "id: EVENTS:1");
    drop(tail);
    served.put("between", "a.b").await;
    let mut tail = served.tail("?from=new", Some("EVENTS:1")).await;
    assert_eq!(next_id(&mut tail).await.1, "between");
}

#[tokio::test]
async fn what_retention_removed_is_told_as_a_gap() {
    let served = memory().await;
    for id in ["a", "b", "c"] {
        served.put(id, "a.b").await;
    }
    let stream = Name::new("EVENTS").unwrap();
    served
        .bus
        .engine()
        .log()
        .remove(&stream, Removal::Before(3))
        .await
        .unwrap();
    let mut tail = served.tail("", Some("EVENTS:1")).await;
    let block = loop {
        let block = tail.next().await.unwrap();
        if block.contains("data: ") {
            break block;
        }
    };
    assert!(block.starts_with("event: gap\nid: EVENTS:2\n"), "{block}");
    assert_eq!(
        next_id(&mut tail).await,
        ("EVENTS:3".to_owned(), "c".to_owned())
    );
    let text = served.get("/v1/events?from=1", &[]).await.text().await;
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines[0],
        json!({"gap": {"stream": "EVENTS", "from": 1, "to": 2}})
    );
    assert_eq!(lines[1]["id"], "c");
    assert_eq!(
        served.ids("?from=first").await,
        ["c"],
        "whoever asks for the first has no gap"
    );
}

#[tokio::test]
async fn a_position_of_a_bus_that_is_gone_starts_again_and_says_so() {
    let served = memory().await;
    served.put("new", "a.b").await;
    let mut tail = served.tail("", Some("EVENTS:500")).await;
    let (position, reset) = tail.event().await.unwrap();
    assert_eq!(
        (position.as_str(), reset),
        (
            "EVENTS:0",
            json!({"stream": "EVENTS", "asked": 500, "next": 1})
        )
    );
    assert_eq!(
        next_id(&mut tail).await,
        ("EVENTS:1".to_owned(), "new".to_owned())
    );
}

#[tokio::test]
async fn a_filter_that_matches_nothing_is_told_the_nearest_that_would() {
    let served = memory().await;
    served.put("a", "order.placed").await;
    let said = "filter order matches no stored event; order.> would";
    let answer = served.get("/v1/events?filter=order", &[]).await;
    assert_eq!(
        (answer.status, answer.header("trunkline-hint")),
        (200, said)
    );
    assert_eq!(answer.text().await, "");
    let mut tail = served.tail("?filter=order", None).await;
    assert_eq!(tail.next().await.unwrap(), "id: EVENTS:1");
    assert_eq!(tail.next().await.unwrap(), format!(": {said}"));
    let answer = served.get("/v1/events?filter=order.*", &[]).await;
    assert_eq!(answer.header("trunkline-hint"), "");
}

#[tokio::test]
async fn a_bad_question_is_a_problem() {
    let served = two_streams().await;
    for (query, status, code) in [
        ("filter=a..b", 400, "TL-0003"),
        ("filter=other.type", 400, "TL-0308"),
        ("from=yesterday", 400, "TL-0009"),
        ("from=last-per-subject", 400, "TL-0009"),
        ("last-event-id=17", 400, "TL-0009"),
        ("last-event-id=USERS:1&filter=order.*", 400, "TL-0009"),
    ] {
        let answer = served.get(&format!("/v1/events?{query}"), &[]).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (status, "application/problem+json"),
            "{query}"
        );
        let problem = answer.json().await;
        assert_eq!(problem["code"], code, "{query}: {problem}");
        assert_eq!(
            problem["type"],
            format!("/docs/errors.md#{}", code.to_lowercase())
        );
        assert_eq!(problem["status"], status);
    }
    for query in [
        "limit=0",
        "limit=-1",
        "follow=maybe",
        "form=first",
        "from=first&from=new",
    ] {
        let answer = served.get(&format!("/v1/events?{query}"), &[]).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (400, "application/problem+json"),
            "{query}"
        );
        assert_eq!(answer.json().await["type"], "about:blank");
    }
}

#[tokio::test]
async fn the_last_of_each_type_comes_first_to_a_reader_that_follows() {
    let served = memory().await;
    for (id, event_type) in [("a1", "a.b"), ("c1", "c.d"), ("a2", "a.b")] {
        served.put(id, event_type).await;
    }
    let mut tail = served.tail("?from=last-per-subject", None).await;
    assert_eq!(next_id(&mut tail).await.1, "c1");
    assert_eq!(next_id(&mut tail).await.1, "a2");
    served.put("a3", "a.b").await;
    assert_eq!(next_id(&mut tail).await.1, "a3");
}

#[tokio::test]
async fn silence_is_broken_by_comments() {
    let bus = Bus::connect("memory:").await.unwrap();
    let served = served(
        bus,
        DoorConfig {
            keep_alive_ms: 1,
            ..DoorConfig::default()
        },
    )
    .await;
    let mut tail = served.tail("", None).await;
    assert_eq!(tail.next().await.unwrap(), "id: EVENTS:0");
    assert_eq!(tail.next().await.unwrap(), ":");
    let body = event("a", "a.b");
    assert_eq!(
        served
            .post("/v1/events", "application/cloudevents+json", body)
            .await
            .status,
        200
    );
    assert_eq!(next_id(&mut tail).await.1, "a");
}
