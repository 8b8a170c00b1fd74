//! Numbers as people read them: grouped, and with a unit.

use std::time::Duration;

/// Between groups of three digits: narrow, and no place to break a line.
const THIN: char = '\u{202f}';

/// `12 272`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(THIN);
        }
        text.push(digit);
    }
    text
}

/// `512 B`, `1.5 KiB`, `256 MiB`: rounded down, so that a limit never looks higher than it is.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Precise enough for one digit behind the point.
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let tenths = (value * 10.0).floor() / 10.0;
    format!("{} {}", short(tenths), UNITS[unit])
}

/// `340 µs`, `1.2 ms`, `30 s`, `2 min`, `7 d`: two units at most, and only where the second says
/// something.
pub(crate) fn duration(duration: Duration) -> String {
    const LONG: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let seconds = duration.as_secs();
    if seconds < 10 {
        let nanos = duration.as_nanos() as f64;
        return match nanos {
            0.0 => "0 s".to_owned(),
            ..1e6 => format!("{} µs", short(nanos / 1e3)),
            ..1e9 => format!("{} ms", short(nanos / 1e6)),
            _ => format!("{} s", short(nanos / 1e9)),
        };
    }
    let mut parts = Vec::new();
    let mut rest = seconds;
    for (size, unit) in LONG {
        if rest >= size && parts.len() < 2 {
            parts.push(format!("{} {unit}", grouped(rest / size)));
            rest %= size;
        } else if !parts.is_empty() {
            break;
        }
    }
    parts.join(" ")
}

/// Events a second; none where nothing can be said.
pub(crate) fn rate(events: u64, elapsed: Duration) -> u64 {
    let seconds = elapsed.as_secs_f64();
    if seconds <= 0.0 {
        return 0;
    }
    (events as f64 / seconds) as u64
}

/// One digit behind the point below 100, if it is not a zero.
fn short(value: f64) -> String {
    let text = if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{:.0}", value.floor())
    };
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_have_units() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (12_272, "12\u{202f}272"),
            (1_000_000, "1\u{202f}000\u{202f}000"),
        ] {
            assert_eq!(grouped(number), text);
        }
        for (number, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_536, "1.5 KiB"),
            (256 << 20, "256 MiB"),
            ((1 << 20) - 1, "1023 KiB"),
            ((2 << 20) - (32 << 10), "1.9 MiB"),
            (5 << 40, "5 TiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_have_two_units_at_most() {
        let micros = Duration::from_micros;
        for (length, text) in [
            (Duration::ZERO, "0 s"),
            (micros(340), "340 µs"),
            (micros(1_230), "1.2 ms"),
            (micros(1_000_000), "1 s"),
            (Duration::from_secs(30), "30 s"),
            (Duration::from_secs(125), "2 min 5 s"),
            (Duration::from_secs(7 * 86_400), "7 d"),
            (Duration::from_secs(86_400 + 61), "1 d"),
        ] {
            assert_eq!(duration(length), text);
        }
        assert_eq!(rate(100, Duration::from_millis(500)), 200);
    }
}
