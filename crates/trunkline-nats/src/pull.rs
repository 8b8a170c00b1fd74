//! Pulling from a consumer of the server: asking for messages, and hearing how the asking ended.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use trunkline_core::Result;

use crate::message::header;
use crate::wire::Wire;

/// How long a pull stands before it is made anew. A member that is frozen draws events to itself for
/// that long at most.
const EXPIRES: Duration = Duration::from_secs(5);
/// How often the server says that it still knows of the pull.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// For how long what came already may be on its way through the client.
const QUIET: Duration = Duration::from_secs(1);
/// More than the server says of a demand before one reads it.
const STATUSES: usize = 32;
/// After how much silence the pull is taken to be lost.
const SILENCE: Duration = Duration::from_secs(4);

/// A standing demand for messages of one consumer.
pub(crate) struct Pull {
    wire: Arc<Wire>,
    inbox: Subject,
    subscriber: Subscriber,
    subject: Subject,
    connections: watch::Receiver<u64>,
    /// Everything that has come over the subscription.
    received: u64,
    /// Asked for and not come yet.
    pub(crate) outstanding: usize,
    /// Bytes that one pull may bring.
    max_bytes: usize,
    /// When the server last said anything, or was last asked for more.
    heard: Instant,
    /// When it was last seen that nothing waits in the client.
    empty: Instant,
}

/// What came of pulling.
#[derive(Debug)]
pub(crate) enum Pulled {
    /// A message, and since when at the latest its lease may run: nothing waited in the client then.
    Message(Message, Instant),
    /// A pull ended, filled or not; ask again.
    Ended,
    /// The consumer is gone, or nobody knows of the pull any more: look what there is.
    Broken,
}

impl Pull {
    pub(crate) async fn open(
        wire: &Arc<Wire>,
        stream: &str,
        consumer: &str,
        max_bytes: usize,
    ) -> Result<Self> {
        let connections = wire.connections();
        let inbox = wire.client.new_inbox();
        let subscribing = wire.client.subscribe(inbox.clone());
        let subscriber = wire.hand_over(wire.request_deadline(), subscribing).await?;
        Ok(Self {
            subject: Subject::from(format!(
                "{}.CONSUMER.MSG.NEXT.{stream}.{consumer}",
                wire.api
            )),
            wire: Arc::clone(wire),
            inbox: Subject::from(inbox),
            subscriber,
            connections,
            received: 0,
            outstanding: 0,
            max_bytes,
            heard: Instant::now(),
            empty: Instant::now(),
        })
    }

    /// Asks for so many more.
    pub(crate) async fn ask(&mut self, count: usize) -> Result<()> {
        let demand = json!({
            "batch": count,
            "max_bytes": self.max_bytes,
            "expires": nanos(EXPIRES),
            "idle_heartbeat": nanos(HEARTBEAT),
        });
        let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
        let demand = Bytes::from(demand.to_string());
        let sending = self.wire.client.publish_with_reply(subject, inbox, demand);
        self.wire
            .hand_over(self.wire.request_deadline(), sending)
            .await?;
        self.outstanding += count;
        self.heard = Instant::now();
        Ok(())
    }

    /// What has come already.
    pub(crate) fn now(&mut self) -> Option<Pulled> {
        loop {
            let Some(message) = self.subscriber.next().now_or_never() else {
                self.empty = Instant::now();
                return None;
            };
            if let Some(pulled) = self.heard(message) {
                return Some(pulled);
            }
        }
    }

    /// Waits for what comes. Dropping the future loses nothing, nor does silence begin anew with the
    /// next call: who looks again every moment would never notice it.
    pub(crate) async fn next(&mut self) -> Pulled {
        // What came while nobody looked may still be on its way through the client.
        let look = Instant::now() + QUIET;
        loop {
            if let Some(pulled) = self.now() {
                return pulled;
            }
            let heard = tokio::select! {
                message = self.subscriber.next() => {
                    self.empty = Instant::now();
                    self.heard(message)
                }
                // What was pulled over the old connection comes no more.
                _ = self.connections.changed() => Some(Pulled::Broken),
                () = sleep_until(look.clamp(self.heard + SILENCE, self.heard + 2 * SILENCE)) => {
                    Some(Pulled::Broken)
                }
            };
            if let Some(pulled) = heard {
                return pulled;
            }
        }
    }

