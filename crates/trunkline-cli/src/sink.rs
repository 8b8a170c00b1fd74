//! Standard output, through which all data goes: whole lines, buffered, and a reader that went
//! away is an end, not a failure.

use std::error::Error as StdError;
use std::fmt;
use std::io::{ErrorKind as IoErrorKind, Write};

use trunkline::{Error, ErrorKind, Result};

/// What is kept before it is written by itself.
const BUFFER_BYTES: usize = 64 << 10;

pub(crate) struct Sink {
    out: Box<dyn Write + Send>,
    buffer: Vec<u8>,
}

impl Sink {
    pub(crate) fn to(out: impl Write + Send + 'static) -> Self {
        Self {
            out: Box::new(out),
            buffer: Vec::new(),
        }
    }

    /// Writes text that ends with a line.
    pub(crate) fn text(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        self.buffer.extend_from_slice(text.as_ref());
        self.flush_if_full()
    }

    /// Writes a line, its end included.
    pub(crate) fn line(&mut self, line: impl AsRef<[u8]>) -> Result<()> {
        self.buffer.extend_from_slice(line.as_ref());
        self.buffer.push(b'\n');
        self.flush_if_full()
    }

    /// Writes what is buffered. To be called whenever there may be nothing more for a while.
    pub(crate) fn flush(&mut self) -> Result<()> {
        // Taken out first: what could not be written is not tried again.
        let buffer = std::mem::take(&mut self.buffer);
        let written = self.out.write_all(&buffer).and_then(|()| self.out.flush());
        self.buffer = buffer;
        self.buffer.clear();
        written.map_err(|error| unwritten(&error))
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.buffer.len() < BUFFER_BYTES {
            return Ok(());
        }
        self.flush()
    }
}

impl Drop for Sink {
    /// A command that was interrupted still shows what it had; only whole lines are in here.
    fn drop(&mut self) {
        if !self.buffer.is_empty() {
            let _ = self.flush();
        }
    }
}

fn unwritten(error: &std::io::Error) -> Error {
    let cause = if error.kind() == IoErrorKind::BrokenPipe {
        Unwritten::PipeClosed
    } else {
        Unwritten::Other(error.to_string())
    };
    Error::new(ErrorKind::Internal, "the output cannot be written").caused_by(cause)
}

#[derive(Debug)]
enum Unwritten {
    /// A type of its own: a broken pipe may also be the cause of another error, of a connection.
    PipeClosed,
    Other(String),
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PipeClosed => f.write_str("its reader went away"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl StdError for Unwritten {}

pub(crate) fn is_pipe_closed(error: &Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(Unwritten::PipeClosed))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Takes what is written, so that a test can look at it.
    #[derive(Clone, Default)]
    pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(IoErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_told_from_a_disk_that_is_full() {
        let mut sink = Sink::to(Gone);
        sink.line("a").unwrap();
        assert!(is_pipe_closed(&sink.flush().unwrap_err()));
        assert!(!is_pipe_closed(&unwritten(
            &IoErrorKind::StorageFull.into()
        )));
        assert!(!is_pipe_closed(
            &Error::new(ErrorKind::Disconnected, "gone")
                .caused_by(io::Error::from(IoErrorKind::BrokenPipe))
        ));
    }

    #[test]
    fn lines_are_kept_until_they_are_many_or_it_is_dropped() {
        let kept = Kept::default();
        let mut sink = Sink::to(kept.clone());
        sink.line("first").unwrap();
        assert_eq!(kept.text(), "");
        sink.line("x".repeat(BUFFER_BYTES)).unwrap();
        assert!(kept.text().starts_with("first\nxxx") && kept.text().ends_with("x\n"));
        sink.line("last").unwrap();
        drop(sink);
        assert!(kept.text().ends_with("\nlast\n"));
    }
}
