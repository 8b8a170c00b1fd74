//! What streams and consumers there are, and changing that.

pub(crate) mod spec;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use trunkline_core::engine::{
    Backlog, Boxed, Change, ConsumerRef, ConsumerSpec, ConsumerState, Inspection, Position,
    Retention, StreamSpec, StreamState, SubjectCount, Topology,
};
use trunkline_core::plan::differences;
use trunkline_core::plan::legal::{check_limits, check_start, no_such_consumer};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Subject, Timestamp};

use self::spec::{
    EXPIRED, consumer_config, consumer_spec, expired_before, is_gauge, set_stream, stream_config,
    stream_spec,
};
use crate::NatsEngine;
use crate::api::{ConsumerInfo, StreamInfo, code};

/// What the streams behind KV buckets and object stores are called.
const NOT_STREAMS: [&str; 2] = ["KV_", "OBJ_"];

impl Topology for NatsEngine {
    fn inspect(&self) -> Boxed<'_, Result<Inspection>> {
        Box::pin(async move {
            self.wire.check_open()?;
            let mut inspection = Inspection::default();
            for info in self.all_streams().await? {
                let state = match stream_state(&info) {
                    Ok(state) => state,
                    Err(error) => {
                        tracing::debug!(%error, "a foreign stream is left out");
                        continue;
                    }
                };
                if NOT_STREAMS
                    .iter()
                    .any(|head| state.spec.name.as_str().starts_with(head))
                {
                    continue;
                }
                let stream = state.spec.name.clone();
                let verb = format!("CONSUMER.LIST.{stream}");
                let found: Vec<ConsumerInfo> = self.list(&verb, "consumers").await?;
                inspection.consumers.extend(found.iter().filter_map(|info| {
                    Some(ConsumerState {
                        spec: consumer_spec(&stream, &info.config)?,
                        backlog: backlog(info, state.first),
                    })
                }));
                inspection.streams.push(state);
            }
            inspection
                .streams
                .sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
            let key = |state: &ConsumerState| {
                (state.spec.at.stream.clone(), state.spec.at.consumer.clone())
            };
            inspection.consumers.sort_by_key(key);
            Ok(inspection)
        })
    }

    fn apply(&self, changes: Vec<Change>) -> Boxed<'_, Result<()>> {
        Box::pin(async move {
            for change in changes {
                self.wire.check_open()?;
                match change {
                    Change::CreateStream(spec) => self.create_stream(spec).await?,
                    Change::UpdateStream(spec) => self.update_stream(spec).await?,
                    Change::DeleteStream(name) => {
                        let verb = format!("STREAM.DELETE.{name}");
                        let what = format!("delete stream {name}");
                        self.wire.call::<Value>(&verb, &json!({}), &what).await?;
                        self.publishers.forget(&name);
                    }
                    Change::CreateConsumer(spec) => self.create_consumer(spec).await?,
                    Change::UpdateConsumer(spec) => self.update_consumer(spec).await?,
                    Change::DeleteConsumer(at) => {
                        let verb = format!("CONSUMER.DELETE.{}.{}", at.stream, at.consumer);
                        match self.wire.api::<Value>(&verb, &json!({})).await? {
                            Ok(_) => {}
                            Err(error) if error.err_code == code::CONSUMER_NOT_FOUND => {
                                return Err(no_such_consumer(&at));
                            }
                            Err(error) => {
                                return Err(
                                    error.meaning(&format!("delete consumer {}", at.consumer))
                                );
                            }
                        }
                    }
                    other => {
                        return Err(Error::new(
                            ErrorKind::Unsupported,
                            format!("the NATS engine cannot do {other:?}"),
                        ));
                    }
                }
            }
            Ok(())
        })
    }

    fn backlog<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Backlog>> {
        Box::pin(async move {
            let stream = self.wire.known_stream(consumer.stream.as_str()).await?;
            let info = self.consumer_info(consumer).await?;
            let info = info.ok_or_else(|| no_such_consumer(consumer))?;
            Ok(backlog(&info, stream.state.first()))
        })
    }

    fn made_at<'a>(&'a self, stream: &'a Name) -> Boxed<'a, Result<Option<Timestamp>>> {
        Box::pin(async move {
            let info = self.wire.known_stream(stream.as_str()).await?;
            Ok(info.made_at())
        })
    }

    fn subjects<'a>(
        &'a self,
        stream: &'a Name,
        filter: &'a Filter,
        max: usize,
    ) -> Boxed<'a, Result<Vec<SubjectCount>>> {
        Box::pin(async move {
            self.wire.check_open()?;
            let counts = self
                .wire
                .subject_counts(stream.as_str(), filter.as_str())
                .await?;
            let counts = counts
                .into_iter()
                .take(max)
                .filter_map(|(subject, events)| {
                    let subject = Subject::new(subject).ok()?;
                    Some(SubjectCount { subject, events })
                });
            Ok(counts.collect())
        })
    }
}

