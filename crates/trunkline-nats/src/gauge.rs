//! Gauges: durables that nobody pulls from, moved along with `CONSUMER.RESET`, so that natscli,
//! exporters and autoscalers see how far a consumer is that reads the log itself.

use serde::Serialize;
use serde_json::{Value, json};
use trunkline_core::engine::{Boxed, ConsumerRef, Gauge, Gauges, Seq};
use trunkline_core::{Filter, Result};

use crate::NatsEngine;
use crate::api::{ConsumerInfo, code};
use crate::topology::spec::{consumer_filters, gauge_config, is_gauge};

/// The oldest server that can reset a consumer. An older one does not even answer.
pub(crate) const OLDEST_SERVER: (i64, i64, i64) = (2, 14, 0);

impl Gauges for NatsEngine {
    fn set<'a>(
        &'a self,
        consumer: &'a ConsumerRef,
        filters: &'a [Filter],
        floor: Seq,
    ) -> Boxed<'a, Result<Gauge>> {
        Box::pin(async move {
            let wanted = self.filters_of(&consumer.stream, filters)?;
            // A reset of what does not exist is not answered either, so that it is looked for first.
            let found = self.consumer_info(consumer).await?;
            let gauge = self.standing(consumer, found.as_ref()).await?;
            match (gauge, found) {
                (Gauge::Absent, _) => {
                    let config = gauge_config(consumer, &wanted);
                    self.put_gauge(consumer, &config, "create").await?;
                    self.move_gauge(consumer, floor).await?;
                }
                (Gauge::Shown | Gauge::Paused, Some(found)) => {
                    let at = (found.delivered.stream_seq, found.ack_floor.stream_seq);
                    if !same(&consumer_filters(&found.config), &wanted) {
                        let mut config = found.config;
                        config.remove("filter_subject");
                        config.insert("filter_subjects".to_owned(), json!(wanted));
                        self.put_gauge(consumer, &config, "update").await?;
                    }
                    if at != (floor, floor) {
                        self.move_gauge(consumer, floor).await?;
                    }
                }
                _ => {}
            }
            Ok(gauge)
        })
    }

    fn look<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Gauge>> {
        Box::pin(async move {
            let found = self.consumer_info(consumer).await?;
            self.standing(consumer, found.as_ref()).await
        })
    }

    fn remove<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<()>> {
        Box::pin(async move {
            match self.consumer_info(consumer).await? {
                Some(found) if is_gauge(&found.config) => {}
                _ => return Ok(()),
            }
            let verb = format!("CONSUMER.DELETE.{}.{}", consumer.stream, consumer.consumer);
            match self.wire.api::<Value>(&verb, &json!({})).await? {
                Err(error) if error.err_code != code::CONSUMER_NOT_FOUND => {
                    Err(error.meaning(&format!("delete the gauge of {}", consumer.consumer)))
                }
                _ => Ok(()),
            }
        })
    }
}

impl NatsEngine {
    async fn standing(&self, at: &ConsumerRef, found: Option<&ConsumerInfo>) -> Result<Gauge> {
        if let Some(found) = found {
            return Ok(match (is_gauge(&found.config), found.paused) {
                (false, _) => Gauge::Taken,
                (true, true) => Gauge::Paused,
                (true, false) => Gauge::Shown,
            });
        }
        let stream = self.wire.known_stream(at.stream.as_str()).await?;
        let retention = stream.config.get("retention").and_then(Value::as_str);
        // Otherwise events leave by other things than its limits: when its consumers have them.
        Ok(
            match retention.is_none_or(|retention| retention == "limits") {
                true => Gauge::Absent,
                false => Gauge::Unfit,
            },
        )
    }

    async fn put_gauge(
        &self,
        consumer: &ConsumerRef,
        config: &impl Serialize,
        action: &str,
    ) -> Result<()> {
        let ConsumerRef {
            stream,
            consumer: name,
        } = consumer;
        let request = json!({
            "stream_name": stream.as_str(),
            "config": config,
            "action": action,
        });
        let verb = format!("CONSUMER.CREATE.{stream}.{name}");
        let what = format!("{action} the gauge of consumer {name} on stream {stream}");
        self.wire
            .call::<ConsumerInfo>(&verb, &request, &what)
            .await
            .map(drop)
    }

    async fn move_gauge(&self, consumer: &ConsumerRef, floor: Seq) -> Result<()> {
        let ConsumerRef {
            stream,
            consumer: name,
        } = consumer;
        let verb = format!("CONSUMER.RESET.{stream}.{name}");
        let what = format!("move the gauge of consumer {name} on stream {stream}");
        self.wire
            .call::<Value>(&verb, &json!({ "seq": floor + 1 }), &what)
            .await
            .map(drop)
    }
}

/// Whether a gauge asks for what it should, in any order.
fn same(found: &[Filter], wanted: &[String]) -> bool {
    let mut found: Vec<&str> = found.iter().map(Filter::as_str).collect();
    let mut wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    found.sort_unstable();
    wanted.sort_unstable();
    found == wanted
}
