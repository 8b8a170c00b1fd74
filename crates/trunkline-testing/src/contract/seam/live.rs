//! Live messages: E9.

use std::time::Duration;

use smallvec::smallvec;
use trunkline::Filter;
use trunkline::core::engine::{Heard, Message};
use trunkline::core::wire::Body;
use trunkline::core::{Headers, Subject};

use super::super::Trial;
use super::name;

/// How long an answer may take before the question is asked again.
const MOMENT: Duration = Duration::from_millis(100);

pub(in crate::contract) async fn e9_live_groups_share_and_askers_learn_that_nobody_listens(
    trial: Trial,
) {
    let (sender, receiver) = (trial.engine().await, trial.engine().await);
    let filters = [
        Filter::new("work.*").unwrap(),
        Filter::new("work.>").unwrap(),
    ];
    let group = name("group");
    let mut members = Vec::new();
    for share in [Some(&group), Some(&group), None] {
        members.push(
            receiver
                .live()
                .listen(&filters, share, 1_000)
                .await
                .unwrap(),
        );
    }
    let message = |subject: &str, reply: Option<&str>, n: usize| Message {
        subject: Subject::new(subject).unwrap(),
        reply: reply.map(|reply| Subject::new(reply).unwrap()),
        headers: Headers::new(),
        body: Body::Bytes(n.to_string().into()),
    };
    let route = sender.live().route(&Subject::new("work.a").unwrap());
    for n in 0..100 {
        // By either way the same.
        match n % 2 {
            0 => sender
                .live()
                .send(smallvec![message("work.a", None, n)])
                .completed()
                .await
                .unwrap(),
            _ => route
                .send(message("work.a", None, n))
                .completed()
                .await
                .unwrap(),
        }
    }
    let mut got: Vec<Vec<usize>> = Vec::new();
    let mut alone = Vec::new();
    while alone.len() < 100 {
        assert!(matches!(
            members[2].receive(1_000, &mut alone).await,
            Heard::Messages(_)
        ));
    }
    let number = |message: &Message| -> usize {
        String::from_utf8_lossy(&message.body.to_bytes().unwrap())
            .parse()
            .unwrap()
    };
    // Who gets how many is the engine's choice, and it may give them in parts.
    for member in &mut members[..2] {
        let mut out = Vec::new();
        while let Ok(heard) = tokio::time::timeout(MOMENT, member.receive(1_000, &mut out)).await {
            assert!(matches!(heard, Heard::Messages(_)), "{heard:?}");
        }
        assert!(!out.is_empty(), "a member was given nothing");
        got.push(out.iter().map(number).collect());
    }
    assert!(got.iter().all(|numbers| numbers.is_sorted()));
    assert!(alone.iter().map(number).eq(0..100), "in order, each once");
    let mut all: Vec<usize> = got.concat();
    all.sort_unstable();
    assert_eq!(
        all,
        (0..100).collect::<Vec<_>>(),
        "each message goes to one of those who share"
    );

    let inbox = [Filter::new("inbox.1").unwrap()];
    let mut asker = sender.live().listen(&inbox, None, 10).await.unwrap();
    let mut out = Vec::new();
    sender
        .live()
        .send(smallvec![message("nobody.here", Some("inbox.1"), 0)])
        .completed()
        .await
        .unwrap();
    assert_eq!(asker.receive(10, &mut out).await, Heard::NoResponders);
    // With a listener it is asked, and sees where to answer; when that is gone, nobody is there again.
    let mut answering = receiver
        .live()
        .listen(&[Filter::new("nobody.*").unwrap()], None, 10)
        .await
        .unwrap();
    sender
        .live()
        .send(smallvec![message("nobody.here", Some("inbox.1"), 1)])
        .completed()
        .await
        .unwrap();
    assert_eq!(answering.receive(10, &mut out).await, Heard::Messages(1));
    let reply = out.remove(0).reply.unwrap();
    receiver
        .live()
        .send(smallvec![message(reply.as_str(), None, 2)])
        .completed()
        .await
        .unwrap();
    assert_eq!(asker.receive(10, &mut out).await, Heard::Messages(1));
    drop(answering);
    let route = sender.live().route(&Subject::new("nobody.here").unwrap());
    // An engine may hear of the drop a moment later; what was asked until then nobody answers.
    let mut heard = Err(());
    for _ in 0..100 {
        route
            .send(message("nobody.here", Some("inbox.1"), 3))
            .completed()
            .await
            .unwrap();
        let answer = tokio::time::timeout(MOMENT, asker.receive(10, &mut out)).await;
        heard = answer.map_err(|_| ());
        if heard.is_ok() {
            break;
        }
    }
    assert_eq!(heard, Ok(Heard::NoResponders));
}