fn stream_state(info: &StreamInfo) -> Result<StreamState> {
    let state = &info.state;
    Ok(StreamState {
        spec: stream_spec(&info.config)?,
        events: state.messages,
        bytes: state.bytes,
        first: state.first(),
        tail: state.tail(),
        first_at: match state.messages {
            0 => None,
            _ => state.first_ts.parse().ok(),
        },
    })
}

fn backlog(info: &ConsumerInfo, first: u64) -> Backlog {
    Backlog {
        pending: info.num_pending,
        in_flight: info.num_ack_pending,
        floor: info.ack_floor.stream_seq,
        expired_at_most: expired_before(&info.config)
            + first.saturating_sub(info.delivered.stream_seq + 1),
    }
}

impl NatsEngine {
    async fn all_streams(&self) -> Result<Vec<StreamInfo>> {
        self.list("STREAM.LIST", "streams").await
    }

    /// Every page of a list.
    async fn list<T: DeserializeOwned>(&self, verb: &str, field: &str) -> Result<Vec<T>> {
        #[derive(Deserialize)]
        struct Page {
            total: usize,
            #[serde(flatten)]
            rest: Map<String, Value>,
        }
        let mut all = Vec::new();
        loop {
            let request = json!({ "offset": all.len() });
            let mut page: Page = self
                .wire
                .call(verb, &request, &format!("list {field}"))
                .await?;
            let items = match page.rest.remove(field) {
                None | Some(Value::Null) => Vec::new(),
                Some(items) => serde_json::from_value(items).map_err(|error| {
                    crate::api::internal(&format!("read the list of {field}"), &error)
                })?,
            };
            let empty = items.is_empty();
            all.extend(items);
            if empty || all.len() >= page.total {
                return Ok(all);
            }
        }
    }

    async fn create_stream(&self, spec: StreamSpec) -> Result<()> {
        check_subjects(&spec)?;
        if let Some(found) = self.wire.stream_info(spec.name.as_str()).await? {
            let differences = differences(&stream_spec(&found.config)?, &spec);
            let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
            return match texts.as_slice() {
                [] => Ok(()),
                _ => Err(Error::new(
                    ErrorKind::Drift,
                    format!(
                        "stream {} exists and differs: {}",
                        spec.name,
                        texts.join("; ")
                    ),
                )),
            };
        }
        let what = format!("make stream {}", spec.name);
        let verb = format!("STREAM.CREATE.{}", spec.name);
        for replicas in fewer(spec.replicas) {
            let config = stream_config(&spec, replicas);
            match self.wire.api::<StreamInfo>(&verb, &config).await? {
                Ok(_) => return Ok(()),
                Err(error) if too_few_servers(&error) && replicas > 1 => {}
                // Two who start at once make the same stream.
                Err(error) if error.err_code == code::STREAM_NAME_IN_USE => {
                    return Box::pin(self.create_stream(spec)).await;
                }
                Err(error) => return Err(error.meaning(&what)),
            }
        }
        Ok(())
    }

