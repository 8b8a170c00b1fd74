//! One error type with stable codes, shared by every crate of the workspace.
//!
//! The same code reaches a Rust caller, an HTTP client and an operator's log, so that one page
//! (`docs/errors.md`, generated from [`CODES`]) explains all three.

use std::error::Error as StdError;
use std::fmt;

/// What every fallible operation of Trunkline returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error that can be a cause.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// Something that did not work: what, to what, and what to do about it.
///
/// `Display` gives the code and the message and never repeats the source; walk
/// [`source`](StdError::source) for the cause.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    message: String,
    event_id: Option<String>,
    source: Option<Cause>,
}

impl Error {
    /// An error of `kind`. The message says what happened, to what, and what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                event_id: None,
                source: None,
            }),
        }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Cause>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Says in front of the message where the error arose, for example `line 7`.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.inner.message = format!("{place}: {}", self.inner.message);
        self
    }

    /// Says which event it was about.
    #[must_use]
    pub fn about(mut self, event_id: impl fmt::Display) -> Self {
        self.inner.event_id = Some(event_id.to_string());
        self
    }

    /// The id of the event that it was about. After an unknown outcome, publish again with it.
    pub fn event_id(&self) -> Option<&str> {
        self.inner.event_id.as_deref()
    }

    /// What class of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The stable code, for example `TL-0101`, by which the documentation explains it.
    pub fn code(&self) -> &'static str {
        self.inner.kind.entry().code
    }

    /// The message without the code.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// Whether the same call may succeed later without anything being changed.
    pub fn retryable(&self) -> bool {
        self.inner.kind.entry().retryable
    }
}

