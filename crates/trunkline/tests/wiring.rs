//! Where events go, who may see them pass, and what is refused before the first one.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use trunkline::core::engine::Boxed;
use trunkline::core::envelope::JsonText;
use trunkline::layer::{HandleLayer, HandleNext, Outgoing, PublishLayer, PublishNext};
use trunkline::{
    Bus, Data, Delivered, Envelope, ErrorKind, Event, EventId, Failure, Filter, Item, Link,
    Published, RawEvent, Start, handler, handlers,
};

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(
    type = "agent.message.sent",
    subject = "agent.message.{role}.{kind}",
    key = "role",
    version = 2
)]
struct MessageSent {
    role: String,
    kind: String,
}

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "ticked", ephemeral)]
struct Ticked {
    n: u32,
}

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "mail.send", command)]
struct SendMail {
    to: String,
}

fn message(role: &str, kind: &str) -> MessageSent {
    MessageSent {
        role: role.into(),
        kind: kind.into(),
    }
}

fn raw(event_type: &str, json: &'static str) -> RawEvent {
    let data = Data::Json(JsonText::new(&Bytes::from_static(json.as_bytes())).unwrap());
    Envelope::new(EventId::new("e1").unwrap(), "/test", event_type, data)
        .unwrap()
        .into()
}

fn filter(text: &str) -> Filter {
    Filter::new(text).unwrap()
}

#[tokio::test]
async fn a_template_builds_the_subject_below_the_prefix_and_encodes_what_is_foreign() {
    let bus = Bus::connect("memory:")
        .prefix("secretary")
        .source("/agents")
        .await
        .unwrap();
    bus.publish(message("coder", "plan.v2")).await.unwrap();
    let mut events = bus
        .follow(&filter("agent.message.coder.*"), Start::First)
        .await
        .unwrap();
    let Some(Item::Event(event)) = events.recv().await else {
        panic!("no event")
    };
    assert_eq!(
        event.subject.as_str(),
        "secretary.agent.message.coder.plan%2Ev2"
    );
    let event = &event.envelope;
    assert_eq!(
        (event.source(), event.version(), event.key()),
        ("/agents", Some(2), Some("coder"))
    );
    assert_eq!(event.correlation(), Some(event.id()));
    let empty = bus.publish(message("", "plan")).await.unwrap_err();
    assert_eq!(empty.kind(), ErrorKind::InvalidSubject);
}

#[tokio::test]
async fn p5_a_catalogue_refuses_other_types_malformed_data_and_filters_that_match_nothing() {
    let bus = Bus::connect("memory:")
        .event::<MessageSent>()
        .event::<Ticked>()
        .await
        .unwrap();
    let kinds = |published: Vec<Published>| -> Vec<_> {
        let kind = |published: Published| match published {
            Published::Stored(_) | Published::Sent(_) => None,
            Published::Refused(error) | Published::Unknown(error) => Some(error.kind()),
            other => panic!("{other:?}"),
        };
        published.into_iter().map(kind).collect()
    };
    let published = bus
        .publish_raw(vec![
            raw("agent.message.sent", r#"{"role":"coder","kind":"plan"}"#),
            raw("agent.message.sent", r#"{"role":"coder"}"#),
            raw("nobody.knows", "{}"),
            raw("ticked", r#"{"n":1}"#),
        ])
        .await;
    assert!(matches!(published[3], Published::Sent(_)));
    assert_eq!(
        kinds(published),
        [
            None,
            Some(ErrorKind::Decode),
            Some(ErrorKind::NotInCatalogue),
            None
        ]
    );
    assert_eq!(
        bus.publish(SendMail { to: "a".into() })
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::NotInCatalogue
    );
    let error = bus
        .follow(&filter("agent.message.*"), Start::First)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MatchesNothing);
    assert!(error.message().contains("agent.message.> would"), "{error}");
}

#[tokio::test]
async fn p5_without_a_prefix_every_type_has_its_own_place_and_others_have_none() {
    let bus = Bus::connect("memory:")
        .prefix("")
        .event::<MessageSent>()
        .await
        .unwrap();
    assert_eq!(bus.publish(message("coder", "plan")).await.unwrap().seq, 1);
    let taken = Bus::connect("memory:").prefix("live").await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Overlap);
}

#[tokio::test]
async fn a_command_leaves_its_queue_when_it_is_done() {
    let bus = Bus::connect("memory:").await.unwrap();
    let mut work = bus.consumer("mailer").receiver::<SendMail>().await.unwrap();
    bus.publish(SendMail { to: "ada".into() }).await.unwrap();
    let Some(Item::Event(mail)) = work.recv().await else {
        panic!("no command")
    };
    assert_eq!(mail.to, "ada");
    mail.done();
    work.stop().await;
    let left = bus
        .inspect()
        .await
        .unwrap()
        .streams
        .into_iter()
        .find(|stream| stream.spec.name.as_str() == "COMMANDS");
    assert_eq!(left.unwrap().events, 0);
    let second = bus
        .consumer("other")
        .on(|_: SendMail| async {})
        .start()
        .await
        .unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Overlap);
    let new = Bus::connect("memory:").await.unwrap();
    let new = new
        .consumer("mailer")
        .from(Start::New)
        .on(|_: SendMail| async {})
        .start()
        .await
        .unwrap_err();
    assert_eq!(new.kind(), ErrorKind::InvalidConfig);
}