    async fn update_stream(&self, spec: StreamSpec) -> Result<()> {
        let name = spec.name.clone();
        check_subjects(&spec)?;
        let found = self.wire.known_stream(name.as_str()).await?;
        let is = stream_spec(&found.config)?;
        let queue = |spec: &StreamSpec| spec.retention == Retention::WorkQueue;
        if queue(&is) != queue(&spec) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "stream {name} cannot become a work queue or cease to be one; make a new stream"
                ),
            ));
        }
        let verb = format!("STREAM.UPDATE.{name}");
        let mut config = found.config;
        set_stream(&mut config, &spec);
        // As many copies as there are servers for, and never fewer than there were.
        let copies: Vec<usize> = match spec.replicas > is.replicas {
            true => fewer(spec.replicas)
                .filter(|copies| *copies > is.replicas)
                .chain([is.replicas])
                .collect(),
            false => vec![spec.replicas],
        };
        for replicas in copies {
            config.insert("num_replicas".to_owned(), replicas.into());
            match self.wire.api::<StreamInfo>(&verb, &config).await? {
                Ok(_) => {
                    self.publishers.forget(&name);
                    return Ok(());
                }
                Err(error) if too_few_servers(&error) && replicas > is.replicas => {}
                Err(error) => return Err(error.meaning(&format!("change stream {name}"))),
            }
        }
        Ok(())
    }

    async fn create_consumer(&self, spec: ConsumerSpec) -> Result<()> {
        check_limits(&spec)?;
        let stream = self.wire.known_stream(spec.at.stream.as_str()).await?;
        if let Some(found) = self.consumer_info(&spec.at).await? {
            let is_gauge = is_gauge(&found.config);
            let found = consumer_spec(&spec.at.stream, &found.config);
            return match &found {
                // Where it started is history: everything else must be as declared.
                Some(found) if same(found, &spec) => Ok(()),
                None if is_gauge => Err(gauge_there(&spec.at)),
                _ => Err(Error::new(
                    ErrorKind::Drift,
                    format!(
                        "consumer {} exists and differs: found {found:?}, declared {spec:?}",
                        spec.at.consumer
                    ),
                )),
            };
        }
        let of = stream_spec(&stream.config)?;
        check_start(&spec, &of)?;
        check_reach(&spec, &of)?;
        let start = match spec.start {
            Position::Last(_) => {
                let filters: Vec<_> = spec.filters.iter().map(ToString::to_string).collect();
                let start = self
                    .start(&spec.at.stream, spec.start, &filters, &stream)
                    .await?;
                // The ones to skip match, so that the start is the one behind them.
                Some(self.after_skipped(&spec.at.stream, &filters, start).await?)
            }
            _ => None,
        };
        let mut config = consumer_config(&spec, start)?;
        if let Position::Seq(seq) = spec.start {
            let expired = stream.state.first().saturating_sub(seq.max(1));
            config["metadata"][EXPIRED] = expired.to_string().into();
        }
        self.put_consumer(&spec, config, "create").await
    }

    async fn update_consumer(&self, spec: ConsumerSpec) -> Result<()> {
        check_limits(&spec)?;
        let stream = self.wire.known_stream(spec.at.stream.as_str()).await?;
        let found = self.consumer_info(&spec.at).await?;
        let found = found.ok_or_else(|| no_such_consumer(&spec.at))?;
        if is_gauge(&found.config) {
            return Err(gauge_there(&spec.at));
        }
        check_reach(&spec, &stream_spec(&stream.config)?)?;
        let mut config = found.config;
        let wanted = consumer_config(
            &ConsumerSpec {
                start: Position::First,
                ..spec.clone()
            },
            None,
        )?;
        config.remove("filter_subject");
        for key in ["filter_subjects", "ack_wait", "max_ack_pending"] {
            if let Some(value) = wanted.get(key) {
                config.insert(key.to_owned(), value.clone());
            }
        }
        self.put_consumer(&spec, config, "update").await
    }

    async fn put_consumer(
        &self,
        spec: &ConsumerSpec,
        config: Map<String, Value>,
        action: &str,
    ) -> Result<()> {
        let ConsumerRef { stream, consumer } = &spec.at;
        let verb = format!("CONSUMER.CREATE.{stream}.{consumer}");
        let request = json!({ "stream_name": stream.as_str(), "config": config, "action": action });
        match self.wire.api::<ConsumerInfo>(&verb, &request).await? {
            Ok(_) => Ok(()),
            Err(error) if error.err_code == code::CONSUMER_EXISTS && action == "create" => {
                Box::pin(self.create_consumer(spec.clone())).await
            }
            Err(error) => {
                Err(error.meaning(&format!("{action} consumer {consumer} of stream {stream}")))
            }
        }
    }

    /// The sequence behind the events that are to be skipped.
    async fn after_skipped(
        &self,
        stream: &Name,
        filters: &[String],
        start: crate::log::Start,
    ) -> Result<u64> {
        let crate::reader::From::Seq(mut seq) = start.from else {
            return Ok(1);
        };
        let mut skip = start.skip;
        while skip > 0 {
            let mut next = u64::MAX;
            for filter in filters {
                let request = json!({ "seq": seq, "next_by_subj": filter });
                if let Some(event) = self.leader_get(stream.as_str(), request).await? {
                    next = next.min(event.seq);
                }
            }
            if next == u64::MAX {
                break;
            }
            seq = next + 1;
            skip -= 1;
        }
        Ok(seq)
    }
}

