//! The contract on the embedded log: a directory for each property, used by its owner and by processes
//! that are attached to it.

use std::sync::Arc;

use trunkline_testing::contract::{LogHarness, RemoteHarness};

mod owner {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(LogHarness::new()));
}

mod attached {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(RemoteHarness::attached()));
}
