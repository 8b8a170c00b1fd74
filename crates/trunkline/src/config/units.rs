//! Durations and sizes as people write them.

use std::time::Duration;

use trunkline_core::plan::size_text;

use super::problem::Fault;

pub(super) use trunkline_core::plan::duration_text;

/// Units of a duration from the longest, with their milliseconds.
const DURATIONS: [(&str, u64); 5] = [
    ("d", 24 * 60 * 60 * 1_000),
    ("h", 60 * 60 * 1_000),
    ("m", 60 * 1_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Units of a size from the largest, with their bytes.
const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads `250ms`, `5s`, `2m`, `7d`, `1h30m`: whole numbers with units, the longest first.
pub(super) fn duration(text: &str) -> Result<Duration, Fault> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(without_unit(text));
    }
    let refuse = || {
        Fault::new(
            format!("{} is not a duration", super::problem::quoted(text)),
            "write whole numbers with the units d, h, m, s or ms, the longest first, as in \"5s\" or \"1h30m\"",
        )
    };
    let (mut rest, mut millis, mut units) = (text, 0_u64, DURATIONS.iter());
    while !rest.is_empty() {
        let (number, unit, after) = quantity(rest).ok_or_else(refuse)?;
        // The units left are only shorter ones, so that none comes twice or out of order.
        let (_, each) = units.find(|(known, _)| *known == unit).ok_or_else(refuse)?;
        millis = number
            .checked_mul(*each)
            .and_then(|more| millis.checked_add(more))
            .ok_or_else(refuse)?;
        rest = after;
    }
    if text.is_empty() {
        return Err(refuse());
    }
    Ok(Duration::from_millis(millis))
}

/// What to say of a bare number where a duration belongs.
pub(super) fn without_unit(number: &str) -> Fault {
    Fault::new(format!("{number} has no unit"), "give a unit, as in \"5s\"")
}

/// Reads `2MiB`, `64KiB`, `1GB` or a bare number of bytes.
pub(super) fn size(text: &str) -> Result<u64, Fault> {
    let refuse = || {
        Fault::new(
            format!("{} is not a size", super::problem::quoted(text)),
            "write a whole number of bytes, or one with the unit KiB, MiB, GiB, kB, MB or GB, as in \"2MiB\"",
        )
    };
    if let Ok(bytes) = text.parse() {
        return Ok(bytes);
    }
    let (number, unit, after) = quantity(text).ok_or_else(refuse)?;
    let each = SIZES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(unit));
    each.filter(|_| after.is_empty())
        .and_then(|(_, each)| number.checked_mul(*each))
        .ok_or_else(refuse)
}

/// As it is written in TOML: with a unit in quotes, or a bare number.
pub(super) fn size_value(bytes: u64) -> String {
    match size_text(bytes) {
        text if text.ends_with('B') => format!("\"{text}\""),
        text => text,
    }
}

/// A number, the letters behind it, and the rest.
fn quantity(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, rest) = text.split_at(digits);
    let letters = rest
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(rest.len());
    let (unit, after) = rest.split_at(letters);
    Some((number.parse().ok()?, unit, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_alike() {
        let check = |text: &str, millis: u64, written: &str| {
            let read = duration(text).unwrap();
            assert_eq!(read, Duration::from_millis(millis), "{text}");
            assert_eq!(duration_text(read), written);
            assert_eq!(duration(written).unwrap(), read);
        };
        check("250ms", 250, "250ms");
        check("5s", 5_000, "5s");
        check("120s", 120_000, "2m");
        check("1h30m", 5_400_000, "1h30m");
        check("7d", 604_800_000, "7d");
        check("1d1h1m1s1ms", 90_061_001, "1d1h1m1s1ms");
        check("0s", 0, "0s");
        for bad in [
            "",
            "s",
            "5 s",
            "5sec",
            "1.5h",
            "30m1h",
            "1h1h",
            "-5s",
            "5s ",
            "99999999999999999999s",
            "99999999999999d",
        ] {
            let fault = duration(bad).unwrap_err();
            assert!(fault.fix.contains("\"1h30m\""), "{bad:?}: {fault:?}");
        }
        let fault = duration("5").unwrap_err();
        assert_eq!(
            fault.to_string(),
            "5 has no unit; give a unit, as in \"5s\""
        );
    }

    #[test]
    fn sizes_are_read_and_written_alike() {
        let check = |text: &str, bytes: u64, written: &str| {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
            assert_eq!(size_value(bytes), written);
            assert_eq!(size(written.trim_matches('"')).unwrap(), bytes);
        };
        check("2MiB", 2 << 20, "\"2MiB\"");
        check("64kib", 64 << 10, "\"64KiB\"");
        check("1GB", 1_000_000_000, "1000000000");
        check("512B", 512, "512");
        check("1024", 1_024, "\"1KiB\"");
        check("0", 0, "0");
        for bad in [
            "",
            "MiB",
            "2 MiB",
            "1.5GiB",
            "-1",
            "2MiB2",
            "99999999999GiB",
        ] {
            assert!(size(bad).unwrap_err().fix.contains("\"2MiB\""), "{bad:?}");
        }
    }
}
