//! The contract over a connection: in virtual time, over TCP, and with the connection cut at random.

use std::sync::Arc;

use trunkline_testing::contract::RemoteHarness;

mod whole {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(RemoteHarness::in_virtual_time()));
}

mod cut {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(RemoteHarness::cut_in_virtual_time(1)));
}

mod tcp {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(RemoteHarness::over_tcp()));
}

mod tcp_cut {
    use super::*;

    trunkline_testing::contract_suite!(Arc::new(RemoteHarness::cut_over_tcp(1)));
}
