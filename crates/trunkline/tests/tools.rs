//! What tools and doors need of a bus: its contract as data, its past, and attaching to it.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use trunkline::core::engine::{
    Change, ConsumerRef, ConsumerSpec, Durability, Retention, StreamSpec,
};
use trunkline::core::envelope::JsonText;
use trunkline::history::End;
use trunkline::{
    Bus, Data, Envelope, ErrorKind, Event, EventId, Filter, History, Item, Name, RawEvent, Start,
    TopologyMode,
};

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced {}

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "order.viewed", ephemeral)]
struct OrderViewed {}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn filter(text: &str) -> Filter {
    Filter::new(text).unwrap()
}

async fn publish(bus: &Bus, event_type: &str, count: u32) {
    let event = |number: u32| {
        let data = Data::Json(JsonText::new(&Bytes::from(number.to_string())).unwrap());
        let id = EventId::new(format!("{event_type}-{number}")).unwrap();
        RawEvent::from(Envelope::new(id, "/test", event_type, data).unwrap())
    };
    for outcome in bus.publish_raw((0..count).map(event).collect()).await {
        outcome.stored().unwrap();
    }
}

async fn consumer(bus: &Bus, stream: &str, filter_text: &str) {
    let spec = ConsumerSpec {
        at: ConsumerRef {
            stream: name(stream),
            consumer: name("billing"),
        },
        filters: vec![filter(filter_text)],
        start: Start::First,
        ack_wait: Duration::from_secs(30),
        max_in_flight: 10,
    };
    let changes = vec![Change::CreateConsumer(spec)];
    bus.engine().topology().apply(changes).await.unwrap();
}

async fn ids(mut history: History) -> Vec<String> {
    let mut ids = Vec::new();
    while let Some(page) = history.next_page().await.unwrap() {
        for item in page {
            match item {
                Item::Event(event) => ids.push(event.envelope.id().to_string()),
                other => panic!("{other:?}"),
            }
        }
    }
    let progress = history.progress();
    assert_eq!(progress.done, progress.total);
    ids
}

#[tokio::test]
async fn an_explanation_says_where_a_type_goes_and_who_gets_it() {
    let bus = Bus::connect("memory:").await.unwrap();
    publish(&bus, "order.placed", 3).await;
    consumer(&bus, "EVENTS", "events.order.*").await;
    let explanation = bus
        .explain_types(&["order.placed", "mail.sent"])
        .await
        .unwrap();
    assert_eq!(explanation.durability, Durability::Process);
    assert_eq!(explanation.catalogue, None);
    let [placed, sent] = explanation.types.as_slice() else {
        panic!("two types")
    };
    assert_eq!(placed.subject.as_str(), "events.order.placed");
    assert_eq!(placed.stream, Some(name("EVENTS")));
    assert_eq!(
        (&placed.consumers[..], &sent.consumers[..]),
        (&[name("billing")][..], &[][..])
    );
    assert_eq!(explanation.consumers[0].pending, 3);
    let error = bus.explain_types(&["order.1"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidEventType);

    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["durability"], "process");
    assert_eq!(json["consumers"][0]["ack_wait_ms"], 30_000);
    assert_eq!(json["types"][0]["stream"], "EVENTS");
}

#[tokio::test]
async fn an_explanation_knows_the_catalogue() {
    let bus = Bus::connect("memory:")
        .event::<OrderPlaced>()
        .event::<OrderViewed>()
        .await
        .unwrap();
    let explanation = bus.explain().await.unwrap();
    assert_eq!(explanation.catalogue.as_ref().unwrap().len(), 2);
    let viewed = &explanation.types[1];
    assert_eq!(viewed.class.to_string(), "ephemeral");
    assert_eq!((&viewed.stream, &viewed.refused), (&None, &None));
    let stranger = bus.explain_types(&["mail.sent"]).await.unwrap();
    let refused = stranger.types[0].refused.as_ref().unwrap();
    assert!(refused.contains("catalogue"), "{refused}");
}

#[tokio::test]
async fn a_deleted_consumer_is_gone_from_every_stream_or_from_one() {
    let bus = Bus::connect("memory:").await.unwrap();
    consumer(&bus, "EVENTS", "events.a").await;
    consumer(&bus, "COMMANDS", "commands.a").await;
    let billing = name("billing");
    let deleted = bus
        .delete_consumer(&billing, Some(&name("EVENTS")))
        .await
        .unwrap();
    assert_eq!(deleted.len(), 1);
    consumer(&bus, "EVENTS", "events.a").await;
    assert_eq!(bus.delete_consumer(&billing, None).await.unwrap().len(), 2);
    let error = bus.delete_consumer(&billing, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchConsumer);
}

