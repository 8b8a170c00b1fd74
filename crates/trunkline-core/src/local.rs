//! What engines share whose listeners and readers live in one process with them: live messages, and
//! waiting for more.

mod listeners;
mod waiter;

use tokio::sync::watch;

use crate::engine::Link;

pub use listeners::{Listeners, Resolved};
pub use waiter::{Parked, Waiter};

/// Waits until a connection is closed.
pub async fn until_closed(mut link: watch::Receiver<Link>) {
    // An error means that the engine is gone, which is as closed as it gets.
    let _ = link.wait_for(|link| *link == Link::Closed).await;
}
