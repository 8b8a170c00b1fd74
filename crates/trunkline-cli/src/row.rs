//! One event on one line, for people.
//!
//! ```text
//! 12:03:04.123  order.placed  o-1  {"total":1}
//! 12:03:04.200 ~order.viewed  o-1  {}              an ephemeral event
//! ```

use clap::ValueEnum;
use trunkline::core::{Clock, SystemClock};
use trunkline::{Incoming, Timestamp};

use crate::look::{Look, Style};
use crate::moment::Times;
use crate::payload::{full, short};
use crate::plain::{fit, fit_end, pad, width, without_controls};

/// Below this many columns there is no room for the key, nor for fractions of a second.
const NARROW: usize = 60;
const GUTTER: usize = 2;

/// How much of an event's data is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Payload {
    /// Nothing.
    None,
    /// What fits on the line.
    #[default]
    Short,
    /// All of it, laid out below the line.
    Full,
}

/// Lines below one another. Columns grow with what they show, up to a limit, and never shrink, so
/// that they do not jump about.
pub(crate) struct Rows {
    payload: Payload,
    times: Times,
    type_width: usize,
    key_width: usize,
    /// The day of the last line; told where it changes.
    day: String,
}

impl Rows {
    pub(crate) fn new(payload: Payload, utc: bool) -> Self {
        let times = if utc { Times::utc() } else { Times::local() };
        Self::from(payload, times, SystemClock.now())
    }

    fn from(payload: Payload, times: Times, now: Timestamp) -> Self {
        Self {
            payload,
            day: times.date(now),
            times,
            type_width: 0,
            key_width: 0,
        }
    }

