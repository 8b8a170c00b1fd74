//! Dead letters, one a row.

use trunkline::core::{Clock, SystemClock};
use trunkline::dead_letter::{Letter, Page, Stands};
use trunkline::{DeadLetters, Result};

use super::{List, json};
use crate::console::Console;
use crate::exit::Exit;
use crate::figures::{duration, grouped};
use crate::look::{Look, Style};
use crate::plain::{fit, width, without_controls};
use crate::table::{Cell, Table};

/// Columns that an error has at least; with fewer it would say nothing.
const MIN_ERROR: usize = 16;

pub(super) async fn run(
    letters: &DeadLetters,
    options: &List,
    console: &mut Console,
) -> Result<Exit> {
    let selection = options
        .state
        .iter()
        .fold(options.chosen.selection(), |selection, state| {
            selection.state(*state)
        });
    let page = Page {
        limit: options.limit,
        oldest_first: options.oldest_first,
        after: None,
    };
    let found = letters.list(&selection, &page).await?;
    print(&found.letters, console)?;
    if found.total == 0 {
        console.note("there is no such dead letter");
    } else if found.letters.len() < found.total {
        console.note(format_args!(
            "{} of {}; --limit shows more",
            grouped(found.letters.len() as u64),
            grouped(found.total as u64)
        ));
    }
    Ok(Exit::Done)
}

pub(super) fn print(letters: &[Letter], console: &mut Console) -> Result<()> {
    if console.json {
        for letter in letters {
            console.json_line(&json::letter(letter))?;
        }
    } else if !letters.is_empty() {
        console
            .out
            .text(table(letters, console.look).render(console.look))?;
    }
    console.out.flush()
}

/// The errors have what the other columns leave.
fn table(letters: &[Letter], look: Look) -> Table {
    let now = SystemClock.now();
    let mut titles = vec!["dead letter", ">age", "type", "reason"];
    // Mostly all of them are dead.
    let states = letters.iter().any(|letter| letter.stands() != Stands::Dead);
    if states {
        titles.push("state");
    }
    let mut rows = Vec::new();
    for letter in letters {
        let age = now.since(letter.at).as_secs();
        let record = letter.record.as_ref().ok();
        let event_type = record.and_then(|record| record.event_type.as_deref());
        let mut cells = vec![
            letter.id.to_string(),
            duration(std::time::Duration::from_secs(age)),
            event_type.unwrap_or("-").to_owned(),
            record
                .map_or("unreadable", |record| &record.reason)
                .to_owned(),
        ];
        if states {
            cells.push(letter.stands().to_string());
        }
        rows.push(cells);
    }
    let column = |(index, title): (usize, &&str)| {
        let cells = rows.iter().map(|row| width(&without_controls(&row[index])));
        cells
            .max()
            .unwrap_or(0)
            .max(width(title.trim_start_matches('>')))
    };
    let taken: usize = titles
        .iter()
        .enumerate()
        .map(column)
        .map(|width| width + 2)
        .sum();
    let room = look.width.saturating_sub(taken).max(MIN_ERROR);
    titles.push("error");
    let mut table = Table::new(&titles);
    for (letter, cells) in letters.iter().zip(rows) {
        let error = match &letter.record {
            Ok(record) => record.error.clone(),
            Err(fault) => fault.message().to_owned(),
        };
        let error = fit(&without_controls(&error), room).into_owned();
        let style = letter.record.as_ref().map_or(Style::Bad, |_| Style::Plain);
        let cells = cells.into_iter().map(Cell::from);
        table.row(cells.chain([Cell::styled(style, error)]));
    }
    table
}
