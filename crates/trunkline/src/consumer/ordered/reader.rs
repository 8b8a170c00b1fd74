//! Reading the stream: once for the whole member, and again for partitions that fell behind.

use trunkline_core::engine::{Credit, Follow, Followed, Gap, Position, Seq, StoredEvent};
use trunkline_core::{Error, Filter, Result};

use super::claim::Place;

/// What is taken from the reader at once, at most.
pub(super) const BATCH: Credit = Credit {
    items: 1_000,
    bytes: 4 << 20,
};

/// The reader of a member.
pub(super) struct Reader {
    follow: Option<Box<dyn Follow>>,
    /// The sequence after the last that it gave.
    pub(super) at: Seq,
    pub(super) batch: Vec<StoredEvent>,
}

/// What the reader came upon.
#[derive(Debug)]
pub(super) enum Read {
    /// It is open and begins where it was told to.
    Opened,
    /// There are events in `batch`.
    Events,
    Gap(Gap),
    /// The stream began anew, with other events.
    Reset,
    Closed,
    Failed(Error),
}

impl Reader {
    pub(super) fn new() -> Self {
        Self {
            follow: None,
            at: 0,
            batch: Vec::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.follow.is_some()
    }

    pub(super) fn close(&mut self) {
        self.follow = None;
    }

    /// Waits for what comes next, as much as there is room for; opens itself at `from` if it is not
    /// open.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn next(
        &mut self,
        place: &Place,
        filters: &[Filter],
        from: Seq,
        room: Credit,
    ) -> Read {
        let Some(follow) = &mut self.follow else {
            let log = place.store.engine.log();
            return match log
                .follow(&place.stream, Position::Seq(from), filters)
                .await
            {
                Ok(follow) => {
                    self.follow = Some(follow);
                    self.at = from;
                    Read::Opened
                }
                Err(error) => Read::Failed(error),
            };
        };
        match follow.next(room, &mut self.batch).await {
            Ok(Followed::Events { .. }) => {
                self.at = self.batch.last().map_or(self.at, |event| event.seq + 1);
                Read::Events
            }
            Ok(Followed::Gap(gap)) => {
                self.at = self.at.max(gap.to + 1);
                Read::Gap(gap)
            }
            Ok(Followed::Reset) => Read::Reset,
            Ok(Followed::Closed) => Read::Closed,
            Err(error) => {
                self.follow = None;
                Read::Failed(error)
            }
        }
    }
}

/// A stretch of the stream for partitions that fell behind.
pub(super) async fn page(
    place: &Place,
    filters: &[Filter],
    from: Seq,
    room: Credit,
) -> Result<trunkline_core::engine::Page> {
    place
        .store
        .engine
        .log()
        .read(&place.stream, Position::Seq(from), filters, room)
        .await
}
