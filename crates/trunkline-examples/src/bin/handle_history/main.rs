//! Handles commits as `history` writes them, in one of two ways; prints what it did as JSON.
//!
//! ```text
//! handle_history < history.ndjson                       a bus of its own, two consumers, see `own_bus`
//! handle_history --url URL --consumer NAME --member M   one member of a consumer of a bus that
//!                --out FILE --expect N                  runs elsewhere, see `attached`
//!                [--ack-wait-ms N] [--hang-after N]
//! ```

mod attached;
mod own_bus;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use attached::Member;
use trunkline::{Error, ErrorKind, Result};

const USAGE: &str = "usage: handle_history < HISTORY
       handle_history --url URL --consumer NAME --member NAME --out FILE --expect EVENTS
                      [--ack-wait-ms N] [--hang-after EVENTS]";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let report = if arguments.is_empty() {
        own_bus::run().await
    } else {
        match member(&arguments) {
            Ok(member) => attached::run(member).await,
            Err(fault) => {
                // Nobody is left to tell if standard error is gone.
                let _ = writeln!(std::io::stderr(), "handle_history: {fault}\n{USAGE}");
                return ExitCode::from(2);
            }
        }
    };
    match report.and_then(|report| say(&report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "handle_history: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// One line on standard output, there at once for whoever waits for it.
fn say(line: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|error| Error::new(ErrorKind::Internal, "standard output").caused_by(error))
}

fn member(arguments: &[String]) -> std::result::Result<Member, String> {
    let mut member = Member {
        ack_wait: Duration::from_secs(30),
        ..Member::default()
    };
    let mut arguments = arguments.iter();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        let number = || {
            let number: Result<u64, _> = value.parse();
            number.map_err(|_| format!("{name} is a number, not {value:?}"))
        };
        match name.as_str() {
            "--url" => member.url.clone_from(value),
            "--consumer" => member.consumer.clone_from(value),
            "--member" => member.name.clone_from(value),
            "--out" => member.out = value.into(),
            "--expect" => member.expect = number()?,
            "--ack-wait-ms" => member.ack_wait = Duration::from_millis(number()?),
            "--hang-after" => member.hang_after = Some(number()?),
            _ => return Err(format!("unknown argument {name:?}")),
        }
    }
    for (name, given) in [
        ("--url", !member.url.is_empty()),
        ("--consumer", !member.consumer.is_empty()),
        ("--member", !member.name.is_empty()),
        ("--out", !member.out.as_os_str().is_empty()),
        ("--expect", member.expect > 0),
    ] {
        if !given {
            return Err(format!("{name} is missing"));
        }
    }
    Ok(member)
}
