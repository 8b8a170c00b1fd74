//! Reading a range without a consumer: batched direct gets, one for each filter, merged.

use async_nats::{HeaderMap, StatusCode, Subject};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;
use trunkline_core::engine::{Credit, Gap, Page, Position, Seq, StoredEvent};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use crate::NatsEngine;
use crate::api::{ATTEMPT, PAUSE, StreamInfo, code, internal, lost};
use crate::asks::Lost;
use crate::message;
use crate::reader::From;

/// The most messages that one direct get gives.
const BATCH: usize = 1_000;

pub(super) async fn read(
    engine: &NatsEngine,
    stream: &Name,
    from: Position,
    filters: &[Filter],
    max: Credit,
) -> Result<Page> {
    let info = engine.wire.known_stream(stream.as_str()).await?;
    let (first, tail) = (info.state.first(), info.state.tail());
    let texts = engine.filters_of(stream, filters)?;
    let direct = info.config.get("allow_direct") == Some(&Value::Bool(true));
    let reading = Reading {
        engine,
        stream,
        filters: &texts,
        tail,
        direct,
    };
    if from == Position::LastPerSubject {
        return reading.lasts(max).await;
    }
    let start = engine.start(stream, from, &texts, &info).await?;
    let (begin, skip) = (begin(&reading, start.from, &info).await?, start.skip);
    let gap = (start.tells_start && first > begin && begin < tail).then(|| Gap {
        from: begin,
        to: first - 1,
    });
    let mut page = reading.range(begin.max(first), max, skip).await?;
    page.gap = gap;
    Ok(page)
}

async fn begin(reading: &Reading<'_>, from: From, info: &StreamInfo) -> Result<Seq> {
    match from {
        From::Seq(seq) => Ok(seq),
        From::LastPerSubject => Ok(info.state.first()),
        From::Time(time) => {
            // The first event of any subject at or after the time; none is the tail.
            let request =
                json!({ "start_time": time.to_string(), "batch": 1, "next_by_subj": ">" });
            let got = match reading.direct {
                true => reading.get(&request).await?,
                false => return reading.search_time(time, info).await,
            };
            Ok(got
                .events
                .first()
                .map_or(info.state.tail(), |event| event.seq))
        }
    }
}

struct Reading<'a> {
    engine: &'a NatsEngine,
    stream: &'a Name,
    filters: &'a [String],
    tail: Seq,
    /// Whether the stream allows direct gets; a foreign one may not.
    direct: bool,
}

/// What one direct get gave.
struct Got {
    events: Vec<StoredEvent>,
    /// Whether there was more.
    more: bool,
}

