//! What a command wrote to its standard error: the end of it, and when it wants to be run again.

use std::time::Duration;

/// How much of the end is kept.
const KEPT_BYTES: usize = 4 * 1024;
/// The longest line that may say `retry-after: N`.
const MAX_LINE_BYTES: usize = 64;

/// Bounded, however much there is.
#[derive(Debug, Default)]
pub(super) struct Said {
    end: Vec<u8>,
    /// The beginning of the line that is being written.
    line: Vec<u8>,
    retry_after: Option<Duration>,
}

impl Said {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(KEPT_BYTES)..];
        let surplus = (self.end.len() + kept.len()).saturating_sub(KEPT_BYTES);
        self.end.drain(..surplus);
        self.end.extend_from_slice(kept);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            // One byte more than may be, so that what is too long is seen to be.
            let room = (MAX_LINE_BYTES + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.end_of_line();
            }
        }
    }

    /// There is no more.
    pub(super) fn end(&mut self) {
        self.end_of_line();
    }

    fn end_of_line(&mut self) {
        if self.line.len() <= MAX_LINE_BYTES
            && let Some(after) = retry_after(&self.line)
        {
            self.retry_after = Some(after);
        }
        self.line.clear();
    }

    /// What it said last of when to run it again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// How it ended, and what it wrote last.
    pub(super) fn with(&self, ended: &str) -> String {
        let text = String::from_utf8_lossy(&self.end);
        match text.trim() {
            "" => ended.to_owned(),
            // The last line mostly says what it was, and whoever keeps this may keep less of it.
            said => match said.rsplit_once('\n') {
                Some((_, last)) => format!("{ended}: {}\n{said}", last.trim_start()),
                None => format!("{ended}: {said}"),
            },
        }
    }
}

/// `retry-after: N`, N in seconds, as HTTP has it.
fn retry_after(line: &[u8]) -> Option<Duration> {
    let (name, value) = str::from_utf8(line).ok()?.split_once(':')?;
    if !name.trim().eq_ignore_ascii_case("retry-after") {
        return None;
    }
    value.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(parts: &[&str]) -> Said {
        let mut said = Said::default();
        for part in parts {
            said.take(part.as_bytes());
        }
        said.end();
        said
    }

    #[test]
    fn the_end_is_kept_however_much_there_is() {
        let long = "x".repeat(KEPT_BYTES - 3);
        assert_eq!(
            said(&["ab", "cd", &long]).with("e"),
            format!("e: bcd{long}")
        );
        let said = said(&[&"y".repeat(100_000), "\u{fc}\n"]);
        let text = said.with("it exited with 1");
        assert!(text.ends_with("y\u{fc}") && text.len() < KEPT_BYTES + 30);
        assert_eq!(
            self::said(&["Traceback:\n", "  line 1\nKeyError: 'total'\n"]).with("it exited with 1"),
            "it exited with 1: KeyError: 'total'\nTraceback:\n  line 1\nKeyError: 'total'"
        );
        assert!(said.line.is_empty() && said.end.len() <= KEPT_BYTES);
        assert_eq!(Said::default().with("it exited with 1"), "it exited with 1");
    }

    #[test]
    fn the_last_line_that_says_when_counts() {
        let check = |parts: &[&str], seconds: Option<u64>| {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(said(parts).retry_after(), expected, "{parts:?}");
        };
        check(&["busy\nretry-after: 30\nbye\n"], Some(30));
        check(&["Retry-", "After:7"], Some(7));
        check(&["retry-after: 30\nretry-after: 2\n"], Some(2));
        check(&["retry-after: soon\n", "it says retry-after: 3"], None);
        check(&[&" ".repeat(100), "retry-after: 3"], None);
        check(&[&"x".repeat(100_000), "\nretry-after: 3\n"], Some(3));
    }
}
