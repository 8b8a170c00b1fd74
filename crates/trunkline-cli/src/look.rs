//! How output looks: its width, and whether it has colours.

use std::io::IsTerminal;

use crate::global::Color;

/// What is taken where nobody knows.
const USUAL_WIDTH: usize = 80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Columns of a line.
    pub(crate) width: usize,
    pub(crate) colours: bool,
}

impl Look {
    /// That of standard output.
    pub(crate) fn of_stdout(color: Color) -> Self {
        Self {
            width: width(),
            colours: match color {
                Color::Always => true,
                Color::Never => false,
                Color::Auto => std::io::stdout().is_terminal() && !is_set("NO_COLOR"),
            },
        }
    }

    /// The text in a style, if there are colours.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        match style.code() {
            Some(code) if self.colours && !text.is_empty() => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// The present width, which changes while a command runs.
pub(crate) fn width() -> usize {
    let terminal = terminal_size::terminal_size_of(std::io::stdout());
    let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
    let told = terminal.map(|(width, _)| usize::from(width.0));
    told.or_else(columns)
        .filter(|width| *width > 0)
        .unwrap_or(USUAL_WIDTH)
        .clamp(20, 1_000)
}

/// By <https://no-color.org> any value but the empty one counts.
fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// What colours mean here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    /// Headings and what matters most.
    Strong,
    /// What is there for orientation only.
    Faint,
    Good,
    Bad,
    Warning,
    /// Names within JSON, and of facts.
    Name,
    /// One of a few colours by which equal things are seen to be equal.
    Tag(u8),
}

/// Colours that are told apart on dark and on light backgrounds.
const TAGS: [&str; 6] = ["36", "32", "33", "35", "34", "96"];

impl Style {
    /// The colour of a name: the same in every run.
    pub(crate) fn of_name(name: &str) -> Self {
        // FNV-1a, because it needs four lines and must never change between versions of Rust.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        Self::Tag((hash % TAGS.len() as u32) as u8)
    }

    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Strong => Some("1"),
            Self::Faint => Some("2"),
            Self::Good => Some("32"),
            Self::Bad => Some("31"),
            Self::Warning => Some("33"),
            Self::Name => Some("34"),
            Self::Tag(index) => TAGS.get(usize::from(index)).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_only_where_they_are_wanted() {
        let plain = Look {
            width: 80,
            colours: false,
        };
        let colours = Look {
            colours: true,
            ..plain
        };
        assert_eq!(plain.paint(Style::Bad, "no"), "no");
        assert_eq!(colours.paint(Style::Bad, "no"), "\x1b[31mno\x1b[0m");
        assert_eq!(colours.paint(Style::Plain, "so"), "so");
        assert_eq!(colours.paint(Style::Bad, ""), "");
    }

    #[test]
    fn a_name_has_one_colour_for_ever() {
        assert_eq!(
            Style::of_name("order.placed"),
            Style::of_name("order.placed")
        );
        let seen: std::collections::BTreeSet<_> = (0..50)
            .map(|n| Style::of_name(&format!("type.{n}")).code())
            .collect();
        assert_eq!(seen.len(), TAGS.len());
    }
}
