//! `trunkline topology`: the streams themselves, beside what the configuration declares.

mod lines;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use trunkline::core::engine::Change;
use trunkline::core::plan::{Plan, retention_text};
use trunkline::topology::{Applied, Standing, Topology as Streams};
use trunkline::{Name, Result};

use crate::ask;
use crate::console::Console;
use crate::consumers;
use crate::exit::Exit;
use crate::figures::grouped;
use crate::global::Global;
use crate::interrupt::Interrupt;
use crate::look::Style;
use crate::open;
use crate::replay::name;
use crate::streams::{keeps, subjects};
use crate::table::{Cell, Table};
use lines::{done, planned};

/// What all of it is about, for the help of each.
const DECLARED: &str = "\
A stream is declared by its section in the configuration; EVENTS, COMMANDS and EVENTS_DLQ are also
without one, and then taken as they are. A stream is ours if Trunkline made or adopted it. What is
not declared is never changed, and nothing is ever deleted.";

#[derive(Debug, Subcommand)]
pub(crate) enum Topology {
    /// Every stream and consumer, and who made the streams.
    #[command(after_help = DECLARED)]
    Show,
    /// What `apply` would do. Ends with 0 if that is nothing, with 1 if there is something to do.
    #[command(after_help = DECLARED)]
    Plan,
    /// Make the streams as the configuration declares them. Ends with 1 if some stay different.
    #[command(after_help = DECLARED)]
    Apply(Apply),
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Change this stream although others made it, and take it for ours from now on; may be
    /// repeated.
    #[arg(long, value_name = "NAME", value_parser = name)]
    adopt: Vec<Name>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

/// Opens the streams of the bus in place of the bus, because that one would refuse what differs.
pub(crate) async fn topology(command: &Topology, global: &Global) -> Result<Exit> {
    let mut interrupt = Interrupt::listen()?;
    let mut console = Console::standard(global);
    let streams = tokio::select! {
        streams = open::topology(global) => streams?,
        () = interrupt.asked() => return Ok(Exit::Interrupted),
    };
    let done = tokio::select! {
        done = run(&streams, command, &mut console) => done,
        () = interrupt.asked() => Ok(Exit::Interrupted),
    };
    let flushed = console.out.flush();
    streams.close().await;
    let exit = done?;
    flushed?;
    Ok(exit)
}

async fn run(streams: &Streams, command: &Topology, console: &mut Console) -> Result<Exit> {
    match command {
        Topology::Show => {
            show(&streams.show().await?, console)?;
            Ok(Exit::Done)
        }
        Topology::Plan => plan(&streams.plan().await?, console),
        Topology::Apply(options) => apply(streams, options, console).await,
    }
}

fn show(standing: &Standing, console: &mut Console) -> Result<()> {
    if console.json {
        return console.json_document(&standing_json(standing));
    }
    let mut table = Table::new(&[
        "stream",
        "owner",
        "declared",
        "retention",
        "keeps",
        ">copies",
        ">events",
        "subjects",
    ]);
    for stream in &standing.streams {
        let is_declared = !standing.undeclared.contains(&stream.name);
        table.row([
            stream.name.as_str().into(),
            match stream.ours {
                true => "ours".into(),
                false => Cell::styled(Style::Warning, "foreign"),
            },
            match is_declared {
                true => "yes".into(),
                false => Cell::styled(Style::Warning, "no"),
            },
            retention_text(stream.retention).into(),
            keeps(stream).into(),
            match stream.replicas_declared {
                Some(declared) if stream.replicas < declared => {
                    Cell::styled(Style::Warning, format!("{} of {declared}", stream.replicas))
                }
                _ => grouped(stream.replicas as u64).into(),
            },
            grouped(stream.events).into(),
            subjects(stream).into(),
        ]);
    }
    console.out.text(table.render(console.look))?;
    if !standing.consumers.is_empty() {
        console.out.text("\n")?;
        let table = consumers::table(&standing.consumers, |_| true);
        console.out.text(table.render(console.look))?;
    }
    console.out.flush()
}

fn plan(plan: &Plan, console: &mut Console) -> Result<Exit> {
    if console.json {
        console.json_document(&plan_json(plan))?;
    } else {
        for line in planned(plan, &[]) {
            console.out.line(line.painted(console.look))?;
        }
        console.out.flush()?;
        if plan.is_empty() {
            console.note("nothing to do: the streams are as declared");
        }
    }
    Ok(match plan.is_empty() {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

async fn apply(streams: &Streams, options: &Apply, console: &mut Console) -> Result<Exit> {
    let plan = streams.plan().await?;
    let changes = plan.steps(&options.adopt)?.changes.len();
    if changes > 0 && !options.yes {
        for line in planned(&plan, &options.adopt) {
            console.say(line.plain());
        }
        let question = format!("make {}?", counted(changes));
        let unasked = format!("there is something to do ({})", counted(changes));
        if !ask::agreed(console, &question, &unasked).await? {
            console.note("nothing was changed");
            return Ok(Exit::Failed);
        }
    }
    let applied = streams.apply(&plan, &options.adopt).await?;
    told(&plan, applied, changes, console)
}

/// Says what was done, also before it fails.
fn told(plan: &Plan, applied: Applied, changes: usize, console: &mut Console) -> Result<Exit> {
    if console.json {
        console.json_document(&applied_json(plan, &applied))?;
    } else {
        for change in &applied.done {
            console.out.line(done(plan, change))?;
        }
        console.out.flush()?;
    }
    if let Some((change, error)) = applied.failed {
        console.say(format!(
            "stopped: {} of {} done",
            applied.done.len(),
            counted(changes)
        ));
        return Err(error.at(lines::subject(&change)));
    }
    for (stream, growth) in &applied.short {
        console.note(format!(
            "note: {stream} has {} of {} copies: there are no peers to keep more",
            growth.found, growth.declared
        ));
    }
    for left in &applied.left {
        console.say(format!(
            "note: {} stays as it is: {}",
            left.stream,
            lines::why(left)
        ));
    }
    if changes == 0 && applied.left.is_empty() {
        console.note("nothing to do: the streams are as declared");
    }
    Ok(match applied.left.is_empty() {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

fn counted(changes: usize) -> String {
    match changes {
        1 => "1 change".to_owned(),
        changes => format!("{} changes", grouped(changes as u64)),
    }
}

fn standing_json(standing: &Standing) -> Value {
    let facts = standing.facts.iter();
    let facts = facts.map(|fact| (fact.name.to_string(), Value::from(fact.value.as_str())));
    json!({
        "engine": standing.engine,
        "facts": Value::Object(facts.collect()),
        "streams": standing.streams,
        "consumers": standing.consumers,
        "undeclared": standing.undeclared.iter().map(Name::as_str).collect::<Vec<_>>(),
    })
}

fn plan_json(plan: &Plan) -> Value {
    let create = plan.changes.iter().filter_map(|change| match change {
        Change::CreateStream(spec) => Some(json!({
            "stream": spec.name.as_str(),
            "subjects": lines::texts(&spec.subjects),
            "retention": retention_text(spec.retention),
            "replicas": spec.replicas,
        })),
        _ => None,
    });
    let existing = plan.existing.iter().map(|existing| {
        json!({
            "stream": existing.name().as_str(),
            "ours": existing.is_ours(),
            "as_declared": existing.is_as_declared(),
            "differences": lines::rows(existing),
            "impossible": existing.update.as_ref().err(),
        })
    });
    json!({
        "to_do": !plan.is_empty(),
        "create": create.collect::<Vec<_>>(),
        "existing": existing.collect::<Vec<_>>(),
        "undeclared": plan.undeclared.iter().map(Name::as_str).collect::<Vec<_>>(),
    })
}

fn applied_json(plan: &Plan, applied: &Applied) -> Value {
    let left = applied
        .left
        .iter()
        .map(|left| json!({"stream": left.stream.as_str(), "why": lines::why(left)}));
    let short = applied.short.iter().map(|(stream, growth)| {
        json!({"stream": stream.as_str(), "replicas": growth.found, "declared": growth.declared})
    });
    let failed = applied.failed.as_ref().map(|(change, error)| {
        json!({
            "change": lines::change_json(plan, change),
            "code": error.code(),
            "message": error.message(),
        })
    });
    let done = applied.done.iter();
    json!({
        "done": done.map(|change| lines::change_json(plan, change)).collect::<Vec<_>>(),
        "failed": failed,
        "left": left.collect::<Vec<_>>(),
        "short_of_copies": short.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