/// As many copies as asked for, then what a smaller cluster can have.
pub(crate) fn fewer(asked: usize) -> impl Iterator<Item = usize> {
    [5, 3, 1]
        .into_iter()
        .filter(move |replicas| *replicas < asked)
        .fold(vec![asked], |mut all, replicas| {
            all.push(replicas);
            all
        })
        .into_iter()
}

pub(crate) fn too_few_servers(error: &crate::api::ApiError) -> bool {
    [code::NO_PEERS, code::REPLICAS_ALONE].contains(&error.err_code)
        || error.description.contains("no suitable peers")
}

fn same(found: &ConsumerSpec, declared: &ConsumerSpec) -> bool {
    let sorted = |filters: &[Filter]| {
        let mut texts: Vec<String> = filters.iter().map(ToString::to_string).collect();
        texts.sort_unstable();
        texts
    };
    sorted(&found.filters) == sorted(&declared.filters)
        && found.ack_wait == declared.ack_wait
        && found.max_in_flight == declared.max_in_flight
}

/// Why a shared consumer cannot have the name of a gauge.
pub(crate) fn gauge_there(at: &ConsumerRef) -> Error {
    Error::new(
        ErrorKind::Drift,
        format!(
            "consumer {0} of stream {1} handles keys in order, and its durable on the server only shows how far \
             it is; give the shared consumer another name, or delete {0} first",
            at.consumer, at.stream
        ),
    )
}

fn check_subjects(spec: &StreamSpec) -> Result<()> {
    if !spec.subjects.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "stream {} has no subjects; NATS would store its name as the only one; give it some",
            spec.name
        ),
    ))
}

/// # Errors
/// [`ErrorKind::MatchesNothing`] for a filter that the stream stores nothing of.
fn check_reach(spec: &ConsumerSpec, stream: &StreamSpec) -> Result<()> {
    for filter in &spec.filters {
        if !stream.subjects.iter().any(|stored| stored.overlaps(filter)) {
            return Err(Error::new(
                ErrorKind::MatchesNothing,
                format!(
                    "filter {filter} of consumer {} matches nothing that stream {} stores",
                    spec.at.consumer, stream.name
                ),
            ));
        }
    }
    Ok(())
}
