//! The types of the seam, field by field.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use bytes::{Bytes, BytesMut};
use trunkline_core::engine::{
    Append, AppendMode, Backlog, Capabilities, Change, Commit, Committed, ConsumerRef,
    ConsumerSpec, ConsumerState, Delivery, Durability, Entries, Entry, Expect, Expectation,
    Followed, Gap, Heard, Inspection, Limits, Message, Op, Outcome, Page, Position, Reach, Removal,
    Retention, Settle, StateKey, StoredEvent, StreamSpec, StreamState, SubjectCount, Token,
    Watched,
};
use trunkline_core::error::CODES;
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, EventId, Filter, Headers, Name, Subject};

use super::{Malformed, Wire, get_str, put_bytes, wire_enum, wire_struct};

/// What is text outside and checked when it is made.
macro_rules! wire_text {
    ($($type:ty, $fault:literal;)*) => {$(
        impl Wire for $type {
            fn put(&self, out: &mut BytesMut) {
                put_bytes(self.as_str().as_bytes(), out);
            }

            fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
                Self::new(get_str(from)?).map_err(|_| Malformed($fault))
            }
        }
    )*};
}

wire_text! {
    Name, "a name is none";
    Subject, "a subject is none";
    Filter, "a filter is none";
    StateKey, "a state key is none";
}

impl Wire for EventId {
    fn put(&self, out: &mut BytesMut) {
        self.to_string().put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Self::new(get_str(from)?).map_err(|_| Malformed("an event id is none"))
    }
}

impl Wire for Headers {
    fn put(&self, out: &mut BytesMut) {
        self.len().put(out);
        for (name, value) in self.iter() {
            put_bytes(name.as_bytes(), out);
            put_bytes(value.as_bytes(), out);
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let mut headers = Self::new();
        for _ in 0..usize::get(from)? {
            let (name, value) = (get_str(from)?, get_str(from)?);
            headers
                .restore(name, value)
                .map_err(|_| Malformed("a header is none"))?;
        }
        Ok(headers)
    }
}

impl Wire for Body {
    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Bytes(bytes) => bytes.put(out),
            // Bodies are encoded before they come here, because that can fail.
            Self::Event(_) => put_bytes(&self.to_bytes().unwrap_or_default(), out),
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Bytes::get(from).map(Self::Bytes)
    }
}

impl Wire for Error {
    fn put(&self, out: &mut BytesMut) {
        put_bytes(self.code().as_bytes(), out);
        put_bytes(self.message().as_bytes(), out);
        self.event_id().map(str::to_owned).put(out);
        let mut causes = Vec::new();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        (!causes.is_empty()).then(|| causes.join(": ")).put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let code = get_str(from)?;
        let kind = CODES.iter().find(|row| row.code == code);
        let kind = kind.map_or(ErrorKind::Internal, |row| row.kind);
        let mut error = Self::new(kind, get_str(from)?);
        if let Some(id) = Option::<String>::get(from)? {
            error = error.about(id);
        }
        Ok(match Option::<String>::get(from)? {
            Some(cause) => error.caused_by(cause),
            None => error,
        })
    }
}

impl<T: Wire> Wire for Result<T, Error> {
    fn put(&self, out: &mut BytesMut) {
        self.is_ok().put(out);
        match self {
            Ok(value) => value.put(out),
            Err(error) => error.put(out),
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        match bool::get(from)? {
            true => T::get(from).map(Ok),
            false => Error::get(from).map(Err),
        }
    }
}

impl Wire for NonZeroU64 {
    fn put(&self, out: &mut BytesMut) {
        self.get().put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Self::new(u64::get(from)?).ok_or(Malformed("zero where none may be"))
    }
}

impl Wire for BTreeMap<String, String> {
    fn put(&self, out: &mut BytesMut) {
        let pairs = self.iter().map(|(key, value)| (key.clone(), value.clone()));
        pairs.collect::<Vec<_>>().put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Vec::<(String, String)>::get(from).map(Self::from_iter)
    }
}

wire_struct!(Message {
    subject,
    reply,
    headers,
    body
});

wire_enum!(Heard {
    0 => Messages(count),
    1 => NoResponders,
    2 => Lagged { at_least },
    3 => Resumed,
    4 => Closed,
});

wire_struct!(Append {
    subject,
    key,
    id,
    expect,
    headers,
    body
});
wire_enum!(Expect { 0 => Any, 1 => Absent, 2 => Last(seq) });
wire_enum!(AppendMode { 0 => Each, 1 => Atomic });
wire_enum!(Outcome { 0 => Stored { seq, duplicate }, 1 => Refused(error), 2 => Unknown(error) });
wire_struct!(StoredEvent {
    seq,
    at,
    subject,
    headers,
    body
});
wire_enum!(Position {
    0 => First,
    1 => New,
    2 => Seq(seq),
    3 => Time(time),
    4 => Last(count),
    5 => LastPerSubject,
});
wire_struct!(Gap { from, to });
wire_struct!(Page {
    events,
    next,
    tail,
    gap
});
wire_enum!(Removal { 0 => Before(seq), 1 => Seq(seq), 2 => Matching(filter) });
wire_enum!(Followed { 0 => Events { added, behind }, 1 => Gap(gap), 2 => Closed, 3 => Reset });

wire_struct!(ConsumerRef { stream, consumer });
wire_struct!(Token { seq, lease });
wire_enum!(Settle { 0 => Ack, 1 => GiveBack, 2 => Extend });
wire_struct!(Delivery {
    token,
    event,
    delivered_hint
});

wire_enum!(Expectation { 0 => Any, 1 => Absent, 2 => Rev(rev) });
wire_enum!(Op { 0 => Put { key, value, expect, ttl }, 1 => Delete { key, expect } });
wire_struct!(Commit { id, fences, ops });
wire_enum!(Committed { 0 => Done(revs), 1 => Duplicate, 2 => Conflict { key, found } });
wire_struct!(Entry {
    key,
    value,
    rev,
    at
});
wire_struct!(Entries { entries, next, rev });
wire_enum!(Watched {
    0 => Put(entry),
    1 => Deleted { key, rev, at },
    2 => Expired { key, rev, at },
    3 => CaughtUp(rev),
});

wire_struct!(StreamSpec {
    name,
    subjects,
    retention,
    max_events,
    max_bytes,
    max_age,
    max_message,
    duplicate_window,
    replicas,
    metadata,
});
wire_enum!(Retention { 0 => DiscardOld, 1 => RefuseWhenFull, 2 => WorkQueue });
wire_struct!(ConsumerSpec {
    at,
    filters,
    start,
    ack_wait,
    max_in_flight
});
wire_struct!(StreamState {
    spec,
    events,
    bytes,
    first,
    tail,
    first_at
});
wire_struct!(ConsumerState { spec, backlog });
wire_struct!(Backlog {
    pending,
    in_flight,
    floor,
    expired_at_most
});
wire_struct!(Inspection { streams, consumers });
wire_struct!(SubjectCount { subject, events });
wire_enum!(Change {
    0 => CreateStream(spec),
    1 => DeleteStream(name),
    2 => CreateConsumer(spec),
    3 => UpdateConsumer(spec),
    4 => DeleteConsumer(at),
    5 => UpdateStream(spec),
});

wire_struct!(Capabilities {
    durability,
    reach,
    shares_values
});
wire_enum!(Durability { 0 => Process, 1 => Crash, 2 => Power });
wire_enum!(Reach { 0 => Process, 1 => Host, 2 => Network });
wire_struct!(Limits {
    max_message,
    max_batch,
    max_value
});
