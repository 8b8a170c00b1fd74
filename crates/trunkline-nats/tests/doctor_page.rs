//! `docs/doctor.md` is generated from the table of rules; `TRUNKLINE_BLESS=1` writes it.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test that panics has failed its test"
)]

use std::fmt::Write;
use std::path::Path;

use trunkline_nats::doctor::{RULES, Severity};

fn page() -> String {
    let mut page = "\
# What the doctor finds

<!-- Generated from crates/trunkline-nats/src/doctor/rules.rs; see crates/trunkline-nats/tests/doctor_page.rs. -->

`trunkline doctor --url nats://HOST:4222` looks at any NATS server, made by Trunkline or not, and says
what is mis-wired, in order of harm, each with the command that mends it. It changes nothing. It ends
with 0 when nothing was found, 1 with findings, 4 when the server cannot be reached and 5 when its
credentials allow no look. `--json` writes one document.

What it can see depends on what it is given, and it lists what it did not see:

| given | seen besides |
|---|---|
| `--url` | streams, consumers, the subjects and the last messages stored, limits, versions, replicas |
| `--monitor http://HOST:8222` | live subscriptions of that server's clients, how it flushes to disk, its storage |
| `--seconds N`, `--watch FILTER` | what is published meanwhile, and whether requests are answered |
| `--expect FILE` | what is declared, as JSON with filters under `durable`, `ephemeral`, `requests` and `replayed` |

While it listens a request that nobody hears times out for its sender, where else it would fail at
once: the doctor hears it. Whether `max_file_store` is the whole volume cannot be seen from outside;
keep it at 80 % or below.

"
    .to_owned();
    for severity in Severity::ALL {
        let (name, meaning) = (severity.as_str(), severity.meaning());
        writeln!(
            page,
            "## {name}: {meaning}\n\n| code | in short |\n|---|---|"
        )
        .unwrap();
        for rule in RULES.iter().filter(|rule| rule.severity == severity) {
            let anchor = rule.code.to_lowercase();
            writeln!(page, "| [{}](#{anchor}) | {} |", rule.code, rule.title).unwrap();
        }
        page.push('\n');
    }
    page.push_str("## Every finding\n");
    for rule in RULES {
        let (code, title, severity) = (rule.code, rule.title, rule.severity.as_str());
        let anchor = code.to_lowercase();
        write!(
            page,
            "\n<a id=\"{anchor}\"></a>\n\n### {code}: {title}\n\n*{severity}.* {}\n",
            rule.explanation
        )
        .unwrap();
    }
    page
}

#[test]
fn the_page_of_findings_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/doctor.md");
    let page = page();
    if std::env::var_os("TRUNKLINE_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/doctor.md is out of date; run this test with TRUNKLINE_BLESS=1"
    );
}
