//! Streams and consumers as the server configures them, and as ours, one into the other.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};
use trunkline_core::engine::{
    ConsumerRef, ConsumerSpec, Limits, Position, Retention, Seq, StreamSpec,
};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use crate::api::internal;
use crate::pull::nanos;

/// What the server counts besides our headers and body: our own protocol's headers.
pub(crate) const HEADROOM: usize = 32 << 10;

type Config = Map<String, Value>;

/// The configuration of a stream that is to be made.
pub(crate) fn stream_config(spec: &StreamSpec, replicas: usize) -> Config {
    let mut config = Config::new();
    for (key, value) in [
        ("name", json!(spec.name.as_str())),
        ("storage", json!("file")),
        ("num_replicas", json!(replicas)),
        ("max_consumers", json!(-1)),
        ("max_msgs_per_subject", json!(-1)),
        ("allow_direct", json!(true)),
        ("allow_atomic", json!(true)),
        ("allow_rollup_hdrs", json!(false)),
        ("deny_delete", json!(false)),
        ("deny_purge", json!(false)),
    ] {
        config.insert(key.to_owned(), value);
    }
    set_stream(&mut config, spec);
    config
}

/// Puts what a specification says over a configuration, and leaves the rest of it alone.
pub(crate) fn set_stream(config: &mut Config, spec: &StreamSpec) {
    let limit = |limit: Option<u64>| limit.map_or(json!(-1), |limit| json!(limit));
    let (retention, discard) = match spec.retention {
        Retention::DiscardOld => ("limits", "old"),
        Retention::RefuseWhenFull => ("limits", "new"),
        Retention::WorkQueue => ("workqueue", "new"),
    };
    let subjects: Vec<_> = spec.subjects.iter().map(Filter::as_str).collect();
    let max_age = spec.max_age.map_or(0, nanos);
    // The window may not outlast the events, and the server refuses one that does.
    let window = match max_age {
        0 => nanos(spec.duplicate_window),
        age => nanos(spec.duplicate_window).min(age),
    };
    for (key, value) in [
        ("subjects", json!(subjects)),
        ("retention", json!(retention)),
        ("discard", json!(discard)),
        ("max_msgs", limit(spec.max_events)),
        ("max_bytes", limit(spec.max_bytes)),
        ("max_age", json!(max_age)),
        ("max_msg_size", json!(spec.max_message + HEADROOM)),
        ("duplicate_window", json!(window)),
    ] {
        config.insert(key.to_owned(), value);
    }
    // The server's own entries are not ours to write.
    let mut metadata = match config.remove("metadata") {
        Some(Value::Object(found)) => found,
        _ => Map::new(),
    };
    metadata.retain(|key, _| key.starts_with(SERVERS_OWN));
    for (key, value) in &spec.metadata {
        metadata.insert(key.clone(), json!(value));
    }
    config.insert("metadata".to_owned(), Value::Object(metadata));
}

/// What the server writes into the metadata by itself.
const SERVERS_OWN: &str = "_nats.";

/// A stream as it is.
///
/// # Errors
/// [`ErrorKind::InvalidName`] for a name that has no place here.
pub(crate) fn stream_spec(config: &Config) -> Result<StreamSpec> {
    let number = |key: &str| config.get(key).and_then(Value::as_i64);
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();
    let limit = |key: &str| {
        let limit = number(key).and_then(|limit| u64::try_from(limit).ok());
        limit.filter(|limit| *limit > 0)
    };
    let retention = match (text("retention"), text("discard")) {
        ("workqueue", _) => Retention::WorkQueue,
        (_, "new") => Retention::RefuseWhenFull,
        _ => Retention::DiscardOld,
    };
    let max_message = limit("max_msg_size").and_then(|bytes| usize::try_from(bytes).ok());
    let duration = |key: &str| limit(key).map(Duration::from_nanos);
    Ok(StreamSpec {
        retention,
        max_events: limit("max_msgs"),
        max_bytes: limit("max_bytes"),
        max_age: duration("max_age"),
        max_message: max_message.map_or(Limits::default().max_message, |bytes| {
            bytes.saturating_sub(HEADROOM).max(bytes / 2)
        }),
        duplicate_window: duration("duplicate_window").unwrap_or_default(),
        metadata: metadata(config),
        replicas: replicas(config),
        ..StreamSpec::new(Name::new(text("name"))?, filters(config.get("subjects")))
    })
}

