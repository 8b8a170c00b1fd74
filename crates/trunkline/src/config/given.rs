//! Values as they were given, and reading them as what a setting needs.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use trunkline_core::Filter;
use trunkline_core::engine::Position;

use super::problem::{Fault, quoted};
use super::units;
use super::url::Url;
use crate::consumer::partitions;

/// What a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Url,
    Flag,
    Count,
    Share,
    Duration,
    Size,
    Address,
    Position,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A count, a duration or a size, or this word in its place.
    CountOr(&'static str),
    DurationOr(&'static str),
    SizeOr(&'static str),
    Texts,
    Durations,
    Filters,
}

impl Kind {
    /// What to write, with an example.
    pub(super) fn form(self) -> String {
        let or = |form: &str, word: &str| format!("{form}, or \"{word}\"");
        let text = match self {
            Kind::Text => "a text in quotes",
            Kind::Url => "a URL in quotes, as \"memory:\"",
            Kind::Flag => "true or false",
            Kind::Count => "a whole number",
            Kind::Share => "a number from 0 to 1, as 0.2",
            Kind::Duration => "a duration with its unit, as \"5s\" or \"1h30m\"",
            Kind::Size => "a size, as \"2MiB\" or a number of bytes",
            Kind::Address => "an address and a port, as \"127.0.0.1:7400\" or \"[::1]:7400\"",
            Kind::Position => {
                "\"first\", \"new\", \"last:N\", \"last-per-subject\", a sequence or an RFC 3339 time"
            }
            Kind::Choice(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
                return words.join(" or ");
            }
            Kind::CountOr(word) => return or(&Kind::Count.form(), word),
            Kind::DurationOr(word) => return or(&Kind::Duration.form(), word),
            Kind::SizeOr(word) => return or(&Kind::Size.form(), word),
            Kind::Texts => "a list of texts, as [\"a\", \"b\"]",
            Kind::Durations => "a list of durations, as [\"1s\", \"5m\"]",
            Kind::Filters => "a list of subjects with their root, as [\"events.order.>\"]",
        };
        text.to_owned()
    }
}

/// A value as it was given. It may be a secret, so it has no `Debug`.
#[derive(Clone)]
pub(super) enum Raw {
    Text(String),
    Integer(String),
    Float(String),
    Flag(bool),
    Time(String),
    List(Vec<Raw>),
    Table,
    /// From the environment, which knows nothing but text.
    Untyped(String),
}

type Read<T> = Result<T, Fault>;

impl Raw {
    /// The value as it would be quoted to somebody.
    fn shown(&self) -> String {
        match self {
            Raw::Text(text) | Raw::Untyped(text) => quoted(text),
            Raw::Integer(text) | Raw::Float(text) | Raw::Time(text) => text.clone(),
            Raw::Flag(flag) => flag.to_string(),
            Raw::List(_) => "a list".to_owned(),
            Raw::Table => "a table".to_owned(),
        }
    }

    fn no(&self, kind: Kind) -> Fault {
        Fault::new(
            format!("{} is not what belongs here", self.shown()),
            format!("write {}", kind.form()),
        )
    }

    /// Text, in quotes where there are any.
    fn quoted_text(&self, kind: Kind) -> Read<&str> {
        match self {
            Raw::Text(text) | Raw::Untyped(text) => Ok(text),
            _ => Err(self.no(kind)),
        }
    }

    /// What is written without quotes in a file.
    fn number(&self, kind: Kind) -> Read<&str> {
        match self {
            Raw::Integer(text) | Raw::Float(text) | Raw::Untyped(text) => Ok(text),
            Raw::Text(text) if text.parse::<f64>().is_ok() => Err(Fault::new(
                format!("{text:?} is a text"),
                format!("write {text} without quotes"),
            )),
            _ => Err(self.no(kind)),
        }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self, Raw::Text(text) | Raw::Untyped(text) if text == word)
    }

    /// Items of a list; in the environment they have commas between.
    fn items(&self, kind: Kind) -> Read<Vec<Raw>> {
        match self {
            Raw::List(items) => Ok(items.clone()),
            Raw::Untyped(text) if text.trim().is_empty() => Ok(Vec::new()),
            Raw::Untyped(text) => Ok(text
                .split(',')
                .map(|item| Raw::Untyped(item.trim().to_owned()))
                .collect()),
            _ => Err(self.no(kind)),
        }
    }

    pub(super) fn text(&self) -> Read<String> {
        self.quoted_text(Kind::Text).map(str::to_owned)
    }

    /// Never quotes what it refuses.
    pub(super) fn url(&self) -> Read<Url> {
        match self {
            Raw::Text(text) | Raw::Untyped(text)
                if !text.is_empty()
                    && !text.chars().any(|c| c.is_whitespace() || c.is_control()) =>
            {
                Ok(Url::from(text.as_str()))
            }
            _ => Err(Fault::new(
                "what is given is no URL",
                format!("write {} and without white space", Kind::Url.form()),
            )),
        }
    }

    pub(super) fn flag(&self) -> Read<bool> {
        match self {
            Raw::Flag(flag) => Ok(*flag),
            Raw::Untyped(text) => text.parse().map_err(|_| self.no(Kind::Flag)),
            _ => Err(self.no(Kind::Flag)),
        }
    }

    /// A whole number, of any type that the setting keeps it in.
    pub(super) fn count<N: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Read<N> {
        let text = self.number(Kind::Count)?;
        // Programs write `10_000` in the environment too; a file has lost the marks by now.
        let number: u64 = text
            .replace('_', "")
            .parse()
            .map_err(|_| self.no(Kind::Count))?;
        let fits = N::try_from(number).ok().filter(|_| range.contains(&number));
        fits.ok_or_else(|| outside(&number, &spaced(*range.start()), &spaced(*range.end())))
    }

    /// Into how many partitions a consumer is divided.
    pub(super) fn partitions(&self) -> Read<u16> {
        let number: u64 = self.count(0..=u64::MAX)?;
        let fits = u16::try_from(number).ok();
        let fits = fits.filter(|number| partitions::check(*number).is_ok());
        fits.ok_or_else(|| {
            Fault::new(
                format!("{number} is no power of two up to {}", partitions::MOST),
                format!("write {}", partitions::ALLOWED),
            )
        })
    }

    pub(super) fn count_or<N: TryFrom<u64>>(
        &self,
        range: RangeInclusive<u64>,
        word: &'static str,
    ) -> Read<Option<N>> {
        if self.is_word(word) {
            return Ok(None);
        }
        match self {
            Raw::Integer(_) | Raw::Untyped(_) => self
                .count(range)
                .map(Some)
                .map_err(|fault| with_word(fault, word)),
            _ => Err(self.no(Kind::CountOr(word))),
        }
    }

    /// As [`count_or`](Self::count_or) from 0, where -1 stands for the word too.
    pub(super) fn attempts_or(&self, word: &'static str) -> Read<Option<u32>> {
        match self {
            Raw::Integer(text) | Raw::Untyped(text) if text == "-1" => Ok(None),
            _ => self.count_or(0..=u64::from(u32::MAX), word),
        }
    }

    pub(super) fn share(&self) -> Read<f64> {
        let number: f64 = self
            .number(Kind::Share)?
            .parse()
            .map_err(|_| self.no(Kind::Share))?;
        if (0.0..=1.0).contains(&number) {
            Ok(number)
        } else {
            Err(outside(&number, "0", "1"))
        }
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Read<Duration> {
        if let Raw::Integer(number) | Raw::Float(number) = self {
            return Err(units::without_unit(number));
        }
        let duration = units::duration(self.quoted_text(Kind::Duration)?)?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let text = |duration: &Duration| format!("\"{}\"", units::duration_text(*duration));
        Err(outside(
            &text(&duration),
            &text(range.start()),
            &text(range.end()),
        ))
    }

    pub(super) fn duration_or(
        &self,
        range: RangeInclusive<Duration>,
        word: &'static str,
    ) -> Read<Option<Duration>> {
        if self.is_word(word) {
            return Ok(None);
        }
        self.duration(range)
            .map(Some)
            .map_err(|fault| with_word(fault, word))
    }

    pub(super) fn size<N: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Read<N> {
        let bytes = match self {
            Raw::Text(text) | Raw::Untyped(text) | Raw::Integer(text) => units::size(text)?,
            _ => return Err(self.no(Kind::Size)),
        };
        let fits = N::try_from(bytes).ok().filter(|_| range.contains(&bytes));
        fits.ok_or_else(|| {
            let [given, least, most] = [bytes, *range.start(), *range.end()].map(units::size_value);
            outside(&given, &least, &most)
        })
    }

    pub(super) fn size_or<N: TryFrom<u64>>(
        &self,
        range: RangeInclusive<u64>,
        word: &'static str,
    ) -> Read<Option<N>> {
        if self.is_word(word) {
            return Ok(None);
        }
        self.size(range)
            .map(Some)
            .map_err(|fault| with_word(fault, word))
    }

    pub(super) fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Read<T> {
        let chosen = choices.iter().find(|(word, _)| self.is_word(word));
        chosen.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = choices
                .iter()
                .map(|(word, _)| format!("{word:?}"))
                .collect();
            Fault::new(
                format!("{} is not one of the choices", self.shown()),
                format!("write {}", words.join(" or ")),
            )
        })
    }

    pub(super) fn address(&self) -> Read<SocketAddr> {
        let text = self.quoted_text(Kind::Address)?;
        let numeric = text
            .strip_prefix("localhost:")
            .map(|port| format!("127.0.0.1:{port}"));
        let address = numeric.as_deref().unwrap_or(text).parse();
        address.map_err(|_| self.no(Kind::Address))
    }

    pub(super) fn position(&self) -> Read<Position> {
        let text = match self {
            Raw::Text(text) | Raw::Untyped(text) | Raw::Integer(text) | Raw::Time(text) => text,
            _ => return Err(self.no(Kind::Position)),
        };
        text.parse().map_err(|_| self.no(Kind::Position))
    }

    pub(super) fn texts(&self) -> Read<Vec<String>> {
        let items = self.items(Kind::Texts)?;
        items
            .iter()
            .map(|item| {
                item.quoted_text(Kind::Texts)
                    .ok()
                    .filter(|text| !text.is_empty())
                    .map(str::to_owned)
                    .ok_or_else(|| item.no(Kind::Texts))
            })
            .collect()
    }

    pub(super) fn durations(&self, range: &RangeInclusive<Duration>) -> Read<Vec<Duration>> {
        let items = self.items(Kind::Durations)?;
        items
            .iter()
            .map(|item| item.duration(range.clone()))
            .collect()
    }

    pub(super) fn filters(&self) -> Read<Vec<Filter>> {
        let items = self.items(Kind::Filters)?;
        items
            .iter()
            .map(|item| {
                let text = item
                    .quoted_text(Kind::Filters)
                    .map_err(|_| item.no(Kind::Filters))?;
                Filter::new(text).map_err(|_| {
                    Fault::new(
                        format!("{} is not a filter over subjects", item.shown()),
                        "write tokens with dots between, where `*` is one token and `>` at the end is one or more, as \"events.order.>\"",
                    )
                })
            })
            .collect()
    }
}

fn outside(given: &impl Display, least: &str, most: &str) -> Fault {
    Fault::new(
        format!("{given} is out of range"),
        format!("write {least} to {most}"),
    )
}

fn with_word(fault: Fault, word: &str) -> Fault {
    Fault {
        fix: format!("{}, or \"{word}\"", fault.fix),
        ..fault
    }
}

/// Digits as TOML takes them, in groups of three.
fn spaced(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}
