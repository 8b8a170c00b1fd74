//! From a file and the environment to a configuration: pure, and all problems at once.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_core::engine::StreamSpec;
use trunkline_core::{Name, Result};

use super::given::Raw;
use super::problem::{Fault, Problem};
use super::table::{BUS, CONSUMER, Row, STREAM};
use super::{Config, ConsumerSettings, Loaded, Origin, Setting};
use super::{check, env, file, problem};
use crate::connect::{COMMANDS, DEAD_LETTERS, EVENTS, default_stream, roots};

/// What was given for the settings of one section.
pub(super) type Values = BTreeMap<&'static str, (Raw, Origin)>;

/// A part of the configuration.
#[derive(Clone, Debug)]
pub(super) enum Section {
    Bus,
    Stream(Name),
    Consumers,
    Consumer(Name),
}

impl Section {
    /// The whole key of a setting in it.
    pub(super) fn key(&self, setting: &str) -> String {
        match self {
            Section::Bus => setting.to_owned(),
            Section::Stream(name) => format!("streams.{name}.{setting}"),
            Section::Consumers => format!("consumers.{setting}"),
            Section::Consumer(name) => format!("consumers.{name}.{setting}"),
        }
    }
}

/// Everything that was given, before anybody knows what it means.
#[derive(Default)]
pub(super) struct Given {
    pub(super) bus: Values,
    pub(super) streams: BTreeMap<Name, Values>,
    pub(super) consumers: Values,
    pub(super) named: BTreeMap<Name, Values>,
    /// Where each section of the file begins, by its key with a dot.
    pub(super) headers: BTreeMap<String, Origin>,
}

impl Given {
    /// The values of a section, which exists from now on.
    pub(super) fn section(&mut self, section: &Section) -> &mut Values {
        match section {
            Section::Bus => &mut self.bus,
            Section::Stream(name) => self.streams.entry(name.clone()).or_default(),
            Section::Consumers => &mut self.consumers,
            Section::Consumer(name) => self.named.entry(name.clone()).or_default(),
        }
    }
}

/// Reads a configuration from a file, given as name and text, and from environment variables,
/// which go before it. Neither is touched: this does no I/O. Variables that do not begin with
/// `TRUNKLINE_` are none of ours.
///
/// ```
/// use trunkline::config::load;
///
/// let file = ("trunkline.toml", "[connection]\nrequest_timeout = \"3s\"");
/// let env = [("TRUNKLINE_SOURCE".to_owned(), "/shop".to_owned())];
/// let config = load(Some(file), env)?.config;
/// assert_eq!(config.link.request_timeout.as_secs(), 3);
/// assert_eq!(config.source, "/shop");
/// # Ok::<(), trunkline::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) with every problem there is, a
/// line each: where it is, which setting, what is wrong and what to write.
pub fn load(
    file: Option<(&str, &str)>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded> {
    let mut given = Given::default();
    let mut problems = Vec::new();
    if let Some((name, text)) = file {
        file::read(name, text, &mut given, &mut problems);
    }
    env::read(env, &mut given, &mut problems);
    let (loaded, unread) = apply(&given, &mut problems);
    check::check(&loaded, &given, &unread, &mut problems);
    if problems.is_empty() {
        Ok(loaded)
    } else {
        Err(problem::error(problems))
    }
}

/// Puts what was given in place of the defaults. Also gives the keys whose values could not be
/// read, so that nobody compares what is left of them.
fn apply(given: &Given, problems: &mut Vec<Problem>) -> (Loaded, BTreeSet<String>) {
    let mut config = Config::bare();
    let mut applied = Applied {
        values: Vec::new(),
        unread: BTreeSet::new(),
        problems,
    };
    applied.section(BUS, &Section::Bus, &mut config, &given.bus);
    for (name, mut spec) in declared(given, &config.prefix) {
        let none = Values::new();
        let values = given.streams.get(&name).unwrap_or(&none);
        applied.section(STREAM, &Section::Stream(name.clone()), &mut spec, values);
        config.streams.insert(name, spec);
    }
    let mut defaults = ConsumerSettings::built_in();
    applied.section(
        CONSUMER,
        &Section::Consumers,
        &mut defaults,
        &given.consumers,
    );
    config.consumers = defaults;
    for (name, values) in &given.named {
        let mut consumer = ConsumerSettings::default();
        let section = Section::Consumer(name.clone());
        applied.section(CONSUMER, &section, &mut consumer, values);
        config.named_consumers.insert(name.clone(), consumer);
    }
    let Applied { values, unread, .. } = applied;
    (Loaded { config, values }, unread)
}

/// The streams that will be declared, each with its defaults.
fn declared(given: &Given, prefix: &str) -> BTreeMap<Name, StreamSpec> {
    // A prefix that is wrong was refused before; the default one will do for the rest.
    let Ok(roots) = roots(Some(prefix)).or_else(|_| roots(None)) else {
        return BTreeMap::new();
    };
    let own = given
        .streams
        .keys()
        .any(|name| ![COMMANDS, DEAD_LETTERS].contains(&name.as_str()));
    let always = [Some(COMMANDS), Some(DEAD_LETTERS), (!own).then_some(EVENTS)];
    let names = always
        .into_iter()
        .flatten()
        .filter_map(|name| Name::new(name).ok());
    names
        .chain(given.streams.keys().cloned())
        .filter_map(|name| Some((name.clone(), default_stream(name, &roots).ok()?)))
        .collect()
}

struct Applied<'a> {
    values: Vec<Setting>,
    unread: BTreeSet<String>,
    problems: &'a mut Vec<Problem>,
}

impl Applied<'_> {
    fn section<S>(&mut self, rows: &[Row<S>], section: &Section, into: &mut S, values: &Values) {
        for row in rows {
            let key = section.key(row.key);
            let mut origin = Origin::Default;
            if let Some((raw, from)) = values.get(row.key) {
                origin = from.clone();
                if let Err(fault) = (row.write)(into, raw) {
                    let fault = if row.secret {
                        // Whatever reading said of it, nothing of the value gets out.
                        Fault::new(
                            "what is given cannot be read",
                            format!("write {}, without white space", row.kind.form()),
                        )
                    } else {
                        fault
                    };
                    self.problems.push(Problem::new(&origin, &key, fault));
                    self.unread.insert(key.clone());
                }
            }
            if let Some(value) = (row.read)(into) {
                self.values.push(Setting {
                    key,
                    value,
                    origin,
                    secret: row.secret,
                });
            }
        }
    }
}
