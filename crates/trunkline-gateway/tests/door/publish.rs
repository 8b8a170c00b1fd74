use std::io::{Read, Write};
use std::net::TcpStream;

use hyper::Method;
use serde_json::{Value, json};
use trunkline::{Bus, Filter, Start};
use trunkline_gateway::DoorConfig;

use crate::support::{Served, WATCHDOG, event, memory, served};

const ONE: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
const LINES: &str = "application/x-ndjson";

fn statuses(answer: &Value) -> Vec<&str> {
    answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["status"].as_str().unwrap())
        .collect()
}

/// The last event stored, as it is read from the door.
async fn last(served: &Served) -> Value {
    serde_json::from_str(&served.get("/v1/events?from=last:1", &[]).await.text().await).unwrap()
}

#[tokio::test]
async fn a_structured_event_is_stored_and_a_repeat_is_known() {
    let served = memory().await;
    for (duplicate, content_type) in [
        (false, ONE),
        (true, "application/cloudevents+json; charset=utf-8"),
    ] {
        let answer = served
            .post("/v1/events", content_type, event("e1", "order.placed"))
            .await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, "application/json")
        );
        let result = json!({"id": "e1", "status": "stored", "stream": "EVENTS", "seq": 1, "duplicate": duplicate});
        let expected =
            json!({"results": [result], "stored": 1, "sent": 0, "refused": 0, "unknown": 0});
        assert_eq!(answer.json().await, expected);
    }
}

#[tokio::test]
async fn a_batch_is_stored_in_order() {
    let served = memory().await;
    let body = format!("[{},\n{}]", event("e1", "a.b"), event("e2", "a.c"));
    let answer = served.post("/v1/events", BATCH, body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json().await["stored"], 2);
    assert_eq!(served.ids("").await, ["e1", "e2"]);
    let empty = served.post("/v1/events", BATCH, "[]").await;
    assert_eq!(
        (empty.status, empty.json().await["results"].clone()),
        (200, json!([]))
    );
}

#[tokio::test]
async fn bare_json_gets_the_attributes_that_it_lacks() {
    let bus = Bus::connect("memory:").source("/door").await.unwrap();
    let served = served(bus, DoorConfig::default()).await;
    let answer = served
        .post(
            "/v1/events?type=order.placed&key=o-1",
            "application/json",
            r#"{"total": 1.50}"#,
        )
        .await;
    assert_eq!(answer.status, 200);
    let event = last(&served).await;
    assert_eq!(
        (&event["type"], &event["source"], &event["partitionkey"]),
        (&json!("order.placed"), &json!("/door"), &json!("o-1"))
    );
    assert_eq!(event["correlationid"], event["id"]);
    assert!(event["time"].is_string() && event["data"]["total"].is_number());
    let answer = served
        .post(
            "/v1/events?type=order.placed&source=/cart",
            LINES,
            "{\"n\":1}\n\n{\"n\":2}",
        )
        .await;
    assert_eq!(answer.json().await["stored"], 2);
    let event = last(&served).await;
    assert_eq!(
        (
            &event["source"],
            &event["data"]["n"],
            &event["partitionkey"]
        ),
        (&json!("/cart"), &json!(2), &Value::Null)
    );
}

#[tokio::test]
async fn attributes_may_be_headers() {
    let served = memory().await;
    let headers = |content_type| {
        [
            ("content-type", content_type),
            ("ce-specversion", "1.0"),
            ("ce-id", "b1"),
            ("ce-source", "/s"),
            ("ce-type", "picture.taken"),
            ("ce-customer", "J%C3%BCrgen"),
            ("x-other", "no attribute"),
        ]
    };
    let answer = served
        .send(
            Method::POST,
            "/v1/events",
            &headers("application/json"),
            r#"{"n":1}"#,
        )
        .await;
    assert_eq!(answer.status, 200);
    let event = last(&served).await;
    assert_eq!(
        (&event["id"], &event["customer"], &event["data"]["n"]),
        (&json!("b1"), &json!("Jürgen"), &json!(1))
    );
    assert_eq!(event["x-other"], Value::Null);
    let mut png = headers("image/png");
    png[2].1 = "b2";
    let answer = served
        .send(Method::POST, "/v1/events", &png, &b"\x89PNG"[..])
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(last(&served).await["data_base64"], "iVBORw==");
    let missing = served
        .send(
            Method::POST,
            "/v1/events",
            &[("ce-specversion", "1.0"), ("ce-id", "x")],
            "",
        )
        .await;
    assert_eq!(missing.status, 400);
    assert!(missing.text().await.contains("`ce-source` is missing"));
}

