//! Reading a stream in order, without acknowledging: under followers and under watches.
//!
//! On the server this is an ephemeral pull consumer in memory. It goes with the server or after 30 s
//! that nobody pulled; the reader notices by a number that is missing, by silence, or by a new
//! connection, and makes another from where it was.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use futures_util::FutureExt;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use trunkline_core::engine::{Gap, Seq, is_same_stream};
use trunkline_core::{ErrorKind, Result, Timestamp};

use crate::api::{ConsumerInfo, PAUSE, code};
use crate::message::Place;
use crate::pull::{Pull, Pulled, nanos};
use crate::wire::Wire;

/// Messages of one demand. A server may be told to refuse larger ones.
const BATCH: usize = 500;
/// Messages asked for and not read at most, once so many were read: who reads a few is sent no more. A
/// large one makes it begin anew with a batch, for what waits would be too much.
const AHEAD: usize = 2_000;
/// Bytes that one demand may bring.
const MAX_BYTES: usize = 8 << 20;
/// For how long the server keeps a consumer that nobody pulls from.
const INACTIVE: Duration = Duration::from_secs(30);
/// How old a look at the stream's first event may be when an event is missing.
const FRESH: Duration = Duration::from_millis(50);

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// At this sequence or the first after it.
    Seq(Seq),
    /// At the first event stored at or after this time.
    Time(Timestamp),
    /// With the last event of each subject, and then what is new.
    LastPerSubject,
}

/// A reader of one stream, in order.
pub(crate) struct Reader {
    wire: Arc<Wire>,
    stream: String,
    filters: Vec<String>,
    /// When the stream was made that it reads.
    made_at: Option<Timestamp>,
    /// Whether another was found in its place, and that is still to be told.
    began_anew: bool,
    /// Where it starts, or would start again.
    from: From,
    /// The last sequence that was given or is known to be gone.
    last: Seq,
    /// Up to here it gives the last of each subject only.
    lasts_until: Seq,
    pulling: Option<Pulling>,
    /// On a task of its own, so that a call that is dropped leaves no consumer behind.
    opening: Option<JoinHandle<Result<Option<Pulling>>>>,
    ready: VecDeque<Message>,
    looked: Option<Instant>,
    /// On a task of its own, so that calls that are dropped do not ask again and again.
    looking: Option<JoinHandle<Result<Option<Seq>>>>,
    /// Whether a trimmed start is told; who asks for the first event takes whatever is first.
    tells_start: bool,
    tells_gaps: bool,
}

struct Pulling {
    pull: Pull,
    /// Messages that may be asked for and not read: a batch, and as many as were read.
    ahead: usize,
    consumer_seq: u64,
    /// Events that match and that it has not delivered.
    pending: u64,
    /// The first event of the stream when it was made.
    first: Seq,
    tail: Seq,
    made_at: Option<Timestamp>,
}

/// What a reader came upon.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are messages, and one is made at a time"
)]
pub(crate) enum Read {
    /// A stored message.
    Message(Message, Place),
    /// These are gone.
    Gap(Gap),
    /// There is nothing that it has not given, as far as the server said when this was opened.
    Nothing,
    /// The stream was made again with other events; it goes on with the first.
    Reset,
    /// The stream is gone, or the bus closed.
    Closed,
}

impl Reader {
    pub(crate) fn new(
        wire: &Arc<Wire>,
        stream: &str,
        filters: Vec<String>,
        from: From,
        tells_start: bool,
    ) -> Self {
        Self {
            wire: Arc::clone(wire),
            stream: stream.to_owned(),
            filters,
            made_at: None,
            began_anew: false,
            from,
            last: match from {
                From::Seq(seq) => seq.saturating_sub(1),
                From::Time(_) | From::LastPerSubject => 0,
            },
            lasts_until: 0,
            pulling: None,
            opening: None,
            ready: VecDeque::new(),
            looked: None,
            looking: None,
            tells_start,
            tells_gaps: true,
        }
    }

    /// Events that match and that were not given yet, as the server last said.
    pub(crate) fn pending(&self) -> u64 {
        self.pulling.as_ref().map_or(0, |pulling| pulling.pending)
    }

    /// The tail of the stream when the reader was last opened.
    pub(crate) fn tail(&self) -> Seq {
        self.pulling.as_ref().map_or(0, |pulling| pulling.tail)
    }

    /// From now on what is missing is no news: who reads wants what stands.
    pub(crate) fn tells_no_gaps(&mut self) {
        self.tells_gaps = false;
    }

    /// Whether it still gives the last of each subject only.
    pub(crate) fn tells_lasts(&self) -> bool {
        self.from == From::LastPerSubject && self.last <= self.lasts_until
    }

    /// The last sequence that was given.
    pub(crate) fn last(&self) -> Seq {
        self.last
    }

    /// Whether nothing has come that was not given.
    pub(crate) fn is_drained(&self) -> bool {
        self.ready.is_empty() && self.pulling.is_some()
    }

