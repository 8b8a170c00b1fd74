//! Running dead letters again, and giving them up for good.

use serde_json::json as object;
use trunkline::dead_letter::{Changed, Letter, Page, Record, Stands, State};
use trunkline::{DeadLetters, Error, ErrorKind, Result};

use super::list::print;
use super::{Discarding, Replay, These, json};
use crate::ask;
use crate::console::Console;
use crate::exit::Exit;
use crate::figures::grouped;

pub(super) async fn replay(
    letters: &DeadLetters,
    options: &Replay,
    console: &mut Console,
) -> Result<Exit> {
    let (chosen, mut tally) = these(letters, &options.these, &[Stands::Dead], console).await?;
    if options.these.dry_run {
        return dry("replay", &chosen, &tally, console);
    }
    let mut has_keys = false;
    for letter in &chosen {
        tally.draw(console, chosen.len());
        let changed = letters.replay(letter).await;
        let has_key = |record: &Record| record.key.is_some();
        has_keys |= matches!(&changed, Ok(Changed::Now(record)) if has_key(record));
        tally.add(&letter.id.to_string(), changed, Stands::Replaying, console)?;
    }
    if has_keys {
        console.note(
            "note: later events of their keys may have run already, so that order is not kept, unless their consumer holds keys",
        );
    }
    tally.end("requested", console)
}

pub(super) async fn discard(
    letters: &DeadLetters,
    options: &Discarding,
    console: &mut Console,
) -> Result<Exit> {
    let states: &[Stands] = match options.replaying {
        true => &[Stands::Dead, Stands::Replaying],
        false => &[Stands::Dead],
    };
    let (chosen, mut tally) = these(letters, &options.these, states, console).await?;
    if options.these.dry_run {
        return dry("discard", &chosen, &tally, console);
    }
    if !options.yes && !chosen.is_empty() {
        let count = grouped(chosen.len() as u64);
        let question = format!("discard {count} dead letters for good?");
        let unasked = "a dead letter that is discarded is lost";
        if !ask::agreed(console, &question, unasked).await? {
            console.note("nothing was discarded");
            return Ok(Exit::Failed);
        }
    }
    let discard = options.discard();
    for letter in &chosen {
        tally.draw(console, chosen.len());
        let changed = letters.discard(letter, &discard).await;
        tally.add(&letter.id.to_string(), changed, Stands::Discarded, console)?;
    }
    if options.these.ids.is_empty() {
        // Room is mostly why many are discarded at once, so what was left before goes too.
        let swept = letters.sweep().await?;
        if swept.entries > 0 {
            let entries = grouped(swept.entries);
            console.note(format_args!(
                "{entries} entries that were dealt with before are removed too"
            ));
        }
    }
    tally.end("discarded", console)
}

/// The dead letters that are meant, the oldest first, and what went wrong with finding them.
async fn these(
    letters: &DeadLetters,
    these: &These,
    states: &[Stands],
    console: &mut Console,
) -> Result<(Vec<Letter>, Tally)> {
    let mut tally = Tally::default();
    let chooses = these.chosen.is_any();
    if these.ids.is_empty() != (chooses || these.all) {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            "say which dead letters are meant: their ids, or a choice such as --consumer, or --all",
        ));
    }
    let mut found = Vec::new();
    for id in &these.ids {
        match letters.find(id).await {
            Ok(letter) => found.push(letter),
            Err(error) => tally.add(&id.to_string(), Err(error), Stands::Dead, console)?,
        }
    }
    if these.ids.is_empty() {
        let selection = these.chosen.selection();
        let selection = states
            .iter()
            .fold(selection, |all, state| all.state(*state));
        let page = Page {
            limit: usize::MAX,
            oldest_first: true,
            after: None,
        };
        found = letters.list(&selection, &page).await?.letters;
        if found.is_empty() {
            console.note("there is no such dead letter");
        }
    }
    Ok((found, tally))
}

fn dry(verb: &str, chosen: &[Letter], tally: &Tally, console: &mut Console) -> Result<Exit> {
    print(chosen, console)?;
    let count = grouped(chosen.len() as u64);
    console.note(format_args!("would {verb} {count}; nothing was changed"));
    Ok(tally.exit())
}

/// What became of them.
#[derive(Default)]
struct Tally {
    done: u64,
    refused: u64,
}

impl Tally {
    fn draw(&self, console: &mut Console, total: usize) {
        let done = self.done + self.refused;
        console.progress(|| format!("{} of {}", grouped(done), grouped(total as u64)));
    }

    /// Says what became of one, which was to stand so.
    ///
    /// # Errors
    /// Those after which it makes no sense to go on.
    fn add(
        &mut self,
        id: &str,
        changed: Result<Changed>,
        wanted: Stands,
        console: &mut Console,
    ) -> Result<()> {
        let (outcome, fault) = match changed {
            Ok(Changed::Now(_)) if wanted == Stands::Replaying => ("requested", None),
            Ok(Changed::Now(_)) => (wanted.as_str(), None),
            Ok(Changed::Removed) => ("removed", None),
            Ok(Changed::Already(record)) => {
                let stands = record.state.stands();
                let fault = (stands != wanted).then(|| refused(&record, wanted));
                (stands.as_str(), fault)
            }
            Err(error) if is_hopeless(&error) => return Err(error.at(id)),
            Err(error) => ("failed", Some(error)),
        };
        match fault {
            None => self.done += 1,
            Some(_) => self.refused += 1,
        }
        console.clear_progress();
        if console.json {
            let mut line = object!({"dead_letter": id, "outcome": outcome});
            if let Some(error) = &fault {
                line["error"] = json::error(error);
            }
            return console.json_line(&line);
        }
        match fault {
            None => console.out.line(format!("{outcome} {id}")),
            Some(error) => {
                console.say(format_args!("{id}: {error}"));
                Ok(())
            }
        }
    }

    fn end(self, verb: &str, console: &mut Console) -> Result<Exit> {
        console.clear_progress();
        console.out.flush()?;
        if self.done + self.refused > 1 {
            let (done, refused) = (grouped(self.done), grouped(self.refused));
            console.note(format_args!("{done} {verb}, {refused} not"));
        }
        Ok(self.exit())
    }

    fn exit(&self) -> Exit {
        match (self.done, self.refused) {
            (_, 0) => Exit::Done,
            (0, _) => Exit::Failed,
            _ => Exit::PartlyRefused,
        }
    }
}

/// Whether the next one would end the same.
fn is_hopeless(error: &Error) -> bool {
    matches!(
        Exit::from(error.kind()),
        Exit::Unreachable | Exit::NotPermitted
    )
}

fn refused(record: &Record, wanted: Stands) -> Error {
    let stands = record.state.stands();
    let message = match &record.state {
        State::Replaying { by, at, .. } if wanted == Stands::Discarded => format!(
            "it is being replayed, requested by {by} at {at}; wait for the outcome, or add --replaying if no member of its consumer runs any more"
        ),
        _ => format!("it is {stands}"),
    };
    Error::new(ErrorKind::Conflict, message)
}
