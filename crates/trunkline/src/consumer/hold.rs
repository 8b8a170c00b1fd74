//! Holding keys: what follows a dead letter of its key waits until that is dealt with.

use std::collections::BTreeMap;

use trunkline_core::{Error, ErrorKind, Name, Result};

use super::untyped::Wanted;
use super::{Consumer, Sharing};

/// Whether a consumer holds the keys of its dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holding {
    No,
    /// As far as it keeps the order of keys: that was said of every consumer.
    WhereOrdered,
    /// It was said of this one.
    Insisted,
}

impl Holding {
    /// As it was said of one consumer.
    pub(super) fn said(holds: bool) -> Self {
        match holds {
            true => Holding::Insisted,
            false => Holding::No,
        }
    }

    /// As it was said of every consumer.
    pub(super) fn where_ordered(self) -> Self {
        match self {
            Holding::Insisted => Holding::WhereOrdered,
            other => other,
        }
    }
}

impl Consumer {
    /// Lets later events of a key wait behind one that was given up, until its dead letter is replayed
    /// with success or discarded; other keys go on. A replay then runs in its place, so that order
    /// is kept. Off unless set, here or by the configuration; all members should say the same.
    ///
    /// It is for consumers in key order, and for keys whose later events are wrong without the
    /// earlier one. A key may wait for as long as nobody looks after its dead letter, and what waits
    /// is kept in the bus's state: at 10 000 events in one partition that partition stops reading. A
    /// consumer that is started without this lets go what was held.
    ///
    /// ```
    /// use trunkline::{Bus, Event};
    ///
    /// #[derive(Clone, serde::Serialize, serde::Deserialize, Event)]
    /// #[event(type = "account.booked", key = "account")]
    /// struct AccountBooked {
    ///     account: String,
    ///     cents: i64,
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> trunkline::Result<()> {
    /// let bus = Bus::connect("memory:").await?;
    /// let ledger = bus.consumer("ledger").hold_key();
    /// ledger.on(|_: AccountBooked| async {}).start().await?;
    /// # bus.close().await
    /// # }
    /// ```
    pub fn hold_key(mut self) -> Self {
        self.holding = Holding::Insisted;
        self
    }

    /// Whether keys are held, of a consumer that wants this.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] where there is no order to hold anything in.
    pub(super) fn holds_keys(&self, name: &Name, wanted: &BTreeMap<Name, Wanted>) -> Result<bool> {
        let is_ordered = wanted.values().any(|wanted| wanted.ordered);
        if self.holding == Holding::Insisted && !is_ordered {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "consumer {name} is to hold the keys of its dead letters (`hold_key`), and {}; {} or leave \
                     `hold_key` out",
                    match self.sharing {
                        Sharing::Unordered => "it gives up the order of keys",
                        _ => "none of its event types has a key",
                    },
                    match self.sharing {
                        Sharing::Unordered => "leave `.unordered()` out,",
                        _ => "give it a durable type with a key,",
                    },
                ),
            ));
        }
        Ok(self.holding != Holding::No)
    }
}