    /// Opens it, so that what is stored from now on is surely read.
    pub(crate) async fn open(&mut self) -> Result<Option<Gap>> {
        let opening = self.opening.get_or_insert_with(|| {
            let opened = Pulling::open(
                Arc::clone(&self.wire),
                self.stream.clone(),
                self.filters.clone(),
                match (self.from, self.last) {
                    // What has been given is not given again, wherever it started.
                    (From::Time(_), 1..) => From::Seq(self.last + 1),
                    (From::LastPerSubject, last) if last > 0 && last >= self.lasts_until => {
                        From::Seq(last + 1)
                    }
                    (From::Seq(_), last) => From::Seq(last + 1),
                    (from, _) => from,
                },
            );
            tokio::spawn(opened)
        });
        let opened = opening.await;
        self.opening = None;
        let opened = opened.map_err(|error| crate::api::internal("open a reader", &error))??;
        let Some(pulling) = opened else {
            self.pulling = None;
            return Ok(None);
        };
        if !is_same_stream(self.made_at, pulling.made_at) {
            self.began_anew = true;
            return Ok(None);
        }
        self.made_at = pulling.made_at;
        let first = pulling.first;
        if self.from == From::LastPerSubject && self.last == 0 {
            self.lasts_until = pulling.tail.saturating_sub(1);
        }
        self.pulling = Some(pulling);
        let counts = !matches!(self.from, From::LastPerSubject | From::Time(_)) || self.last > 0;
        let told = self.tells_start;
        self.tells_start = true;
        if counts && first > self.last + 1 {
            let gap = Gap {
                from: self.last + 1,
                to: first - 1,
            };
            self.last = first - 1;
            return Ok((told && self.tells_gaps).then_some(gap));
        }
        Ok(None)
    }

    /// What is there without waiting for the server.
    pub(crate) fn now(&mut self) -> Option<(Message, Place)> {
        if !self.ready.is_empty() {
            return None; // That comes first, and is for `next` to look at.
        }
        let pulling = self.pulling.as_mut()?;
        loop {
            let message = match pulling.pull.now()? {
                Pulled::Message(message, _) => message,
                Pulled::Ended => continue,
                Pulled::Broken => {
                    self.pulling = None;
                    return None;
                }
            };
            let place = Place::of(&message)?;
            if !pulling.follows(&message, &place) {
                self.pulling = None;
                return None;
            }
            if place.seq <= self.last {
                continue;
            }
            if place.seq > self.last + 1 && self.looked.is_none_or(|at| at.elapsed() > FRESH) {
                // Something may be missing: that is for `next` to find out.
                self.ready.push_back(message);
                return None;
            }
            self.last = place.seq;
            return Some((message, place));
        }
    }

    /// Asks for more while what came is worked on, if that can be done without waiting; how the asking
    /// fails is for [`next`](Self::next) to find out.
    pub(crate) fn ask_ahead(&mut self) {
        if let Some(pulling) = &mut self.pulling {
            let _ = pulling.ask().now_or_never();
        }
    }

