//! Reading the stream: once for the whole member, and again for partitions that fell behind.

use std::sync::Arc;

use tokio::task::JoinHandle;
use trunkline_core::engine::{
    Credit, Follow, Followed, Gap, Position, Seq, StoredEvent, is_same_stream,
};
use trunkline_core::{Error, ErrorKind, Filter, Result};

use super::claim::Place;

/// What is taken from the reader at once, at most.
pub(super) const BATCH: Credit = Credit {
    items: 1_000,
    bytes: 4 << 20,
};

/// A reader; none if the stream is not the one that it was when the member joined.
type Opened = Option<Box<dyn Follow>>;

/// The reader of a member.
pub(super) struct Reader {
    follow: Option<Box<dyn Follow>>,
    /// Where it is about to begin. On a task of its own: a member that is called away again and again
    /// would otherwise begin to open it again and again.
    opening: Option<(Seq, JoinHandle<Result<Opened>>)>,
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
            opening: None,
            at: 0,
            batch: Vec::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.follow.is_some()
    }

    pub(super) fn close(&mut self) {
        self.follow = None;
        if let Some((_, opening)) = self.opening.take() {
            opening.abort();
        }
    }

    /// Waits for what comes next, as much as there is room for; opens itself at `from` if it is not
    /// open, or where it was told to before if that is under way.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn next(
        &mut self,
        place: &Arc<Place>,
        filters: &Arc<[Filter]>,
        from: Seq,
        room: Credit,
    ) -> Read {
        let Some(follow) = &mut self.follow else {
            let (from, opening) = self.opening.get_or_insert_with(|| {
                let opened = open(Arc::clone(place), Arc::clone(filters), from);
                (from, tokio::spawn(opened))
            });
            let (from, opened) = (*from, opening.await);
            self.opening = None;
            return match opened {
                Ok(Ok(Some(follow))) => {
                    self.follow = Some(follow);
                    self.at = from;
                    Read::Opened
                }
                Ok(Ok(None)) => Read::Reset,
                Ok(Err(error)) => Read::Failed(error),
                Err(error) => {
                    let what = "opening a reader ended early";
                    Read::Failed(Error::new(ErrorKind::Internal, what).caused_by(error))
                }
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
            Ok(Followed::Closed) => closed(place).await,
            Err(error) => {
                self.follow = None;
                Read::Failed(error)
            }
        }
    }
}

async fn open(place: Arc<Place>, filters: Arc<[Filter]>, from: Seq) -> Result<Opened> {
    let engine = &place.store.engine;
    // Opened first: a reader of the stream before ends with it.
    let follow = engine
        .log()
        .follow(&place.stream, Position::Seq(from), &filters)
        .await?;
    let made_at = engine.topology().made_at(&place.stream).await?;
    Ok(is_same_stream(place.made_at, made_at).then_some(follow))
}

/// Why a reader ended: with the bus, or with its stream.
async fn closed(place: &Place) -> Read {
    let topology = place.store.engine.topology();
    match topology.made_at(&place.stream).await {
        Err(error) if error.kind() == ErrorKind::NoSuchStream => Read::Failed(error),
        Ok(made_at) if !is_same_stream(place.made_at, made_at) => Read::Reset,
        _ => Read::Closed,
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
