//! Chance that is the same for ever.

/// Numbers from a seed, by SplitMix64. Written here, because a seed must show the same plan with every
/// version of every library.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    #[cfg(test)]
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One for a matter of its own, so that another draw elsewhere changes nothing here.
    pub(crate) fn about(seed: u64, matter: &str, number: u32) -> Self {
        let mut dice = Self(seed);
        let bytes = matter.bytes().map(u64::from);
        for part in bytes.chain([u64::from(number)]) {
            dice.0 = dice.next() ^ part;
        }
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` to `high`, `high` not included.
    pub(crate) fn from(&mut self, low: u64, high: u64) -> u64 {
        // The skew of a remainder is nothing beside what it is used for.
        low + self.next() % high.saturating_sub(low).max(1)
    }

    pub(crate) fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            let other = self.next() % (last as u64 + 1);
            things.swap(last, usize::try_from(other).unwrap_or(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn a_seed_is_a_row_of_numbers_and_matters_are_apart() {
        let row = |mut dice: Dice| [dice.from(0, 1_000), dice.from(0, 1_000), dice.from(5, 6)];
        assert_eq!(row(Dice::new(7)), row(Dice::new(7)));
        assert_ne!(row(Dice::new(7)), row(Dice::new(8)));
        assert_ne!(row(Dice::about(7, "a", 1)), row(Dice::about(7, "a", 2)));
        assert_ne!(row(Dice::about(7, "a", 1)), row(Dice::about(7, "b", 1)));
        let mut cards: Vec<u32> = (0..50).collect();
        Dice::new(1).shuffle(&mut cards);
        assert_ne!(cards, (0..50).collect::<Vec<_>>());
        cards.sort_unstable();
        assert_eq!(cards, (0..50).collect::<Vec<_>>());
    }
}
