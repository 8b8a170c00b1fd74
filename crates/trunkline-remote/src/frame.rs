//! What the two ends say to one another, in version 1.
//!
//! ```text
//! client                                        server
//!   Call { id, … }         ───────────►  the engine          one answer each, in any order
//!          ◄───────────  Answer { id, … }
//!   Send { … }             ───────────►                      live messages, no answer
//!   Open { reader, … }     ───────────►  a reader of the engine's
//!          ◄───────────  Opened { reader, … }
//!   Pull { reader, credit} ───────────►                      one at a time: this is the back-pressure
//!          ◄───────────  Pulled { reader, … }
//!   Cancel, Close          ───────────►
//! ```

use bytes::BytesMut;
use trunkline_core::engine::{
    Append, AppendMode, Backlog, Batch, Bucket, Change, Commit, Committed, ConsumerRef, Credit,
    Delivery, Entries, Followed, Gap, Heard, Inspection, Message, Outcome, Page, Position, Removal,
    Rev, Seq, Settle, StateKey, StoredEvent, SubjectCount, Token, Watched,
};
use trunkline_core::{Error, Filter, Name};

use crate::codec::{Malformed, Wire, wire_enum};

/// Names a call of a session.
pub(crate) type CallId = u64;
/// Names a reader of a session.
pub(crate) type ReaderId = u64;

/// From the client.
#[derive(Debug)]
pub(crate) enum Request {
    /// Something that is answered once.
    Call { id: CallId, call: Call },
    /// Nobody waits for the answer any more, and there need not be one. Only of what changes nothing.
    Forget { id: CallId },
    /// Live messages; they are not answered, as they may get lost anyway.
    Send { messages: Batch<Message> },
    /// A reader is to be opened.
    Open { reader: ReaderId, what: Open },
    /// The reader may give that much.
    Pull { reader: ReaderId, credit: Credit },
    /// What was pulled is not wanted any more, unless it is on its way.
    Cancel { reader: ReaderId },
    /// These go back, because nobody here wants them.
    GiveBack {
        reader: ReaderId,
        tokens: Vec<Token>,
    },
    /// The reader is not needed any more.
    Close { reader: ReaderId },
    /// The client leaves and will not be back.
    Leave,
}

wire_enum!(Request {
    0 => Call { id, call },
    1 => Send { messages },
    2 => Open { reader, what },
    3 => Pull { reader, credit },
    4 => Cancel { reader },
    5 => GiveBack { reader, tokens },
    6 => Close { reader },
    7 => Leave,
    8 => Forget { id },
});

/// What is answered once.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Append {
        stream: Name,
        batch: Batch<Append>,
        mode: AppendMode,
    },
    Read {
        stream: Name,
        from: Position,
        filters: Vec<Filter>,
        max: Credit,
    },
    Remove {
        stream: Name,
        what: Removal,
    },
    /// By the consumer that this reader opened.
    Settle {
        reader: ReaderId,
        batch: Batch<(Token, Settle)>,
        confirm: bool,
    },
    Commit {
        bucket: Bucket,
        commit: Commit,
    },
    Scan {
        bucket: Bucket,
        prefix: Option<StateKey>,
        after: Option<StateKey>,
        at_least: Rev,
        max: Credit,
    },
    Inspect,
    Apply {
        changes: Vec<Change>,
    },
    Backlog {
        consumer: ConsumerRef,
    },
    Subjects {
        stream: Name,
        filter: Filter,
        max: usize,
    },
}

impl Call {
    /// Whether it names a delivery or a revision, which are numbers of one bus and no other.
    pub(crate) fn is_bound(&self) -> bool {
        matches!(self, Self::Settle { .. } | Self::Commit { .. })
    }

    /// Whether it does something, or only asks.
    pub(crate) fn changes(&self) -> bool {
        match self {
            Self::Append { .. }
            | Self::Remove { .. }
            | Self::Settle { .. }
            | Self::Commit { .. }
            | Self::Apply { .. } => true,
            Self::Read { .. }
            | Self::Scan { .. }
            | Self::Inspect
            | Self::Backlog { .. }
            | Self::Subjects { .. } => false,
        }
    }
}