#[tokio::test]
async fn each_bad_event_of_a_batch_refuses_only_itself() {
    let served = memory().await;
    let large = "x".repeat(2 << 20);
    let bad = [
        ("not json".to_owned(), "TL-0005"),
        (r#"{"specversion":"1.0","id":"half","#.to_owned(), "TL-0005"),
        (
            r#"{"specversion":"1.0","id":"h","source":"/s"}"#.to_owned(),
            "TL-0005",
        ),
        (
            event("large", "a.b").replace("\"n\":", &format!("\"large\":\"{large}\",\"n\":")),
            "TL-0101",
        ),
        (event("digits", "shard.17"), "TL-0004"),
        (event("empty-token", "a..b"), "TL-0004"),
        (event("deep", &["x"; 17].join(".")), "TL-0004"),
        (
            event("attribute", "a.b").replace("\"data\":", "\"tags\":[1],\"data\":"),
            "TL-0005",
        ),
        (
            event("twice", "a.b").replace("\"data\":", "\"id\":\"again\",\"data\":"),
            "TL-0005",
        ),
        (event("version", "a.b").replace("1.0", "2.0"), "TL-0005"),
        (
            event("key", "a.b").replace(
                "\"data\":",
                &format!("\"partitionkey\":\"{}\",\"data\":", "k".repeat(257)),
            ),
            "TL-0106",
        ),
    ];
    let mut body = event("first", "a.b");
    for (line, _) in &bad {
        body.push('\n');
        body.push_str(line);
    }
    body = format!(
        "{body}\n{}\n{{\"specversion\":\"1.0\",\"id\":\"cut",
        event("last", "a.b")
    );
    let answer = served.post("/v1/events", LINES, body).await;
    assert_eq!(answer.status, 207);
    let answer = answer.json().await;
    let refused = bad.len() + 1;
    assert_eq!(
        (&answer["stored"], &answer["refused"]),
        (&json!(2), &json!(refused))
    );
    let results = answer["results"].as_array().unwrap();
    for (index, (line, code)) in bad.iter().enumerate() {
        let result = &results[index + 1];
        let start: String = line.chars().take(60).collect();
        assert_eq!(
            (&result["status"], &result["error"]["code"]),
            (&json!("refused"), &json!(code)),
            "{start}: {result}"
        );
        if *code == "TL-0005" {
            let place = format!("line {}: ", index + 2);
            assert!(
                result["error"]["detail"]
                    .as_str()
                    .unwrap()
                    .starts_with(&place),
                "{result}"
            );
        }
    }
    assert_eq!(results[5]["id"], "digits");
    let cut = results.last().unwrap();
    assert!(
        cut["error"]["detail"]
            .as_str()
            .unwrap()
            .starts_with("line 14: "),
        "{cut}"
    );
    assert_eq!(served.ids("").await, ["first", "last"]);
}

#[tokio::test]
async fn a_bad_element_of_an_array_is_named_by_its_place() {
    let served = memory().await;
    let answer = served
        .post(
            "/v1/events",
            BATCH,
            format!("[{}, 7, {}]", event("a", "a.b"), event("c", "a.b")),
        )
        .await;
    assert_eq!(answer.status, 207);
    let answer = answer.json().await;
    assert_eq!(statuses(&answer), ["stored", "refused", "stored"]);
    assert!(
        answer["results"][1]["error"]["detail"]
            .as_str()
            .unwrap()
            .starts_with("event 2: ")
    );
    let broken = served.post("/v1/events", BATCH, "[{").await;
    assert_eq!(
        (broken.status, broken.header("content-type")),
        (400, "application/problem+json")
    );
    assert_eq!(broken.json().await["code"], "TL-0005");
}

#[tokio::test]
async fn what_is_refused_altogether_has_the_refusals_status() {
    let served = memory().await;
    let large = event("e", "a.b").replace(
        "\"n\":",
        &format!("\"large\":\"{}\",\"n\":", "x".repeat(2 << 20)),
    );
    let status = async |body: String| served.post("/v1/events", LINES, body).await.status;
    assert_eq!(status("{".to_owned()).await, 400);
    assert_eq!(status(format!("{large}\n{large}")).await, 413);
    assert_eq!(status(format!("{large}\n{{")).await, 400);
    served.bus.close().await.unwrap();
}

#[tokio::test]
async fn a_body_or_a_number_of_events_over_its_limit_stores_nothing() {
    let config = DoorConfig {
        max_body_bytes: 4_000,
        max_events: 3,
        ..DoorConfig::default()
    };
    let served = served(Bus::connect("memory:").await.unwrap(), config).await;
    let problem = async |content_type: &str, body: String| {
        let answer = served.post("/v1/events?type=a.b", content_type, body).await;
        assert_eq!(answer.header("content-type"), "application/problem+json");
        (
            answer.status,
            answer.json().await["code"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(
        problem("application/json", "1".repeat(4_001)).await,
        (413, "TL-0101".to_owned())
    );
    assert_eq!(
        problem("application/json", "1".repeat(1 << 20)).await,
        (413, "TL-0101".to_owned())
    );
    assert_eq!(
        problem(LINES, "1\n".repeat(4)).await,
        (413, "TL-0106".to_owned())
    );
    assert_eq!(
        problem(BATCH, "[1,2,3,4]".to_owned()).await,
        (413, "TL-0106".to_owned())
    );
    assert_eq!(served.ids("").await, [""; 0]);
    assert_eq!(
        served
            .post("/v1/events?type=a.b", LINES, "1\n".repeat(3))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn ten_thousand_lines_are_stored_in_order() {
    let served = memory().await;
    let lines: String = (0..10_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let answer = served
        .post("/v1/events?type=number.counted", LINES, lines)
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json().await["stored"], 10_000);
    let text = served
        .get("/v1/events?filter=number.*", &[])
        .await
        .text()
        .await;
    let number = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["data"]["n"]
            .as_u64()
            .unwrap()
    };
    assert!(text.lines().map(number).eq(0..10_000));
    let range = served
        .bus
        .read(
            &trunkline::Name::new("EVENTS").unwrap(),
            &Filter::all(),
            Start::First,
            1,
        )
        .await
        .unwrap();
    assert_eq!(range.tail, 10_001);
}

#[tokio::test]
async fn an_unknown_content_type_or_parameter_is_refused_by_name() {
    let served = memory().await;
    for (path, content_type, status, part) in [
        (
            "/v1/events",
            "application/x-www-form-urlencoded",
            415,
            "application/x-www-form-urlencoded",
        ),
        ("/v1/events", "application/json", 415, "?type="),
        ("/v1/events?typ=a.b", "application/json", 400, "typ"),
        (
            "/v1/events?type=a.b&source=",
            "application/json",
            400,
            "source",
        ),
        ("/v1/events?type=a%20.7", "application/json", 400, "a .7"),
    ] {
        let answer = served.post(path, content_type, "{}").await;
        assert_eq!(answer.status, status, "{path}");
        let text = answer.text().await;
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_refused_request_whose_body_comes_later_keeps_its_connection() {
    let served = memory().await;
    for (query, content_type, status) in [("", "text/plain", 415), ("?typo=1", LINES, 400)] {
        let host = &served.authority;
        let mut connection = TcpStream::connect(host).unwrap();
        connection.set_read_timeout(Some(WATCHDOG)).unwrap();
        let head = format!(
            "POST /v1/events{query} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {content_type}\r\n\
             content-length: 8\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).unwrap();
        // Another request comes and goes, so that the door has seen the head without the body.
        assert_eq!(served.get("/healthz", &[]).await.status, 200);
        let next = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let rest = format!("no event{next}");
        connection.write_all(rest.as_bytes()).unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut answers = String::new();
            connection.read_to_string(&mut answers).unwrap();
            answers
        });
        let answers = read.await.unwrap();
        let refused = format!("HTTP/1.1 {status} ");
        assert!(answers.starts_with(&refused), "{answers}");
        assert!(answers.contains("HTTP/1.1 200 "), "{answers}");
    }
}
