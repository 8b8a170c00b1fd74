//! Lines of a file or of standard input, as they come and in bounded memory.

use std::io::{self, ErrorKind as IoErrorKind, Read};
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc;

/// What is read at once.
const BLOCK_BYTES: usize = 64 << 10;
/// Blocks read ahead.
const AHEAD: usize = 2;

/// A line that is not blank, its end and the white space around it aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Counted from 1, blank ones included.
    pub(crate) number: u64,
    /// The line; none if it is longer than the limit.
    pub(crate) text: Option<Bytes>,
}

/// The lines of one block, at least those that were complete when input paused.
pub(crate) type Block = io::Result<Vec<Line>>;

/// Reads lines of at most `max_bytes` on a thread of its own, because a read of standard input
/// cannot be given up: when a command ends before its input, the thread ends with the process.
pub(crate) fn read(
    mut from: impl Read + Send + 'static,
    max_bytes: usize,
) -> mpsc::Receiver<Block> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    thread::spawn(move || {
        let mut splitter = Splitter::new(max_bytes);
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let (lines, ended) = match from.read(&mut block) {
                Ok(0) => (Ok(splitter.finish()), true),
                Ok(read) => (Ok(splitter.push(&block[..read])), false),
                Err(error) if error.kind() == IoErrorKind::Interrupted => continue,
                Err(error) => (Err(error), true),
            };
            if lines.as_ref().is_ok_and(Vec::is_empty) && !ended {
                continue;
            }
            if sender.blocking_send(lines).is_err() || ended {
                return;
            }
        }
    });
    receiver
}

/// Cuts blocks into lines.
struct Splitter {
    max_bytes: usize,
    number: u64,
    /// The line whose end has not come yet.
    partial: Vec<u8>,
    /// That line is too long already; the rest of it is passed over.
    too_long: bool,
}

impl Splitter {
    fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            number: 0,
            partial: Vec::new(),
            too_long: false,
        }
    }

    fn push(&mut self, block: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut pieces = block.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            // White space around a line is no part of it, but within the limit all the same: it
            // is the memory that is limited.
            self.too_long |= self.partial.len() + piece.len() > self.max_bytes;
            if self.too_long {
                self.partial = Vec::new();
            } else {
                self.partial.extend_from_slice(piece);
            }
            if pieces.peek().is_some() {
                lines.extend(self.end_line());
            }
        }
        lines
    }

    fn finish(&mut self) -> Vec<Line> {
        self.end_line().into_iter().collect()
    }

    fn end_line(&mut self) -> Option<Line> {
        self.number += 1;
        let number = self.number;
        if std::mem::take(&mut self.too_long) {
            return Some(Line { number, text: None });
        }
        let mut text = self.partial.as_slice();
        if number == 1 {
            // Some editors of Windows begin a file with it.
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        }
        let text = text.trim_ascii();
        let line = (!text.is_empty()).then(|| Line {
            number,
            text: Some(Bytes::copy_from_slice(text)),
        });
        self.partial.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of the input, however it is cut into blocks.
    fn check(input: &str, expected: &[(u64, Option<&str>)]) {
        for size in [1, 2, 3, 7, 1_000] {
            let mut splitter = Splitter::new(10);
            let blocks = input.as_bytes().chunks(size);
            let mut lines: Vec<Line> = blocks.flat_map(|block| splitter.push(block)).collect();
            lines.extend(splitter.finish());
            let lines: Vec<_> = lines
                .iter()
                .map(|line| {
                    let text = line.text.as_ref();
                    (line.number, text.map(|text| str::from_utf8(text).unwrap()))
                })
                .collect();
            assert_eq!(lines, expected, "{input:?} in blocks of {size}");
        }
    }

    #[test]
    fn lines_are_numbered_trimmed_and_limited() {
        check("", &[]);
        check("a", &[(1, Some("a"))]);
        check("a\nb\n", &[(1, Some("a")), (2, Some("b"))]);
        check("a\r\n\r\n \n b\t\r\n", &[(1, Some("a")), (4, Some("b"))]);
        check(
            "\u{feff}a\n\u{feff}b",
            &[(1, Some("a")), (2, Some("\u{feff}b"))],
        );
        check(
            "0123456789\n0123456789a\nb\n0123456789abcdefghijklmnop",
            &[
                (1, Some("0123456789")),
                (2, None),
                (3, Some("b")),
                (4, None),
            ],
        );
    }

    #[tokio::test]
    async fn a_failing_input_is_told_after_what_was_read() {
        struct Failing(bool);
        impl Read for Failing {
            fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    return Err(io::Error::other("the disk is gone"));
                }
                block[..4].copy_from_slice(b"a\nb\n");
                Ok(4)
            }
        }
        let mut blocks = read(Failing(false), 10);
        assert_eq!(blocks.recv().await.unwrap().unwrap().len(), 2);
        assert!(blocks.recv().await.unwrap().is_err());
        assert!(blocks.recv().await.is_none());
    }
}
