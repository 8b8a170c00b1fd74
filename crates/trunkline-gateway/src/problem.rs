//! Errors as HTTP has them: a status, and `application/problem+json` (RFC 9457).

use std::error::Error as _;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use trunkline::{Error, ErrorKind};

/// A request that failed as a whole.
#[derive(Debug)]
pub(crate) enum Problem {
    /// One that the page of error codes explains.
    Error(Box<Error>),
    /// One that HTTP itself explains.
    Plain(StatusCode, String),
}

impl Problem {
    pub(crate) fn plain(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::Plain(status, detail.into())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Error(Box::new(error))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, body) = match self {
            Self::Plain(status, detail) => {
                let title = status.canonical_reason().unwrap_or_default();
                (
                    status,
                    json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail}),
                )
            }
            Self::Error(error) => {
                let status = status(error.kind());
                let entry = error.kind().entry();
                let body = json!({
                    "type": format!("/docs/errors.md#{}", entry.code.to_ascii_lowercase()),
                    "title": entry.title,
                    "status": status.as_u16(),
                    "detail": detail(&error),
                    "code": entry.code,
                    "remedy": entry.remedy,
                    "retryable": entry.retryable,
                });
                (status, body)
            }
        };
        (
            status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            body.to_string(),
        )
            .into_response()
    }
}

/// What went wrong with one event or one stretch of a stream, inside an answer.
#[derive(Debug, Serialize)]
pub(crate) struct Fault {
    code: &'static str,
    title: &'static str,
    detail: String,
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code(),
            title: error.kind().entry().title,
            detail: detail(error),
        }
    }
}

/// The message and what caused it, in one line.
fn detail(error: &Error) -> String {
    let mut text = error.message().to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The status of each kind of error: 4xx where the request must change, 503 where it may be
/// repeated as it is, 429 where others must do something first.
pub(crate) fn status(kind: ErrorKind) -> StatusCode {
    use ErrorKind as K;
    match kind {
        K::TooLarge | K::OverLimit => StatusCode::PAYLOAD_TOO_LARGE,
        K::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        K::Forbidden | K::NotPermitted => StatusCode::FORBIDDEN,
        K::NoSuchStream | K::NoSuchConsumer => StatusCode::NOT_FOUND,
        K::Conflict | K::StaleLease | K::BehindFailed | K::InUse | K::Drift | K::Overlap => {
            StatusCode::CONFLICT
        }
        K::StreamFull | K::OverQuota => StatusCode::TOO_MANY_REQUESTS,
        K::Closed | K::Disconnected | K::TimedOut | K::UnknownHost | K::DrainIncomplete => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        K::Unsupported => StatusCode::NOT_IMPLEMENTED,
        K::InvalidName
        | K::InvalidSubject
        | K::InvalidFilter
        | K::InvalidEventType
        | K::InvalidEvent
        | K::InvalidHeader
        | K::InvalidPosition
        | K::Encode
        | K::Decode
        | K::NotStored
        | K::NotInCatalogue
        | K::MatchesNothing
        | K::WrongVerb => StatusCode::BAD_REQUEST,
        // What the program was told wrongly is not the client's fault.
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline::core::error::CODES;

    #[test]
    fn every_error_that_a_repeat_can_mend_says_so_by_its_status() {
        for row in CODES {
            let status = status(row.kind).as_u16();
            let repeat = matches!(status, 409 | 429 | 503);
            assert!(!row.retryable || repeat, "{}: {status}", row.code);
        }
    }

    #[test]
    fn a_detail_tells_the_cause_too() {
        let error = Error::new(ErrorKind::InvalidEvent, "the data is not JSON")
            .caused_by("EOF at column 7");
        assert_eq!(detail(&error), "the data is not JSON: EOF at column 7");
    }
}
