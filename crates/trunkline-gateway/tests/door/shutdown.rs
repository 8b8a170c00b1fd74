use tokio::time::timeout;

use crate::support::{WATCHDOG, event, memory};

#[tokio::test]
async fn closing_the_bus_ends_streams_and_the_door() {
    let served = memory().await;
    let mut tail = served.tail("", None).await;
    let mut lines = served.get("/v1/events?follow=true", &[]).await.blocks("\n");
    served.put("a", "a.b").await;
    assert!(tail.event().await.is_some() && lines.next().await.is_some());
    served.bus.close().await.unwrap();
    assert_eq!(tail.event().await, None, "it ends properly");
    assert_eq!(lines.next().await, None);
    timeout(WATCHDOG, served.serving)
        .await
        .expect("the door closes with its bus")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn stopping_the_door_ends_streams_and_leaves_the_bus_open() {
    let served = memory().await;
    let mut tail = served.tail("", None).await;
    served.stop.send(()).unwrap();
    assert_eq!(tail.event().await, None);
    timeout(WATCHDOG, served.serving)
        .await
        .expect("the door closes")
        .unwrap()
        .unwrap();
    let raw = trunkline::RawEvent::from(
        trunkline::core::wire::decode_structured(&event("a", "a.b").into()).unwrap(),
    );
    assert!(
        served
            .bus
            .publish_raw(vec![raw])
            .await
            .remove(0)
            .stored()
            .is_ok()
    );
}

#[tokio::test]
async fn health_is_about_the_process_and_readiness_about_the_bus() {
    let served = memory().await;
    let answer = served.get("/healthz", &[]).await;
    assert_eq!(answer.status, 200);
    let expected =
        serde_json::json!({"status": "alive", "engine": "memory", "durability": "process"});
    assert_eq!(answer.json().await, expected);
    let ready = served.get("/readyz", &[]).await;
    assert_eq!(
        (ready.status, ready.json().await["status"].clone()),
        (200, "ready".into())
    );
}

/// A door inside another program outlives its bus.
#[tokio::test]
async fn a_door_without_its_bus_is_alive_and_not_ready() {
    let mut served = memory().await;
    let bus = trunkline::Bus::connect("memory:").await.unwrap();
    let door = trunkline_gateway::Door::new(bus.clone(), trunkline_gateway::DoorConfig::default())
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    served.authority = listener.local_addr().unwrap().to_string();
    let router = door.router();
    tokio::spawn(async { axum::serve(listener, router).await });
    bus.close().await.unwrap();
    assert_eq!(served.get("/healthz", &[]).await.status, 200);
    let ready = served.get("/readyz", &[]).await;
    assert_eq!(
        (ready.status, ready.json().await["status"].clone()),
        (503, "closing".into())
    );
    let refused = served
        .post(
            "/v1/events",
            "application/cloudevents+json",
            event("a", "a.b"),
        )
        .await;
    assert_eq!(refused.status, 503);
    assert_eq!(
        refused.json().await["results"][0]["error"]["code"],
        "TL-0201"
    );
    let read = served.get("/v1/events", &[]).await;
    assert_eq!(
        (read.status, read.json().await["code"].clone()),
        (503, "TL-0201".into())
    );
}
