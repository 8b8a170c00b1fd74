//! A commit as one atomic batch, or as one message where that is enough.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;
use trunkline_core::engine::{Bucket, Commit, Committed, Expectation, Op, Rev, StateKey};
use trunkline_core::{Error, ErrorKind, Result};

use super::{FENCES, Kv, OPERATION, Stands, TOMBSTONE, stands, stream_of, subject_of, ttl};
use crate::api::{ApiError, PAUSE, code, internal, lost};
use crate::asks::Lost;

/// How long one attempt waits before the commit is sent again, which its id makes safe.
const ATTEMPT: std::time::Duration = std::time::Duration::from_secs(2);

/// One message of the batch.
struct Piece {
    subject: String,
    headers: HeaderMap,
    body: Bytes,
}

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: Rev,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

pub(super) async fn commit(kv: &Kv, bucket: &Bucket, commit: Commit) -> Result<Committed> {
    let limit = kv.max_value;
    for op in &commit.ops {
        if let Op::Put { key, value, .. } = op
            && value.len() > limit
        {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the value of key {key} has {} bytes, the limit is {limit}",
                    value.len()
                ),
            ));
        }
    }
    kv.bucket(bucket).await?;
    let deadline = Instant::now() + kv.wire.patience.publish_timeout;
    // The server has a number where a key is not: that of its tombstone. What was found out of a key
    // goes here, until the next attempt.
    let mut found: Vec<(StateKey, Found)> = Vec::new();
    let mut tried = false;
    // A batch costs the server milliseconds however small it is. But of one message alone the server
    // looks at the expectation before the id, so that only a batch knows a repeat again.
    let mut alone = true;
    loop {
        let pieces = pieces(bucket, &commit, &found);
        alone &= pieces.len() == 1 && !tried;
        let (first, count) = (
            pieces.len() - commit.ops.len().min(pieces.len()),
            pieces.len(),
        );
        let waits = Instant::now() + PAUSE < deadline;
        let before = tried;
        let unknown = |error| match before {
            true => in_doubt(bucket, &commit).caused_by(error),
            false => error,
        };
        match send(kv, pieces, alone, deadline).await {
            Ok(Ack {
                error: None,
                duplicate: true,
                ..
            }) => return Ok(Committed::Duplicate),
            Ok(Ack {
                error: None, seq, ..
            }) => {
                let start = seq + 1 - count as u64 + first as u64;
                return Ok(Committed::Done((start..=seq).collect()));
            }
            Ok(Ack {
                error: Some(error), ..
            }) => match error.err_code {
                code::BATCH_DUPLICATE => return Ok(Committed::Duplicate),
                code::WRONG_LAST_SEQUENCE | code::WRONG_LAST if alone => alone = false,
                code::WRONG_LAST_SEQUENCE | code::WRONG_LAST => {
                    match conflict(kv, bucket, &commit, &mut found).await? {
                        Some(conflict) => return Ok(conflict),
                        None if waits => {}
                        None => return Err(unknown(error.meaning("commit"))),
                    }
                }
                _ => {
                    kv.wire.denied.settled().await;
                    for op in &commit.ops {
                        let subject = subject_of(bucket, op.key().as_str());
                        kv.wire.denied.check_send(&subject).map_err(unknown)?;
                    }
                    if error.is_passing() && waits {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    return Err(unknown(
                        error.meaning(&format!("commit to bucket {bucket}")),
                    ));
                }
            },
            Err(Lost::NoResponders) if waits => tokio::time::sleep(PAUSE).await,
            Err(Lost::Interrupted | Lost::TimedOut) => {
                tried = true;
                if !waits {
                    return Err(in_doubt(bucket, &commit));
                }
            }
            Err(error) => return Err(unknown(lost(error, "committing"))),
        }
    }
}

fn in_doubt(bucket: &Bucket, commit: &Commit) -> Error {
    Error::new(
        ErrorKind::TimedOut,
        format!(
            "commit {} on bucket {bucket} may have happened; repeat it with its id",
            commit.id
        ),
    )
}

async fn send(kv: &Kv, pieces: Vec<Piece>, alone: bool, deadline: Instant) -> Result<Ack, Lost> {
    let wire = &kv.wire;
    wire.connected(deadline).await.map_err(Lost::NotSent)?;
    let batch = format!("{:032x}", rand::random::<u128>());
    let count = pieces.len();
    let last = pieces
        .last()
        .map_or_else(String::new, |piece| piece.subject.clone());
    let asked = wire.asks.one(Subject::from(last));
    for (index, piece) in pieces.into_iter().enumerate() {
        let mut headers = piece.headers;
        if !alone {
            headers.insert("Nats-Batch-Id", batch.as_str());
            headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
        }
        let subject = Subject::from(piece.subject);
        if index + 1 == count {
            if !alone {
                headers.insert("Nats-Batch-Commit", "1");
            }
            asked
                .send(wire, subject, headers, piece.body, deadline)
                .await?;
        } else {
            let client = &wire.client;
            let sending = client.publish_with_headers(subject, headers, piece.body);
            let sent = wire.hand_over(deadline, sending).await;
            sent.map_err(Lost::NotSent)?;
        }
    }
    let answer = asked.answer(deadline.min(Instant::now() + ATTEMPT)).await?;
    serde_json::from_slice(&answer.payload)
        .map_err(|error| Lost::NotSent(internal("read the answer to a commit", &error)))
}

