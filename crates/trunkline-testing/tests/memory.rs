//! The contract on the engine in memory.

use std::sync::Arc;

use trunkline_testing::contract::MemoryHarness;

mod shared {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(MemoryHarness::new("")));
}

mod encoded {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(MemoryHarness::new("?encode=always")));
}
