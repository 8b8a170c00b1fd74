//! Stored events: appending, reading, following.

use std::num::NonZeroU64;

use serde_json::json;
use trunkline_core::engine::{
    Admitted, Append, AppendMode, Batch, Boxed, Credit, Follow, Followed, Gap, Log, Outcome, Page,
    Position, Removal, Seq, StoredEvent,
};
use trunkline_core::{ErrorKind, Filter, Name, Result};

use crate::NatsEngine;
use crate::api::{ConsumerInfo, StreamInfo};
use crate::message::{self, Place};
use crate::pull::nanos;
use crate::reader::{From, Read, Reader};

mod pages;

impl Log for NatsEngine {
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        let stream = stream.clone();
        Admitted::waiting(async move { self.publishers.append(&stream, batch, mode).await })
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        Box::pin(pages::read(self, stream, from, filters, max))
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        Box::pin(async move {
            let info = self.wire.known_stream(stream.as_str()).await?;
            let filters = self.filters_of(stream, filters)?;
            let from = self.start(stream, from, &filters, &info).await?;
            let mut follower = NatsFollow {
                reader: Reader::new(
                    &self.wire,
                    stream.as_str(),
                    filters,
                    from.from,
                    from.tells_start,
                ),
                gap: None,
                skip: from.skip,
            };
            follower.gap = follower.reader.open().await?;
            let follower: Box<dyn Follow> = Box::new(follower);
            Ok(follower)
        })
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        #[derive(serde::Deserialize)]
        struct Purged {
            #[serde(default)]
            purged: u64,
        }
        Box::pin(async move {
            let name = stream.as_str();
            let doing = format!("remove events from stream {name}");
            let body = match what {
                Removal::Before(seq) => json!({ "seq": seq }),
                Removal::Matching(filter) => json!({ "filter": filter.as_str() }),
                Removal::Seq(seq) => {
                    let body = json!({ "seq": seq, "no_erase": true });
                    let verb = format!("STREAM.MSG.DELETE.{name}");
                    let removed = self.wire.api::<serde_json::Value>(&verb, &body).await?;
                    return match removed {
                        Ok(_) => Ok(1),
                        Err(error) if error.code == 404 || error.err_code == NO_SUCH_MESSAGE => {
                            Ok(0)
                        }
                        Err(error) => Err(error.meaning(&doing)),
                    };
                }
            };
            let verb = format!("STREAM.PURGE.{name}");
            let Purged { purged } = self.wire.call(&verb, &body, &doing).await?;
            Ok(purged)
        })
    }
}

/// The code for a sequence that holds no message.
const NO_SUCH_MESSAGE: u16 = 10_043;

/// Where to begin, and what to make of it.
pub(crate) struct Start {
    pub(crate) from: From,
    pub(crate) tells_start: bool,
    /// Events that match and are before what was asked for.
    pub(crate) skip: u64,
}

impl NatsEngine {
    /// Filters as the server takes them: none may overlap another, and there is at least one.
    pub(crate) fn filters_of(&self, stream: &Name, filters: &[Filter]) -> Result<Vec<String>> {
        let mut apart: Vec<&Filter> = Vec::new();
        for filter in filters {
            if apart.iter().any(|other| other.covers(filter)) {
                continue;
            }
            apart.retain(|other| !filter.covers(other));
            if let Some(other) = apart.iter().find(|other| other.overlaps(filter)) {
                return Err(trunkline_core::Error::new(
                    ErrorKind::InvalidFilter,
                    format!(
                        "filters {other} and {filter} of a reader of {stream} overlap, which NATS does not take; \
                         use one that covers both, or two readers"
                    ),
                ));
            }
            apart.push(filter);
        }
        if apart.is_empty() {
            return Ok(vec![">".to_owned()]);
        }
        Ok(apart.iter().map(ToString::to_string).collect())
    }

