//! Text from events, made fit for a terminal: nothing in it can move the cursor, set a colour or
//! turn the direction of writing, and it takes the columns that it is given.

use std::borrow::Cow;
use std::fmt::Write;

use unicode_width::UnicodeWidthChar;

/// One line: control characters are shown as pictures (`␛`, `␊`) or as `�`.
pub(crate) fn without_controls(text: &str) -> Cow<'_, str> {
    shown(text, is_active)
}

/// As [`without_controls`], but lines stay lines.
pub(crate) fn lines_without_controls(text: &str) -> Cow<'_, str> {
    shown(text, |c| c != '\n' && is_active(c))
}

/// The text of JSON, still the same value: what a terminal would act on can only be inside a
/// string, where it is written as an escape instead.
pub(crate) fn json_without_controls(text: &str) -> Cow<'_, str> {
    let active = |c: char| !matches!(c, '\n' | '\r' | '\t') && is_active(c);
    if !text.contains(active) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if active(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                // Writing to a string does not fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

fn shown(text: &str, active: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&active) {
        return Cow::Borrowed(text);
    }
    let picture = |c: char| match c {
        c if !active(c) => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        _ => '\u{fffd}',
    };
    Cow::Owned(text.chars().map(picture).collect())
}

/// Whether a terminal, or the algorithm of writing directions, acts on a character.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The columns that text takes on a terminal.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// The text in at most so many columns; what is cut at the end is marked.
pub(crate) fn fit(text: &str, columns: usize) -> Cow<'_, str> {
    if width_is_at_most(text, columns) {
        return Cow::Borrowed(text);
    }
    let Some(left) = columns.checked_sub(1) else {
        return Cow::Borrowed("");
    };
    let mut taken = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        taken += char_width(c);
        (taken > left).then_some(at)
    });
    Cow::Owned(format!("{}…", &text[..end.unwrap_or(text.len())]))
}

/// The text in at most so many columns; what is cut at the start is marked. For names whose last
/// part says most.
pub(crate) fn fit_end(text: &str, columns: usize) -> Cow<'_, str> {
    if width_is_at_most(text, columns) {
        return Cow::Borrowed(text);
    }
    let Some(left) = columns.checked_sub(1) else {
        return Cow::Borrowed("");
    };
    let mut taken = 0;
    let start = text.char_indices().rev().find_map(|(at, c)| {
        taken += char_width(c);
        (taken > left).then_some(at + c.len_utf8())
    });
    Cow::Owned(format!("…{}", &text[start.unwrap_or(0)..]))
}

/// Without looking at all of a long text.
fn width_is_at_most(text: &str, columns: usize) -> bool {
    let mut taken = 0;
    text.chars().all(|c| {
        taken += char_width(c);
        taken <= columns
    })
}

/// Adds spaces up to so many columns.
pub(crate) fn pad(text: &str, columns: usize) -> String {
    let mut padded = String::from(text);
    padded.extend(std::iter::repeat_n(
        ' ',
        columns.saturating_sub(width(text)),
    ));
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left() {
        let nasty = "a\x1b[2J\u{9b}31m\r\n\x07\x7f\u{202e}b\t\u{feff}";
        assert_eq!(without_controls(nasty), "a␛[2J�31m␍␊␇␡�b␉�");
        assert_eq!(
            lines_without_controls("TL-1: a\n  caused by: \x1b"),
            "TL-1: a\n  caused by: ␛"
        );
        assert!(matches!(
            without_controls("order.placed ü €"),
            Cow::Borrowed(_)
        ));
    }

    #[test]
    fn json_stays_the_same_value() {
        let json = "{\n  \"a\": \"\u{9b}31m \u{202e} \u{7f} ü\"\n}";
        let escaped = json_without_controls(json);
        assert_eq!(escaped, "{\n  \"a\": \"\\u009b31m \\u202e \\u007f ü\"\n}");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&escaped), value(json));
    }

    #[test]
    fn text_is_cut_by_columns_at_either_end() {
        for (text, columns, start, end) in [
            ("order.placed", 12, "order.placed", "order.placed"),
            ("order.placed", 8, "order.p…", "….placed"),
            ("日本語", 5, "日本…", "…本語"),
            ("日本語", 4, "日…", "…語"),
            ("ab", 1, "…", "…"),
            ("ab", 0, "", ""),
        ] {
            assert_eq!(fit(text, columns), start, "{text} {columns}");
            assert_eq!(fit_end(text, columns), end, "{text} {columns}");
        }
        assert_eq!(pad("語", 4), "語  ");
    }
}
