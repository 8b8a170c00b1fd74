//! The engine behind the door, as other programs use it.

use tokio::time::timeout;
use trunkline::core::wire::decode_structured;
use trunkline::{Bus, Filter, Item, Link, RawEvent, Start};

use crate::support::{Served, WATCHDOG, event, memory};

async fn attach(served: &Served) -> Bus {
    Bus::connect(format!("http://{}", served.authority))
        .await
        .unwrap()
}

fn raw(id: &str) -> RawEvent {
    RawEvent::from(decode_structured(&event(id, "a.b").into()).unwrap())
}

#[tokio::test]
async fn a_program_that_attaches_shares_the_bus_with_its_owner() {
    let served = memory().await;
    let attached = attach(&served).await;
    let mut theirs = attached.follow(&Filter::all(), Start::New).await.unwrap();
    let mut ours = served.bus.follow(&Filter::all(), Start::New).await.unwrap();
    for (bus, id) in [(&served.bus, "1"), (&attached, "2")] {
        let published = bus.publish_raw(vec![raw(id)]).await.remove(0);
        published.stored().unwrap();
        for reader in [&mut theirs, &mut ours] {
            let item = timeout(WATCHDOG, reader.recv()).await.expect("it comes");
            let Some(Item::Event(event)) = item else {
                panic!("{item:?}")
            };
            assert_eq!(event.envelope.id().to_string(), id);
        }
    }
    attached.close().await.unwrap();
    served
        .bus
        .publish_raw(vec![raw("3")])
        .await
        .remove(0)
        .stored()
        .unwrap();
}

#[tokio::test]
async fn a_door_that_closes_lets_its_programs_know_and_does_not_wait_for_them() {
    let served = memory().await;
    let attached = attach(&served).await;
    let mut link = attached.link();
    assert_eq!(*link.borrow(), Link::Connected);
    served.stop.send(()).unwrap();
    timeout(WATCHDOG, served.serving)
        .await
        .expect("the door closes")
        .unwrap()
        .unwrap();
    let down = link.wait_for(|link| matches!(link, Link::Disconnected { .. }));
    timeout(WATCHDOG, down).await.expect("it is told").unwrap();
}

#[tokio::test]
async fn web_pages_and_plain_requests_are_kept_out() {
    let served = memory().await;
    let plain = served.get("/v1/engine", &[]).await;
    assert_eq!(plain.status, 426);
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("origin", "http://evil.example"),
    ];
    let foreign = served.get("/v1/engine", &upgrade).await;
    assert_eq!(
        (foreign.status, foreign.json().await["code"].clone()),
        (403, "TL-0602".into())
    );
}