wire_enum!(Call {
    0 => Append { stream, batch, mode },
    1 => Read { stream, from, filters, max },
    2 => Remove { stream, what },
    3 => Settle { reader, batch, confirm },
    4 => Commit { bucket, commit },
    5 => Scan { bucket, prefix, after, at_least, max },
    6 => Inspect,
    7 => Apply { changes },
    8 => Backlog { consumer },
    9 => Subjects { stream, filter, max },
});

/// A reader to be opened.
#[derive(Clone, Debug)]
pub(crate) enum Open {
    Listen {
        filters: Vec<Filter>,
        share: Option<Name>,
        capacity: usize,
    },
    Follow {
        stream: Name,
        from: Position,
        filters: Vec<Filter>,
    },
    Consume {
        consumer: ConsumerRef,
    },
    Watch {
        bucket: Bucket,
        prefix: Option<StateKey>,
        from: Rev,
    },
}

wire_enum!(Open {
    0 => Listen { filters, share, capacity },
    1 => Follow { stream, from, filters },
    2 => Consume { consumer },
    3 => Watch { bucket, prefix, from },
});

/// From the server.
#[derive(Debug)]
pub(crate) enum Reply {
    Answer {
        id: CallId,
        answer: Result<Answer, Error>,
    },
    /// The reader is open; a follower's says where it begins.
    Opened {
        reader: ReaderId,
        opened: Result<Option<Start>, Error>,
    },
    /// What a pull brought.
    Pulled { reader: ReaderId, pulled: Pulled },
}

wire_enum!(Reply {
    0 => Answer { id, answer },
    1 => Opened { reader, opened },
    2 => Pulled { reader, pulled },
});

/// Where a follower begins: what its position meant when it was opened, so that it means the same
/// when it has to be opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) next: Seq,
    /// The sequence that the next event stored would have had.
    pub(crate) tail: Seq,
}

crate::codec::wire_struct!(Start { next, tail });

#[derive(Debug)]
pub(crate) enum Answer {
    Appended(Vec<Outcome>),
    Read(Page),
    Removed(u64),
    Settled(Vec<Result<(), Error>>),
    Committed(Committed),
    Scanned(Entries),
    Inspected(Inspection),
    Applied,
    Backlog(Backlog),
    Subjects(Vec<SubjectCount>),
}

wire_enum!(Answer {
    0 => Appended(outcomes),
    1 => Read(page),
    2 => Removed(count),
    3 => Settled(results),
    4 => Committed(committed),
    5 => Scanned(entries),
    6 => Inspected(inspection),
    7 => Applied,
    8 => Backlog(backlog),
    9 => Subjects(subjects),
});

/// What a pull brought.
#[derive(Debug)]
pub(crate) enum Pulled {
    Heard {
        messages: Vec<Message>,
        heard: Heard,
    },
    Followed {
        events: Vec<StoredEvent>,
        followed: Result<Followed, Error>,
    },
    Deliveries {
        deliveries: Vec<Delivery>,
    },
    Gap(Gap),
    Gone,
    /// Nothing, because it was cancelled.
    Cancelled,
    Watched {
        changes: Vec<Watched>,
    },
    /// The reader failed or its engine was closed.
    Failed(Error),
}

wire_enum!(Pulled {
    0 => Heard { messages, heard },
    1 => Followed { events, followed },
    2 => Deliveries { deliveries },
    3 => Gap(gap),
    4 => Gone,
    5 => Cancelled,
    6 => Watched { changes },
    7 => Failed(error),
});

impl Wire for Credit {
    fn put(&self, out: &mut BytesMut) {
        self.items.put(out);
        self.bytes.put(out);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self {
            items: Wire::get(from)?,
            bytes: Wire::get(from)?,
        })
    }
}

/// A frame as it is sent.
pub(crate) fn frame(value: &impl Wire) -> bytes::Bytes {
    let mut out = BytesMut::with_capacity(256);
    value.put(&mut out);
    out.freeze()
}

#[cfg(test)]
mod tests;