    fn heard(&mut self, message: Option<Message>) -> Option<Pulled> {
        let Some(message) = message else {
            return Some(Pulled::Broken);
        };
        self.heard = Instant::now();
        self.received += 1;
        if is_filler(&message) {
            return None;
        }
        let Some(status) = message.status else {
            self.outstanding = self.outstanding.saturating_sub(1);
            return Some(Pulled::Message(message, self.empty));
        };
        match status {
            StatusCode::IDLE_HEARTBEAT => None,
            StatusCode::NO_RESPONDERS => Some(Pulled::Broken),
            StatusCode::NOT_FOUND | StatusCode::TIMEOUT => {
                self.ended(&message);
                Some(Pulled::Ended)
            }
            _ => {
                let text = message.description.as_deref().unwrap_or_default();
                let lasting = ["Batch Completed", "MaxBytes", "MaxWaiting", "MaxRequest"]
                    .iter()
                    .any(|known| text.contains(known));
                self.ended(&message);
                tracing::debug!(status = %status, text, "a pull ended");
                Some(match lasting {
                    true => Pulled::Ended,
                    false => Pulled::Broken,
                })
            }
        }
    }

    fn ended(&mut self, message: &Message) {
        let rest = header(message.headers.as_ref(), "Nats-Pending-Messages");
        let rest = rest.and_then(|rest| rest.parse().ok());
        self.outstanding = self
            .outstanding
            .saturating_sub(rest.unwrap_or(self.outstanding));
    }

    /// Stops asking, and tells of what is still on its way as it comes: it is delivered, and not to be lost.
    /// With each goes how much may still come.
    ///
    /// The client forgets a subscription before the server has, and what comes in between would be lost
    /// until its ack wait. Only where both count to the same last message nothing is: so the subscription
    /// ends after as many as may still come, and what does not come of those is sent from here. Who may
    /// not publish to their own inbox waits until the demand has expired.
    pub(crate) async fn end(mut self, mut tell: impl FnMut(Option<(Message, Instant)>, usize)) {
        while let Some(pulled) = self.now() {
            match pulled {
                Pulled::Message(message, since) => tell(Some((message, since)), self.outstanding),
                Pulled::Ended => {}
                Pulled::Broken => return,
            }
        }
        let fillers = self.outstanding + STATUSES;
        let last = self.received + fillers as u64;
        let mut connections = self.connections.clone();
        let ending = self.subscriber.unsubscribe_after(last);
        let deadline = self.wire.request_deadline();
        if self.wire.hand_over(deadline, ending).await.is_err() {
            return;
        }
        let (client, inbox) = (self.wire.client.clone(), self.inbox.clone());
        let one_came = Notify::new();
        let fill = async {
            for sent in 0..fillers {
                // Who may not do this is refused once, not with each.
                if sent == 1 {
                    one_came.notified().await;
                }
                if client.publish(inbox.clone(), Bytes::new()).await.is_err() {
                    return;
                }
            }
        };
        let collect = async {
            let patience = |outstanding| match outstanding {
                0 => QUIET,
                _ => EXPIRES + HEARTBEAT,
            };
            while let Ok(Some(message)) =
                timeout(patience(self.outstanding), self.subscriber.next()).await
            {
                self.empty = Instant::now();
                if is_filler(&message) {
                    one_came.notify_one();
                }
                let came = match self.heard(Some(message)) {
                    Some(Pulled::Message(message, since)) => Some((message, since)),
                    _ => None,
                };
                tell(came, self.outstanding);
            }
        };
        tokio::select! {
            biased;
            () = collect => {}
            () = async { fill.await; std::future::pending().await } => {}
            // What was pulled over the old connection comes no more.
            _ = connections.changed() => {}
        }
    }
}

/// Whether it was sent from here: deliveries say where they are acknowledged.
fn is_filler(message: &Message) -> bool {
    message.status.is_none() && message.reply.is_none()
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
