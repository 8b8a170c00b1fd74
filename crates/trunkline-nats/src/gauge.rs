//! Gauges: durables that nobody pulls from, moved along with `CONSUMER.RESET`, so that natscli,
//! exporters and autoscalers see how far a consumer is that reads the log itself.

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
            let gauge = match self.consumer_info(consumer).await? {
                None => match self.may_have_gauges(consumer).await? {
                    true => Gauge::Absent,
                    false => Gauge::Unfit,
                },
                Some(found) => {
                    let gauge = standing(&found);
                    if gauge != Gauge::Taken {
                        if !same(&consumer_filters(&found.config), &wanted) {
                            self.put_gauge(consumer, &wanted, "update").await?;
                        }
                        let at = (found.delivered.stream_seq, found.ack_floor.stream_seq);
                        if at != (floor, floor) {
                            self.move_gauge(consumer, floor).await?;
                        }
                    }
                    gauge
                }
            };
            if gauge == Gauge::Absent {
                self.put_gauge(consumer, &wanted, "create").await?;
                self.move_gauge(consumer, floor).await?;
            }
            Ok(gauge)
        })
    }

    fn look<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Gauge>> {
        Box::pin(async move {
            match self.consumer_info(consumer).await? {
                Some(found) => Ok(standing(&found)),
                None => match self.may_have_gauges(consumer).await? {
                    true => Ok(Gauge::Absent),
                    false => Ok(Gauge::Unfit),
                },
            }
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
    /// Whether events leave the stream by its limits alone, whatever consumers it has.
    async fn may_have_gauges(&self, consumer: &ConsumerRef) -> Result<bool> {
        let stream = self.wire.known_stream(consumer.stream.as_str()).await?;
        let retention = stream.config.get("retention").and_then(Value::as_str);
        Ok(retention.is_none_or(|retention| retention == "limits"))
    }

    async fn put_gauge(
        &self,
        consumer: &ConsumerRef,
        filters: &[String],
        action: &str,
    ) -> Result<()> {
        let ConsumerRef {
            stream,
            consumer: name,
        } = consumer;
        let request = json!({
            "stream_name": stream.as_str(),
            "config": gauge_config(consumer, filters),
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

fn standing(found: &ConsumerInfo) -> Gauge {
    match (is_gauge(&found.config), found.paused) {
        (false, _) => Gauge::Taken,
        (true, true) => Gauge::Paused,
        (true, false) => Gauge::Shown,
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
