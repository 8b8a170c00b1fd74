//! A bus in memory with a few events, for tests of commands.

use bytes::Bytes;
use trunkline::core::envelope::JsonText;
use trunkline::{Bus, Data, Envelope, EventId, Receipt};

/// Four events on `EVENTS`: `order.placed` twice with keys, `order.paid` without data, `mail.sent`
/// without a key.
pub(crate) async fn filled() -> Bus {
    let bus = Bus::connect("memory:").await.unwrap();
    publish(&bus, "order.placed", "e1", Some("o-1"), "{\"total\":1}").await;
    publish(&bus, "order.paid", "e2", Some("o-1"), "").await;
    publish(&bus, "order.placed", "e3", Some("o-2"), "{\"total\":2}").await;
    publish(&bus, "mail.sent", "e4", None, "\"to you\"").await;
    bus
}

pub(crate) async fn publish(
    bus: &Bus,
    event_type: &str,
    id: &str,
    key: Option<&str>,
    json: &str,
) -> Receipt {
    let data = if json.is_empty() {
        Data::None
    } else {
        Data::Json(JsonText::new(&Bytes::copy_from_slice(json.as_bytes())).unwrap())
    };
    let id = EventId::new(id).unwrap();
    let mut event = Envelope::new(id, "/shop", event_type, data).unwrap();
    if let Some(key) = key {
        event = event.with_key(key);
    }
    let published = bus.publish_raw(vec![event.into()]).await;
    published.into_iter().next().unwrap().stored().unwrap()
}
