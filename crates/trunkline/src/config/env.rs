//! Reading the environment: `TRUNKLINE_SECTION__SETTING`, over what the file gives.

use trunkline_core::Name;

use super::Origin;
use super::given::Raw;
use super::load::{Given, Section};
use super::problem::{Fault, Problem, nearest};
use super::table::{BUS, CONSUMER, Row, STREAM};

/// What all our variables begin with.
const PREFIX: &str = "TRUNKLINE_";

/// Variables that are ours and no settings: the name of the file, and what our own tests and log
/// are told.
pub const RESERVED: [&str; 4] = [
    "TRUNKLINE_CONFIG",
    "TRUNKLINE_BLESS",
    "TRUNKLINE_NATS_SERVER",
    "TRUNKLINE_LOG",
];

/// What `trunkline worker` tells the commands that it runs. Such a command may well run `trunkline`.
const OF_WORKERS: [&str; 7] = [
    "TRUNKLINE_CONSUMER",
    "TRUNKLINE_STREAM",
    "TRUNKLINE_SEQ",
    "TRUNKLINE_ATTEMPT",
    "TRUNKLINE_EVENT_ID",
    "TRUNKLINE_EVENT_TYPE",
    "TRUNKLINE_KEY",
];

/// The variable of a setting: `TRUNKLINE_DOOR__LISTEN` of `door.listen`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

/// Puts the variables in place of what the file gives. The file was read before, so that sections
/// of it are known.
pub(super) fn read(
    variables: impl IntoIterator<Item = (String, String)>,
    given: &mut Given,
    problems: &mut Vec<Problem>,
) {
    let is_setting = |name: &str| {
        name.starts_with(PREFIX) && !RESERVED.contains(&name) && !OF_WORKERS.contains(&name)
    };
    let mut variables: Vec<_> = variables
        .into_iter()
        .filter(|(name, _)| is_setting(name))
        .collect();
    // In an order of its own, so that the same environment always gives the same answer.
    variables.sort();
    for (name, value) in variables {
        let origin = Origin::Environment { name: name.clone() };
        let found = target(&name, given).and_then(|(section, setting)| {
            let values = given.section(&section);
            match values.get(setting) {
                Some((_, Origin::Environment { name: other })) => Err(Fault::new(
                    format!("{other} gives the same setting"),
                    "keep one of the two",
                )),
                _ => {
                    values.insert(setting, (Raw::Untyped(value), origin.clone()));
                    Ok(())
                }
            }
        });
        if let Err(fault) = found {
            problems.push(Problem::new(&origin, "", fault));
        }
    }
}

/// The section and setting that a variable means.
fn target(variable: &str, given: &Given) -> Result<(Section, &'static str), Fault> {
    let path = variable.strip_prefix(PREFIX).unwrap_or(variable);
    if let Some(row) = BUS.iter().find(|row| self::variable(row.key) == variable) {
        return Ok((Section::Bus, row.key));
    }
    if let Some((name, setting)) = named(path, "STREAMS__") {
        let known = given.streams.keys();
        let name = section_name(name, known).map_err(|fault| fault.of("stream"))?;
        return Ok((Section::Stream(name), of_section(STREAM, setting)?));
    }
    if let Some((name, setting)) = named(path, "CONSUMERS__") {
        let known = given.named.keys();
        let name = section_name(name, known).map_err(|fault| fault.of("consumer"))?;
        return Ok((Section::Consumer(name), of_section(CONSUMER, setting)?));
    }
    if let Some(setting) = path.strip_prefix("CONSUMERS__")
        && let Some(row) = CONSUMER.iter().find(|row| spelt(row.key, setting))
    {
        return Ok((Section::Consumers, row.key));
    }
    let known: Vec<String> = BUS
        .iter()
        .map(|row| self::variable(row.key))
        .chain(
            CONSUMER
                .iter()
                .map(|row| self::variable(&format!("consumers.{}", row.key))),
        )
        .chain(RESERVED.map(str::to_owned))
        .collect();
    Err(Fault::new(
        "there is no such setting",
        match nearest(variable, known.iter().map(String::as_str)) {
            Some(near) => format!("write {near}, if that is meant"),
            None => "write a name that `trunkline config --example` lists, two underscores between section and setting, or take the variable away".to_owned(),
        },
    ))
}

/// The name and the setting in `STREAMS__NAME__SETTING`. A name may hold two underscores itself.
fn named<'a>(path: &'a str, section: &str) -> Option<(&'a str, &'a str)> {
    path.strip_prefix(section)?.rsplit_once("__")
}

fn of_section<S>(rows: &[Row<S>], setting: &str) -> Result<&'static str, Fault> {
    let found = rows.iter().find(|row| spelt(row.key, setting));
    found.map(|row| row.key).ok_or_else(|| {
        let known: Vec<String> = rows
            .iter()
            .map(|row| row.key.to_ascii_uppercase())
            .collect();
        let near = nearest(setting, known.iter().map(String::as_str));
        Fault::new(
            "there is no such setting",
            match near {
                Some(near) => format!("end it with __{near}, if that is meant"),
                None => format!("end it with one of __{}", known.join(", __")),
            },
        )
    })
}

fn spelt(key: &str, in_variable: &str) -> bool {
    key.to_ascii_uppercase() == in_variable
}

/// Why a name in a variable stands for no section.
enum Nameless {
    Illegal(String),
    Ambiguous(Vec<Name>),
}

impl Nameless {
    fn of(self, section: &str) -> Fault {
        match self {
            Nameless::Illegal(name) => Fault::new(
                format!("{name:?} cannot be the name of a {section}"),
                "write 1 to 64 characters of A-Z a-z 0-9 _",
            ),
            Nameless::Ambiguous(names) => {
                let names: Vec<_> = names.iter().map(Name::as_str).collect();
                Fault::new(
                    format!("it may mean each {section} of {}", names.join(", ")),
                    "write it into their sections of the file",
                )
            }
        }
    }
}

/// The section that a name in a variable means: as it stands; in lower case if the file has such a
/// section; with `-` for `_` if the file has one such section. Otherwise a section of that name is
/// new.
fn section_name<'a>(
    name: &str,
    known: impl Iterator<Item = &'a Name> + Clone,
) -> Result<Name, Nameless> {
    let lower = name.to_ascii_lowercase();
    for spelling in [name, &lower] {
        if let Some(known) = known.clone().find(|known| known.as_str() == spelling) {
            return Ok(known.clone());
        }
    }
    let hyphened: Vec<Name> = known
        .filter(|known| {
            let plain = known.as_str().replace('-', "_");
            plain == name || plain == lower
        })
        .cloned()
        .collect();
    match hyphened.as_slice() {
        [] => Name::new(name).map_err(|_| Nameless::Illegal(name.to_owned())),
        [only] => Ok(only.clone()),
        _ => Err(Nameless::Ambiguous(hyphened)),
    }
}
