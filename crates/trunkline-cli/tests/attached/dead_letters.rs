//! Dead letters of a program, as an operator at another terminal sees them and deals with them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use trunkline::{Bus, Event, FailureExt, Item, Start};

use crate::support::{Up, in_time};
use crate::watching::shop;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced {
    total: u64,
}

/// Lets a program give up the orders of the shop; gives how many.
fn billed(up: &Up) -> usize {
    let orders = up.run(&["replay", "order.placed", "--json"]).with(0);
    let orders = orders.json_lines().len();
    let url = up.url();
    in_time(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let bus = Bus::connect(url).source("/billing").await.unwrap();
            let mut following = bus.dead_letters().follow(Start::First).await.unwrap();
            let handler = |order: OrderPlaced| async move {
                Err::<(), _>(format!("no card for {}", order.total).permanent())
            };
            let member = bus.consumer("billing").on(handler).start().await.unwrap();
            for _ in 0..orders {
                let buried = following.recv().await;
                assert!(matches!(buried, Some(Item::Event(_))), "{buried:?}");
            }
            member.stop().await;
            bus.close().await.unwrap();
        });
    });
    orders
}

#[test]
fn a_dead_letter_is_listed_shown_replayed_and_discarded() {
    let up = shop();
    let count = billed(&up);
    assert!(count >= 2);
    let listed = up.run(&["dlq", "list", "--oldest-first", "--json"]).with(0);
    let letters = listed.json_lines();
    assert_eq!(letters.len(), count);
    let ids: Vec<&str> = letters
        .iter()
        .map(|letter| letter["dead_letter"].as_str().unwrap())
        .collect();
    let people = up.run(&["dlq", "list"]).with(0);
    assert!(
        ids.iter().all(|id| people.stdout.contains(id)),
        "{people:?}"
    );

    let shown = up.run(&["dlq", "show", ids[0], "--json"]).with(0).json();
    assert_eq!(
        (&shown["state"], &shown["service"]),
        (&json!("dead"), &json!("/billing"))
    );
    assert_eq!(shown["event"]["type"], "order.placed");
    assert_eq!(shown["attempts"].as_array().unwrap().len(), 1);

    up.run(&["dlq", "replay", ids[0]]).with(0).says(&[]);
    let again = up.run(&["dlq", "replay", ids[0], "--json"]).with(0).json();
    assert_eq!(again["outcome"], "replaying");
    let shown = up.run(&["dlq", "show", ids[0]]).with(0).stdout;
    assert!(shown.contains("replaying: requested by "), "{shown}");

    up.run(&["dlq", "discard", ids[1], "--because", "a test"])
        .with(2)
        .says(&["is lost", "add --yes"]);
    let discard = [
        "dlq",
        "discard",
        ids[1],
        "--because",
        "a test",
        "--yes",
        "--json",
    ];
    let line = up.run(&discard).with(0).json();
    assert_eq!(
        (&line["dead_letter"], &line["outcome"]),
        (&json!(ids[1]), &json!("discarded"))
    );
    let left: Vec<Value> = up
        .run(&["dlq", "list", "--state", "dead", "--json"])
        .with(0)
        .json_lines();
    assert_eq!(left.len(), count - 2);
    let entries = up
        .run(&["streams", "cat", "EVENTS_DLQ", "--json"])
        .with(0)
        .json_lines();
    assert_eq!(entries.len(), count - 1);
}

#[test]
fn what_makes_no_sense_is_refused_with_its_own_code() {
    let up = shop();
    for (arguments, code, said) in [
        (&["dlq", "show", "billing"][..], 2, "names no dead letter"),
        (&["dlq", "show", "billing/EVENTS/1"], 1, "TL-0311"),
        (&["dlq", "replay"], 2, "say which dead letters are meant"),
        (&["dlq", "list", "--state", "lost"], 2, "is no state"),
        (&["dlq", "list", "--since", "new"], 2, "is no time"),
        (&["dlq", "discard", "--all", "--yes"], 2, "--because"),
        (&["dlq", "replay", "billing/EVENTS/1"], 1, "TL-0311"),
    ] {
        up.run(arguments).with(code).says(&[said]);
    }
    up.run(&["dlq", "replay", "--all"])
        .with(0)
        .says(&["there is no such dead letter"]);
    assert_eq!(up.run(&["dlq", "list", "--json"]).with(0).stdout, "");
}
