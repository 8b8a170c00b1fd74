//! Filters that miss by one token, and names that differ by a replica's number.

use trunkline_core::Filter;

/// A filter from text of a server, which may hold what we would not write ourselves.
pub(super) fn filter(text: &str) -> Option<Filter> {
    Filter::new(text).ok()
}

/// Whether some subject is matched by both texts.
pub(super) fn overlap(left: &str, right: &str) -> bool {
    matches!((filter(left), filter(right)), (Some(left), Some(right)) if left.overlaps(&right))
}

/// Whether `pattern` matches all that `other` does.
pub(super) fn covers(pattern: &str, other: &str) -> bool {
    matches!((filter(pattern), filter(other)), (Some(pattern), Some(other)) if pattern.covers(&other))
}

/// For a filter that matches nothing of `known`: what its author meant, if it is a token short
/// or long of one of them. Only depth counts: another word is another thing.
pub(super) fn meant<'a>(
    text: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<(String, &'a str)> {
    filter(text)?;
    let short = format!("{}.>", text.strip_suffix(".*").unwrap_or(text));
    let long = text
        .strip_suffix(".*")
        .or_else(|| text.strip_suffix(".>"))
        .map(str::to_owned);
    let candidates: Vec<Filter> = std::iter::once(short)
        .chain(long)
        .filter_map(filter_owned)
        .collect();
    // The first known subject alone decides nothing: any that overlaps means there is no fault.
    let mut near = None;
    for subject in known {
        if overlap(text, subject) {
            return None;
        }
        if near.is_none() {
            let known = filter(subject)?;
            near = candidates
                .iter()
                .find(|candidate| candidate.overlaps(&known))
                .map(|candidate| (candidate.to_string(), subject));
        }
    }
    near
}

fn filter_owned(text: String) -> Option<Filter> {
    Filter::new(text).ok()
}

/// A name without what tells one replica of a service from another: a number, a UUID, the ends
/// that Kubernetes gives to pods. None when there is no such end.
pub(super) fn without_replica(name: &str) -> Option<&str> {
    let separators = ['-', '_'];
    if let Some(at) = name.len().checked_sub(36)
        && name.is_char_boundary(at)
        && is_uuid(&name[at..])
    {
        let stem = name[..at].trim_end_matches(separators);
        return (!stem.is_empty()).then_some(stem);
    }
    let (head, last) = name.rsplit_once(separators)?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let stem = if digits(last) {
        head
    } else if is_hash(last) {
        // A pod of a deployment: name, hash of the template, hash of the pod.
        match head.rsplit_once('-') {
            Some((stem, template)) if is_hash(template) => stem,
            _ => head,
        }
    } else {
        return None;
    };
    (!stem.is_empty()).then_some(stem)
}

fn is_uuid(text: &str) -> bool {
    text.char_indices().all(|(at, c)| match at {
        8 | 13 | 18 | 23 => c == '-',
        _ => c.is_ascii_hexdigit(),
    })
}

/// Letters and digits mixed, as no word is.
fn is_hash(text: &str) -> bool {
    (5..=32).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        && text.bytes().filter(u8::is_ascii_digit).count() >= 2
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_token_more_or_less_is_a_slip() {
        for (text, known, expected) in [
            (
                "workflow.*",
                "workflow.execution.requested",
                Some("workflow.>"),
            ),
            (
                "agent.message.*",
                "agent.message.a.b",
                Some("agent.message.>"),
            ),
            ("dlq.*", "dlq.EVENTS.billing.7", Some("dlq.>")),
            ("order", "order.placed", Some("order.>")),
            ("order.placed.*", "order.placed", Some("order.placed")),
            ("order.placed.>", "order.placed", Some("order.placed")),
            ("order.cancelled", "order.placed", None),
            ("order.*", "order.placed", None),
            ("user.*", "order.placed.x", None),
        ] {
            let found = meant(text, [known]).map(|(meant, _)| meant);
            assert_eq!(found.as_deref(), expected, "{text} {known}");
        }
        assert_eq!(meant("order.*", ["order.a.b", "order.a"]), None);
    }

    #[test]
    fn the_end_that_names_a_replica_is_told_from_a_version() {
        for (name, stem) in [
            ("billing-1", Some("billing")),
            ("billing_12", Some("billing")),
            (
                "billing-6f1c2b1e-9a55-4c1f-8f6e-2f4f3c0a9b11",
                Some("billing"),
            ),
            ("billing-7d9f8b6c5-x2x9z", Some("billing")),
            ("billing-a1b2c3d4", Some("billing")),
            ("billing-v1", None),
            ("billing-eu", None),
            ("billing-orders", None),
            ("billing", None),
        ] {
            assert_eq!(without_replica(name), stem, "{name}");
        }
    }
}