    /// The event's lines, their ends included.
    pub(crate) fn render(&mut self, event: &Incoming, look: Look) -> String {
        let envelope = &event.envelope;
        let stored = event.stored.as_ref().map(|stored| stored.at);
        let at = stored.or(envelope.time());
        let mut text = at.map(|at| self.new_day(at, look)).unwrap_or_default();
        let narrow = look.width < NARROW;
        let clock = match at {
            Some(at) if narrow => self.times.short_clock(at),
            Some(at) => self.times.clock(at),
            None => pad("", if narrow { 8 } else { 12 }),
        };
        let mut left = look.width.saturating_sub(width(&clock) + GUTTER);
        text.push_str(&look.paint(Style::Faint, &clock));
        text.push_str(if stored.is_some() { "  " } else { " ~" });

        let event_type = without_controls(envelope.event_type());
        let limit = self.type_limit(look.width, left);
        self.type_width = self.type_width.max(width(&event_type)).min(limit);
        let shown = fit_end(&event_type, self.type_width);
        let style = Style::of_name(envelope.event_type());
        let space = self.type_width - width(&shown);
        text.push_str(&look.paint(style, &shown));
        text.push_str(&pad("", space + GUTTER));
        left = left.saturating_sub(self.type_width + GUTTER);

        if !narrow {
            let key = without_controls(envelope.key().unwrap_or_default());
            let limit = if look.width < 100 { 16 } else { 24 };
            self.key_width = self.key_width.max(width(&key)).min(limit);
            if self.key_width > 0 {
                let shown = fit(&key, self.key_width);
                text.push_str(&pad(&shown, self.key_width + GUTTER));
                left = left.saturating_sub(self.key_width + GUTTER);
            }
        }
        if self.payload == Payload::Short {
            text.push_str(&short(envelope.data(), left));
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
        if self.payload == Payload::Full {
            for line in full(envelope.data(), look).lines() {
                text.push_str("  ");
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }

    fn type_limit(&self, columns: usize, left: usize) -> usize {
        match self.payload {
            Payload::Short if columns < NARROW => columns * 7 / 20,
            Payload::Short => columns * 3 / 10,
            // Nothing else needs the room but a key.
            Payload::None | Payload::Full if columns < NARROW => left,
            Payload::None | Payload::Full => left / 2,
        }
    }

    fn new_day(&mut self, at: Timestamp, look: Look) -> String {
        let day = self.times.date(at);
        if day == self.day {
            return String::new();
        }
        let line = look.paint(Style::Faint, &format!("── {day} ──"));
        self.day = day;
        line + "\n"
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trunkline::core::Subject;
    use trunkline::core::envelope::JsonText;
    use trunkline::raw::Stored;
    use trunkline::{Data, Envelope, EventId, Headers, Name};

    use super::*;

    fn event(at: &str, event_type: &str, key: Option<&str>, data: &str) -> Incoming {
        let data = Data::Json(JsonText::new(&Bytes::copy_from_slice(data.as_bytes())).unwrap());
        let id = EventId::new("e1").unwrap();
        let mut envelope = Envelope::new(id, "/shop", event_type, data).unwrap();
        if let Some(key) = key {
            envelope = envelope.with_key(key);
        }
        Incoming {
            envelope: envelope.into(),
            headers: Headers::new(),
            subject: Subject::new("events.x").unwrap(),
            stored: Some(Stored {
                stream: Name::new("EVENTS").unwrap(),
                seq: 1,
                at: at.parse().unwrap(),
            }),
        }
    }

    fn check(width: usize, colours: bool, payload: Payload, expected: &str) {
        let now = "2026-01-31T13:00:00Z".parse().unwrap();
        let mut rows = Rows::from(payload, Times::utc(), now);
        let look = Look { width, colours };
        let long = format!("{{\"text\":\"{}\"}}", "x".repeat(100));
        let mut text = String::new();
        for event in [
            event(
                "2026-01-30T23:59:59.5Z",
                "order.placed",
                Some("o-1"),
                r#"{"total":1}"#,
            ),
            event("2026-01-31T12:03:04.123Z", "a.b", None, &long),
            event(
                "2026-01-31T12:03:05Z",
                "com.example.warehouse.shipment.announced",
                Some("a key that is far too long\u{1b}"),
                "\"\u{9b}\"",
            ),
        ] {
            text.push_str(&rows.render(&event, look));
        }
        let mut viewed = event("2026-01-31T12:03:05Z", "order.viewed", Some("o-1"), "{}");
        viewed.stored = None;
        text.push_str(&rows.render(&viewed, look));
        assert_eq!(text, expected, "\n{text}");
        let fits = |line: &str| crate::plain::width(line) <= width;
        assert!(colours || payload == Payload::Full || text.lines().all(fits));
    }

    #[test]
    fn eighty_columns_have_room_for_everything() {
        check(
            80,
            false,
            Payload::Short,
            "── 2026-01-30 ──\n\
             23:59:59.500  order.placed  o-1  {\"total\":1}\n\
             ── 2026-01-31 ──\n\
             12:03:04.123  a.b                {\"text\":\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…\n\
             12:03:05.000  …ouse.shipment.announced  a key that is f…  \"�\"\n\
             \u{20}            ~order.viewed              o-1               {}\n",
        );
    }

    #[test]
    fn forty_columns_have_no_key_and_the_end_of_the_type() {
        check(
            40,
            false,
            Payload::Short,
            "── 2026-01-30 ──\n\
             23:59:59  order.placed  {\"total\":1}\n\
             ── 2026-01-31 ──\n\
             12:03:04  a.b           {\"text\":\"xxxxxx…\n\
             12:03:05  …ent.announced  \"�\"\n\
             \u{20}        ~order.viewed    {}\n",
        );
    }

    #[test]
    fn no_data_leaves_its_room_to_the_type() {
        check(
            40,
            false,
            Payload::None,
            "── 2026-01-30 ──\n\
             23:59:59  order.placed\n\
             ── 2026-01-31 ──\n\
             12:03:04  a.b\n\
             12:03:05  ….warehouse.shipment.announced\n\
             \u{20}        ~order.viewed\n",
        );
    }

    #[test]
    fn colours_and_full_data() {
        let now = "2026-01-31T13:00:00Z".parse().unwrap();
        let mut rows = Rows::from(Payload::Full, Times::utc(), now);
        let event = event(
            "2026-01-31T12:00:00Z",
            "order.placed",
            Some("o-1"),
            r#"{"a":1}"#,
        );
        let look = Look {
            width: 80,
            colours: true,
        };
        let style = look.paint(Style::of_name("order.placed"), "order.placed");
        assert_eq!(
            rows.render(&event, look),
            format!(
                "\x1b[2m12:00:00.000\x1b[0m  {style}  o-1\n  {{\n    \x1b[34m\"a\"\x1b[0m: \x1b[36m1\x1b[0m\n  }}\n"
            )
        );
    }
}
