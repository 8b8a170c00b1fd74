//! Ports that nobody else is likely to take.

use std::hash::{BuildHasher, RandomState};

/// Below what Linux and macOS give to outgoing connections. A port from there could be taken by
/// anybody's connection while its server is down for a restart; a client that reconnects without
/// pause could even be given it and connect to itself.
const FIRST: u16 = 16_384;
const COUNT: u16 = 16_384;

/// A port to try. Whether it is free shows when the server binds it, which is the only moment at
/// which that is known; if not, another one is tried.
pub(crate) fn candidate() -> u16 {
    // Every `RandomState` has keys of its own.
    let random = RandomState::new().hash_one(std::process::id());
    FIRST + (random % u64::from(COUNT)) as u16
}
