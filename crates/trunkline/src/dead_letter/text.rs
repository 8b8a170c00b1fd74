//! Free text in headers and in small values: cut to a length, and without what a header cannot hold.

/// The beginning of a text, in at most so many bytes and at the end of a character.
pub(super) fn abridged(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// A text as the value of a header, in at most so many bytes: control characters, `%`, and space at
/// either end are percent-encoded. What does not fit is cut off, never within an escape.
pub(super) fn escaped(text: &str, max_bytes: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_bytes));
    let last = text.len().saturating_sub(1);
    for (at, c) in text.char_indices() {
        let at_end = c == ' ' && (at == 0 || at == last);
        let is_escape = c == '%' || c.is_ascii_control() || at_end;
        let bytes = if is_escape { 3 } else { c.len_utf8() };
        if out.len() + bytes > max_bytes {
            break;
        }
        if is_escape {
            out.push_str(&format!("%{:02X}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// The text of a header's value. A percent sign without two hexadecimal digits stays as it is, and
/// so does a value that would not be UTF-8.
pub(super) fn unescaped(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        let decoded = match (*first, after) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match decoded {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| value.to_owned())
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_survives_as_a_header() {
        for (text, header) in [
            ("it is bad", "it is bad"),
            ("100% off", "100%25 off"),
            ("a\r\nb\0\t", "a%0D%0Ab%00%09"),
            (" größe ", "%20größe%20"),
            (" ", "%20"),
            ("", ""),
        ] {
            assert_eq!(escaped(text, 100), header);
            assert_eq!(unescaped(header), text);
        }
        for (value, text) in [("50% of %4", "50% of %4"), ("%c3%BC", "ü"), ("%ff", "%ff")] {
            assert_eq!(unescaped(value), text);
        }
    }

    #[test]
    fn a_cut_is_never_within_a_character_or_an_escape() {
        assert_eq!(abridged("größe", 3), "gr");
        assert_eq!(abridged("größe", 4), "grö");
        assert_eq!(abridged("a", 10), "a");
        assert_eq!(escaped("ab\ncd", 4), "ab");
        assert_eq!(escaped("ab\ncd", 5), "ab%0A");
        assert_eq!(escaped("üü", 3), "ü");
    }
}
