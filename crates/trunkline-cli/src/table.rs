//! Tables and facts for people. A table that does not fit becomes a block for each row.

use std::borrow::Cow;

use crate::look::{Look, Style};
use crate::plain::{pad, width, without_controls};

/// Between columns.
const GUTTER: &str = "  ";

pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

struct Column {
    title: &'static str,
    right: bool,
}

/// One value with its style.
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn styled(style: Style, text: impl AsRef<str>) -> Self {
        Self {
            // What comes from an event or a name must not act on a terminal.
            text: without_controls(text.as_ref()).into_owned(),
            style,
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(Style::Plain, text)
    }
}

impl Table {
    /// Columns by title; one that begins with `>` is aligned to the right, as numbers are.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| match title.strip_prefix('>') {
            Some(title) => Column { title, right: true },
            None => Column {
                title,
                right: false,
            },
        };
        Self {
            columns: titles.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn render(&self, look: Look) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(index));
                let widest = cells.map(|cell| width(&cell.text)).max();
                widest.unwrap_or(0).max(width(column.title))
            })
            .collect();
        let gutters = GUTTER.len() * widths.len().saturating_sub(1);
        if widths.iter().sum::<usize>() + gutters > look.width {
            return self.blocks(look);
        }
        let mut text = String::new();
        let header = self.columns.iter();
        let header = header.map(|column| (column.title, Style::Strong));
        self.line(&mut text, &widths, header, look);
        for row in &self.rows {
            let cells = row.iter().map(|cell| (cell.text.as_str(), cell.style));
            self.line(&mut text, &widths, cells, look);
        }
        text
    }

    fn line<'a>(
        &self,
        out: &mut String,
        widths: &[usize],
        cells: impl Iterator<Item = (&'a str, Style)>,
        look: Look,
    ) {
        let last = widths.len().saturating_sub(1);
        for (index, ((text, style), column)) in cells.zip(&self.columns).enumerate() {
            let space = " ".repeat(widths[index].saturating_sub(width(text)));
            let painted = look.paint(style, text);
            if column.right {
                out.push_str(&space);
            }
            out.push_str(&painted);
            if index < last {
                if !column.right {
                    out.push_str(&space);
                }
                out.push_str(GUTTER);
            }
        }
        out.push('\n');
    }

    fn blocks(&self, look: Look) -> String {
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            let mut facts = Facts::default();
            for (column, cell) in self.columns.iter().zip(row) {
                facts.styled(column.title, cell.style, &cell.text);
            }
            text.push_str(&facts.render(look));
        }
        text
    }
}

/// Names with values, one below the other.
#[derive(Default)]
pub(crate) struct Facts(Vec<(Cow<'static, str>, Cell)>);

impl Facts {
    pub(crate) fn add(&mut self, name: impl Into<Cow<'static, str>>, value: impl AsRef<str>) {
        self.styled(name, Style::Plain, value);
    }

    pub(crate) fn styled(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        style: Style,
        value: impl AsRef<str>,
    ) {
        // A name may come from a server, as a value may.
        let name = match name.into() {
            name @ Cow::Borrowed(_) => name,
            Cow::Owned(name) => Cow::Owned(without_controls(&name).into_owned()),
        };
        self.0.push((name, Cell::styled(style, value)));
    }

    /// The names in one column, and long values wrapped behind it.
    pub(crate) fn render(&self, look: Look) -> String {
        let names = self.0.iter().map(|(name, _)| width(name)).max();
        let indent = names.unwrap_or(0) + ": ".len();
        let room = look.width.saturating_sub(indent).max(10);
        let mut text = String::new();
        for (name, cell) in &self.0 {
            let label = look.paint(Style::Name, name);
            let space = indent.saturating_sub(width(name) + 1);
            text.push_str(&format!("{label}:{}", " ".repeat(space)));
            for (index, line) in wrapped(&cell.text, room).iter().enumerate() {
                if index > 0 {
                    text.push_str(&pad("", indent));
                }
                text.push_str(&look.paint(cell.style, line));
                text.push('\n');
            }
        }
        text
    }
}

/// Lines of whole words; a word that is longer than a line has one of its own.
pub(crate) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if width(line) + 1 + width(word) <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams() -> Table {
        let mut table = Table::new(&["stream", ">events", "subjects"]);
        table.row(["EVENTS", "12\u{202f}272", "events.>"].map(Cell::from));
        table.row([
            Cell::styled(Style::Bad, "DL\x1bQ"),
            "0".into(),
            "dlq.> and some more words".into(),
        ]);
        table
    }

    fn check(width: usize, colours: bool, expected: &str) {
        let rendered = streams().render(Look { width, colours });
        assert_eq!(rendered, expected, "{rendered}");
    }

    #[test]
    fn a_table_is_aligned_and_becomes_blocks_where_it_does_not_fit() {
        check(
            80,
            false,
            "stream  events  subjects\n\
             EVENTS  12\u{202f}272  events.>\n\
             DL␛Q         0  dlq.> and some more words\n",
        );
        check(
            30,
            false,
            "stream:   EVENTS\nevents:   12\u{202f}272\nsubjects: events.>\n\n\
             stream:   DL␛Q\nevents:   0\nsubjects: dlq.> and some more\n          words\n",
        );
        check(
            80,
            true,
            "\x1b[1mstream\x1b[0m  \x1b[1mevents\x1b[0m  \x1b[1msubjects\x1b[0m\n\
             EVENTS  12\u{202f}272  events.>\n\
             \x1b[31mDL␛Q\x1b[0m         0  dlq.> and some more words\n",
        );
    }

    #[test]
    fn words_are_wrapped_and_never_cut() {
        for (text, columns, lines) in [
            ("a bb ccc", 4, vec!["a bb", "ccc"]),
            ("longword a", 4, vec!["longword", "a"]),
            ("", 4, vec![""]),
        ] {
            assert_eq!(wrapped(text, columns), lines);
        }
    }
}
