//! Where a member gets its events from.

use std::sync::Arc;
use std::task::Poll;

use trunkline_core::engine::{Batch, Credit, Delivery, Feed, Fetched, Settle, Settler, Token};
use trunkline_core::{Name, Result};

/// One consumer of one stream.
pub(in crate::consumer) struct Source {
    pub(in crate::consumer) stream: Name,
    pub(super) feed: Box<dyn Feed>,
    pub(super) settler: Arc<dyn Settler>,
    pub(super) fetched: Vec<Delivery>,
    /// Decided and not yet told to the engine.
    pub(super) settling: Batch<(Token, Settle)>,
}

impl Source {
    pub(in crate::consumer) fn new(
        stream: Name,
        feed: Box<dyn Feed>,
        settler: Arc<dyn Settler>,
    ) -> Self {
        Self {
            stream,
            feed,
            settler,
            fetched: Vec::new(),
            settling: Batch::new(),
        }
    }
}

/// Waits for whichever source has something first; source `first` is asked first.
pub(super) async fn fetch(
    sources: &mut [Source],
    first: usize,
    credit: Credit,
) -> (usize, Result<Fetched>) {
    let count = sources.len();
    let mut fetches: Vec<_> = sources
        .iter_mut()
        .map(|source| source.feed.fetch(credit, &mut source.fetched))
        .collect();
    std::future::poll_fn(|cx| {
        for index in (0..count).map(|step| (first + step) % count) {
            if let Poll::Ready(fetched) = fetches[index].as_mut().poll(cx) {
                return Poll::Ready((index, fetched));
            }
        }
        Poll::Pending
    })
    .await
}
