//! What became of events: told one by one where it matters, counted for all.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use trunkline::{Error, ErrorKind, Published};

use crate::exit::Exit;
use crate::figures::{grouped, rate};

/// What became of one event, in the words of the HTTP door.
#[derive(Debug, Default, Serialize)]
pub(super) struct Outcome {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Fault>,
}

#[derive(Debug, Serialize)]
struct Fault {
    code: &'static str,
    title: &'static str,
    /// The message and what caused it, in one line.
    detail: String,
    retryable: bool,
}

impl Outcome {
    pub(super) fn is_unknown(&self) -> bool {
        self.status == "unknown"
    }

    pub(super) fn of(line: Option<u64>, published: &Published) -> Self {
        let failed = |status, error: &Error| Self {
            line,
            status,
            id: error.event_id().map(str::to_owned),
            error: Some(Fault {
                code: error.code(),
                title: error.kind().entry().title,
                detail: detail(error),
                retryable: error.retryable(),
            }),
            ..Self::default()
        };
        match published {
            Published::Stored(receipt) => Self {
                line,
                status: "stored",
                id: Some(receipt.id.to_string()),
                stream: Some(receipt.stream.to_string()),
                seq: Some(receipt.seq),
                duplicate: Some(receipt.duplicate),
                error: None,
            },
            Published::Sent(id) => Self {
                line,
                status: "sent",
                id: Some(id.to_string()),
                ..Self::default()
            },
            Published::Refused(error) => failed("refused", error),
            Published::Unknown(error) => failed("unknown", error),
            // An outcome that this command does not know yet is unknown to its user as well.
            other => {
                let detail = format!("the bus answered {other:?}");
                failed("unknown", &Error::new(ErrorKind::Internal, detail))
            }
        }
    }
}

/// Whether an event never reached the bus, so that it was not tried at all.
pub(super) fn never_arrived(published: &Published) -> bool {
    matches!(
        published,
        Published::Refused(error)
            if matches!(error.kind(), ErrorKind::Closed | ErrorKind::Disconnected)
    )
}

/// `line 17: refused: TL-…: …`, with the id of an event that is perhaps stored.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(self.status)?;
        if let Some(Fault { code, detail, .. }) = &self.error {
            write!(f, ": {code}: {detail}")?;
        }
        if self.is_unknown()
            && let Some(id) = &self.id
        {
            write!(f, " (id {id})")?;
        }
        Ok(())
    }
}

fn detail(error: &Error) -> String {
    let mut text = error.message().to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// How many events came to what.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Report {
    stored: u64,
    duplicates: u64,
    sent: u64,
    refused: u64,
    unknown: u64,
    /// Refused because the bus does not allow it.
    #[serde(skip)]
    forbidden: u64,
    /// Never reached the bus.
    #[serde(skip)]
    unreached: u64,
}

impl Report {
    pub(super) fn count(&mut self, published: &Published) {
        match published {
            Published::Stored(receipt) => {
                self.stored += 1;
                self.duplicates += u64::from(receipt.duplicate);
            }
            Published::Sent(_) => self.sent += 1,
            Published::Refused(error) => {
                self.refused += 1;
                match error.kind() {
                    ErrorKind::NotPermitted => self.forbidden += 1,
                    ErrorKind::Closed | ErrorKind::Disconnected => self.unreached += 1,
                    _ => {}
                }
            }
            _ => self.unknown += 1,
        }
    }

    pub(super) fn done(&self) -> u64 {
        self.stored + self.sent
    }

    pub(super) fn unknown(&self) -> u64 {
        self.unknown
    }

    pub(super) fn all(&self) -> u64 {
        self.done() + self.refused + self.unknown
    }

    pub(super) fn exit(&self) -> Exit {
        if self.unknown + self.unreached > 0 {
            Exit::Unreachable
        } else if self.refused == 0 {
            Exit::Done
        } else if self.done() > 0 {
            Exit::PartlyRefused
        } else if self.forbidden == self.refused {
            Exit::NotPermitted
        } else {
            Exit::Failed
        }
    }

    /// `stored 12 272 (0 duplicates) · refused 2 · unknown 0 · 23 415/s`.
    pub(super) fn summary(&self, elapsed: Duration) -> String {
        let sent = if self.sent > 0 {
            format!(" · sent {}", grouped(self.sent))
        } else {
            String::new()
        };
        format!(
            "stored {} ({} duplicates){sent} · refused {} · unknown {} · {}/s",
            grouped(self.stored),
            grouped(self.duplicates),
            grouped(self.refused),
            grouped(self.unknown),
            grouped(rate(self.all(), elapsed)),
        )
    }
}

#[cfg(test)]
mod tests {
    use trunkline::{EventId, Name, Receipt};

    use super::*;

    fn stored(duplicate: bool) -> Published {
        Published::Stored(Receipt {
            id: EventId::new("x").unwrap(),
            stream: Name::new("EVENTS").unwrap(),
            seq: 7,
            duplicate,
        })
    }

    fn refused(kind: ErrorKind) -> Published {
        Published::Refused(Error::new(kind, "no").about("x"))
    }

    fn unknown() -> Published {
        Published::Unknown(Error::new(ErrorKind::TimedOut, "no answer").about("x"))
    }

    #[test]
    fn the_exit_code_stands_for_all_outcomes() {
        let no = || refused(ErrorKind::InvalidEvent);
        for (outcomes, exit) in [
            (vec![], Exit::Done),
            (vec![stored(false), stored(true)], Exit::Done),
            (vec![stored(false), no()], Exit::PartlyRefused),
            (vec![no(), no()], Exit::Failed),
            (vec![refused(ErrorKind::NotPermitted)], Exit::NotPermitted),
            (vec![stored(false), no(), unknown()], Exit::Unreachable),
            (vec![refused(ErrorKind::Closed)], Exit::Unreachable),
            (vec![refused(ErrorKind::Disconnected)], Exit::Unreachable),
        ] {
            let mut report = Report::default();
            outcomes.iter().for_each(|outcome| report.count(outcome));
            assert_eq!(report.exit(), exit, "{outcomes:?}");
        }
    }

    #[test]
    fn outcomes_are_told_to_people_and_programs() {
        let told = |outcome: &Published| Outcome::of(Some(17), outcome).to_string();
        assert_eq!(
            told(&refused(ErrorKind::InvalidEvent)),
            "line 17: refused: TL-0005: no"
        );
        assert_eq!(
            told(&unknown()),
            "line 17: unknown: TL-0203: no answer (id x)"
        );
        assert_eq!(
            serde_json::to_string(&Outcome::of(Some(17), &unknown())).unwrap(),
            "{\"line\":17,\"status\":\"unknown\",\"id\":\"x\",\"error\":{\"code\":\"TL-0203\",\"title\":\"timed out, outcome unknown\",\"detail\":\"no answer\",\"retryable\":true}}"
        );
        let mut report = Report::default();
        (0..1_500).for_each(|n| report.count(&stored(n < 2)));
        report.count(&unknown());
        assert_eq!(
            report.summary(Duration::from_secs(1)),
            "stored 1\u{202f}500 (2 duplicates) · refused 0 · unknown 1 · 1\u{202f}501/s"
        );
    }
}
