//! Telling people of lines that were not stored: the first of them one by one, the others in ranges.

use crate::console::Console;
use crate::figures::grouped;

use super::outcome::Outcome;

/// Lines that are told one by one.
const MAX_TOLD: u64 = 20;
/// Ranges of lines with an unknown outcome that are kept to be told.
const MAX_RANGES: usize = 20;

/// What was told, and what is to be told at the end.
#[derive(Debug, Default)]
pub(super) struct Told {
    lines: u64,
    refused_later: u64,
    unknown_later: Vec<(u64, u64)>,
    /// Beyond what the ranges hold.
    unknown_elsewhere: u64,
}

impl Told {
    pub(super) fn tell(&mut self, console: &mut Console, number: u64, outcome: &Outcome) {
        self.lines += 1;
        if self.lines <= MAX_TOLD {
            console.say(outcome);
        } else if !outcome.is_unknown() {
            self.refused_later += 1;
        } else {
            let has_room = self.unknown_later.len() < MAX_RANGES;
            match self.unknown_later.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ if has_room => self.unknown_later.push((number, number)),
                _ => self.unknown_elsewhere += 1,
            }
        }
    }

    pub(super) fn finish(&self, console: &mut Console) {
        for (first, last) in &self.unknown_later {
            if first == last {
                console.say(format_args!("line {first}: unknown"));
            } else {
                console.say(format_args!("lines {first} to {last}: unknown"));
            }
        }
        for (count, what) in [
            (self.refused_later, "refused"),
            (self.unknown_elsewhere, "unknown"),
        ] {
            if count > 0 {
                let count = grouped(count);
                console.say(format_args!("… and {count} more {what}"));
            }
        }
        if self.lines > MAX_TOLD {
            console.say("with --json each of them is told, with its id");
        }
    }
}

#[cfg(test)]
mod tests {
    use trunkline::{Error, ErrorKind, Published};

    use super::*;
    use crate::console::tests::kept;

    #[test]
    fn many_unknown_lines_are_told_in_ranges() {
        let (mut console, _, talk) = kept(80);
        let mut told = Told::default();
        for number in (1..=50).chain(60..=60).chain(70..=80) {
            let error = Error::new(ErrorKind::TimedOut, "no answer");
            let outcome = Outcome::of(Some(number), &Published::Unknown(error));
            told.tell(&mut console, number, &outcome);
        }
        let outcome = Published::Refused(Error::new(ErrorKind::InvalidEvent, "no"));
        told.tell(&mut console, 81, &Outcome::of(Some(81), &outcome));
        told.finish(&mut console);
        let text = talk.text();
        let lines: Vec<&str> = text.lines().skip(20).collect();
        assert_eq!(
            lines,
            [
                "lines 21 to 50: unknown",
                "line 60: unknown",
                "lines 70 to 80: unknown",
                "… and 1 more refused",
                "with --json each of them is told, with its id",
            ]
        );
    }
}
