//! What is published and listened to without being stored.

use std::collections::{BTreeMap, BTreeSet};

use super::{Report, edit_stream};
use crate::doctor::near::{covers, meant, overlap};
use crate::doctor::rules::*;
use crate::doctor::snapshot::{Snapshot, Subscription};

pub(super) fn judge(snapshot: &Snapshot, report: &mut Report) {
    requests(snapshot, report);
    let subscriptions = snapshot
        .monitor
        .as_ref()
        .and_then(|monitor| monitor.subscriptions.as_deref());
    if let Some(subscriptions) = subscriptions {
        responders(snapshot, subscriptions, report);
        off(snapshot, subscriptions, report);
        ungrouped(subscriptions, report);
        nowhere(snapshot, subscriptions, report);
    }
}

/// What the sample says of requests.
fn requests(snapshot: &Snapshot, report: &mut Report) {
    let published = snapshot
        .traffic
        .iter()
        .flat_map(|traffic| &traffic.subjects);
    for (subject, seen) in published {
        let object = format!("subject {subject}");
        let stream = snapshot.storing(subject);
        if seen.both > 0 {
            report.add(
                REQUEST_STORED,
                object,
                format!(
                    "{} requests got both an answer and the publish ack of a stream{}",
                    seen.both,
                    stream.map_or(String::new(), |stream| format!(", {}", stream.name()))
                ),
                "whoever asks takes the first, which is the publish ack",
                match stream {
                    Some(stream) => edit_stream(
                        stream,
                        "--subjects 'events.>' # its events, without the requests",
                    ),
                    None => {
                        "give requests a root that no stream stores, such as requests.>".to_owned()
                    }
                },
            );
        } else if stream.is_none() && seen.unanswered > 0 && seen.answered == 0 {
            report.add(
                UNANSWERED,
                object,
                format!("{} requests, none answered", seen.unanswered),
                "each of them times out",
                format!("answer to the reply subject of the request, not on a subject of its own; try it: nats request {subject} ''"),
            );
        }
    }
}

fn responders(snapshot: &Snapshot, subscriptions: &[Subscription], report: &mut Report) {
    for one in subscriptions {
        let Some(group) = one.qgroup.as_deref().filter(|group| !group.is_empty()) else {
            continue;
        };
        if internal(&one.subject) || one.subject.contains(['*', '>']) {
            continue;
        }
        if let Some(stream) = snapshot.storing(&one.subject) {
            report.add(
                REQUEST_STORED,
                format!("subject {}", one.subject),
                format!(
                    "clients listen in group {group}, and stream {} stores it",
                    stream.name()
                ),
                "as responders they lose to the publish ack; as handlers they miss what comes while they are away",
                format!(
                    "requests: a root that no stream stores; events: nats consumer add {} {group} --pull --ack explicit --filter '{}'",
                    stream.name(),
                    one.subject
                ),
            );
        }
    }
}

/// Subscriptions that miss by a token.
fn off(snapshot: &Snapshot, subscriptions: &[Subscription], report: &mut Report) {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for stream in snapshot.streams.iter().filter(|one| !one.is_bucket()) {
        known.extend(
            stream
                .state
                .subjects
                .iter()
                .flatten()
                .map(|(subject, _)| subject.as_str()),
        );
    }
    known.extend(
        snapshot
            .traffic
            .iter()
            .flat_map(|traffic| traffic.subjects.keys().map(String::as_str)),
    );
    let expected = &snapshot.expected;
    let declared = [&expected.durable, &expected.ephemeral, &expected.requests];
    known.extend(declared.into_iter().flatten().map(String::as_str));
    for one in subscriptions.iter().filter(|one| !internal(&one.subject)) {
        if let Some((meant, subject)) = meant(&one.subject, known.iter().copied()) {
            report.add(
                LISTENER_A_TOKEN_OFF,
                format!("subscription {} of {}", one.subject, client(one)),
                format!(
                    "it matches nothing that exists; {subject} does, and {meant} would match it"
                ),
                "nothing arrives: `*` is one token, `>` one or more",
                format!("subscribe to {meant} instead; try it: nats subscribe '{meant}'"),
            );
        }
    }
}

fn client(one: &Subscription) -> String {
    if one.client.is_empty() {
        format!("connection {}", one.cid)
    } else {
        one.client.clone()
    }
}

/// Instances of one service that each get everything.
fn ungrouped(subscriptions: &[Subscription], report: &mut Report) {
    let mut alike: BTreeMap<(&str, &str, &str), BTreeSet<u64>> = BTreeMap::new();
    for one in subscriptions {
        let grouped = one.qgroup.as_ref().is_some_and(|group| !group.is_empty());
        if !grouped && !one.client.is_empty() && !internal(&one.subject) {
            alike
                .entry((&one.account, &one.client, &one.subject))
                .or_default()
                .insert(one.cid);
        }
    }
    for ((_, name, subject), connections) in alike {
        if connections.len() > 1 {
            report.add(
                NO_GROUP,
                format!("subscription {subject} of {name}"),
                format!("{} connections listen to it, each for itself", connections.len()),
                format!("each event is handled {} times", connections.len()),
                format!("subscribe in one queue group: nats subscribe '{subject}' --queue {name}; right as it is where each instance serves its own users"),
            );
        }
    }
}

/// What is published into the void.
fn nowhere(snapshot: &Snapshot, subscriptions: &[Subscription], report: &mut Report) {
    // Listeners of other servers are not seen.
    if snapshot.server.cluster.is_some() {
        return;
    }
    let published = snapshot
        .traffic
        .iter()
        .flat_map(|traffic| &traffic.subjects);
    for (subject, seen) in published {
        let heard = subscriptions
            .iter()
            .any(|one| covers(&one.subject, subject));
        // A stream that is a token short of it is told by TD-01, a request by TD-46.
        let near = snapshot
            .streams
            .iter()
            .any(|stream| super::wiring::shorter(stream, subject).is_some());
        if heard || near || seen.requests > 0 || snapshot.storing(subject).is_some() {
            continue;
        }
        report.add(
            NOT_LISTENED_NOT_STORED,
            format!("subject {subject}"),
            format!(
                "{} messages; no stream stores it, no client listens",
                seen.messages
            ),
            "they are gone, and their publishers are told that all is well",
            format!("store it: nats stream add --subjects '{subject}'; or stop publishing it"),
        );
    }
}

/// Subjects that are the protocol's, or a client's own inbox.
fn internal(subject: &str) -> bool {
    subject.starts_with(['_', '$']) || overlap(subject, "$JS.API.>") && subject != ">"
}