type Log = Arc<Mutex<Vec<String>>>;

struct Layer(&'static str, Log);

impl PublishLayer for Layer {
    fn publish<'a>(
        &'a self,
        mut batch: Vec<Outgoing>,
        next: PublishNext<'a>,
    ) -> Boxed<'a, Vec<Published>> {
        Box::pin(async move {
            self.1.lock().unwrap().push(format!("{} publishes", self.0));
            for outgoing in &mut batch {
                outgoing.headers.add("tenant", self.0).unwrap();
            }
            next.run(batch).await
        })
    }
}

impl HandleLayer for Layer {
    fn handle<'a>(
        &'a self,
        delivered: Delivered,
        next: HandleNext<'a>,
    ) -> Boxed<'a, Result<(), Failure>> {
        Box::pin(async move {
            self.1.lock().unwrap().push(format!("{} handles", self.0));
            next.run(delivered).await
        })
    }
}

#[tokio::test]
async fn layers_run_in_the_order_in_which_they_were_added() {
    let log = Log::default();
    let layer = |name| Layer(name, Arc::clone(&log));
    let bus = Bus::connect("memory:")
        .publish_layer(layer("outer"))
        .publish_layer(layer("inner"))
        .handle_layer(layer("bus"))
        .await
        .unwrap();
    bus.publish(message("coder", "plan")).await.unwrap();
    let mut work = bus
        .consumer("all")
        .layer(layer("consumer"))
        .receiver::<MessageSent>()
        .await
        .unwrap();
    let Some(Item::Event(event)) = work.recv().await else {
        panic!("no event")
    };
    assert_eq!(
        event
            .meta()
            .headers()
            .iter()
            .map(|(_, value)| value)
            .collect::<Vec<_>>(),
        ["outer", "inner"]
    );
    event.done();
    let seen = std::mem::take(&mut *log.lock().unwrap());
    assert_eq!(
        seen,
        [
            "outer publishes",
            "inner publishes",
            "bus handles",
            "consumer handles"
        ]
    );
}

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[handler(consumer = "inbox")]
async fn read(message: MessageSent) {
    SEEN.lock().unwrap().push(message.role);
}

#[handler(consumer = "inbox")]
async fn send(_mail: SendMail) -> Result<(), String> {
    Ok(())
}

#[tokio::test]
async fn declared_handlers_of_one_name_share_a_consumer_over_two_streams() {
    let bus = Bus::connect("memory:").await.unwrap();
    let handles = bus.start(handlers![read, send]).await.unwrap();
    assert_eq!(
        handles
            .iter()
            .map(|handle| handle.name().as_str())
            .collect::<Vec<_>>(),
        ["inbox"]
    );
    bus.publish(SendMail { to: "ada".into() }).await.unwrap();
    bus.publish(message("coder", "plan")).await.unwrap();
    let done = async {
        loop {
            let states = bus.inspect().await.unwrap().consumers;
            if states.len() == 2 && states.iter().all(|state| state.backlog.floor == 1) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), done)
        .await
        .unwrap();
    bus.close().await.unwrap();
    assert_eq!(*SEEN.lock().unwrap(), ["coder"]);
}

#[tokio::test]
async fn a_program_can_ask_whether_the_bus_is_connected_and_is_told_when_it_closes() {
    let bus = Bus::connect("memory:").await.unwrap();
    let mut link = bus.link();
    assert_eq!(*link.borrow(), Link::Connected);
    let mut live = bus.subscribe::<Ticked>().await.unwrap();
    bus.close().await.unwrap();
    assert_eq!(
        *link
            .wait_for(|link| *link != Link::Connected)
            .await
            .unwrap(),
        Link::Closed
    );
    assert!(
        live.recv().await.is_none(),
        "a subscription ends when the bus closes"
    );
    bus.close().await.unwrap();
    assert_eq!(
        bus.emit(Ticked { n: 1 }).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[tokio::test]
async fn buses_of_one_name_are_one_bus_and_unnamed_ones_are_not() {
    let (one, two) = (
        Bus::connect("memory:wiring-shared").await.unwrap(),
        Bus::connect("memory:wiring-shared").await.unwrap(),
    );
    let mut there = two.subscribe::<Ticked>().await.unwrap();
    one.emit(Ticked { n: 7 }).await.unwrap();
    let Some(Item::Event(ticked)) = there.recv().await else {
        panic!("no event")
    };
    assert_eq!(ticked.n, 7);
    one.close().await.unwrap();
    two.emit(Ticked { n: 8 }).await.unwrap();
    let other = Bus::connect("memory:wiring-shared?encode=always")
        .await
        .unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Drift);
    let unknown = Bus::connect("kafka://user:secret@host").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::InvalidUrl);
    assert!(!format!("{unknown:?}").contains("secret"));
}
