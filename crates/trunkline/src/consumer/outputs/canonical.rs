//! JSON in its canonical form of RFC 8785: the same data is the same bytes in every language.
//!
//! It reads text and not values, because a value has forgotten what two different texts must not
//! share: the digits of an integer beyond 2^53, and a name that occurs twice.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use trunkline_core::{Error, ErrorKind, Result};

/// As deep as objects and arrays may lie within one another; JSON that is deeper nobody reads back.
const MAX_DEPTH: usize = 128;
/// Up to here a double holds every integer; beyond, different ones would become the same.
const EXACT: u64 = 1 << 53;

/// The canonical form of one JSON value: members by name in the order of UTF-16, no white space,
/// numbers and strings as ECMAScript writes them. What RFC 8785 leaves to the caller is decided so
/// that different data stays different: an integer beyond 2^53, written as one, keeps its digits, and
/// members of the same name keep their order.
///
/// # Errors
/// [`ErrorKind::Encode`] for what is not one JSON value, or is nested too deeply.
pub(super) fn canonical(json: &[u8]) -> Result<Vec<u8>> {
    let mut scan = Scan { json, at: 0 };
    let mut out = Vec::with_capacity(json.len());
    scan.value(&mut out, MAX_DEPTH)?;
    match scan.next() {
        None => Ok(out),
        Some(_) => Err(scan.refuse("more than one value")),
    }
}

