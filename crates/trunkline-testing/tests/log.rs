//! The contract on the embedded log: a directory for each property, used by its owner and by processes
//! that are attached to it.

use std::sync::Arc;

use trunkline_log::SyncPolicy;
use trunkline_testing::contract::{LogHarness, RemoteHarness};

mod owner {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(LogHarness::new()));
}

/// What is acknowledged before it is synced keeps every promise but that of surviving a loss of power.
mod relaxed {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(LogHarness::with(SyncPolicy::Os)));
}

mod attached {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(RemoteHarness::attached()));
}
