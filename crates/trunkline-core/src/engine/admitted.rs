//! Two-stage calls: first the operation gets its place in the order, then its result.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use smallvec::SmallVec;

use super::Boxed;
use crate::error::Result;

/// Operations handed over together; one alone needs no allocation.
pub type Batch<T> = SmallVec<[T; 1]>;

/// A call in two stages. Awaiting it gives the operation its place in the order and exerts
/// back-pressure; the [`Admission`] that it yields gives the result.
///
/// # Cancel safety
/// Dropped before it yields, nothing was done. Dropping the [`Admission`] leaves the operation
/// done or not done, never half, and the caller without knowledge of which.
#[must_use = "nothing is sent until it is awaited"]
pub struct Admitted<'a, T>(Stage<'a, Result<Admission<T>>>);

/// The second stage: the result of what was admitted.
#[must_use = "the result says whether it was stored"]
pub struct Admission<T>(Stage<'static, Result<T>>);

enum Stage<'a, T> {
    // Engines that answer at once pay for no allocation.
    Ready(Option<T>),
    Waiting(Boxed<'a, T>),
}

impl<T> Admitted<'_, T> {
    /// Admitted and answered at once.
    pub fn done(result: Result<T>) -> Self {
        Self(Stage::Ready(Some(Ok(Admission(Stage::Ready(Some(
            result,
        )))))))
    }
}

impl<'a, T> Admitted<'a, T> {
    /// Admitted when the future yields.
    pub fn waiting(future: impl Future<Output = Result<Admission<T>>> + Send + 'a) -> Self {
        Self(Stage::Waiting(Box::pin(future)))
    }

    /// The result, if the engine answered at once; else the call, to be awaited.
    ///
    /// # Errors
    /// The call itself, untouched: this is no failure.
    pub fn answered(self) -> Result<Result<T>, Self> {
        match self.0 {
            Stage::Ready(Some(Ok(Admission(Stage::Ready(Some(result)))))) => Ok(result),
            stage => Err(Self(stage)),
        }
    }

    /// Waits for both stages.
    ///
    /// # Errors
    /// Those of either stage.
    pub async fn completed(self) -> Result<T> {
        self.await?.await
    }
}

impl<T> Admission<T> {
    /// Answered when the future yields.
    pub fn waiting(future: impl Future<Output = Result<T>> + Send + 'static) -> Self {
        Self(Stage::Waiting(Box::pin(future)))
    }
}

// Nothing in here is pinned in place: a boxed future is `Unpin`, and a ready value is only moved out.
impl<T> Unpin for Admitted<'_, T> {}
impl<T> Unpin for Admission<T> {}

impl<T> Future for Admitted<'_, T> {
    type Output = Result<Admission<T>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        poll_stage(&mut self.0, cx)
    }
}

impl<T> Future for Admission<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        poll_stage(&mut self.0, cx)
    }
}

fn poll_stage<T>(stage: &mut Stage<'_, T>, cx: &mut Context<'_>) -> Poll<T> {
    match stage {
        Stage::Waiting(future) => future.as_mut().poll(cx),
        // A second poll after completion, which no executor does, waits for ever instead of panicking.
        Stage::Ready(value) => value.take().map_or(Poll::Pending, Poll::Ready),
    }
}
