//! Bloom filters in blocks: most of what is not there is known not to be, at the cost of one look
//! into memory.

use crate::frame::Fields;

const BITS_EACH: usize = 16;
/// All bits of one hash lie in one block, which is a line of the processor's cache.
const BLOCK_BITS: u64 = 512;
const PROBES: u32 = 7;

pub(crate) fn hash_id(id: u128) -> u64 {
    // An id is a hash already.
    (id as u64) ^ ((id >> 64) as u64)
}

pub(crate) fn hash_text(text: &str) -> u64 {
    use std::hash::Hasher;
    // The keys are part of the format.
    let mut hasher = siphasher::sip::SipHasher13::new_with_keys(0x7375_626a, 0x6563_7473);
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// The filter over so many hashes.
pub(crate) fn encode(count: usize, hashes: impl Iterator<Item = u64>) -> Vec<u8> {
    let blocks = (count * BITS_EACH).div_ceil(BLOCK_BITS as usize).max(1);
    let mut words = vec![0u64; blocks * BLOCK_BITS as usize / 64];
    for hash in hashes {
        for bit in probes(hash, blocks as u64) {
            words[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A filter that grows until it is full: over the ids of many segments at once.
#[derive(Debug)]
pub(crate) struct Growing {
    words: Vec<u64>,
    left: u64,
}

impl Growing {
    /// A filter for so many hashes. Its memory is taken as they come.
    pub(crate) fn new(count: u64) -> Self {
        let bits = count.saturating_mul(BITS_EACH as u64);
        let blocks = usize::try_from(bits.div_ceil(BLOCK_BITS))
            .unwrap_or(1)
            .max(1);
        Self {
            words: vec![0; blocks * BLOCK_BITS as usize / 64],
            left: count,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.left == 0
    }

    pub(crate) fn insert(&mut self, hash: u64) {
        self.left = self.left.saturating_sub(1);
        let blocks = self.words.len() as u64 * 64 / BLOCK_BITS;
        for bit in probes(hash, blocks) {
            self.words[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }

    pub(crate) fn may_have(&self, hash: u64) -> bool {
        let blocks = self.words.len() as u64 * 64 / BLOCK_BITS;
        let mut bits = probes(hash, blocks);
        bits.all(|bit| self.words[(bit / 64) as usize] & (1 << (bit % 64)) != 0)
    }
}

/// Whether the hash may be among those of the filter. If not, it certainly is not.
pub(crate) fn may_have(filter: &[u8], hash: u64) -> bool {
    let blocks = filter.len() as u64 * 8 / BLOCK_BITS;
    let is_set = |bit: u64| {
        let word = Fields(filter).u64((bit / 64) as usize * 8);
        word & (1 << (bit % 64)) != 0
    };
    blocks == 0 || probes(hash, blocks).all(is_set)
}

fn probes(hash: u64, blocks: u64) -> impl Iterator<Item = u64> {
    let block = ((u128::from(hash) * u128::from(blocks)) >> 64) as u64;
    // Other bits than those that chose the block; nine for each place in it.
    let places = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (hash << 32);
    (0..PROBES).map(move |probe| block * BLOCK_BITS + ((places >> (9 * probe)) & (BLOCK_BITS - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_little_else() {
        let texts = |range: std::ops::Range<u32>| range.map(|number| format!("subject.{number}"));
        let filter = encode(5_000, texts(0..5_000).map(|text| hash_text(&text)));
        assert!(texts(0..5_000).all(|text| may_have(&filter, hash_text(&text))));
        let wrong = texts(5_000..15_000).filter(|text| may_have(&filter, hash_text(text)));
        assert!(wrong.count() < 50, "more than half a per cent are wrong");
        let mut growing = Growing::new(5_000);
        assert!(!growing.may_have(hash_text("subject.0")));
        texts(0..5_000).for_each(|text| growing.insert(hash_text(&text)));
        assert!(growing.is_full());
        assert!(texts(0..5_000).all(|text| growing.may_have(hash_text(&text))));
        let empty = encode(0, std::iter::empty());
        assert!(!may_have(&empty, 77) && may_have(&[], 77));
    }
}
