//! `docs/errors.md` is generated from the table of error codes; `TRUNKLINE_BLESS=1` writes it.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test that panics has failed its test"
)]

use std::fmt::Write;
use std::path::Path;

use trunkline::core::error::CODES;

fn page() -> String {
    let mut page = "\
# Error codes

<!-- Generated from crates/trunkline-core/src/error.rs; see crates/trunkline-examples/tests/errors_page.rs. -->

Every error of Trunkline has one of these codes, the same in a Rust program, over HTTP and in the
log. A code is never reused. *Retryable* means that the same call may succeed later without
anything being changed; `Error::retryable()` answers the same in a program.

| code | in short | retryable |
|---|---|---|
"
    .to_owned();
    let yes_or_no = |retryable| if retryable { "yes" } else { "no" };
    for row in CODES {
        let (code, title) = (row.code, row.title);
        let anchor = code.to_lowercase();
        writeln!(
            page,
            "| [{code}](#{anchor}) | {title} | {} |",
            yes_or_no(row.retryable)
        )
        .unwrap();
    }
    for row in CODES {
        let (code, title, kind) = (row.code, row.title, row.kind);
        let anchor = code.to_lowercase();
        write!(
            page,
            "\n<a id=\"{anchor}\"></a>\n\n## {code}: {title}\n\n{}\n\n\
             **What to do:** {}\n\n\
             **Retryable:** {}. **In Rust:** `ErrorKind::{kind:?}`.\n",
            row.meaning,
            row.remedy,
            yes_or_no(row.retryable),
        )
        .unwrap();
    }
    page
}

#[test]
fn the_page_of_error_codes_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let page = page();
    if std::env::var_os("TRUNKLINE_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/errors.md is out of date; run this test with TRUNKLINE_BLESS=1"
    );
}