    pub(crate) async fn start(
        &self,
        stream: &Name,
        from: Position,
        filters: &[String],
        info: &StreamInfo,
    ) -> Result<Start> {
        let (first, tail) = (info.state.first(), info.state.tail());
        let at = |from, tells_start| Start {
            from,
            tells_start,
            skip: 0,
        };
        Ok(match from {
            Position::First => at(From::Seq(first), false),
            Position::New => at(From::Seq(tail), true),
            Position::Seq(seq) => at(From::Seq(seq.max(1)), true),
            Position::Time(time) => at(From::Time(time), false),
            Position::LastPerSubject => at(From::LastPerSubject, false),
            Position::Last(count) => self.last_n(stream, count, filters, first, tail).await?,
            other => {
                return Err(trunkline_core::Error::new(
                    ErrorKind::Unsupported,
                    format!("the NATS engine cannot start at {other}"),
                ));
            }
        })
    }

    /// The server counts what matches from a sequence on, so that the place of the last `count` is
    /// found by halving.
    async fn last_n(
        &self,
        stream: &Name,
        count: NonZeroU64,
        filters: &[String],
        first: Seq,
        tail: Seq,
    ) -> Result<Start> {
        // From `low` on there are too many, or it is the first; from `high` on too few.
        let (mut low, mut high) = (first, tail);
        let mut matching = self.count_from(stream, low, filters).await?;
        // Usually all that is stored matches, and nothing was removed in between.
        let mut guess = tail.saturating_sub(count.get()).max(first);
        while matching > count.get() && high - low > 1 {
            let middle = guess.clamp(low + 1, high - 1);
            let here = self.count_from(stream, middle, filters).await?;
            if here >= count.get() {
                (low, matching) = (middle, here);
            } else {
                high = middle;
            }
            guess = low + (high - low) / 2;
        }
        Ok(Start {
            from: From::Seq(low),
            tells_start: false,
            skip: matching.saturating_sub(count.get()),
        })
    }

    async fn count_from(&self, stream: &Name, seq: Seq, filters: &[String]) -> Result<u64> {
        let request = json!({
            "stream_name": stream.as_str(),
            "config": {
                "ack_policy": "none",
                "max_deliver": -1,
                "replay_policy": "instant",
                "mem_storage": true,
                "num_replicas": 1,
                "inactive_threshold": nanos(std::time::Duration::from_secs(1)),
                "filter_subjects": filters,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": seq.max(1),
            },
        });
        let verb = format!("CONSUMER.CREATE.{stream}");
        let what = format!("count the events of stream {stream}");
        let counted: ConsumerInfo = self.wire.call(&verb, &request, &what).await?;
        let verb = format!("CONSUMER.DELETE.{stream}.{}", counted.name);
        self.wire
            .api::<serde_json::Value>(&verb, &json!({}))
            .await?
            .ok();
        Ok(counted.num_pending)
    }
}

struct NatsFollow {
    reader: Reader,
    gap: Option<Gap>,
    skip: u64,
}

impl Follow for NatsFollow {
    fn next<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<StoredEvent>,
    ) -> Boxed<'a, Result<Followed>> {
        Box::pin(async move {
            if let Some(gap) = self.gap.take() {
                return Ok(Followed::Gap(gap));
            }
            let (mut added, mut bytes) = (0, 0);
            loop {
                let (message, place) = match self.reader.now() {
                    Some(read) => read,
                    None if added > 0 => break,
                    None => match self.reader.next().await? {
                        Read::Message(message, place) => (message, place),
                        Read::Gap(gap) => return Ok(Followed::Gap(gap)),
                        Read::Reset => return Ok(Followed::Reset),
                        Read::Closed => return Ok(Followed::Closed),
                        Read::Nothing => continue,
                    },
                };
                if self.skip > 0 {
                    self.skip -= 1;
                    continue;
                }
                let event = stored(message, &place);
                bytes += event.body.rough_bytes() + event.headers.bytes();
                out.push(event);
                added += 1;
                if added >= credit.items || bytes >= credit.bytes {
                    break;
                }
            }
            self.reader.ask_ahead();
            Ok(Followed::Events {
                added,
                behind: self.reader.pending(),
            })
        })
    }
}

fn stored(message: async_nats::Message, place: &Place) -> StoredEvent {
    message::delivered(message, place)
}
