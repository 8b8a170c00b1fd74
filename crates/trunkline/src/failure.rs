//! What a handler's error means: try again, later, or never.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use trunkline_core::Timestamp;
use trunkline_core::error::Cause;

/// Why a handler did not handle an event, and what is to become of the event.
///
/// Any error converts into a *transient* failure, so that `?` works in a handler that returns
/// `Result<(), Failure>`. Use [`FailureExt`] to say more.
#[derive(Debug)]
pub struct Failure {
    disposition: Option<Disposition>,
    reason: &'static str,
    cause: Cause,
}

/// What is to become of an event whose handler failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// Try again by the retry policy; it counts.
    Transient,
    /// Never try again: a dead letter at once.
    Permanent,
    /// Somebody said "not so fast": try again after that long; it does not count.
    Throttled(Duration),
    /// It is not time yet: try again after that long; it does not count.
    Snooze(Duration),
    /// It is not time yet: try again at that time; it does not count.
    SnoozeUntil(Timestamp),
}

impl Failure {
    pub(crate) fn new(
        disposition: Disposition,
        reason: &'static str,
        cause: impl Into<Cause>,
    ) -> Self {
        Self {
            disposition: Some(disposition),
            reason,
            cause: cause.into(),
        }
    }

    /// The handler had not ended after that long.
    pub(crate) fn timed_out(after: Duration) -> Self {
        Self::new(Disposition::Transient, "timed_out", TimedOut(after))
    }

    /// The handler panicked, and this is what was caught.
    pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        let text = text.unwrap_or_else(|| "(no message)".to_owned());
        Self::new(Disposition::Transient, "panicked", Panicked(text))
    }

    /// What the handler said; `None` leaves it to the consumer's [`Classify`] rules.
    pub fn disposition(&self) -> Option<Disposition> {
        self.disposition
    }

    /// In one word why it failed: `failed`, `panicked`, `timed_out`, `undecodable`,
    /// `unsupported_type`, `unsupported_version`, `outputs_not_stored`, `outputs_over_limit`,
    /// `running_elsewhere` or `idempotency_not_stored`.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// Whether another member, of another version, may well handle the event.
    pub(crate) fn is_for_others(&self) -> bool {
        matches!(self.reason, "unsupported_type" | "unsupported_version")
    }

    /// The error itself.
    pub fn cause(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self.cause.as_ref()
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        let (error, causes) = self.messages();
        std::iter::once(error)
            .chain(causes)
            .collect::<Vec<_>>()
            .join(": ")
    }

    /// The error, and each of its causes.
    pub(crate) fn messages(&self) -> (String, Vec<String>) {
        let first = self.cause.source();
        let causes = std::iter::successors(first, |error| (*error).source());
        let causes = causes.map(ToString::to_string).collect();
        (self.cause.to_string(), causes)
    }
}

/// Why a handler was cancelled: it ran for longer than its consumer lets it.
///
/// [`retry_for::<TimedOut>`](crate::Consumer::retry_for) says what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut(Duration);

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the handler had not ended after {:?} and was cancelled; make it faster or its time-out longer",
            self.0
        )
    }
}

impl StdError for TimedOut {}

/// Why a handler came to no end: it panicked, with this text.
///
/// [`retry_for::<Panicked>`](crate::Consumer::retry_for) says what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked(String);

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the handler panicked: {}", self.0)
    }
}

impl StdError for Panicked {}

impl<E: Into<Cause>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            disposition: None,
            reason: "failed",
            cause: error.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.cause, f)
    }
}

/// Says of an error what is to become of the event.
///
/// ```
/// use std::time::Duration;
/// use trunkline::{Failure, FailureExt};
///
/// async fn charge(card: &str) -> Result<(), Failure> {
///     match card {
///         "" => Err("there is no card".permanent()),
///         "busy" => Err("the bank asks to wait".throttled(Duration::from_secs(30))),
///         _ => Ok(()),
///     }
/// }
/// ```
pub trait FailureExt: Sized {
    /// Never try again: the event becomes a dead letter at once.
    fn permanent(self) -> Failure;