    /// Waits for something. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Read> {
        loop {
            if self.wire.is_closed() {
                return Ok(Read::Closed);
            }
            if let Some(message) = self.ready.front() {
                let Some(place) = Place::of(message) else {
                    self.ready.pop_front();
                    continue;
                };
                match self.missing_before(&place).await {
                    Ok(None) => {}
                    Ok(Some(gap)) => return Ok(Read::Gap(gap)),
                    // The message waits: whether something is missing before it is not known yet.
                    Err(error) if error.retryable() => {
                        self.outage(&error).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                if let Some(message) = self.ready.pop_front() {
                    self.last = place.seq;
                    return Ok(Read::Message(message, place));
                }
            }
            let Some(pulling) = &mut self.pulling else {
                match self.reopen().await? {
                    Some(read) => return Ok(read),
                    None => continue,
                }
            };
            if let Err(error) = pulling.ask().await {
                tracing::debug!(stream = self.stream, %error, "cannot ask for more");
                self.pulling = None;
                continue;
            }
            match pulling.pull.next().await {
                Pulled::Message(message, _) => match Place::of(&message) {
                    Some(place) if pulling.follows(&message, &place) => {
                        if place.seq > self.last {
                            self.ready.push_back(message);
                        }
                    }
                    _ => {
                        tracing::debug!(
                            stream = self.stream,
                            "a message is missing; reading again"
                        );
                        self.pulling = None;
                    }
                },
                Pulled::Ended => {}
                Pulled::Broken => self.pulling = None,
            }
        }
    }

    /// Opens it again; what it returns is to be told first.
    async fn reopen(&mut self) -> Result<Option<Read>> {
        let opened = self.open().await;
        if std::mem::take(&mut self.began_anew) {
            self.made_at = None;
            self.from = From::Seq(1);
            (self.last, self.lasts_until) = (0, 0);
            self.ready.clear();
            return Ok(Some(Read::Reset));
        }
        match opened {
            Ok(Some(gap)) => Ok(Some(Read::Gap(gap))),
            Ok(None) if self.pulling.is_none() => Ok(Some(Read::Closed)),
            Ok(None) => Ok((self.pending() == 0).then_some(Read::Nothing)),
            // An outage is no end: there is nothing to say until it is over.
            Err(error) if error.retryable() => {
                self.outage(&error).await;
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::Closed => Ok(Some(Read::Closed)),
            Err(error) => Err(error),
        }
    }

    async fn outage(&self, error: &trunkline_core::Error) {
        tracing::debug!(stream = self.stream, %error, "reading waits");
        tokio::time::sleep(PAUSE).await;
        let far = Instant::now() + Duration::from_secs(3_600);
        let _ = self.wire.connected(far).await;
    }

    /// Whether retention took what would have come before this message.
    async fn missing_before(&mut self, place: &Place) -> Result<Option<Gap>> {
        if !self.tells_gaps
            || place.seq <= self.last + 1
            || place.seq <= self.lasts_until
            || self.last == 0 && matches!(self.from, From::Time(_))
            || self.looked.is_some_and(|at| at.elapsed() < FRESH)
        {
            return Ok(None);
        }
        // Filters leave out as well, so only the stream can say what is gone.
        let looking = self.looking.get_or_insert_with(|| {
            let (wire, stream) = (Arc::clone(&self.wire), self.stream.clone());
            tokio::spawn(async move {
                let info = wire.stream_info(&stream).await?;
                Ok(info.map(|info| info.state.first()))
            })
        });
        let first = looking.await;
        self.looking = None;
        let first = first.map_err(|error| crate::api::internal("look at a stream", &error))?;
        let first = match first {
            Ok(Some(first)) => first,
            Ok(None) => {
                self.looked = Some(Instant::now());
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.looked = Some(Instant::now());
        let first = first.min(place.seq);
        if first <= self.last + 1 {
            return Ok(None);
        }
        let gap = Gap {
            from: self.last + 1,
            to: first - 1,
        };
        self.last = first - 1;
        Ok(Some(gap))
    }
}

impl Pulling {
    /// None if the stream is gone.
    async fn open(
        wire: Arc<Wire>,
        stream: String,
        filters: Vec<String>,
        from: From,
    ) -> Result<Option<Self>> {
        let Some(info) = wire.stream_info(&stream).await? else {
            return Ok(None);
        };
        let mut config = json!({
            "ack_policy": "none",
            "max_deliver": -1,
            "replay_policy": "instant",
            "mem_storage": true,
            "num_replicas": 1,
            "inactive_threshold": nanos(INACTIVE),
            "filter_subjects": filters,
        });
        match from {
            From::Seq(seq) => {
                config["deliver_policy"] = "by_start_sequence".into();
                config["opt_start_seq"] = seq.max(1).into();
            }
            From::Time(time) => {
                config["deliver_policy"] = "by_start_time".into();
                config["opt_start_time"] = time.to_string().into();
            }
            From::LastPerSubject => config["deliver_policy"] = "last_per_subject".into(),
        }
        let request = json!({ "stream_name": stream, "config": config });
        let created = wire
            .api::<ConsumerInfo>(&format!("CONSUMER.CREATE.{stream}"), &request)
            .await?;
        let consumer = match created {
            Ok(consumer) => consumer,
            Err(error) if error.err_code == code::STREAM_NOT_FOUND => return Ok(None),
            Err(error) => return Err(error.meaning(&format!("read stream {stream}"))),
        };
        let mut pull = Pull::open(&wire, &stream, &consumer.name, MAX_BYTES).await?;
        pull.ask(BATCH).await?;
        Ok(Some(Self {
            pull,
            ahead: BATCH,
            consumer_seq: 0,
            pending: consumer.num_pending,
            first: info.state.first(),
            tail: info.state.tail(),
            made_at: info.made_at(),
        }))
    }

    /// Asks for more once half of what may be asked for has come: in drops it would come one by one.
    async fn ask(&mut self) -> Result<()> {
        if self.pull.outstanding < self.ahead / 2 {
            while self.pull.outstanding < self.ahead {
                let rest = self.ahead - self.pull.outstanding;
                self.pull.ask(rest.min(BATCH)).await?;
            }
        }
        Ok(())
    }

    /// Whether this is the very next message of the consumer.
    fn follows(&mut self, message: &Message, place: &Place) -> bool {
        let follows = place.consumer_seq == self.consumer_seq + 1;
        self.consumer_seq = place.consumer_seq;
        self.ahead = match message.payload.len() > MAX_BYTES / AHEAD {
            true => BATCH,
            false => AHEAD.min(self.ahead + 1),
        };
        self.pending = place.pending;
        follows
    }
}
