//! The other end is a Trunkline bus of another release, or behaves as none should.

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Ended, at, ends};

/// What a command says of a bus that answers the handshake so.
fn greeted(greeting: Message) -> (String, Ended) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            let Some(Ok(Message::Binary(hello))) = socket.next().await else {
                continue;
            };
            let hello: serde_json::Value = serde_json::from_slice(&hello).unwrap();
            assert_eq!(hello["trunkline"], "engine");
            // Whoever asked may not wait for it.
            let _ = socket.send(greeting.clone()).await;
            while let Some(Ok(_)) = socket.next().await {}
        }
    });
    let ended = ends(at(&url, &["explain"]));
    runtime.shutdown_background();
    (url, ended)
}

fn binary(text: &str) -> Message {
    Message::Binary(text.to_owned().into())
}

fn of_versions(oldest: u32, newest: u32, verdict: &str) -> Message {
    binary(&format!(
        "{{\"trunkline\":\"engine\",\"oldest\":{oldest},\"newest\":{newest},\"software\":\"trunkline 9.8.7\"{verdict}}}"
    ))
}

#[test]
fn another_release_is_told_with_both_versions_and_who_should_upgrade() {
    let refused = ",\"refused\":{\"code\":\"TL-0206\",\"message\":\"no shared version\"}";
    // A later release may say it in a way that this one has never heard of.
    let later = ",\"redirect\":{\"to\":\"elsewhere\"}";
    for (oldest, newest, verdict, theirs, advice) in [
        (
            2,
            3,
            refused,
            "versions 2 to 3",
            "this end is older: upgrade it",
        ),
        (2, 2, later, "version 2", "this end is older: upgrade it"),
        (
            0,
            0,
            refused,
            "version 0",
            "the other end is older: upgrade that",
        ),
    ] {
        let (url, ended) = greeted(of_versions(oldest, newest, verdict));
        ended.with(1).says(&[
            "error: TL-0206: ",
            &url,
            concat!(
                "trunkline ",
                env!("CARGO_PKG_VERSION"),
                " speaks version 1 "
            ),
            &format!("\"trunkline 9.8.7\", {theirs}"),
            advice,
        ]);
    }
}

#[test]
fn a_refusal_is_passed_on_and_nonsense_is_no_bus() {
    let forbidden = ",\"refused\":{\"code\":\"TL-0204\",\"message\":\"not you\"}";
    let (_, ended) = greeted(of_versions(1, 1, forbidden));
    ended.with(5).says(&["error: TL-0204: ", "not you"]);
    let crowded = ",\"refused\":{\"code\":\"TL-9999\",\"message\":\"a new reason\"}";
    let (_, ended) = greeted(of_versions(1, 1, crowded));
    ended.with(1).says(&["a new reason"]);
    for nonsense in ["", "PONG", "{}", "{\"trunkline\":\"other\"}", "\u{1b}[2J"] {
        let (url, ended) = greeted(binary(nonsense));
        let ended = ended.with(2).says(&["error: TL-0205: ", &url]);
        assert!(!ended.stderr.contains('\u{1b}'), "{ended:?}");
    }
    // Text is no message of the protocol, so it counts as silence.
    let (_, ended) = greeted(Message::text("hello"));
    ended.with(4).says(&["did not answer as a Trunkline bus"]);
}
