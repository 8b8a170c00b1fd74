//! What a command writes to: data on standard output, talk on standard error.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde::Serialize;
use trunkline::{Error, ErrorKind, Result};

use crate::global::Global;
use crate::look::Look;
use crate::plain::{fit, json_without_controls, lines_without_controls};
use crate::sink::Sink;

/// How often progress is drawn.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

pub(crate) struct Console {
    pub(crate) out: Sink,
    pub(crate) look: Look,
    /// Whether standard output is for programs.
    pub(crate) json: bool,
    /// Whether a terminal shows standard output, so that what it would act on must not reach it.
    pub(crate) on_terminal: bool,
    talk: Box<dyn Write + Send>,
    quiet: bool,
    progress: Option<Progress>,
}

/// A line on standard error that is drawn over and over.
#[derive(Default)]
struct Progress {
    drawn: bool,
    last: Option<Instant>,
}

impl Console {
    pub(crate) fn standard(global: &Global) -> Self {
        let progress = std::io::stderr().is_terminal() && !global.quiet;
        Self {
            out: Sink::to(std::io::stdout()),
            look: Look::of_stdout(global.color),
            json: global.json,
            on_terminal: std::io::stdout().is_terminal(),
            talk: Box::new(std::io::stderr()),
            quiet: global.quiet,
            progress: progress.then(Progress::default),
        }
    }

    /// Says something to people, unless they want quiet. It is no data and never fails a command.
    pub(crate) fn note(&mut self, text: impl Display) {
        if !self.quiet {
            self.say(text);
        }
    }

    /// Says what also those who want quiet must know.
    pub(crate) fn say(&mut self, text: impl Display) {
        self.clear_progress();
        let text = text.to_string();
        // Nobody to talk to is no reason to stop.
        let _ = writeln!(self.talk, "{}", lines_without_controls(&text));
    }

    /// Asks on standard error, on the line where the answer will be.
    pub(crate) fn ask(&mut self, question: &str) {
        let _ = write!(self.talk, "{} ", lines_without_controls(question));
        let _ = self.talk.flush();
    }

    /// Draws how far it is, if a terminal shows it and not too often.
    pub(crate) fn progress(&mut self, text: impl FnOnce() -> String) {
        let Some(progress) = &mut self.progress else {
            return;
        };
        if progress
            .last
            .is_some_and(|last| last.elapsed() < PROGRESS_EVERY)
        {
            return;
        }
        progress.last = Some(Instant::now());
        progress.drawn = true;
        let text = text();
        // Carriage return, then erase to the end of the line: what was longer must not remain.
        let _ = write!(
            self.talk,
            "\r{}\x1b[K",
            fit(&text, self.look.width.saturating_sub(1))
        );
        let _ = self.talk.flush();
    }

    /// To be called before anything else is written below a drawn progress.
    pub(crate) fn clear_progress(&mut self) {
        if let Some(progress) = &mut self.progress
            && std::mem::take(&mut progress.drawn)
        {
            let _ = write!(self.talk, "\r\x1b[K");
            let _ = self.talk.flush();
        }
    }

    /// Writes one JSON value on one line.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(unwritable)?;
        self.json_text_line(&text)
    }

    /// Writes JSON text that is one line already.
    pub(crate) fn json_text_line(&mut self, text: &str) -> Result<()> {
        if self.on_terminal {
            self.out.line(json_without_controls(text).as_bytes())
        } else {
            self.out.line(text)
        }
    }

    /// Writes one JSON document, laid out.
    pub(crate) fn json_document(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(unwritable)?;
        self.out.line(json_without_controls(&text).as_bytes())?;
        self.out.flush()
    }
}

fn unwritable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Internal, "the output cannot be written as JSON").caused_by(error)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sink::tests::Kept;

    /// A console of that width with its two outputs kept.
    pub(crate) fn kept(width: usize) -> (Console, Kept, Kept) {
        let (out, talk) = (Kept::default(), Kept::default());
        let console = Console {
            out: Sink::to(out.clone()),
            look: Look {
                width,
                colours: false,
            },
            json: false,
            on_terminal: false,
            talk: Box::new(talk.clone()),
            quiet: false,
            progress: None,
        };
        (console, out, talk)
    }

    #[test]
    fn talk_never_brings_an_escape_sequence_to_a_terminal() {
        let (mut console, _, talk) = kept(80);
        console.note("id \x1b]0;owned\x07 is\nodd");
        assert_eq!(talk.text(), "id ␛]0;owned␇ is\nodd\n");
    }

    #[test]
    fn progress_is_cleared_before_something_is_said() {
        let (mut console, _, talk) = kept(10);
        console.progress = Some(Progress::default());
        console.progress(|| "1 of 2 events".to_owned());
        console.progress(|| "too soon".to_owned());
        console.note("done");
        assert_eq!(talk.text(), "\r1 of 2 e…\x1b[K\r\x1b[Kdone\n");
    }

    #[test]
    fn json_on_a_terminal_is_the_same_value_without_controls() {
        let (mut console, out, _) = kept(80);
        console.on_terminal = true;
        console.json_text_line("{\"a\":\"\u{9b}\"}").unwrap();
        console.on_terminal = false;
        console.json_text_line("{\"a\":\"\u{9b}\"}").unwrap();
        console.out.flush().unwrap();
        assert_eq!(out.text(), "{\"a\":\"\\u009b\"}\n{\"a\":\"\u{9b}\"}\n");
    }
}
