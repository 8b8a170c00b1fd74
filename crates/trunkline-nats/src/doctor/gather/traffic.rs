//! Listening for a while to what is published, and to whether requests are answered.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt;
use futures_util::stream::select_all;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{Asking, Missing};
use crate::doctor::snapshot::Traffic;

/// How long a request may go without an answer at least.
const PATIENCE: Duration = Duration::from_secs(2);
/// Requests that are followed at once.
const FOLLOWED: usize = 10_000;

struct Asked {
    subject: String,
    at: Instant,
    acked: bool,
    answered: bool,
}

pub(super) async fn sample(asking: &Asking<'_>) -> Result<Traffic, Missing> {
    let options = asking.options;
    let mut filters = vec![options.watch.as_str()];
    if options.watch.as_str() != ">" {
        filters.push("_INBOX.>");
    }
    let mut subscriptions = Vec::new();
    for filter in &filters {
        let subscription = asking.client.subscribe((*filter).to_owned()).await;
        subscriptions.push(subscription.map_err(|error| Missing::Why(error.to_string()))?);
    }
    let mut messages = select_all(subscriptions);
    let mut traffic = Traffic {
        seconds: options.sample.as_secs(),
        filter: options.watch.to_string(),
        ..Traffic::default()
    };
    let mut asked: HashMap<String, Asked> = HashMap::new();
    let until = Instant::now() + options.sample;
    loop {
        let next = tokio::select! {
            next = timeout_at(until, messages.next()) => next,
            () = asking.denied(filters[0]) => {
                return Err(Missing::Why(format!("not permitted: subscribe to {}", filters[0])));
            }
        };
        match next {
            Ok(Some(message)) => take(&message, &mut traffic, &mut asked, options.max_subjects),
            Ok(None) => return Err(Missing::Why("the connection was closed".to_owned())),
            Err(_) => break,
        }
    }
    for one in asked.into_values() {
        let Some(seen) = traffic.subjects.get_mut(&one.subject) else {
            continue;
        };
        seen.acked += u64::from(one.acked);
        seen.answered += u64::from(one.answered);
        seen.both += u64::from(one.acked && one.answered);
        seen.unanswered += u64::from(!one.acked && !one.answered && one.at.elapsed() >= PATIENCE);
    }
    Ok(traffic)
}

fn take(
    message: &Message,
    traffic: &mut Traffic,
    asked: &mut HashMap<String, Asked>,
    max_subjects: usize,
) {
    let subject = message.subject.as_str();
    if let Some(request) = asked.get_mut(subject) {
        if is_publish_ack(&message.payload) {
            request.acked = true;
        } else {
            request.answered = true;
        }
        return;
    }
    let reply = message.reply.as_ref().map(async_nats::Subject::as_str);
    // A stream's delivery shows the subject that it was published on, and is no publish.
    if subject.starts_with(['_', '$']) || reply.is_some_and(|reply| reply.starts_with("$JS.")) {
        return;
    }
    if !traffic.subjects.contains_key(subject) && traffic.subjects.len() >= max_subjects {
        traffic.truncated = true;
        return;
    }
    let seen = traffic.subjects.entry(subject.to_owned()).or_default();
    seen.messages += 1;
    let Some(reply) = reply else { return };
    seen.requests += 1;
    // Where answers cannot be heard, their absence says nothing.
    let heard = traffic.filter == ">" || reply.starts_with("_INBOX.");
    if heard && asked.len() < FOLLOWED {
        let request = Asked {
            subject: subject.to_owned(),
            at: Instant::now(),
            acked: false,
            answered: false,
        };
        asked.insert(reply.to_owned(), request);
    }
}

fn is_publish_ack(payload: &[u8]) -> bool {
    let Ok(Value::Object(ack)) = serde_json::from_slice(payload) else {
        return false;
    };
    ack.get("stream").is_some_and(Value::is_string) && ack.get("seq").is_some_and(Value::is_u64)
}
