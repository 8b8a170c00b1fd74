//! Where a key belongs: the one hash that every process and language must agree on.
//!
//! ```text
//! partitionkey ──fnv1a32──► 32 bits ──mod 256──► slot ──mod partitions──► partition
//! ```
//!
//! `WIRE.md` gives it to other languages; `testdata/slots.json` has the vectors.

/// How many slots there are.
pub const SLOTS: usize = 256;

/// The slot of a key: [`fnv1a32`] over its UTF-8 bytes, modulo [`SLOTS`].
///
/// ```
/// assert_eq!(trunkline_core::key::slot("order-1"), 109);
/// ```
pub const fn slot(key: &str) -> u8 {
    let [low, ..] = fnv1a32(key.as_bytes()).to_le_bytes();
    low
}

/// FNV-1a (Fowler, Noll, Vo) with 32 bits: for each byte exclusive-or, then times the prime.
pub const fn fnv1a32(bytes: &[u8]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    hash
}
