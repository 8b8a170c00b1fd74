//! Reading the file: which value stands where. What the values mean is for the table.

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use trunkline_core::Name;

use super::Origin;
use super::given::Raw;
use super::load::{Given, Section};
use super::problem::{Fault, Problem, nearest, quoted};
use super::table::{BUS, CONSUMER, Row, STREAM};

type Table<'t> = DeTable<'t>;
type Key<'t> = Spanned<std::borrow::Cow<'t, str>>;

/// What the file gives, and what is wrong with it as a file.
pub(super) fn read(name: &str, text: &str, given: &mut Given, problems: &mut Vec<Problem>) {
    let mut file = File {
        name,
        text,
        given,
        problems,
    };
    match DeTable::parse(text) {
        Ok(table) => file.top(table.get_ref()),
        Err(_) => file.unreadable(),
    }
}

struct File<'a> {
    name: &'a str,
    text: &'a str,
    given: &'a mut Given,
    problems: &'a mut Vec<Problem>,
}

impl File<'_> {
    /// Says everything that is wrong with the file as TOML. What could be read of it is not looked
    /// at: half a file would be refused for the other half.
    fn unreadable(&mut self) {
        let (_, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let place = self.place(error.span().map_or(0, |span| span.start));
            // The parser's message names what it expected and never quotes a value.
            let fault = Fault::new(
                error.message().trim_end(),
                "write `key = value` lines below `[section]` lines, texts in quotes",
            );
            self.problems.push(Problem::new(&place, "", fault));
        }
    }

    fn place(&self, offset: usize) -> Origin {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        Origin::File {
            name: self.name.to_owned(),
            line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
        }
    }

    fn refuse(&mut self, at: &Key<'_>, key: &str, fault: Fault) {
        let place = self.place(at.span().start);
        self.problems.push(Problem::new(&place, key, fault));
    }

    fn top(&mut self, table: &Table<'_>) {
        for (key, value) in table.iter() {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("connection" | "nats" | "door", DeValue::Table(section)) => {
                    for (inner, value) in section.iter() {
                        let full = format!("{}.{}", key.get_ref(), inner.get_ref());
                        self.setting(BUS, &Section::Bus, &full, inner, value);
                    }
                }
                ("streams", DeValue::Table(streams)) => self.streams(streams),
                ("consumers", DeValue::Table(consumers)) => self.consumers(consumers),
                (section @ ("connection" | "nats" | "door" | "streams" | "consumers"), _) => {
                    let fault = Fault::new(
                        "this is a section, not a setting",
                        format!("write its settings below a line [{section}]"),
                    );
                    self.refuse(key, section, fault);
                }
                // A key in quotes is one word, not a place in a section.
                (setting, _) if setting.contains('.') => {
                    let fault = Fault::new("there is no such setting", "write it without quotes");
                    self.refuse(key, setting, fault);
                }
                (setting, _) => self.setting(BUS, &Section::Bus, setting, key, value),
            }
        }
    }

    fn streams(&mut self, streams: &Table<'_>) {
        for (key, value) in streams.iter() {
            let full = format!("streams.{}", key.get_ref());
            let DeValue::Table(section) = value.get_ref() else {
                let fault = Fault::new(
                    "a stream is a section, not a setting",
                    "write its settings below a line with its name, as [streams.EVENTS]",
                );
                self.refuse(key, &full, fault);
                continue;
            };
            if let Some(name) = self.name_of(key, &full) {
                self.section(STREAM, key, &Section::Stream(name), section);
            }
        }
    }

    fn consumers(&mut self, consumers: &Table<'_>) {
        for (key, value) in consumers.iter() {
            let full = format!("consumers.{}", key.get_ref());
            let is_setting = CONSUMER.iter().any(|row| row.key == key.get_ref().as_ref());
            match value.get_ref() {
                DeValue::Table(section) if !is_setting => {
                    if let Some(name) = self.name_of(key, &full) {
                        self.section(CONSUMER, key, &Section::Consumer(name), section);
                    }
                }
                _ => self.setting(CONSUMER, &Section::Consumers, key.get_ref(), key, value),
            }
        }
    }

    fn name_of(&mut self, key: &Key<'_>, full: &str) -> Option<Name> {
        let name = Name::new(key.get_ref());
        if name.is_err() {
            let fault = Fault::new(
                format!("{} is not a name", quoted(key.get_ref())),
                "write 1 to 64 characters of A-Z a-z 0-9 _ -",
            );
            self.refuse(key, full, fault);
        }
        name.ok()
    }

    fn section<S>(&mut self, rows: &[Row<S>], at: &Key<'_>, section: &Section, table: &Table<'_>) {
        // It exists even if it says nothing: the environment may name it.
        self.given.section(section);
        let place = self.place(at.span().start);
        self.given.headers.insert(section.key(""), place);
        for (key, value) in table.iter() {
            self.setting(rows, section, key.get_ref(), key, value);
        }
    }

    fn setting<S>(
        &mut self,
        rows: &[Row<S>],
        section: &Section,
        setting: &str,
        at: &Key<'_>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let Some(row) = rows.iter().find(|row| row.key == setting) else {
            let fault = Fault::new("there is no such setting", hint(rows, section, setting));
            self.refuse(at, &section.key(setting), fault);
            return;
        };
        let origin = self.place(at.span().start);
        self.given
            .section(section)
            .insert(row.key, (raw(value.get_ref()), origin));
    }
}

/// What to write in place of a key that nobody knows.
fn hint<S>(rows: &[Row<S>], section: &Section, unknown: &str) -> String {
    let (part, name) = split(unknown);
    let here: Vec<_> = rows
        .iter()
        .map(|row| split(row.key))
        .filter_map(|(of, known)| (of == part).then_some(known))
        .collect();
    let top = matches!(section, Section::Bus) && part.is_empty();
    let sections = ["connection", "nats", "door", "streams", "consumers"];
    let known = here.iter().chain(sections.iter().filter(|_| top));
    if let Some(near) = nearest(name, known.copied()) {
        return format!("write {near}, if that is meant");
    }
    let elsewhere = BUS.iter().map(|row| split(row.key));
    match elsewhere
        .filter(|(_, known)| *known == name)
        .map(|(of, _)| of)
        .next()
    {
        Some("") => format!("write {name} above the first section"),
        Some(section) => format!("write {name} below a line [{section}]"),
        None if CONSUMER.iter().any(|row| row.key == name) => {
            format!("write {name} below a line [consumers] or [consumers.NAME]")
        }
        None if STREAM.iter().any(|row| row.key == name) => {
            format!("write {name} below a line [streams.NAME]")
        }
        None if top => format!(
            "write one of {}, or a section [connection], [nats], [door], [streams.NAME] or [consumers]",
            here.join(", ")
        ),
        None => format!("write one of {}", here.join(", ")),
    }
}

/// The section within the bus's settings, and the name in it.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => Raw::Integer(
            i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.to_string(), |number| number.to_string()),
        ),
        DeValue::Float(number) => Raw::Float(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Raw::Flag(*flag),
        DeValue::Datetime(time) => Raw::Time(time.to_string()),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Table(_) => Raw::Table,
    }
}