impl Clone for Error {
    /// Copies the error; the source is kept as text, because causes cannot be cloned.
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.kind(), self.message());
        copy.inner.event_id.clone_from(&self.inner.event_id);
        match &self.inner.source {
            Some(source) => copy.caused_by(source.to_string()),
            None => copy,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What `main` prints for `Err`: readable, with the chain of causes.
        write!(f, "{self}")?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, "\n  caused by: {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.inner.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

/// One row of the error-code page.
#[derive(Debug)]
pub struct Code {
    /// The kind that has this code.
    pub kind: ErrorKind,
    /// Stable, never reused.
    pub code: &'static str,
    /// A few words.
    pub title: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// Whether the same call may succeed later without anything being changed.
    pub retryable: bool,
}

macro_rules! codes {
    ($( $kind:ident = $code:literal, $title:literal, retryable: $retryable:literal,
        $meaning:literal, $remedy:literal; )*) => {
        /// The classes of error. Each has one stable code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind {
            $( #[doc = concat!($code, ": ", $title, ".")] $kind, )*
        }

        /// Every code there is, in the order of the error-code page.
        pub const CODES: &[Code] = &[
            $( Code {
                kind: ErrorKind::$kind,
                code: $code,
                title: $title,
                meaning: $meaning,
                remedy: $remedy,
                retryable: $retryable,
            }, )*
        ];
    };
}

codes! {
    InvalidName = "TL-0001", "invalid name", retryable: false,
        "A consumer, stream, member or bucket has a name that is not 1 to 64 characters of `A-Z a-z 0-9 _ -`.",
        "Choose a name of those characters.";
    InvalidSubject = "TL-0002", "invalid subject", retryable: false,
        "A subject is empty, too long, has an empty token, white space or a wildcard.",
        "Use tokens separated by single dots, at most 32 tokens and 512 bytes, without `*`, `>` or white space.";
    InvalidFilter = "TL-0003", "invalid filter", retryable: false,
        "A filter breaks the rules of subjects, or has `>` anywhere but as its last token.",
        "Use `*` for exactly one token and `>` only at the end, for one or more.";
    InvalidEventType = "TL-0004", "invalid event type", retryable: false,
        "An event type is empty, has an empty token, more than 16 tokens or 200 bytes, or ends in a token of digits only.",
        "Name the type with dots between words, for example `order.placed`.";
    InvalidEvent = "TL-0005", "not a valid CloudEvent", retryable: false,
        "The text is not a CloudEvents 1.0 event: not JSON, a required attribute is missing, or one has the wrong form.",
        "Give `specversion` \"1.0\", a non-empty `id`, `source` and `type`, and data in `data` or `data_base64`.";
    InvalidHeader = "TL-0006", "invalid header", retryable: false,
        "A header has an empty or illegal name, a line break in its value, or there are too many.",
        "Use names of visible ASCII without `:`, values without CR, LF or NUL, at most 64 headers and 16 KiB in all.";
    InvalidUrl = "TL-0007", "invalid bus URL", retryable: false,
        "The URL names no engine that this build knows, or has an option that its engine does not.",
        "Use `memory:`, `memory:name`, `nats://HOST:PORT`, or `http://HOST:PORT` of a running `trunkline up`; the message says more.";
    InvalidConfig = "TL-0008", "invalid configuration", retryable: false,
        "A setting is out of its range or contradicts another.",
        "Change the setting that the message names.";
    InvalidPosition = "TL-0009", "invalid start position", retryable: false,
        "A position is none of `first`, `new`, `last:N`, a sequence number or an RFC 3339 time.",
        "Use one of those forms, for example `from=first` or `from=2026-01-31T12:00:00Z`.";
    TooLarge = "TL-0101", "message too large", retryable: false,
        "The encoded message is larger than the engine accepts. Nothing was stored.",
        "Send less, or store the payload elsewhere and send a reference to it.";
    StreamFull = "TL-0102", "stream full", retryable: true,
        "A stream that refuses when full has reached a limit. Nothing was stored.",
        "Let its consumers catch up, remove what is settled, or raise the limit.";
    BehindFailed = "TL-0103", "behind a failed event of its key", retryable: true,
        "An earlier event of the same key in this publisher was not stored, so this one was held back to keep the key's order.",
        "Publish the failed event again, then this one.";
    Encode = "TL-0104", "payload cannot be encoded", retryable: false,
        "The value's serializer failed. Nothing was stored.",
        "Mend the type's `Serialize`; the source says where it failed.";
    Decode = "TL-0105", "payload cannot be decoded", retryable: false,
        "The event's data is not what the type expects.",
        "Compare the producer's and the consumer's version of the type; the source names the field.";
    OverLimit = "TL-0106", "over a limit", retryable: false,
        "A batch, a number of subscriptions or another quantity is above its limit.",
        "Split the work, or raise the limit that the message names.";
    OverQuota = "TL-0107", "no room left", retryable: true,
        "The server, the disk behind it, or this account of it has no room or no quota left. Nothing was stored.",
        "Free space, remove or limit streams, or raise the account's or the server's limit that the message names.";
    Closed = "TL-0201", "bus closed", retryable: false,
        "The bus was closed before this call.",
        "Call it before `close`, or connect again.";
    Disconnected = "TL-0202", "not connected", retryable: true,
        "The engine cannot be reached at the moment.",
        "Wait for the link to come back; the bus reconnects by itself.";
    TimedOut = "TL-0203", "timed out, outcome unknown", retryable: true,
        "No answer came in time. The operation may have happened.",
        "Repeat it with the same id: within the duplicate window it is stored once.";
    NotPermitted = "TL-0204", "not permitted", retryable: false,
        "The caller's credentials do not allow this.",
        "Grant the permission that the message names.";
    WrongProtocol = "TL-0205", "not a Trunkline bus", retryable: false,
        "Something answers at the URL, but it is no Trunkline bus: another program, another port, or a proxy in between.",
        "Check the address and the port; `trunkline up` prints the ones that it listens on.";
    WrongVersion = "TL-0206", "incompatible version", retryable: false,
        "The other end is of a version that this one does not work with: another Trunkline without a protocol in common, or a NATS server that is too old.",
        "Use the versions that the message names.";
    UnknownHost = "TL-0207", "host name does not resolve", retryable: true,
        "The name of a host in the URL has no address, or the name service did not answer.",
        "Correct the name, or mend the name service; other hosts of the URL are tried as well.";
    CredentialsRefused = "TL-0208", "credentials refused", retryable: false,
        "The server knows neither the user, password, token, key nor certificate that it was given, or was given none.",
        "Give credentials that the server knows; the message says which kind was used, never what it was.";
    TlsFailed = "TL-0209", "TLS failed", retryable: false,
        "The two ends do not agree on TLS: one wants it and the other does not, or a certificate is not trusted, out of date or for another host.",
        "Compare the settings of both ends: the CA, the client certificate, the host name, and whether TLS comes first.";
    NoJetStream = "TL-0210", "no JetStream", retryable: false,
        "The NATS server, or this account of it, has JetStream turned off, so that it can store nothing.",
        "Start the server with JetStream (`jetstream {}` in its configuration, or `-js`), or enable it for the account.";
    NoSuchStream = "TL-0301", "no such stream", retryable: false,
        "The stream does not exist on this bus.",
        "Check its name; streams are made when the bus connects with topology `ensure`.";
    NoSuchConsumer = "TL-0302", "no such consumer", retryable: false,
        "The consumer does not exist, or was deleted.",
        "Check its name; a consumer is made when it starts.";
    NotStored = "TL-0303", "no stream stores this type", retryable: false,
        "The subject of a durable event lies in no stream, so it would be lost.",
        "Give a stream a subject filter that covers it; `*` is one token, `>` one or more.";
    Overlap = "TL-0304", "overlapping subjects", retryable: false,
        "Two streams would store the same subject, or ephemeral events and requests would fall into a stream.",
        "Give each class of subjects a root of its own.";
    Drift = "TL-0305", "differs from what is declared", retryable: false,
        "A stream or consumer exists with another configuration than the program declares.",
        "Change the declaration, or change what exists on purpose: `trunkline topology plan` shows how, `trunkline topology apply` does it. Trunkline never overwrites it by itself.";
    Unsupported = "TL-0306", "not supported by this engine", retryable: false,
        "The engine behind the URL lacks this feature. It is refused instead of silently weakened.",
        "Use an engine that has it; the capability table lists them.";
    NotInCatalogue = "TL-0307", "type not in the catalogue", retryable: false,
        "The bus has a catalogue of event types and this one is not in it.",
        "Register the type with the bus, or connect without a catalogue.";
    MatchesNothing = "TL-0308", "filter matches nothing", retryable: false,
        "No event type of the catalogue can ever match the filter.",
        "The message names the filter that would match; `*` is one token, `>` one or more.";
    WrongVerb = "TL-0309", "wrong verb for this class of event", retryable: false,
        "A durable type was emitted, or an ephemeral one published or consumed durably.",
        "Publish durable events, emit ephemeral ones.";
    InUse = "TL-0310", "in use", retryable: true,
        "Another process or instance holds what this call needs for itself.",
        "Stop the holder, or choose another name or port; the message says which is taken.";
    NoSuchDeadLetter = "TL-0311", "no such dead letter", retryable: false,
        "There is no dead letter of that name, or its entry has left the dead-letter stream and the event with it.",
        "List those that there are: `trunkline dlq list`. One that was replayed or discarded is kept for 30 days, with `--state`.";
    Conflict = "TL-0401", "expectation not met", retryable: false,
        "The subject's last event, or a key's revision, is not the one that the caller expected.",
        "Read the present state and decide anew.";
    StaleLease = "TL-0402", "lease ended", retryable: false,
        "The delivery was settled already, or its lease ran out and it went to somebody else.",
        "Settle sooner, extend the lease while working, or raise the ack wait.";
    NoHandler = "TL-0501", "no handler", retryable: false,
        "A consumer was started without a handler, or with two for one type.",
        "Register exactly one handler for each type with `.on(handler)`.";
    MissingState = "TL-0502", "state not registered", retryable: false,
        "A handler asks for `State<T>` but the bus has no value of that type.",
        "Call `bus.state(value)` before starting the consumer.";
    DrainIncomplete = "TL-0503", "drain passed its deadline", retryable: true,
        "Handlers were still running when the shutdown deadline passed. What they had not settled is delivered again.",
        "Raise the deadline, or make the handlers shorter or cancellable.";
    RunOver = "TL-0504", "the handler's run is over", retryable: false,
        "An output was published through the context of a handler that had returned already. It was not sent.",
        "Await in the handler what publishes, or publish through the bus (`cx.bus()`) what follows later.";
    UnsupportedMediaType = "TL-0601", "unsupported media type", retryable: false,
        "The door does not read this content type.",
        "Send `application/cloudevents+json`, `application/cloudevents-batch+json`, `application/x-ndjson`, or `application/json` with `ce-` headers or `?type=`.";
    Forbidden = "TL-0602", "host or origin refused", retryable: false,
        "The request's Host or Origin is not one that this door was told to serve. This keeps web pages away from a bus on loopback.",
        "Call it by the address that it listens on, or allow the host or origin when starting it.";
    Damaged = "TL-0701", "stored data is damaged", retryable: false,
        "Bytes that were stored durably cannot be read as they were written: a file was changed, cut short or removed, or the disk is failing. Nothing is served in their place.",
        "Check the disk, keep a copy of the directory, and run `trunkline log verify` on it: it says what is lost. Restore the file that the message names from a backup, or see what `trunkline log repair` would do.";
    StorageFailed = "TL-0702", "the disk failed", retryable: false,
        "A write or sync failed, after which nobody knows what is on the disk. Everything further is refused, so that nothing is acknowledged that may be lost.",
        "Check the disk and its free space, then open the directory again: what was acknowledged is there.";
    Internal = "TL-0901", "internal error", retryable: false,
        "Something that should be impossible happened.",
        "Please report it with the message.";
}

impl ErrorKind {
    /// The row of the error-code page for this kind.
    pub fn entry(self) -> &'static Code {
        // The table is written in the order of the enum, so the discriminant is the index.
        &CODES[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_ascending_and_indexed_by_kind() {
        for (index, row) in CODES.iter().enumerate() {
            assert_eq!(row.kind as usize, index);
            assert_eq!(row.kind.entry().code, row.code);
        }
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
    }

    #[test]
    fn display_never_repeats_the_source() {
        let error = Error::new(ErrorKind::Decode, "event 7 is not an OrderPlaced")
            .caused_by("missing field `total`")
            .at("line 3");
        assert_eq!(
            error.to_string(),
            "TL-0105: line 3: event 7 is not an OrderPlaced"
        );
        assert!(format!("{error:?}").ends_with("caused by: missing field `total`"));
    }
}
