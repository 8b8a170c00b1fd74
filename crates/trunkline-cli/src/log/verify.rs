//! `trunkline log verify`: every byte of a directory.

use serde_json::json;
use trunkline::Result;
use trunkline_log::inspect::{Directory, Finding, Remedy, Severity, Verification};

use crate::console::Console;
use crate::exit::Exit;
use crate::figures::{bytes, grouped};
use crate::look::Style;
use crate::table::Facts;

use super::{finding_json, lost, owner, owner_json, progress};

pub(super) fn run(directory: &Directory, console: &mut Console) -> Result<Exit> {
    let found = directory.verify(&mut |done| progress(console, done))?;
    console.clear_progress();
    let damaged = found.damage().count();
    if console.json {
        console.json_document(&json!({
            "directory": directory.path(),
            "damaged": damaged > 0,
            "owner": owner_json(found.owner),
            "files": found.files,
            "bytes": found.bytes,
            "streams": found.streams,
            "findings": found.findings.iter().map(finding_json).collect::<Vec<_>>(),
        }))?;
    } else {
        for finding in &found.findings {
            show(finding, directory, console)?;
        }
        console.out.line(summary(&found, damaged))?;
    }
    Ok(match damaged {
        0 => Exit::Done,
        _ => Exit::Failed,
    })
}

/// A finding for people.
pub(super) fn show(finding: &Finding, directory: &Directory, console: &mut Console) -> Result<()> {
    let mut facts = Facts::default();
    let place = finding.file.display();
    let place = match finding.offset {
        Some(offset) => format!("{place} at offset {offset}"),
        None => place.to_string(),
    };
    let style = match finding.severity {
        Severity::Damage => Style::Bad,
        _ => Style::Plain,
    };
    facts.styled(finding.severity.as_str(), style, place);
    facts.add("what", &finding.what);
    if let Some(sequences) = &finding.lost {
        facts.add("lost", lost(sequences));
    }
    if !finding.meaning.is_empty() {
        facts.add("meaning", &finding.meaning);
    }
    match finding.remedy {
        Remedy::Repair => facts.add(
            "remedy",
            format!("trunkline log repair {}", directory.path().display()),
        ),
        Remedy::Restore => facts.add(
            "remedy",
            "copy the whole directory again while nobody has it open, or restore it from a backup",
        ),
        Remedy::Opening | Remedy::Nothing => {}
    }
    let mut text = facts.render(console.look);
    text.push('\n');
    console.out.text(text)
}

fn summary(found: &Verification, damaged: usize) -> String {
    let read = format!(
        "read {} in {} files of {} streams; owner: {}",
        bytes(found.bytes),
        grouped(found.files),
        grouped(found.streams),
        owner(found.owner)
    );
    match damaged {
        0 => format!("sound: {read}"),
        1 => format!("damaged at one place: {read}"),
        places => format!("damaged at {places} places: {read}"),
    }
}
