//! Who is connected to a directory that this process has open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use trunkline_core::engine::Link;
use trunkline_core::{Error, ErrorKind, Result};

use super::closed;

/// The connections of a bus. The last one to close ends the committer, and the end of the committer closes
/// all of them.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    open: BTreeMap<u64, Connection>,
    /// How many there were.
    count: u64,
    /// Why nobody can connect any more.
    ended: Option<Error>,
}

#[derive(Debug)]
struct Connection {
    link: watch::Sender<Link>,
    closed: Arc<AtomicBool>,
}

impl Connections {
    /// One more; its number.
    ///
    /// # Errors
    /// Why it is too late for that.
    pub(super) fn add(&self, link: &watch::Sender<Link>, closed: &Arc<AtomicBool>) -> Result<u64> {
        let mut inner = self.0.lock();
        if let Some(error) = &inner.ended {
            return Err(error.clone());
        }
        inner.count += 1;
        let (number, connection) = (
            inner.count,
            Connection {
                link: link.clone(),
                closed: Arc::clone(closed),
            },
        );
        inner.open.insert(number, connection);
        Ok(number)
    }

    /// One less; whether it was the last. From then on there is none.
    pub(super) fn remove(&self, number: u64) -> bool {
        let mut inner = self.0.lock();
        let is_last = inner.open.remove(&number).is_some() && inner.open.is_empty();
        if is_last {
            inner.ended.get_or_insert_with(closed);
        }
        is_last
    }

    /// Closes all of them: who writes has ended, and was not told to.
    pub(super) fn fail(&self, panic: &str) {
        let error = Error::new(
            ErrorKind::Closed,
            format!(
                "the thread that writes has ended by a defect of the program ({panic}), so this bus is closed; what was not answered is unknown; connect again"
            ),
        );
        let open = {
            let mut inner = self.0.lock();
            inner.ended.get_or_insert(error);
            std::mem::take(&mut inner.open)
        };
        for connection in open.into_values() {
            connection.closed.store(true, Ordering::Release);
            connection.link.send_replace(Link::Closed);
        }
    }

    /// What a connection says that is closed.
    pub(super) fn why_closed(&self) -> Error {
        self.0.lock().ended.clone().unwrap_or_else(closed)
    }
}
