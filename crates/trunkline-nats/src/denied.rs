//! What the server does not permit, which it only ever says on the side.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::time::Instant;
use trunkline_core::{Error, ErrorKind};

use crate::asks::Asks;
use crate::live::Ring;

/// For how long a refusal is remembered: a permission that was granted meanwhile works after that.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Refused subjects that are remembered.
const MOST: usize = 1_000;

/// What the server does not permit. It tells nobody who asked, so this one does.
#[derive(Default)]
pub(crate) struct Denied {
    asks: OnceLock<Asks>,
    /// Subjects that may not be published to, and when that was said.
    sends: Mutex<FxHashMap<String, Instant>>,
    /// Who listens to what.
    listeners: Mutex<FxHashMap<String, Vec<Weak<Ring>>>>,
    /// A refused subscription that is no listener's: of the inbox, if it comes before the questions.
    unclaimed: Mutex<Option<String>>,
}

impl Denied {
    /// Tells these questions, too, when they are not permitted.
    pub(crate) fn watch(&self, asks: &Asks) {
        let _ = self.asks.set(asks.clone());
        if let Some(subject) = self.unclaimed.lock().take() {
            asks.refuse(&subject);
        }
    }

    /// Ends every question: its answer was lost with the connection.
    pub(crate) fn interrupt(&self) {
        if let Some(asks) = self.asks.get() {
            asks.interrupt();
        }
    }

    /// Notes who listens to a subject.
    pub(crate) fn listening(&self, subject: &str, ring: &Arc<Ring>) {
        let mut listeners = self.listeners.lock();
        let rings = listeners.entry(subject.to_owned()).or_default();
        rings.push(Arc::downgrade(ring));
    }

    /// Forgets a listener.
    pub(crate) fn forget(&self, subject: &str, ring: &Arc<Ring>) {
        let mut listeners = self.listeners.lock();
        if let Some(rings) = listeners.get_mut(subject) {
            rings.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(ring)));
            if rings.is_empty() {
                listeners.remove(subject);
            }
        }
    }

    /// Reads an error of the server, and says whether it was a refusal.
    pub(crate) fn heard(&self, text: &str) -> bool {
        let Some(refusal) = Refusal::read(text) else {
            return false;
        };
        tracing::warn!(refused = text, "NATS does not permit this");
        match refusal {
            Refusal::Publish(subject) => {
                let mut sends = self.sends.lock();
                let now = Instant::now();
                if sends.len() >= MOST {
                    sends.retain(|_, said| now.duration_since(*said) < REMEMBERED);
                }
                if sends.len() < MOST {
                    sends.insert(subject.to_owned(), now);
                }
                drop(sends);
                if let Some(asks) = self.asks.get() {
                    asks.deny(subject);
                }
            }
            Refusal::Subscribe(subject) => {
                match self.asks.get() {
                    Some(asks) if asks.refuse(subject) => return true,
                    Some(_) => {}
                    None => *self.unclaimed.lock() = Some(subject.to_owned()),
                }
                let rings = self.listeners.lock().remove(subject).unwrap_or_default();
                for ring in rings.iter().filter_map(Weak::upgrade) {
                    ring.refuse(subject);
                }
            }
        }
        true
    }

    /// A refusal comes on the side, just before the answer that it has to do with; its task may need
    /// a turn.
    pub(crate) async fn settled(&self) {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }

    /// # Errors
    /// [`ErrorKind::NotPermitted`] if publishing there was refused a moment ago.
    pub(crate) fn check_send(&self, subject: &str) -> Result<(), Error> {
        let sends = self.sends.lock();
        if !sends.is_empty()
            && let Some(said) = sends.get(subject)
            && said.elapsed() < REMEMBERED
        {
            return Err(may_not("publish to", subject));
        }
        Ok(())
    }
}

/// That something is not permitted.
pub(crate) fn may_not(verb: &str, subject: &str) -> Error {
    Error::new(
        ErrorKind::NotPermitted,
        format!(
            "the NATS user may not {verb} {subject}; grant the permission, or use another user"
        ),
    )
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal<'a> {
    Publish(&'a str),
    Subscribe(&'a str),
}

impl<'a> Refusal<'a> {
    /// Reads `Permissions Violation for Publish to "a.b"` and the like.
    fn read(text: &'a str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let start = lower.find("permissions violation for ")?;
        let subject = text[start..].split('"').nth(1)?;
        let what = &lower[start + "permissions violation for ".len()..];
        match what.starts_with("publish") {
            true => Some(Refusal::Publish(subject)),
            false => what
                .starts_with("subscription")
                .then_some(Refusal::Subscribe(subject)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_words_are_understood() {
        let publish = "Permissions Violation for Publish to \"$JS.API.INFO\"";
        assert_eq!(
            Refusal::read(publish),
            Some(Refusal::Publish("$JS.API.INFO"))
        );
        let subscribe = "Permissions Violation for Subscription to \"a.>\" using queue \"q\"";
        assert_eq!(Refusal::read(subscribe), Some(Refusal::Subscribe("a.>")));
        assert_eq!(Refusal::read("Stale Connection"), None);
    }
}
