//! Plans and changes in words.

use serde_json::{Value, json};
use trunkline::core::engine::{Change, StreamSpec};
use trunkline::core::plan::{Existing, Left, Plan, Why, duration_text, retention_text, size_text};
use trunkline::{Filter, Name};

use crate::look::{Look, Style};
use crate::plain::without_controls;

/// One line of a plan: a sign, and what it is about.
pub(super) struct Line {
    sign: char,
    text: String,
}

impl Line {
    fn new(sign: char, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            sign,
            text: without_controls(&text).into_owned(),
        }
    }

    pub(super) fn plain(&self) -> String {
        format!("{} {}", self.sign, self.text)
    }

    pub(super) fn painted(&self, look: Look) -> String {
        let style = match self.sign {
            '+' => Style::Good,
            '~' => Style::Warning,
            '!' => Style::Bad,
            _ => Style::Plain,
        };
        look.paint(style, &self.plain())
    }
}

/// The plan as it would be carried out with these streams adopted: `+` is made, `~` is changed, `!`
/// stays different.
pub(super) fn planned(plan: &Plan, adopt: &[Name]) -> Vec<Line> {
    let mut lines = Vec::new();
    for change in &plan.changes {
        if let Change::CreateStream(spec) = change {
            lines.push(Line::new('+', format!("create {}", described(spec))));
        }
    }
    for existing in &plan.existing {
        lines.extend(existing_lines(existing, adopt));
    }
    for name in &plan.undeclared {
        let text = format!("{name} is not declared: it stays as it is");
        lines.push(Line::new(' ', text));
    }
    lines
}

fn existing_lines(existing: &Existing, adopt: &[Name]) -> Vec<Line> {
    let name = existing.name();
    let is_adopted = !existing.is_ours() && adopt.contains(name);
    let is_changed = existing.update.is_ok() && (existing.is_ours() || is_adopted);
    let mut lines = Vec::new();
    if is_adopted && is_changed {
        lines.push(Line::new('~', format!("{name} is foreign: becomes ours")));
    }
    for difference in &existing.differences {
        let (setting, found, declared) =
            (difference.setting, &difference.found, &difference.declared);
        let cost = match difference.removes_events {
            true => " (events beyond it leave)",
            false => "",
        };
        let text = format!("{name} {setting}: {found} -> {declared}{cost}");
        lines.push(Line::new(if is_changed { '~' } else { '!' }, text));
    }
    if let Some(growth) = existing.growth
        && is_changed
    {
        let text = format!("{name} replicas: {} -> {}", growth.found, growth.declared);
        lines.push(Line::new('~', text));
    }
    match &existing.update {
        Err(why) if !existing.is_as_declared() || is_adopted => {
            lines.push(Line::new('!', format!("{name} {why}")));
        }
        Ok(_) if !is_changed && !existing.is_as_declared() => {
            let text = format!("{name} is foreign: adopt it with --adopt {name}");
            lines.push(Line::new('!', text));
        }
        _ => {}
    }
    lines
}

/// `stream EVENTS: events.>, discard_old, 7d, 3 copies`.
fn described(spec: &StreamSpec) -> String {
    let limits = [
        spec.max_events.map(|events| format!("{events} events")),
        spec.max_bytes.map(size_text),
        spec.max_age.map(duration_text),
    ];
    let mut parts = vec![
        texts(&spec.subjects).join(" "),
        retention_text(spec.retention).to_owned(),
    ];
    parts.extend(limits.into_iter().flatten());
    format!("stream {}: {}", spec.name, parts.join(", "))
}

/// What was done, in a line.
pub(super) fn done(plan: &Plan, change: &Change) -> String {
    match change {
        Change::CreateStream(spec) => format!("created {}", described(spec)),
        change => {
            let Some(existing) = existing(plan, change) else {
                return format!("changed {}", subject(change));
            };
            let verb = match existing.is_ours() {
                true => "updated",
                false => "adopted",
            };
            let rows: Vec<String> = rows(existing)
                .iter()
                .map(|row| {
                    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
                    format!(
                        "{} {} -> {}",
                        text("setting"),
                        text("found"),
                        text("declared")
                    )
                })
                .collect();
            let text = format!("{verb} stream {}", existing.name());
            match rows.is_empty() {
                true => text,
                false => format!("{text}: {}", rows.join(", ")),
            }
        }
    }
}

/// What a change is about.
pub(super) fn subject(change: &Change) -> String {
    match change {
        Change::CreateStream(spec) => format!("create stream {}", spec.name),
        Change::UpdateStream(spec) => format!("update stream {}", spec.name),
        _ => "an unknown change".to_owned(),
    }
}

/// Why a stream stays as it is.
pub(super) fn why(left: &Left) -> String {
    match &left.why {
        Why::Foreign => format!("it is foreign: adopt it with --adopt {}", left.stream),
        Why::Impossible(why) => format!("it {why}"),
    }
}

/// Each setting in which a stream differs, its copies included.
pub(super) fn rows(existing: &Existing) -> Vec<Value> {
    let row = |setting: &str, found: &str, declared: &str, removes: bool| {
        json!({
            "setting": setting, "found": found, "declared": declared, "removes_events": removes
        })
    };
    let mut rows: Vec<Value> = existing
        .differences
        .iter()
        .map(|d| row(d.setting, &d.found, &d.declared, d.removes_events))
        .collect();
    if let Some(growth) = existing.growth {
        let (found, declared) = (growth.found.to_string(), growth.declared.to_string());
        rows.push(row("replicas", &found, &declared, false));
    }
    rows
}

pub(super) fn change_json(plan: &Plan, change: &Change) -> Value {
    let existing = existing(plan, change);
    let (action, stream) = match change {
        Change::CreateStream(spec) => ("create", spec.name.as_str()),
        Change::UpdateStream(spec) if existing.is_some_and(|known| !known.is_ours()) => {
            ("adopt", spec.name.as_str())
        }
        Change::UpdateStream(spec) => ("update", spec.name.as_str()),
        _ => ("unknown", ""),
    };
    let differences = existing.map(rows).unwrap_or_default();
    json!({"action": action, "stream": stream, "differences": differences})
}

fn existing<'a>(plan: &'a Plan, change: &Change) -> Option<&'a Existing> {
    let Change::UpdateStream(spec) = change else {
        return None;
    };
    plan.existing
        .iter()
        .find(|known| *known.name() == spec.name)
}

pub(super) fn texts(filters: &[Filter]) -> Vec<String> {
    filters.iter().map(ToString::to_string).collect()
}
