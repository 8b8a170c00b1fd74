//! Handlers of dead letters: told of what consumers give up, and told again until they are done.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_core::engine::StoredEvent;
use trunkline_core::{Data, Envelope, Error, ErrorKind, Filter, Name, Result, wire};

use super::untyped::Wanted;
use super::{Consumer, Shared, Sharing};
use crate::bus::Inner;
use crate::dead_letter::{Buried, Entry, read_entry};
use crate::failure::{Disposition, Failure};
use crate::handler::{DeadLetterHandler, Handles, of_dead_letters};
use crate::raw::{Incoming, Stored};

/// The type of the event that a handler of dead letters is told with.
const TYPE: &str = "trunkline.dead_letter";

impl Consumer {
    /// Handles what consumers of this bus give up, from the first dead letter that is stored unless
    /// told otherwise: for an alert, a ticket, or a repair. Each goes to whichever member is free, and
    /// is tried again as any event is; one that is dealt with before it is read is left out.
    ///
    /// [`Context`](crate::Context) and [`Meta`](crate::Meta) are of an event of its own, of type
    /// `trunkline.dead_letter`, which the original has caused; its id is the same whenever this dead
    /// letter is handled.
    ///
    /// What such a handler gives up is a dead letter of its own, which no handler of dead letters is
    /// told of: else two that fail would keep each other busy for ever. It is listed as any.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use trunkline::dead_letter::Buried;
    /// use trunkline::{Bus, Context};
    ///
    /// async fn alert(dead: Arc<Buried>, cx: Context) {
    ///     eprintln!("{} gave up {}: {}", dead.consumer, dead.subject, dead.chain());
    ///     eprintln!("told {} time(s) before", cx.attempt() - 1);
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> trunkline::Result<()> {
    /// let bus = Bus::connect("memory:").await?;
    /// bus.consumer("alerts").on_dead_letter(alert).start().await?;
    /// # bus.close().await
    /// # }
    /// ```
    pub fn on_dead_letter<Args: 'static>(mut self, handler: impl DeadLetterHandler<Args>) -> Self {
        self.dead_letters.push(of_dead_letters(handler));
        self
    }

    /// Adds what the handler of dead letters wants to what the others do, and gives it.
    pub(super) fn want_dead_letters(
        &self,
        name: &Name,
        wanted: &mut BTreeMap<Name, Wanted>,
    ) -> Result<Option<Arc<dyn Handles>>> {
        let handler = match self.dead_letters.as_slice() {
            [] => return Ok(None),
            [handler] => handler,
            _ => {
                return Err(Error::new(
                    ErrorKind::NoHandler,
                    format!("consumer {name} has two handlers of dead letters; give it one"),
                ));
            }
        };
        if self.sharing == Sharing::Ordered {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "consumer {name} is to keep the order of keys, and dead letters have none; give their handler a \
                     consumer of its own"
                ),
            ));
        }
        handler.check(&self.bus)?;
        let settings = &self.bus.inner.settings;
        let all = Filter::all().below(Some(&settings.roots.dlq))?;
        let wanted = wanted.entry(settings.dead_letters.clone()).or_default();
        wanted.filters.push(all);
        Ok(Some(Arc::clone(handler)))
    }
}

impl Shared {
    /// What lies in the dead-letter stream, as its handler is to be told; none for what no handler is
    /// told of.
    ///
    /// # Errors
    /// A story of a form that this version does not know waits for a member that does.
    pub(super) fn dead_letter(
        &self,
        stored: StoredEvent,
    ) -> Result<Option<(Incoming, Arc<Buried>)>, Failure> {
        let inner = &self.bus.inner;
        let entry = match read_entry(inner, &stored) {
            Ok(entry) => entry,
            Err(error) if error.kind() == ErrorKind::WrongVersion => {
                let newer = Disposition::Transient;
                return Err(Failure::new(newer, "unsupported_version", error));
            }
            Err(error) => {
                tracing::error!(
                    consumer = %self.name, stream = %inner.settings.dead_letters, seq = stored.seq, %error,
                    "no handler is told of what is no dead letter; `dlq list` has it"
                );
                return Ok(None);
            }
        };
        if entry.stream == inner.settings.dead_letters {
            return Ok(None);
        }
        let made = envelope(inner, &entry, &stored);
        let envelope =
            made.map_err(|error| Failure::new(Disposition::Permanent, "undecodable", error))?;
        let incoming = Incoming {
            envelope: Arc::new(envelope),
            headers: wire::beside(entry.headers.clone()),
            subject: stored.subject,
            stored: Some(Stored {
                stream: inner.settings.dead_letters.clone(),
                seq: stored.seq,
                at: stored.at,
            }),
        };
        let (seq, at) = (stored.seq, stored.at);
        Ok(Some((incoming, Arc::new(Buried { entry, seq, at }))))
    }
}

/// The event that tells of a dead letter. It has an id of its own: two consumers that give up one
/// event make two dead letters.
fn envelope(inner: &Inner, entry: &Entry, stored: &StoredEvent) -> Result<Envelope> {
    let source = entry.service.as_ref().filter(|service| !service.is_empty());
    let source = source.unwrap_or(&inner.settings.source).clone();
    let told = Envelope::new(entry.id()?, source, TYPE, Data::None)?.with_time(stored.at);
    let original = inner
        .settings
        .decoding
        .stored(&entry.stream, &entry.original());
    Ok(match original {
        Ok(original) => {
            let root = original.correlation().unwrap_or(original.id()).clone();
            told.with_correlation(root)
                .with_causation(original.id().clone())
        }
        // Which may be why it died.
        Err(_) => told,
    })
}
