//! `GET /v1/events`.

use std::num::NonZeroU64;

use axum::body::Body;
use axum::extract::{Query as QueryOf, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use trunkline::core::wire::essence;
use trunkline::{Bus, Error, ErrorKind, Filter, Result, Start};

use crate::door::Door;
use crate::feed::{Feed, Format, Found, RangeReader, Source};
use crate::problem::Problem;
use crate::start::{Place, Seen, places, seen};

/// What `GET /v1/events` takes in its query.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Query {
    filter: Option<String>,
    from: Option<String>,
    limit: Option<NonZeroU64>,
    follow: Option<bool>,
    #[serde(rename = "last-event-id")]
    last_event_id: Option<String>,
}

pub(crate) async fn read(
    State(door): State<Door>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let QueryOf(query) = QueryOf::<Query>::try_from_uri(&uri)
        .map_err(|error| Problem::plain(StatusCode::BAD_REQUEST, error.body_text()))?;
    let bus = &door.shared.bus;
    let format = format(&headers);
    let follow = query.follow.unwrap_or(format == Format::Sse);
    let filter = query
        .filter
        .as_deref()
        .map_or_else(|| Ok(Filter::all()), Filter::new)?;
    let from = match query.from.as_deref() {
        Some(from) => from.parse()?,
        None if follow && format == Format::Sse => Start::New,
        None => Start::First,
    };
    if from == Start::LastPerSubject && !follow {
        return Err(Error::new(
            ErrorKind::InvalidPosition,
            "`last-per-subject` picks events for a reader that goes on; add follow=true",
        )
        .into());
    }
    let resumed = last_event_id(&headers, &query)?;
    let places = places(bus, &filter, from, resumed.as_ref()).await?;
    let hint = hint(bus, &filter, &places).await?;

    let mut feed = Feed::new(format, seen(&places), query.limit, &door);
    for place in &places {
        if let Some(asked) = place.reset {
            feed.first(&Found::Reset {
                stream: place.stream.clone(),
                asked: Some(asked),
                next: place.next,
            });
        }
    }
    if let Some(hint) = &hint {
        feed.remark(hint);
    }
    let source = if follow {
        let from = places
            .into_iter()
            .map(|place| (place.stream, place.from))
            .collect();
        Source::Follow(bus.follow_streams(&filter, from).await?)
    } else {
        Source::Range(RangeReader::new(bus.clone(), filter, places))
    };
    let mut response = Body::from_stream(feed.stream(source)).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(format.content_type()),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Some proxies hold a response back until it is long enough, unless told not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if let Some(hint) = hint.and_then(|hint| HeaderValue::try_from(hint).ok()) {
        headers.insert("trunkline-hint", hint);
    }
    Ok(response)
}

fn format(headers: &HeaderMap) -> Format {
    let accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let events = |accepted: &str| essence(accepted).eq_ignore_ascii_case("text/event-stream");
    if accepted.flat_map(|value| value.split(',')).any(events) {
        Format::Sse
    } else {
        Format::Lines
    }
}

/// The header wins over the query: a browser sends it when it comes back to the same URL.
fn last_event_id(headers: &HeaderMap, query: &Query) -> Result<Option<Seen>> {
    let header = headers
        .get("last-event-id")
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let id = header
        .or_else(|| query.last_event_id.clone())
        .filter(|id| !id.is_empty());
    id.map(|id| id.parse()).transpose()
}

/// What to say to a reader whose filter matches nothing that is stored, though a near one would.
async fn hint(bus: &Bus, filter: &Filter, places: &[Place]) -> Result<Option<String>> {
    if *filter == Filter::all() || places.iter().any(|place| place.found) {
        return Ok(None);
    }
    let near = bus.nearest_filter(filter).await?;
    Ok(near.map(|near| format!("filter {filter} matches no stored event; {near} would")))
}