impl Reading<'_> {
    /// From a sequence on, below the tail, as much as is wanted.
    async fn range(&self, begin: Seq, max: Credit, skip: u64) -> Result<Page> {
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let wanted = max.items.max(1).saturating_add(skip).min(BATCH);
        // Up to here every filter has been read to its end.
        let mut known = self.tail;
        let mut events = Vec::new();
        if begin < self.tail {
            for filter in self.filters {
                let got = self.some(begin, filter, wanted, max.bytes).await?;
                if got.more
                    && let Some(last) = got.events.last()
                {
                    known = known.min(last.seq + 1);
                }
                events.extend(got.events);
            }
        }
        events.retain(|event| event.seq < known);
        events.sort_by_key(|event| event.seq);
        events.drain(..skip.min(events.len()));
        let mut page = Page {
            events: Vec::new(),
            next: known.max(begin),
            tail: self.tail,
            gap: None,
        };
        let mut bytes = 0;
        for event in events {
            bytes += event.body.rough_bytes() + event.headers.bytes();
            let full = page.events.len() >= max.items || bytes > max.bytes;
            if full && !page.events.is_empty() {
                page.next = event.seq;
                break;
            }
            page.events.push(event);
        }
        Ok(page)
    }

    /// The next events of one filter.
    async fn some(&self, begin: Seq, filter: &str, count: usize, bytes: usize) -> Result<Got> {
        if !self.direct {
            return self.one_by_one(begin, filter, count).await;
        }
        let mut request = json!({ "seq": begin, "batch": count, "next_by_subj": filter });
        if bytes < usize::MAX {
            request["max_bytes"] = bytes.max(1).into();
        }
        let deadline = self.engine.wire.request_deadline();
        loop {
            let got = self.get(&request).await?;
            // A replica may lag behind the leader that said where the tail is: what it does not
            // know yet is not taken to be missing.
            let complete = got.more || !self.lags(&got, begin, filter).await?;
            if complete || Instant::now() >= deadline {
                return Ok(got);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether the leader has an event of the filter behind what a replica gave.
    async fn lags(&self, got: &Got, begin: Seq, filter: &str) -> Result<bool> {
        if self.engine.is_alone() {
            return Ok(false);
        }
        let next = got.events.last().map_or(begin, |event| event.seq + 1);
        if next >= self.tail {
            return Ok(false);
        }
        let found = self
            .leader_get(json!({ "seq": next, "next_by_subj": filter }))
            .await?;
        Ok(found.is_some_and(|event| event.seq < self.tail))
    }

    async fn one_by_one(&self, begin: Seq, filter: &str, count: usize) -> Result<Got> {
        let (mut events, mut next) = (Vec::new(), begin);
        while events.len() < count && next < self.tail {
            let request = json!({ "seq": next, "next_by_subj": filter });
            let Some(event) = self.leader_get(request).await? else {
                return Ok(Got {
                    events,
                    more: false,
                });
            };
            next = event.seq + 1;
            events.push(event);
        }
        Ok(Got {
            more: next < self.tail,
            events,
        })
    }

    async fn leader_get(&self, request: Value) -> Result<Option<StoredEvent>> {
        self.engine.leader_get(self.stream.as_str(), request).await
    }

    /// One direct get: a batch and its end.
    async fn get(&self, request: &Value) -> Result<Got> {
        let wire = &self.engine.wire;
        let what = format!("reading stream {}", self.stream);
        let deadline = wire.request_deadline();
        'again: loop {
            wire.connected(deadline).await?;
            let subject = Subject::from(format!("{}.DIRECT.GET.{}", wire.api, self.stream));
            let mut asked = wire.asks.many(subject.clone());
            let body = Bytes::from(request.to_string());
            asked
                .send(wire, subject, HeaderMap::new(), body, deadline)
                .await
                .map_err(|error| lost(error, &what))?;
            let mut events = Vec::new();
            loop {
                let attempt = deadline.min(Instant::now() + ATTEMPT);
                let message = match asked.next(attempt).await {
                    Ok(message) => message,
                    // Reading again does no harm.
                    Err(Lost::Interrupted | Lost::NoResponders | Lost::TimedOut)
                        if Instant::now() + PAUSE < deadline =>
                    {
                        tokio::time::sleep(PAUSE).await;
                        continue 'again;
                    }
                    Err(error) => return Err(lost(error, &what)),
                };
                match message.status {
                    None => match message::direct(message) {
                        Some(event) => events.push(event),
                        None => {
                            return Err(internal("read a direct get", &"it has no place"));
                        }
                    },
                    Some(StatusCode::NOT_FOUND) => {
                        return Ok(Got {
                            events,
                            more: false,
                        });
                    }
                    Some(status) if status.as_u16() == 204 => {
                        let rest = message::header(message.headers.as_ref(), "Nats-Num-Pending");
                        let more = rest.is_some_and(|rest| rest != "0");
                        return Ok(Got { events, more });
                    }
                    Some(status) if status.as_u16() == 413 => {
                        return Err(Error::new(
                            ErrorKind::OverLimit,
                            format!(
                                "stream {} has more subjects that match than one page gives; narrow the filter, or follow",
                                self.stream
                            ),
                        ));
                    }
                    Some(status) => {
                        let text = message.description.unwrap_or_default();
                        return Err(internal(&what, &format!("{status} {text}")));
                    }
                }
            }
        }
    }

    /// The last event of each subject, lowest sequences first.
    async fn lasts(&self, max: Credit) -> Result<Page> {
        if !self.direct {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "stream {} does not allow direct gets, so its last events can only be followed; \
                     `nats stream edit {} --allow-direct` allows them",
                    self.stream, self.stream
                ),
            ));
        }
        let request = json!({
            "multi_last": self.filters,
            "batch": max.items.clamp(1, BATCH),
            "up_to_seq": self.tail - 1,
        });
        let mut events = match self.tail {
            1 => Vec::new(),
            _ => self.get(&request).await?.events,
        };
        events.sort_by_key(|event| event.seq);
        Ok(Page {
            next: events.last().map_or(self.tail, |event| event.seq + 1),
            events,
            tail: self.tail,
            gap: None,
        })
    }

    /// The first sequence stored at or after a time, where only the leader can be asked, by halving.
    async fn search_time(&self, time: trunkline_core::Timestamp, info: &StreamInfo) -> Result<Seq> {
        let (mut low, mut high) = (info.state.first(), info.state.tail());
        while low < high {
            let middle = low + (high - low) / 2;
            let request = json!({ "seq": middle, "next_by_subj": ">" });
            match self.leader_get(request).await? {
                Some(event) if event.at < time => low = event.seq + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

impl NatsEngine {
    /// One message from the stream's leader, which is never behind.
    pub(crate) async fn leader_get(
        &self,
        stream: &str,
        request: Value,
    ) -> Result<Option<StoredEvent>> {
        #[derive(serde::Deserialize)]
        struct Answer {
            message: Raw,
        }
        #[derive(serde::Deserialize)]
        struct Raw {
            subject: String,
            seq: Seq,
            #[serde(default)]
            hdrs: String,
            #[serde(default)]
            data: String,
            time: String,
        }
        let verb = format!("STREAM.MSG.GET.{stream}");
        let answer = match self.wire.api::<Answer>(&verb, &request).await? {
            Ok(answer) => answer.message,
            Err(error) if error.err_code == code::NO_MESSAGE || error.code == 404 => {
                return Ok(None);
            }
            Err(error) => return Err(error.meaning(&format!("read stream {stream}"))),
        };
        let headers = message::decoded_headers(&answer.hdrs)?;
        Ok(Some(StoredEvent {
            seq: answer.seq,
            at: answer.time.parse()?,
            subject: message::subject(&answer.subject),
            headers: message::from_nats(Some(&headers)),
            body: trunkline_core::wire::Body::Bytes(Bytes::from(message::decoded(&answer.data)?)),
        }))
    }
}
