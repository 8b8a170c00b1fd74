//! The rules for event types, subjects and paths, as functions on text: no spans, no syntax, so
//! that a table of examples can test them.
//!
//! They are stricter than `trunkline_core::EventType`, which percent-encodes foreign characters:
//! a type that is written in Rust has no need for them.

/// The most tokens that a type or subject may have; the same as `EventType::MAX_TOKENS`.
const MAX_TOKENS: usize = 16;
/// The most bytes that a type or subject may have; the same as `EventType::MAX_BYTES`.
const MAX_BYTES: usize = 200;

/// One token of a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text that is always the same.
    Literal(String),
    /// The path to a field, `role` or `customer.id`.
    Placeholder(String),
}

/// The tokens of an event type.
///
/// # Errors
/// The whole message when `text` is not one.
pub(crate) fn event_type(text: &str) -> Result<Vec<Part>, String> {
    let parts = text.split('.').map(|token| Part::Literal(token.to_owned()));
    checked(parts.collect()).map_err(|fault| {
        format!(
            "{text:?} is not an event type: {fault}; use tokens of `A-Z a-z 0-9 _ -` separated by \
             single dots, such as `order.placed`"
        )
    })
}

/// The tokens of a subject with placeholders. Whether there are such fields is not checked.
///
/// # Errors
/// The whole message when `text` is not one.
pub(crate) fn subject(text: &str) -> Result<Vec<Part>, String> {
    let parts = split_outside_braces(text).into_iter().map(part);
    parts.collect::<Result<_, _>>().and_then(checked).map_err(|fault| {
        format!(
            "{text:?} is not a subject: {fault}; use tokens of `A-Z a-z 0-9 _ -` and placeholders \
             separated by single dots, such as `agent.message.{{role}}`"
        )
    })
}

/// The segments of a path to a field: names or, for tuples, numbers.
///
/// # Errors
/// The whole message when `text` is not one.
pub(crate) fn path(text: &str) -> Result<Vec<&str>, String> {
    let segments: Vec<_> = text.split('.').collect();
    match segments.iter().find(|it| !is_name(it) && !is_index(it)) {
        Some(wrong) => Err(format!(
            "{text:?} is not a path to a field: {wrong:?} is not the name of a field; \
             write one such as `order_id` or `customer.id`"
        )),
        None => Ok(segments),
    }
}

/// A type to propose for a struct: `OrderPlaced` gives `order.placed`.
pub(crate) fn suggested_type(name: &str) -> String {
    let mut text = String::new();
    let mut after_lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && after_lower {
            text.push('.');
        }
        text.push(c.to_ascii_lowercase());
        after_lower = !c.is_ascii_uppercase();
    }
    match event_type(&text) {
        Ok(_) => text,
        Err(_) => "order.placed".to_owned(),
    }
}

/// Whether a segment of a path is a number, that is a place in a tuple.
pub(crate) fn is_index(segment: &str) -> bool {
    segment
        .parse::<u32>()
        .is_ok_and(|index| index.to_string() == segment)
}

