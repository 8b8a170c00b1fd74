//! The contract on NATS: a real server for each property.

use std::sync::Arc;

use trunkline_testing::contract::{Harness, NatsHarness, PROPERTIES, Time, run_one};

mod pinned {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(NatsHarness::new()));
}

/// Everything but what is about load.
fn keeps_the_contract(version: &str) {
    let harness: Arc<dyn Harness> = Arc::new(NatsHarness::release(version));
    for property in PROPERTIES {
        if property.time == Time::Virtual {
            run_one(&harness, property.name);
        }
    }
}

/// The oldest server that will do.
#[test]
fn release_2_12_2_keeps_the_contract() {
    keeps_the_contract("2.12.2");
}

#[test]
fn release_2_14_6_keeps_the_contract() {
    keeps_the_contract("2.14.6");
}