    /// Try again after `delay`; the attempt does not count.
    fn throttled(self, delay: Duration) -> Failure;

    /// It is not time yet: try again after `delay`; the attempt does not count.
    fn snooze(self, delay: Duration) -> Failure;

    /// It is not time yet: try again at `time`, or at once if it has passed; the attempt does not
    /// count.
    fn snooze_until(self, time: Timestamp) -> Failure;
}

impl<E: Into<Failure>> FailureExt for E {
    fn permanent(self) -> Failure {
        Failure {
            disposition: Some(Disposition::Permanent),
            ..self.into()
        }
    }

    fn throttled(self, delay: Duration) -> Failure {
        Failure {
            disposition: Some(Disposition::Throttled(delay)),
            ..self.into()
        }
    }

    fn snooze(self, delay: Duration) -> Failure {
        Failure {
            disposition: Some(Disposition::Snooze(delay)),
            ..self.into()
        }
    }

    fn snooze_until(self, time: Timestamp) -> Failure {
        Failure {
            disposition: Some(Disposition::SnoozeUntil(time)),
            ..self.into()
        }
    }
}

/// An error type that knows what is to become of the event.
///
/// Rust cannot see in a generic handler whether its error has this trait, so a consumer is told
/// once with [`classify`](crate::Consumer::classify). It then finds the error anywhere in the
/// chain of causes, also below a wrapper that adds context.
pub trait Classify: StdError + 'static {
    /// What is to become of the event.
    fn disposition(&self) -> Disposition;
}

/// A rule that finds one error type in a chain of causes.
pub(crate) type Rule = fn(&(dyn StdError + 'static)) -> Option<Disposition>;

pub(crate) fn rule<F: Classify>(error: &(dyn StdError + 'static)) -> Option<Disposition> {
    found::<F>(error).map(Classify::disposition)
}

/// The first error of that type in a chain of causes.
pub(crate) fn found<'a, F: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a F> {
    let mut link = Some(error);
    while let Some(error) = link {
        if let Some(found) = error.downcast_ref::<F>() {
            return Some(found);
        }
        link = error.source();
    }
    None
}

/// What is to become of the event: what the handler said, else the first rule that knows the
/// error, else another attempt.
pub(crate) fn disposition(failure: &Failure, rules: &[Rule]) -> Disposition {
    failure
        .disposition
        .or_else(|| rules.iter().find_map(|rule| rule(failure.cause.as_ref())))
        .unwrap_or(Disposition::Transient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Declined;

    impl fmt::Display for Declined {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("declined")
        }
    }

    impl StdError for Declined {}

    impl Classify for Declined {
        fn disposition(&self) -> Disposition {
            Disposition::Permanent
        }
    }

    #[derive(Debug)]
    struct While(Declined);

    impl fmt::Display for While {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("while charging")
        }
    }

    impl StdError for While {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn what_the_handler_said_comes_before_rules_and_rules_before_the_default() {
        let check = |failure: Failure, rules: &[Rule], expected| {
            assert_eq!(disposition(&failure, rules), expected, "{failure}");
        };
        let delay = Duration::from_secs(3);
        check(Declined.into(), &[], Disposition::Transient);
        check(Declined.into(), &[rule::<Declined>], Disposition::Permanent);
        check(
            While(Declined).into(),
            &[rule::<Declined>],
            Disposition::Permanent,
        );
        check(
            Declined.throttled(delay),
            &[rule::<Declined>],
            Disposition::Throttled(delay),
        );
        check("text".snooze(delay), &[], Disposition::Snooze(delay));
        assert_eq!(
            Failure::from(While(Declined)).chain(),
            "while charging: declined"
        );
    }
}