fn is_name(segment: &str) -> bool {
    let name = segment.strip_prefix("r#").unwrap_or(segment);
    // Those that are no name even when written raw.
    let never = matches!(name, "" | "_" | "self" | "Self" | "super" | "crate");
    !never
        && !name.starts_with(|c: char| c.is_numeric())
        && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

fn split_outside_braces(text: &str) -> Vec<&str> {
    let mut inside = false;
    let outside = |c: char| {
        inside = (inside || c == '{') && c != '}';
        c == '.' && !inside
    };
    text.split(outside).collect()
}

fn part(token: &str) -> Result<Part, String> {
    let inner = token.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
    match inner {
        Some(inner) if !inner.contains(['{', '}']) => Ok(Part::Placeholder(inner.to_owned())),
        None if !token.contains(['{', '}']) => Ok(Part::Literal(token.to_owned())),
        _ => Err(format!(
            "a placeholder must be a whole token between dots, but `{token}` is not"
        )),
    }
}

fn checked(parts: Vec<Part>) -> Result<Vec<Part>, String> {
    // A placeholder counts as the one byte that its shortest value has.
    let bytes = parts.iter().map(|part| part.literal().map_or(1, str::len));
    let bytes = bytes.sum::<usize>() + parts.len() - 1;
    let literals = || parts.iter().filter_map(Part::literal);
    let foreign = |c: &char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-');
    if literals().eq([""]) {
        Err("it is empty".to_owned())
    } else if literals().any(str::is_empty) {
        Err("it has an empty token".to_owned())
    } else if let Some(c) = literals().flat_map(str::chars).find(foreign) {
        Err(format!("it has the character {c:?}"))
    } else if parts.len() > MAX_TOKENS {
        Err(format!(
            "it has {} tokens, the limit is {MAX_TOKENS}",
            parts.len()
        ))
    } else if bytes > MAX_BYTES {
        Err(format!("it has {bytes} bytes, the limit is {MAX_BYTES}"))
    } else if parts.last().and_then(Part::literal).is_some_and(all_digits) {
        Err("its last token is all digits, and that place is kept for partition numbers".to_owned())
    } else {
        Ok(parts)
    }
}

fn all_digits(token: &str) -> bool {
    token.bytes().all(|byte| byte.is_ascii_digit())
}

impl Part {
    fn literal(&self) -> Option<&str> {
        match self {
            Part::Literal(text) => Some(text),
            Part::Placeholder(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses<T: std::fmt::Debug>(result: Result<T, String>, fault: &str) {
        let message = result.unwrap_err();
        assert!(
            message.contains(fault),
            "{message:?} does not say {fault:?}"
        );
    }

    #[test]
    fn event_types_are_tokens_with_single_dots() {
        let (deep, long) = (["x"; 16].join("."), "x".repeat(200));
        for good in [
            "a",
            "order.placed",
            "Order_1.line-item.v2",
            "2024.orders",
            &deep,
            &long,
        ] {
            let parts = good.split('.').map(|token| Part::Literal(token.to_owned()));
            assert_eq!(event_type(good), Ok(parts.collect()), "{good}");
        }
    }

    #[test]
    fn event_types_that_are_not_legal_say_why() {
        let check = |text: &str, fault| refuses(event_type(text), fault);
        check("", "it is empty");
        for text in [".", "order.", ".order", "order..placed"] {
            check(text, "an empty token");
        }
        check("order placed", "the character ' '");
        check("order/placed", "the character '/'");
        check("größe", "the character 'ö'");
        check("order.*", "the character '*'");
        check("order.{id}", "the character '{'");
        check(&["x"; 17].join("."), "17 tokens, the limit is 16");
        check(&"x".repeat(201), "201 bytes, the limit is 200");
        check("order.2024", "all digits");
        check("1", "all digits");
    }

    #[test]
    fn subjects_have_placeholders_as_whole_tokens() {
        let check = |text: &str, expect: &[&str]| {
            let show = |part| match part {
                Part::Literal(text) => text,
                Part::Placeholder(path) => format!("<{path}>"),
            };
            let parts = subject(text)
                .unwrap()
                .into_iter()
                .map(show)
                .collect::<Vec<_>>();
            assert_eq!(parts, expect);
        };
        check("order.placed", &["order", "placed"]);
        check("agent.{role}.{kind}", &["agent", "<role>", "<kind>"]);
        check("{customer.id}.order", &["<customer.id>", "order"]);
        check("{0}", &["<0>"]);
    }

    #[test]
    fn subjects_that_are_not_legal_say_why() {
        for text in [
            "agent.{role}-x",
            "agent.x{role}",
            "{a}{b}",
            "{role",
            "role}",
            "{{role}}",
            "a.{b.c",
        ] {
            refuses(subject(text), "must be a whole token");
        }
        refuses(subject("agent.{role}."), "an empty token");
        refuses(subject("agent.>"), "the character '>'");
        refuses(subject("{role}.7"), "all digits");
        refuses(subject(&["{a}"; 17].join(".")), "17 tokens");
    }

    #[test]
    fn the_name_of_a_field_takes_no_room_in_a_subject() {
        let text = format!("{{{}}}", "x".repeat(300));
        assert!(subject(&text).is_ok());
    }

    #[test]
    fn paths_are_names_and_numbers() {
        assert_eq!(path("order_id"), Ok(vec!["order_id"]));
        assert_eq!(path("customer.id"), Ok(vec!["customer", "id"]));
        assert_eq!(path("0.id.12"), Ok(vec!["0", "id", "12"]));
        assert_eq!(path("type.r#match"), Ok(vec!["type", "r#match"]));
        for text in [
            "", ".", "a.", "a b", "a()", "_", "self", "crate", "00", "1a", "-1", "a::b",
        ] {
            refuses(path(text), "is not a path to a field");
        }
    }

    #[test]
    fn a_missing_type_is_proposed_from_the_name() {
        let check = |name, text| assert_eq!(suggested_type(name), text);
        check("OrderPlaced", "order.placed");
        check("Tick", "tick");
        check("HTTPDown", "httpdown");
        check("Order2Placed", "order2.placed");
        check("Größe", "order.placed");
    }
}