struct Scan<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn refuse(&self, fault: &str) -> Error {
        let place = format!("byte {}", self.at);
        Error::new(ErrorKind::Encode, format!("the data is not JSON: {fault}")).at(place)
    }

    /// The next byte that is no white space, not yet taken.
    fn next(&mut self) -> Option<u8> {
        while let Some(byte) = self.json.get(self.at) {
            if !b" \t\r\n".contains(byte) {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Takes this byte if it is the next one.
    fn takes(&mut self, byte: u8) -> bool {
        let found = self.next() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<()> {
        let deeper = |scan: &Self| {
            depth
                .checked_sub(1)
                .ok_or_else(|| scan.refuse("nested more than 128 deep"))
        };
        match self.next() {
            Some(b'{') => self.object(out, deeper(self)?),
            Some(b'[') => self.array(out, deeper(self)?),
            Some(b'"') => {
                let text = self.string()?;
                write_string(&text, out)
            }
            Some(b'-' | b'0'..=b'9') => self.number(out),
            _ => self.word(out),
        }
    }

    fn object(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<()> {
        let mut members: Vec<(Cow<'a, str>, Vec<u8>)> = Vec::new();
        self.at += 1;
        if !self.takes(b'}') {
            loop {
                if self.next() != Some(b'"') {
                    return Err(self.refuse("a member without a name"));
                }
                let name = self.string()?;
                if !self.takes(b':') {
                    return Err(self.refuse("a name without a colon"));
                }
                let mut value = Vec::new();
                self.value(&mut value, depth)?;
                members.push((name, value));
                if self.takes(b'}') {
                    break;
                }
                if !self.takes(b',') {
                    return Err(self.refuse("members without a comma between"));
                }
            }
        }
        // Stable, so that members of one name keep their order.
        members.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
        out.push(b'{');
        for (index, (name, value)) in members.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_string(name, out)?;
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.push(b'}');
        Ok(())
    }

    fn array(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<()> {
        self.at += 1;
        out.push(b'[');
        if !self.takes(b']') {
            loop {
                self.value(out, depth)?;
                if self.takes(b']') {
                    break;
                }
                if !self.takes(b',') {
                    return Err(self.refuse("items without a comma between"));
                }
                out.push(b',');
            }
        }
        out.push(b']');
        Ok(())
    }

    fn string(&mut self) -> Result<Cow<'a, str>> {
        let start = self.at;
        let mut escapes = false;
        loop {
            self.at += 1;
            match self.json.get(self.at) {
                None => return Err(self.refuse("a string without an end")),
                Some(b'"') => break,
                Some(b'\\') => {
                    escapes = true;
                    self.at += 1;
                }
                Some(_) => {}
            }
        }
        self.at += 1;
        let token = &self.json[start..self.at];
        let text = match escapes {
            true => serde_json::from_slice(token).map(Cow::Owned),
            false => serde_json::from_slice(token).map(Cow::Borrowed),
        };
        text.map_err(|error| self.refuse("a string that is none").caused_by(error))
    }

    fn number(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let start = self.at;
        let part = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        let rest = &self.json[start..];
        self.at += rest
            .iter()
            .position(|byte| !part(byte))
            .unwrap_or(rest.len());
        let token = &self.json[start..self.at];
        // `serde_json` knows which numbers are none, such as `01` and `1.`, but reads others only
        // nearly.
        let refused = |error| self.refuse("a number that is none").caused_by(error);
        let IgnoredAny = serde_json::from_slice(token).map_err(refused)?;
        let text = std::str::from_utf8(token).unwrap_or_default();
        let is_whole = !token.iter().any(|byte| b".eE".contains(byte));
        let small = |whole: &i64| whole.unsigned_abs() <= EXACT;
        match (text.parse::<i64>().ok().filter(small), text.parse::<f64>()) {
            (Some(whole), _) if is_whole => out.extend_from_slice(whole.to_string().as_bytes()),
            (None, _) if is_whole => out.extend_from_slice(token),
            (_, Ok(double)) if double.is_finite() => write_double(double, out),
            _ => return Err(self.refuse("a number beyond every double")),
        }
        Ok(())
    }

    fn word(&mut self, out: &mut Vec<u8>) -> Result<()> {
        for word in ["true", "false", "null"] {
            if self.json[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                out.extend_from_slice(word.as_bytes());
                return Ok(());
            }
        }
        Err(self.refuse("neither a value nor the end of one"))
    }
}

/// As RFC 8785 has it in 3.2.2.2, which is what `serde_json` does: the two-character escapes where
/// there is one, `\u00..` in lower case for other control characters, all else as it is.
fn write_string(text: &str, out: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(out, text).map_err(|error| {
        Error::new(ErrorKind::Encode, "a string cannot be written").caused_by(error)
    })
}

/// As ECMAScript writes a number: `Number::toString`, RFC 8785, 3.2.2.3.
fn write_double(double: f64, out: &mut Vec<u8>) {
    if double == 0.0 {
        out.push(b'0');
        return;
    }
    // The fewest digits that are read back as this double, with one before the point; of two such
    // numbers that are as near, the even one, which is what rounding to as many digits gives.
    let size = double.abs();
    let mut shortest = format!("{size:e}");
    let places = shortest
        .split_once('e')
        .map_or(0, |(digits, _)| digits.len().saturating_sub(2));
    let rounded = format!("{size:.places$e}");
    if rounded.parse() == Ok(size) {
        shortest = rounded;
    }
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let digits = digits.replace('.', "");
    // Where the point is, counted from before the first digit.
    let point = exponent.parse::<i32>().unwrap_or_default() + 1;
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or_default());
    let text = match usize::try_from(point) {
        Ok(at) if at > 0 && count <= point && point <= 21 => {
            format!("{digits}{}", zeros(point - count))
        }
        Ok(at) if at > 0 && point <= 21 => format!("{}.{}", &digits[..at], &digits[at..]),
        _ if -6 < point && point <= 0 => format!("0.{}{digits}", zeros(-point)),
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            format!("{first}{dot}{rest}e{:+}", point - 1)
        }
    };
    if double < 0.0 {
        out.push(b'-');
    }
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Row {
        name: String,
        input: String,
        output: Option<String>,
    }

    #[test]
    fn the_vectors_of_the_wire_format_hold() {
        let rows = include_str!("../../../../trunkline-core/testdata/canonical-json.json");
        let rows: Vec<Row> = serde_json::from_str(rows).unwrap();
        assert!(rows.len() > 30);
        for Row {
            name,
            input,
            output,
        } in rows
        {
            let written =
                canonical(input.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap());
            match (written, output) {
                (Ok(written), Some(output)) => {
                    assert_eq!(written, output, "{name}");
                    let again = canonical(written.as_bytes()).unwrap();
                    assert_eq!(String::from_utf8(again).unwrap(), output, "{name}, again");
                }
                (Err(error), None) => assert_eq!(error.kind(), ErrorKind::Encode, "{name}"),
                (written, output) => panic!("{name}: {written:?}, not {output:?}"),
            }
        }
    }

    #[test]
    fn doubles_are_written_as_in_appendix_b_of_rfc_8785() {
        let check = |bits: u64, expected: &str| {
            let mut out = Vec::new();
            write_double(f64::from_bits(bits), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{bits:016x}");
        };
        check(0x0000_0000_0000_0000, "0");
        check(0x8000_0000_0000_0000, "0");
        check(0x0000_0000_0000_0001, "5e-324");
        check(0x8000_0000_0000_0001, "-5e-324");
        check(0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308");
        check(0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308");
        check(0x4340_0000_0000_0000, "9007199254740992");
        check(0xc340_0000_0000_0000, "-9007199254740992");
        check(0x4430_0000_0000_0000, "295147905179352830000");
        check(0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22");
        check(0x44b5_2d02_c7e1_4af6, "1e+23");
        check(0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23");
        check(0x444b_1ae4_d6e2_ef4e, "999999999999999700000");
        check(0x444b_1ae4_d6e2_ef4f, "999999999999999900000");
        check(0x444b_1ae4_d6e2_ef50, "1e+21");
        check(0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7");
        check(0x3eb0_c6f7_a0b5_ed8d, "0.000001");
        check(0x41b3_de43_5555_5553, "333333333.3333332");
        check(0x41b3_de43_5555_5554, "333333333.33333325");
        check(0x41b3_de43_5555_5555, "333333333.3333333");
        check(0x41b3_de43_5555_5556, "333333333.3333334");
        check(0x41b3_de43_5555_5557, "333333333.33333343");
        check(0xbecb_f647_612f_3696, "-0.0000033333333333333333");
        check(0x4314_3ff3_c1cb_0959, "1424953923781206.2");
    }
}
