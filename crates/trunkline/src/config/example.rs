//! The example file: every setting with its default, commented out, written from the table.

use super::env::{RESERVED, variable};
use super::table::{BUS, CONSUMER, Row, STREAM};

/// The longest line of a comment.
const WIDTH: usize = 96;

/// An example of a `trunkline.toml` with every setting there is: its default, what it is for, and
/// its environment variable.
///
/// All settings are commented out, so the file changes nothing as it is. Lines that begin with `#`
/// and a space are text; without the `#` of the others it says what is in force anyway.
pub fn example() -> String {
    let mut page = Page(String::new());
    page.text(
        "The configuration of a bus. Every setting has its default here and is commented out: take \
         the # away where you want another value.",
    );
    page.text("");
    page.text(
        "The file is ./trunkline.toml, or the one that TRUNKLINE_CONFIG names. An environment \
         variable goes before the file; a list has commas between its values there. \
         `trunkline config` prints what is in force and where each value came from.",
    );
    page.text("");
    page.text(
        "A duration has a unit (d, h, m, s, ms), as in \"5s\" or \"1h30m\". A size is a number of \
         bytes, or has a unit (KiB, MiB, GiB, kB, MB, GB).",
    );
    page.text("");
    page.text(&format!(
        "Other variables that begin with TRUNKLINE_ are refused, as unknown settings are, except {}.",
        RESERVED.join(", ")
    ));
    let mut section = "";
    for row in BUS {
        let (of, name) = row.key.rsplit_once('.').unwrap_or(("", row.key));
        if of != section {
            section = of;
            page.section(section);
        }
        page.setting(row, name, &variable(row.key));
    }
    page.section("streams.EVENTS");
    page.text(
        "Streams by name. EVENTS keeps durable events, COMMANDS commands, EVENTS_DLQ dead letters; \
         each has a section of its own, as [streams.COMMANDS]. Streams of other names are for \
         durable events too; beside them EVENTS is only made if it has a section.",
    );
    page.text("");
    page.text(
        "Differing defaults: COMMANDS has the subjects [\"commands.>\"] and the retention \
         \"work_queue\"; EVENTS_DLQ has [\"dlq.>\"], \"refuse_when_full\", a max_age of \"30d\" and \
         a max_message of \"2MiB\".",
    );
    for row in STREAM {
        page.setting(
            row,
            row.key,
            &variable(&format!("streams.EVENTS.{}", row.key)),
        );
    }
    page.section("consumers");
    page.text(
        "What every consumer does unless its code says otherwise. A section of one consumer, as \
         [consumers.billing], takes the same settings and goes before its code. The variable of \
         one has its name in it, as TRUNKLINE_CONSUMERS__BILLING__ACK_WAIT: the name as it stands; \
         in lower case, or with - for _, only if the file has such a section.",
    );
    for row in CONSUMER {
        page.setting(row, row.key, &variable(&format!("consumers.{}", row.key)));
    }
    page.0
}

struct Page(String);

impl Page {
    fn section(&mut self, name: &str) {
        self.0.push_str(&format!("\n\n[{name}]\n"));
    }

    fn setting<S>(&mut self, row: &Row<S>, name: &str, variable: &str) {
        self.0.push('\n');
        self.text(row.doc);
        self.text(&format!(
            "Write {}. Environment: {variable}",
            row.kind.form()
        ));
        self.0.push_str(&format!("#{name} = {}\n", row.default));
    }

    /// A comment, broken into lines between words.
    fn text(&mut self, text: &str) {
        let mut line = String::from("#");
        for word in text.split_whitespace() {
            if line.len() + 1 + word.len() > WIDTH {
                self.0.push_str(&line);
                self.0.push('\n');
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        self.0.push_str(&line);
        self.0.push('\n');
    }
}