/// How many copies there are.
fn replicas(config: &Config) -> usize {
    let replicas = config.get("num_replicas").and_then(Value::as_u64);
    replicas
        .and_then(|replicas| usize::try_from(replicas).ok())
        .unwrap_or(1)
        .max(1)
}

fn metadata(config: &Config) -> BTreeMap<String, String> {
    let Some(Value::Object(found)) = config.get("metadata") else {
        return BTreeMap::new();
    };
    found
        .iter()
        .filter(|(key, _)| !key.starts_with(SERVERS_OWN))
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// Filters that have a place here; others belong to streams that are not ours.
fn filters(value: Option<&Value>) -> Vec<Filter> {
    let Some(Value::Array(texts)) = value else {
        return Vec::new();
    };
    texts
        .iter()
        .filter_map(|text| Filter::new(text.as_str()?).ok())
        .collect()
}

/// The configuration of a consumer that is to be made.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a start that the server has no word for; those that count from the
/// end were looked up before.
pub(crate) fn consumer_config(spec: &ConsumerSpec, start: Option<Seq>) -> Result<Config> {
    let filters: Vec<_> = spec.filters.iter().map(Filter::as_str).collect();
    let mut config = json!({
        "durable_name": spec.at.consumer.as_str(),
        "name": spec.at.consumer.as_str(),
        "ack_policy": "explicit",
        "ack_wait": nanos(spec.ack_wait),
        // Whoever fails too often is for the consumer above to say: the server would drop it.
        "max_deliver": -1,
        "max_ack_pending": spec.max_in_flight,
        "max_waiting": 512,
        "replay_policy": "instant",
        "filter_subjects": filters,
        "num_replicas": 0,
        "metadata": { START: spec.start.to_string() },
    });
    match (start, spec.start) {
        (Some(seq), _) | (None, Position::Seq(seq)) => {
            config["deliver_policy"] = "by_start_sequence".into();
            config["opt_start_seq"] = seq.max(1).into();
        }
        (None, Position::First) => config["deliver_policy"] = "all".into(),
        (None, Position::New) => config["deliver_policy"] = "new".into(),
        (None, Position::Time(time)) => {
            config["deliver_policy"] = "by_start_time".into();
            config["opt_start_time"] = time.to_string().into();
        }
        (None, Position::LastPerSubject) => config["deliver_policy"] = "last_per_subject".into(),
        (None, other) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("a consumer on NATS cannot start at {other}"),
            ));
        }
    }
    match config {
        Value::Object(config) => Ok(config),
        _ => Err(internal("configure a consumer", &"it is no object")),
    }
}

/// The sequence at which a consumer was asked to start, if it was one.
pub(crate) fn asked_start(config: &Config) -> Option<Seq> {
    match metadata(config).get(START)?.parse() {
        Ok(Position::Seq(seq)) => Some(seq.max(1)),
        Ok(_) | Err(_) => None,
    }
}

/// Where it is written that events were gone when the consumer was made that it was to begin with.
pub(crate) const EXPIRED: &str = "trunkline.expired";

