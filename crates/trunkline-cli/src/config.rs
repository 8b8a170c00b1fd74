//! `trunkline config`: what is in force, and where it came from.

use clap::Args;
use serde_json::{Map, Value, json};
use trunkline::config::{Origin, Setting, example};
use trunkline::{Error, ErrorKind, Result};

use crate::console::Console;
use crate::global::Global;
use crate::look::{Look, Style};
use crate::open::configuration;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print an example file with every setting and its default.
    #[arg(long)]
    example: bool,
}

/// Prints the configuration that a program started here would have. Credentials are masked.
pub(crate) fn config(options: &Options, global: &Global, console: &mut Console) -> Result<()> {
    if options.example {
        console.out.text(example())?;
        return console.out.flush();
    }
    if global.url.is_some() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            "`config` prints what the file and the environment say, so --url has no place here; leave it out",
        ));
    }
    let values = configuration(global)?.values;
    if console.json {
        return console.json_document(&object(&values));
    }
    console.out.text(listing(&values, console.look))?;
    console.out.flush()
}

fn object(values: &[Setting]) -> Value {
    let entry = |setting: &Setting| {
        // What we write in TOML is JSON as well; a text is still right if one day it is not.
        let value = serde_json::from_str(&setting.value)
            .unwrap_or_else(|_| Value::String(setting.value.clone()));
        let entry = json!({"value": value, "from": setting.origin.to_string()});
        (setting.key.clone(), entry)
    };
    Value::Object(values.iter().map(entry).collect::<Map<_, _>>())
}

/// Key, value and origin in columns; what does not fit beside goes below, a little to the right.
fn listing(values: &[Setting], look: Look) -> String {
    let width = look.width;
    let longest = |text: fn(&Setting) -> usize| values.iter().map(text).max().unwrap_or(0);
    let key = longest(|setting| setting.key.chars().count());
    let value = longest(|setting| setting.value.chars().count());
    let origin = longest(|setting| setting.origin.to_string().chars().count());
    let (before_value, before_origin) = if key + 2 + value + 2 + origin <= width {
        (Gap::Column(key), Gap::Column(key + 2 + value))
    } else if key + 2 + value <= width {
        (Gap::Column(key), Gap::Line)
    } else {
        (Gap::Line, Gap::Line)
    };
    let mut text = String::new();
    for setting in values {
        let changed = setting.origin != Origin::Default;
        let mut entry = setting.key.clone();
        let mut column = setting.key.chars().count();
        before_value.add(&mut entry, &mut column);
        entry.push_str(&setting.value);
        column += setting.value.chars().count();
        // That nothing is changed needs no line of its own.
        if changed || before_origin != Gap::Line {
            before_origin.add(&mut entry, &mut column);
            entry.push_str(&setting.origin.to_string());
        }
        let style = if changed { Style::Strong } else { Style::Plain };
        text.push_str(&look.paint(style, &entry));
        text.push('\n');
    }
    text
}

/// What is between two parts of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// As many blanks as it takes to be two beyond this column.
    Column(usize),
    /// A new line.
    Line,
}

impl Gap {
    fn add(self, text: &mut String, column: &mut usize) {
        match self {
            Gap::Column(end) => {
                let blanks = (end + 2).saturating_sub(*column);
                text.push_str(&" ".repeat(blanks));
                *column += blanks;
            }
            Gap::Line => {
                text.push_str("\n    ");
                *column = 4;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use trunkline::config::load;

    use super::*;

    fn values() -> Vec<Setting> {
        let file = "url = \"nats://ann:hunter2@h\"\n[consumers]\nconcurrency = 4";
        let mut values = load(Some(("trunkline.toml", file)), []).unwrap().values;
        values.retain(|setting| {
            ["url", "door.expose", "consumers.concurrency"].contains(&setting.key.as_str())
        });
        values
    }

    #[test]
    fn a_listing_is_in_columns_as_far_as_they_fit() {
        let check = |width: usize, expected: &[&str]| {
            let look = Look {
                width,
                colours: false,
            };
            let listing = listing(&values(), look);
            assert_eq!(listing.lines().collect::<Vec<_>>(), expected, "{width}");
        };
        check(
            usize::MAX,
            &[
                r#"url                    "nats://ann:***@h"  trunkline.toml:1"#,
                r#"door.expose            false               default"#,
                r#"consumers.concurrency  4                   trunkline.toml:3"#,
            ],
        );
        check(
            50,
            &[
                r#"url                    "nats://ann:***@h""#,
                "    trunkline.toml:1",
                "door.expose            false",
                "consumers.concurrency  4",
                "    trunkline.toml:3",
            ],
        );
        check(
            40,
            &[
                "url",
                r#"    "nats://ann:***@h""#,
                "    trunkline.toml:1",
                "door.expose",
                "    false",
                "consumers.concurrency",
                "    4",
                "    trunkline.toml:3",
            ],
        );
    }

    #[test]
    fn only_what_is_changed_is_bold() {
        let look = Look {
            width: 200,
            colours: true,
        };
        let listing = listing(&values(), look);
        let bold: Vec<bool> = listing
            .lines()
            .map(|line| line.contains("\u{1b}[1m"))
            .collect();
        assert_eq!(bold, [true, false, true]);
    }

    #[test]
    fn json_has_values_of_their_own_types() {
        assert_eq!(
            object(&values()),
            json!({
                "url": {"value": "nats://ann:***@h", "from": "trunkline.toml:1"},
                "door.expose": {"value": false, "from": "default"},
                "consumers.concurrency": {"value": 4, "from": "trunkline.toml:3"},
            })
        );
    }

    #[test]
    fn every_value_is_json_too() {
        for setting in load(None, []).unwrap().values {
            assert!(
                serde_json::from_str::<Value>(&setting.value).is_ok(),
                "{}",
                setting.value
            );
        }
    }
}
