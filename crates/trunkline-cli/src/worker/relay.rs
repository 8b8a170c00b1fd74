//! What commands write to their standard error, on its way to ours.
//!
//! A thread of its own writes it: whoever reads our standard error may stop to do so, and neither
//! a command nor a lease may wait for that.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use trunkline::{Error, ErrorKind, Result};

/// Pieces that wait to be written at most; what comes then is not shown.
const MAX_WAITING: usize = 256;
/// How long the end waits for what is not written yet.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) struct Relay {
    pieces: Mutex<Option<SyncSender<Vec<u8>>>>,
    written: Mutex<Option<oneshot::Receiver<()>>>,
    lost: AtomicU64,
}

impl Relay {
    /// # Errors
    /// [`ErrorKind::Internal`] when there can be no thread.
    pub(super) fn start() -> Result<Self> {
        let (sender, pieces) = sync_channel::<Vec<u8>>(MAX_WAITING);
        let (end, written) = oneshot::channel();
        let write = move || {
            for piece in pieces {
                // Nobody to talk to is no reason to stop.
                let _ = std::io::stderr().write_all(&piece);
            }
            let _ = end.send(());
        };
        thread::Builder::new()
            .name("relay".to_owned())
            .spawn(write)
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "a thread cannot be started").caused_by(error)
            })?;
        Ok(Self {
            pieces: Mutex::new(Some(sender)),
            written: Mutex::new(Some(written)),
            lost: AtomicU64::new(0),
        })
    }

    pub(super) fn pass_on(&self, piece: &[u8]) {
        let passed = match &*self.pieces.lock() {
            Some(pieces) => pieces.try_send(piece.to_vec()).is_ok(),
            None => false,
        };
        if !passed {
            self.lost.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    }

    /// Waits until all is written, or nobody takes it, and gives the bytes that were not passed on.
    pub(super) async fn end(&self) -> u64 {
        self.pieces.lock().take();
        let written = self.written.lock().take();
        if let Some(written) = written {
            let _ = tokio::time::timeout(LAST_WORDS, written).await;
        }
        self.lost.load(Ordering::Relaxed)
    }
}