/// How many those are.
pub(crate) fn expired_before(config: &Config) -> u64 {
    let expired = metadata(config);
    expired
        .get(EXPIRED)
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// Where it is written how a consumer was asked to start, which the server may not say.
const START: &str = "trunkline.start";

/// What a consumer asks for.
pub(crate) fn consumer_filters(config: &Config) -> Vec<Filter> {
    let one = config.get("filter_subject").and_then(Value::as_str);
    let mut all = filters(config.get("filter_subjects"));
    all.extend(one.and_then(|filter| Filter::new(filter).ok()));
    all
}

/// Where it is written that a consumer is a gauge: it shows how far another is that the server does
/// not know.
pub(crate) const GAUGE: &str = "trunkline.gauge";

pub(crate) fn is_gauge(config: &Config) -> bool {
    metadata(config).contains_key(GAUGE)
}

/// The configuration of a gauge. It keeps what any durable would, so that whoever pulls from it by
/// mistake does no harm.
pub(crate) fn gauge_config(at: &ConsumerRef, filters: &[String]) -> Value {
    let name = at.consumer.as_str();
    json!({
        "durable_name": name,
        "name": name,
        "description": format!(
            "shows how far consumer {name} of Trunkline is; nobody reads through it, and pausing or deleting it \
             stops nothing"
        ),
        // A reset may then go anywhere.
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": nanos(Duration::from_secs(30)),
        "max_deliver": -1,
        "replay_policy": "instant",
        "filter_subjects": filters,
        "num_replicas": 0,
        "metadata": { GAUGE: "1" },
    })
}

/// A durable pull consumer as it is; none if it is something else.
pub(crate) fn consumer_spec(stream: &Name, config: &Config) -> Option<ConsumerSpec> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    text("durable_name")?;
    let explicit = text("ack_policy") == Some("explicit");
    if !explicit || text("deliver_subject").is_some() || is_gauge(config) {
        return None;
    }
    let mut filters = consumer_filters(config);
    if filters.is_empty() {
        // Whoever made it without a filter gets everything.
        filters.push(Filter::all());
    }
    let start = metadata(config)
        .get(START)
        .and_then(|start| start.parse().ok())
        .or_else(|| match text("deliver_policy") {
            Some("new") => Some(Position::New),
            Some("last_per_subject") => Some(Position::LastPerSubject),
            Some("by_start_sequence") => number("opt_start_seq").map(Position::Seq),
            Some("by_start_time") => text("opt_start_time")?.parse().ok().map(Position::Time),
            _ => None,
        });
    Some(ConsumerSpec {
        at: ConsumerRef {
            stream: stream.clone(),
            consumer: Name::new(text("durable_name")?).ok()?,
        },
        filters,
        start: start.unwrap_or(Position::First),
        ack_wait: Duration::from_nanos(number("ack_wait").unwrap_or(30_000_000_000)),
        max_in_flight: number("max_ack_pending")
            .and_then(|most| usize::try_from(most).ok())
            .unwrap_or(usize::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_comes_back_as_it_was_declared() {
        let name = Name::new("EVENTS").unwrap();
        let subjects = vec![Filter::new("events.>").unwrap()];
        for spec in [
            StreamSpec::new(name.clone(), subjects.clone()),
            StreamSpec::work_queue(name.clone(), subjects.clone()),
            StreamSpec {
                max_events: Some(10),
                max_bytes: Some(1 << 20),
                max_age: None,
                ..StreamSpec::dead_letters(name, subjects)
            },
        ] {
            let config = stream_config(&spec, spec.replicas);
            let found = stream_spec(&config).unwrap();
            assert_eq!(found, spec);
        }
    }

    #[test]
    fn a_change_keeps_what_this_build_does_not_know() {
        let name = Name::new("EVENTS").unwrap();
        let spec = StreamSpec::new(name, vec![Filter::new("events.>").unwrap()]);
        let mut config = stream_config(&spec, 3);
        config.insert("republish".to_owned(), json!({"src": "a"}));
        config["metadata"]["_nats.ver"] = json!("2.15.1");
        config["metadata"]["theirs"] = json!("goes");
        set_stream(&mut config, &spec);
        assert_eq!(config["republish"], json!({"src": "a"}));
        assert_eq!(
            config["metadata"],
            json!({"_nats.ver": "2.15.1", "trunkline": "1"})
        );
        assert_eq!(replicas(&config), 3);
    }

    #[test]
    fn a_consumer_comes_back_as_it_was_declared() {
        let stream = Name::new("EVENTS").unwrap();
        let spec = ConsumerSpec {
            at: ConsumerRef {
                stream: stream.clone(),
                consumer: Name::new("work").unwrap(),
            },
            filters: vec![
                Filter::new("events.a").unwrap(),
                Filter::new("events.b").unwrap(),
            ],
            start: Position::New,
            ack_wait: Duration::from_secs(30),
            max_in_flight: 1_000,
        };
        let config = consumer_config(&spec, None).unwrap();
        assert_eq!(consumer_spec(&stream, &config), Some(spec));
        let mut push = config;
        push.insert("deliver_subject".to_owned(), json!("inbox"));
        assert_eq!(consumer_spec(&stream, &push), None);
    }

    #[test]
    fn a_gauge_is_no_consumer() {
        let stream = Name::new("EVENTS").unwrap();
        let at = ConsumerRef {
            stream: stream.clone(),
            consumer: Name::new("work").unwrap(),
        };
        let Value::Object(config) = gauge_config(&at, &["events.a".to_owned()]) else {
            panic!("it is an object");
        };
        assert!(is_gauge(&config));
        assert_eq!(consumer_spec(&stream, &config), None);
        assert_eq!(
            consumer_filters(&config),
            vec![Filter::new("events.a").unwrap()]
        );
    }
}