#[tokio::test]
async fn a_history_ends_where_the_stream_ended_and_goes_on_where_it_ended() {
    let bus = Bus::connect("memory:").await.unwrap();
    publish(&bus, "a.b", 600).await; // More than a page.
    let all = [Filter::all()];
    let history = bus.history(&all, Start::First).await.unwrap();
    publish(&bus, "a.c", 1).await;
    let mut following = bus
        .history(&all, Start::Seq(600))
        .await
        .unwrap()
        .follow()
        .await
        .unwrap();
    assert_eq!(ids(history).await.len(), 600);
    publish(&bus, "a.d", 1).await;
    let Some(Item::Event(event)) = following.recv().await else {
        panic!("no event")
    };
    assert_eq!(event.envelope.event_type(), "a.d");
}

#[tokio::test]
async fn a_history_has_a_begin_an_end_and_filters() {
    let bus = Bus::connect("memory:").await.unwrap();
    publish(&bus, "a.b", 2).await;
    publish(&bus, "a.c", 2).await;
    let several = [filter("a.b"), filter("a.c"), filter("a.*")];
    let all = [Filter::all()];
    let read = |filters: Vec<Filter>, from: Start| {
        let bus = bus.clone();
        async move { bus.history(&filters, from).await.unwrap() }
    };
    assert_eq!(
        ids(read(several.to_vec(), Start::First).await).await.len(),
        4
    );
    let last = Start::Last(1.try_into().unwrap());
    assert_eq!(ids(read(vec![filter("a.b")], last).await).await, ["a.b-1"]);
    let lasts = read(all.to_vec(), Start::LastPerSubject).await;
    assert_eq!(ids(lasts).await, ["a.b-1", "a.c-1"]);
    let until = read(all.to_vec(), Start::Seq(2)).await.until(End::Seq(3));
    assert_eq!(ids(until).await, ["a.b-1", "a.c-0"]);
    let long_ago = End::Time("2000-01-01T00:00:00Z".parse().unwrap());
    let mut none = read(all.to_vec(), Start::First).await.until(long_ago);
    assert!(none.next_page().await.unwrap().is_none());
    let missing = read(all.to_vec(), Start::First).await.only(&name("NONE"));
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NoSuchStream);
    let error = bus.history(&[], Start::First).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidFilter);
}

#[tokio::test]
async fn one_subscription_may_be_of_several_filters_and_of_both_kinds() {
    let bus = Bus::connect("memory:").await.unwrap();
    let filters = [filter("order.placed"), filter("order.>")];
    let stored = bus.follow_any(&filters, Start::New).await.unwrap();
    let mut both = stored.and(bus.listen_any(&filters).await.unwrap());
    bus.publish(OrderPlaced {}).await.unwrap();
    bus.emit(OrderViewed {}).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        match both.recv().await {
            Some(Item::Event(event)) => seen.push(event.envelope.event_type().to_owned()),
            other => panic!("{other:?}"),
        }
    }
    seen.sort();
    assert_eq!(seen, ["order.placed", "order.viewed"]);
}

#[tokio::test]
async fn who_attaches_makes_and_compares_nothing() {
    let url = "memory:attached-as-found";
    let engine_only = Bus::connect(url)
        .topology(TopologyMode::AsFound)
        .await
        .unwrap();
    assert!(engine_only.inspect().await.unwrap().streams.is_empty());
    let error = engine_only.publish(OrderPlaced {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotStored);

    // A stream as no program here would declare it.
    let mut odd = StreamSpec::new(name("EVENTS"), vec![filter("events.order.>")]);
    odd.retention = Retention::RefuseWhenFull;
    let changes = vec![Change::CreateStream(odd)];
    engine_only
        .engine()
        .topology()
        .apply(changes)
        .await
        .unwrap();
    assert_eq!(
        Bus::connect(url).await.unwrap_err().kind(),
        ErrorKind::Drift
    );
    let attached = Bus::connect(url)
        .topology(TopologyMode::AsFound)
        .await
        .unwrap();
    attached.publish(OrderPlaced {}).await.unwrap();
    assert_eq!(attached.inspect().await.unwrap().streams.len(), 1);

    let declared = StreamSpec::new(name("OWN"), vec![filter("own.>")]);
    let connect = Bus::connect(url)
        .topology(TopologyMode::AsFound)
        .stream(declared);
    assert_eq!(connect.await.unwrap_err().kind(), ErrorKind::InvalidConfig);
}
