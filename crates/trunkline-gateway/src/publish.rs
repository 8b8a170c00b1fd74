//! `POST /v1/events`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Query as QueryOf, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use serde::Serialize;
use trunkline::{Envelope, Error, Published, RawEvent, Result};

use crate::body::{Query, Shape, collect, discard, events};
use crate::door::Door;
use crate::problem::{Fault, Problem, status};

pub(crate) async fn publish(
    State(door): State<Door>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Answer>), Problem> {
    let (bus, config) = (&door.shared.bus, &door.shared.config);
    let (query, shape) = match asked(&uri, &headers) {
        Ok(asked) => asked,
        Err(problem) => {
            discard(&headers, body, config.max_body_bytes).await;
            return Err(problem);
        }
    };
    let body = collect(&headers, body, config.max_body_bytes).await?;
    let events = events(shape, &headers, &query, bus.source(), &body, config)?;
    drop(body);
    let (good, places) = sort(events);
    let mut published = bus.publish_raw(good).await.into_iter();
    // The engine answers for each event; were one missing, its outcome would be unknown.
    let lost = || {
        Published::Unknown(Error::new(
            trunkline::ErrorKind::Internal,
            "the bus gave no outcome",
        ))
    };
    let outcomes = places.into_iter().map(|refused| match refused {
        Some(error) => Published::Refused(error),
        None => published.next().unwrap_or_else(lost),
    });
    let answer = Answer::of(outcomes);
    Ok((answer.status, Json(answer)))
}

/// What the request says before its body.
fn asked(uri: &Uri, headers: &HeaderMap) -> Result<(Query, Shape), Problem> {
    let QueryOf(query) = QueryOf::<Query>::try_from_uri(uri)
        .map_err(|error| Problem::plain(StatusCode::BAD_REQUEST, error.body_text()))?;
    let shape = Shape::of(headers, &query)?;
    Ok((query, shape))
}

/// The events that can be published, and for each place of the request why it cannot.
fn sort(events: Vec<Result<Envelope>>) -> (Vec<RawEvent>, Vec<Option<Error>>) {
    let mut good = Vec::with_capacity(events.len());
    let keep = |event| match event {
        Ok(envelope) => {
            good.push(RawEvent::from(envelope));
            None
        }
        Err(error) => Some(error),
    };
    let places = events.into_iter().map(keep).collect();
    (good, places)
}

/// What became of a request's events, in their order.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    #[serde(skip)]
    status: StatusCode,
    stored: usize,
    sent: usize,
    refused: usize,
    unknown: usize,
    results: Vec<Outcome>,
}

#[derive(Debug, Default, Serialize)]
struct Outcome {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Fault>,
}

impl Answer {
    fn of(outcomes: impl Iterator<Item = Published>) -> Self {
        let mut answer = Self {
            status: StatusCode::OK,
            stored: 0,
            sent: 0,
            refused: 0,
            unknown: 0,
            results: Vec::new(),
        };
        let mut refusals = Vec::new();
        for outcome in outcomes {
            let failed = |status, error: &Error| Outcome {
                status,
                id: error.event_id().map(str::to_owned),
                error: Some(error.into()),
                ..Outcome::default()
            };
            answer.results.push(match outcome {
                Published::Stored(receipt) => {
                    answer.stored += 1;
                    Outcome {
                        status: "stored",
                        id: Some(receipt.id.to_string()),
                        stream: Some(receipt.stream.to_string()),
                        seq: Some(receipt.seq),
                        duplicate: Some(receipt.duplicate),
                        error: None,
                    }
                }
                Published::Sent(id) => {
                    answer.sent += 1;
                    Outcome {
                        status: "sent",
                        id: Some(id.to_string()),
                        ..Outcome::default()
                    }
                }
                Published::Refused(error) => {
                    answer.refused += 1;
                    refusals.push(status(error.kind()));
                    failed("refused", &error)
                }
                Published::Unknown(error) => {
                    answer.unknown += 1;
                    failed("unknown", &error)
                }
                // An outcome that this door does not know yet is unknown to its client as well.
                other => {
                    answer.unknown += 1;
                    let detail = format!("the bus answered {other:?}");
                    failed(
                        "unknown",
                        &Error::new(trunkline::ErrorKind::Internal, detail),
                    )
                }
            });
        }
        answer.status = summary(answer.stored + answer.sent, &refusals, answer.unknown);
        answer
    }
}

/// One status for all: 200 if all is well, 503 if some may or may not be stored and the rest is,
/// the refusals' own if nothing was done, else 207: look at each.
fn summary(done: usize, refusals: &[StatusCode], unknown: usize) -> StatusCode {
    let Some(first) = refusals.first() else {
        return if unknown == 0 {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
    };
    if done + unknown > 0 {
        StatusCode::MULTI_STATUS
    } else if refusals.iter().all(|status| status == first) {
        *first
    } else if let Some(server) = refusals.iter().find(|status| status.is_server_error()) {
        *server
    } else {
        StatusCode::BAD_REQUEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_status_stands_for_all_outcomes() {
        let check = |done, refusals: &[u16], unknown, expected| {
            let refusals: Vec<_> = refusals
                .iter()
                .map(|status| StatusCode::from_u16(*status).unwrap())
                .collect();
            let status = summary(done, &refusals, unknown).as_u16();
            assert_eq!(
                status, expected,
                "{done} done, {refusals:?}, {unknown} unknown"
            );
        };
        check(0, &[], 0, 200);
        check(3, &[], 0, 200);
        check(3, &[400], 0, 207);
        check(0, &[413, 413], 0, 413);
        check(0, &[413, 400], 0, 400);
        check(0, &[400, 503], 0, 503);
        check(3, &[], 1, 503);
        check(0, &[], 1, 503);
        check(0, &[400], 1, 207);
    }
}
