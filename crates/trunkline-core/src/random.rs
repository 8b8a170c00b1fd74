//! Random numbers for whatever must differ or be spread: ids, jitter, who goes first.
//!
//! One fast generator for each thread, seeded by the operating system. It guards no secret. A
//! simulation seeds it instead, so that a run can be had again.

use std::cell::RefCell;

use rand::distr::{Distribution, StandardUniform};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

thread_local! {
    static RANDOM: RefCell<SmallRng> = RefCell::new(SmallRng::from_rng(&mut rand::rng()));
}

/// The next random value of this thread; a float is from 0 up to 1.
pub fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    RANDOM.with_borrow_mut(SmallRng::random)
}

/// Makes what [`random`] gives to this thread from now on a function of `seed`. Only a simulation,
/// which has its thread to itself, may do so: ids are no longer unique then.
#[doc(hidden)]
pub fn simulate(seed: u64) {
    RANDOM.with_borrow_mut(|random| *random = SmallRng::seed_from_u64(seed));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_thread_gets_the_same_values_again() {
        simulate(7);
        let first: [u64; 3] = [random(), random(), random()];
        simulate(7);
        assert_eq!([random::<u64>(), random(), random()], first);
        assert_ne!(random::<u64>(), first[0]);
    }
}
