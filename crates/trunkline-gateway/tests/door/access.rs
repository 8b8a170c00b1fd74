use hyper::Method;
use trunkline::Bus;
use trunkline_gateway::{Door, DoorConfig};

use crate::support::{event, memory, served};

#[tokio::test]
async fn a_foreign_host_or_origin_is_refused_on_every_route() {
    let served = memory().await;
    let own = format!("http://{}", served.authority);
    for path in ["/v1/events", "/healthz", "/readyz", "/nowhere"] {
        for header in [
            ("host", "evil.example"),
            ("origin", "http://evil.example"),
            ("origin", "null"),
        ] {
            let answer = served.get(path, &[header]).await;
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (403, "application/problem+json"),
                "{path} {header:?}"
            );
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
            assert_eq!(answer.json().await["code"], "TL-0602");
        }
    }
    for header in [("host", "localhost:1"), ("origin", own.as_str())] {
        assert_eq!(
            served.get("/healthz", &[header]).await.status,
            200,
            "{header:?}"
        );
    }
    let headers = [
        ("host", "evil.example"),
        ("content-type", "application/cloudevents+json"),
    ];
    assert_eq!(
        served
            .send(Method::POST, "/v1/events", &headers, event("e", "a.b"))
            .await
            .status,
        403
    );
    assert_eq!(served.ids("").await, [""; 0]);
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_read_the_answer() {
    let config = DoorConfig {
        allow_hosts: vec!["bus.lan".to_owned()],
        allow_origins: vec!["https://console.lan".to_owned()],
        ..DoorConfig::default()
    };
    let served = served(Bus::connect("memory:").await.unwrap(), config).await;
    let origin = ("origin", "https://console.lan");
    let answer = served
        .get("/healthz", &[("host", "bus.lan:7400"), origin])
        .await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, "https://console.lan")
    );
    let asked = [
        origin,
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "ce-id"),
    ];
    let preflight = served.send(Method::OPTIONS, "/v1/events", &asked, "").await;
    assert_eq!(
        (
            preflight.status,
            preflight.header("access-control-allow-headers")
        ),
        (204, "ce-id")
    );
    assert_eq!(
        served
            .get("/healthz", &[])
            .await
            .header("access-control-allow-origin"),
        ""
    );
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let served = memory().await;
    for (method, path, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/v1/event", 404),
        (Method::DELETE, "/v1/events", 405),
        (Method::POST, "/healthz", 405),
    ] {
        let answer = served.send(method.clone(), path, &[], "").await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (status, "application/problem+json"),
            "{method} {path}"
        );
        if status == 405 {
            assert!(
                answer.header("allow").contains("GET"),
                "{:?}",
                answer.headers
            );
        }
        assert_eq!(answer.json().await["status"], status);
    }
}

#[tokio::test]
async fn a_door_nests_in_another_program() {
    let bus = Bus::connect("memory:").await.unwrap();
    let door = Door::new(bus, DoorConfig::default()).unwrap();
    let app: axum::Router = axum::Router::new().nest("/bus", door.router());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut served = memory().await;
    served.authority = listener.local_addr().unwrap().to_string();
    tokio::spawn(async { axum::serve(listener, app).await });
    assert_eq!(served.get("/bus/healthz", &[]).await.status, 200);
    assert_eq!(served.get("/healthz", &[]).await.status, 404);
}
