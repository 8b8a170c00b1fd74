//! The data of an event as people see it: on one line, or laid out and with colours.

use serde_json::Value;
use trunkline::Data;

use crate::figures::bytes;
use crate::look::{Look, Style};
use crate::plain::{fit, json_without_controls, lines_without_controls, without_controls};

/// Bytes of the data that are looked at for one line; more would not fit on any.
const LOOKED_AT: usize = 4 << 10;

/// The data on one line of so many columns.
pub(crate) fn short(data: &Data, columns: usize) -> String {
    if columns == 0 {
        return String::new();
    }
    let text = match data {
        Data::None => return String::new(),
        Data::Binary(binary) => format!("({} of binary data)", bytes(binary.len() as u64)),
        Data::Text(text) => head(text).to_owned(),
        Data::Json(_) | Data::Value(_) => match data.to_bytes() {
            Ok(json) => one_line(head(&String::from_utf8_lossy(&json))),
            Err(error) => error.to_string(),
        },
    };
    fit(&without_controls(&text), columns).into_owned()
}

/// The data laid out, ready for a terminal.
pub(crate) fn full(data: &Data, look: Look) -> String {
    match data {
        Data::None => String::new(),
        Data::Binary(binary) => format!("({} of binary data)", bytes(binary.len() as u64)),
        Data::Text(text) => lines_without_controls(text).into_owned(),
        Data::Json(_) | Data::Value(_) => match data.to_bytes() {
            Ok(json) => laid_out(&String::from_utf8_lossy(&json), look),
            Err(error) => lines_without_controls(&error.to_string()).into_owned(),
        },
    }
}

/// A value could be read into `Value` and written again, but that would change numbers that do
/// not fit and the order of members; so only white space is touched.
fn laid_out(json: &str, look: Look) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut rest = json.trim();
    let newline = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some(c) = rest.chars().next() {
        match c {
            '{' | '[' => {
                out.push(c);
                rest = rest[1..].trim_start();
                let close = if c == '{' { '}' } else { ']' };
                if let Some(after) = rest.strip_prefix(close) {
                    out.push(close);
                    rest = after;
                } else {
                    depth += 1;
                    newline(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.push(c);
                rest = &rest[1..];
            }
            ',' => {
                out.push(c);
                newline(&mut out, depth);
                rest = &rest[1..];
            }
            ':' => {
                out.push_str(": ");
                rest = &rest[1..];
            }
            _ if c.is_ascii_whitespace() => rest = rest.trim_start(),
            _ => {
                let end = token_end(rest);
                let (token, after) = rest.split_at(end);
                let name = c == '"' && after.trim_start().starts_with(':');
                let style = match c {
                    '"' if name => Style::Name,
                    '"' => Style::Good,
                    't' | 'f' | 'n' => Style::Warning,
                    _ => Style::Tag(0),
                };
                out.push_str(&look.paint(style, &json_without_controls(token)));
                rest = after;
            }
        }
    }
    out
}

/// JSON without the white space between its tokens that would break a line.
fn one_line(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json.trim_start();
    while let Some(c) = rest.chars().next() {
        if c.is_ascii_whitespace() {
            rest = rest.trim_start();
            // Kept as one space, as whoever wrote it separated them.
            if !rest.is_empty() && !out.ends_with(['{', '[']) && !rest.starts_with(['}', ']']) {
                out.push(' ');
            }
            continue;
        }
        let end = if matches!(c, '{' | '}' | '[' | ']' | ',' | ':') {
            1
        } else {
            token_end(rest)
        };
        out.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    out
}

/// Where the string, number or word that begins here ends.
fn token_end(text: &str) -> usize {
    if let Some(inside) = text.strip_prefix('"') {
        let mut escaped = false;
        let close = inside.bytes().position(|byte| match byte {
            _ if std::mem::take(&mut escaped) => false,
            b'\\' => {
                escaped = true;
                false
            }
            byte => byte == b'"',
        });
        return close.map_or(text.len(), |at| at + 2);
    }
    let stops = |c: char| c.is_ascii_whitespace() || "{}[],:\"".contains(c);
    // At least one character, so that whoever loops over tokens comes to an end.
    let first = text.chars().next().map_or(0, char::len_utf8);
    text[first..]
        .find(stops)
        .map_or(text.len(), |at| at + first)
}

/// The first bytes of a long text, cut at a character.
fn head(text: &str) -> &str {
    match text.char_indices().find(|(at, _)| *at >= LOOKED_AT) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

/// The text of one member of JSON data: strings as they are, numbers as they are written.
pub(crate) fn member(json: &[u8], name: &str) -> Option<String> {
    match serde_json::from_slice::<Value>(json).ok()?.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trunkline::core::envelope::JsonText;

    use super::*;

    fn json(text: &str) -> Data {
        Data::Json(JsonText::new(&Bytes::copy_from_slice(text.as_bytes())).unwrap())
    }

    #[test]
    fn data_fits_on_one_line() {
        for (data, columns, expected) in [
            (json(r#"{"total":1, "x":[]}"#), 40, r#"{"total":1, "x":[]}"#),
            (
                json("{\n  \"a\": 1,\n  \"b\": \"x  y\"\n}"),
                40,
                r#"{"a": 1, "b": "x  y"}"#,
            ),
            (json(r#"{"total":1}"#), 8, "{\"total…"),
            (json("\"\u{9b}31m\""), 40, "\"�31m\""),
            (Data::Text("a\n\x1b[2Jb".into()), 40, "a␊␛[2Jb"),
            (
                Data::Binary(Bytes::from_static(&[0; 2048])),
                40,
                "(2 KiB of binary data)",
            ),
            (Data::None, 40, ""),
            (json("1"), 0, ""),
        ] {
            assert_eq!(short(&data, columns), expected);
        }
    }

    #[test]
    fn data_is_laid_out_without_changing_a_token() {
        let data = json(r#"{"n":1.0e2,"s":"a\"{,}:\u001b","e":{},"l":[ 1, true,[]],"u":"ü"}"#);
        let look = |colours| Look { width: 80, colours };
        assert_eq!(
            full(&data, look(false)),
            "{\n  \"n\": 1.0e2,\n  \"s\": \"a\\\"{,}:\\u001b\",\n  \"e\": {},\n  \"l\": [\n    1,\n    true,\n    []\n  ],\n  \"u\": \"ü\"\n}"
        );
        assert_eq!(
            full(&json(r#"{"a":"b"}"#), look(true)),
            "{\n  \x1b[34m\"a\"\x1b[0m: \x1b[32m\"b\"\x1b[0m\n}"
        );
        let hidden = full(&json("\"\u{9b}2J\u{202e}\""), look(false));
        assert_eq!(hidden, "\"\\u009b2J\\u202e\"");
    }

    #[test]
    fn a_key_is_text_or_a_number() {
        let data = br#"{"id":"o-1","n":7,"l":[]}"#;
        for (name, key) in [
            ("id", Some("o-1")),
            ("n", Some("7")),
            ("l", None),
            ("x", None),
        ] {
            assert_eq!(member(data, name).as_deref(), key);
        }
    }
}