/// The batch: fences that no change can carry first, then the changes in order.
fn pieces(bucket: &Bucket, commit: &Commit, found: &[(StateKey, Found)]) -> Vec<Piece> {
    let expected = |key: &StateKey, expect: Expectation| {
        let known = found.iter().find(|(known, _)| known == key);
        match expect {
            Expectation::Any => None,
            Expectation::Rev(rev) => Some(rev),
            // An absent key has no message, or a tombstone.
            Expectation::Absent => Some(known.map_or(0, |(_, found)| found.absent())),
        }
    };
    let mut fences: Vec<(String, Rev)> = commit
        .fences
        .iter()
        .filter(|(key, _)| !commit.ops.iter().any(|op| op.key() == key && expects(op)))
        .filter_map(|(key, expect)| {
            Some((subject_of(bucket, key.as_str()), expected(key, *expect)?))
        })
        .collect();
    fences.reverse();
    let mut pieces = Vec::new();
    let changes: Vec<Piece> = commit
        .ops
        .iter()
        .map(|op| {
            let subject = subject_of(bucket, op.key().as_str());
            let mut headers = HeaderMap::new();
            let body = match op {
                Op::Put {
                    value, ttl: life, ..
                } => {
                    if let Some(life) = life {
                        headers.insert("Nats-TTL", ttl(*life));
                    }
                    value.clone()
                }
                Op::Delete { .. } => {
                    headers.insert(OPERATION, "PURGE");
                    headers.insert("Nats-Rollup", "sub");
                    headers.insert("Nats-TTL", ttl(TOMBSTONE));
                    Bytes::new()
                }
            };
            if let Some(rev) = expected(op.key(), op.expect()) {
                headers.insert("Nats-Expected-Last-Subject-Sequence", rev.to_string());
            } else if let Some((subject, rev)) = fences.pop() {
                fence(&mut headers, subject, rev);
            }
            Piece {
                subject,
                headers,
                body,
            }
        })
        .collect();
    // What is left has no change to travel with.
    while let Some((of, rev)) = fences.pop() {
        let mut headers = HeaderMap::new();
        fence(&mut headers, of, rev);
        pieces.push(Piece {
            subject: format!("{}.{}", subject_of(bucket, FENCES), pieces.len()),
            headers,
            body: Bytes::new(),
        });
    }
    pieces.extend(changes);
    if pieces.is_empty() {
        pieces.push(Piece {
            subject: format!("{}.0", subject_of(bucket, FENCES)),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        });
    }
    // The server knows an id again before it looks at the same message's expectation, and at the
    // messages behind it.
    pieces[0]
        .headers
        .insert("Nats-Msg-Id", format!("commit:{}", commit.id));
    pieces
}

fn fence(headers: &mut HeaderMap, subject: String, rev: Rev) {
    headers.insert("Nats-Expected-Last-Subject-Sequence", rev.to_string());
    headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", subject);
}

fn expects(op: &Op) -> bool {
    op.expect() != Expectation::Any
}

/// How a key stands with the leader.
#[derive(Clone, Copy)]
enum Found {
    Nothing,
    Tombstone(Rev),
    Value(Rev),
}

impl Found {
    /// The server's number for a key that is absent.
    fn absent(self) -> Rev {
        match self {
            Found::Tombstone(rev) => rev,
            Found::Nothing | Found::Value(_) => 0,
        }
    }
}

/// Which expectation does not hold; none if all of them do, as it turns out.
async fn conflict(
    kv: &Kv,
    bucket: &Bucket,
    commit: &Commit,
    found: &mut Vec<(StateKey, Found)>,
) -> Result<Option<Committed>> {
    found.clear();
    let fences = commit.fences.iter().map(|(key, expect)| (key, *expect));
    let changes = commit.ops.iter().map(|op| (op.key(), op.expect()));
    for (key, expect) in fences.chain(changes) {
        if expect == Expectation::Any {
            continue;
        }
        let stands = look(kv, bucket, key).await?;
        let holds = match (expect, stands) {
            (Expectation::Any, _) | (Expectation::Absent, Found::Nothing | Found::Tombstone(_)) => {
                true
            }
            (Expectation::Rev(rev), Found::Value(is)) => rev == is,
            (Expectation::Absent, Found::Value(_)) | (Expectation::Rev(_), _) => false,
        };
        if !holds {
            return Ok(Some(Committed::Conflict {
                key: key.clone(),
                found: match stands {
                    Found::Value(rev) => Some(rev),
                    Found::Nothing | Found::Tombstone(_) => None,
                },
            }));
        }
        found.push((key.clone(), stands));
    }
    Ok(None)
}

async fn look(kv: &Kv, bucket: &Bucket, key: &StateKey) -> Result<Found> {
    #[derive(Deserialize)]
    struct Answer {
        message: Raw,
    }
    #[derive(Deserialize)]
    struct Raw {
        seq: Rev,
        #[serde(default)]
        hdrs: String,
    }
    let verb = format!("STREAM.MSG.GET.{}", stream_of(bucket));
    let request = json!({ "last_by_subj": subject_of(bucket, key.as_str()) });
    let raw = match kv.wire.api::<Answer>(&verb, &request).await? {
        Ok(answer) => answer.message,
        Err(error) if error.err_code == code::NO_MESSAGE => return Ok(Found::Nothing),
        Err(error) => return Err(error.meaning(&format!("read key {key}"))),
    };
    let headers = crate::message::decoded_headers(&raw.hdrs)?;
    Ok(match stands(Some(&headers)) {
        Stands::Put => Found::Value(raw.seq),
        Stands::Deleted | Stands::Expired => Found::Tombstone(raw.seq),
    })
}
