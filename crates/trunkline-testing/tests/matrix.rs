//! What each engine keeps of the contract, as a table. The suites beside this file run it.

use std::path::Path;
use std::sync::Arc;

use trunkline_testing::contract::{
    Harness, LogHarness, MemoryHarness, NatsHarness, RemoteHarness, matrix,
};

#[test]
fn the_capability_matrix_is_what_the_engines_declare() {
    let engines: [Arc<dyn Harness>; 6] = [
        Arc::new(MemoryHarness::new("")),
        Arc::new(MemoryHarness::new("?encode=always")),
        Arc::new(LogHarness::new()),
        Arc::new(RemoteHarness::attached()),
        Arc::new(RemoteHarness::in_virtual_time()),
        Arc::new(NatsHarness::new()),
    ];
    let generated = matrix(&engines);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/capabilities.md");
    if std::env::var_os("TRUNKLINE_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        committed,
        generated,
        "run again with TRUNKLINE_BLESS=1 to write {}",
        path.display()
    );
}
