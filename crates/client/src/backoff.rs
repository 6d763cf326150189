//! How long to pause after a failure: twice as long after each, within bounds, and never at the same time as everybody else.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Pauses that grow.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// Pauses of `min` at first and `max` at most; `seed` spreads them.
    pub(crate) fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max: max.max(min), failures: 0, random: seed | 1 }
    }

    /// The pause after one more failure in a row: between half and the whole of `min · 2^failures`, at most `max`.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole =
            self.min.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        // An xorshift generator: the spread matters, not its quality.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = u32::try_from(self.random % 1_024).unwrap_or(0);
        whole / 2 + (whole / 2) * share / 1_024
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// 64 bits that no other process is likely to draw.
pub(crate) fn random_bits() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(20);
    const MAX: Duration = Duration::from_secs(2);

    #[test]
    fn pauses_grow_within_their_bounds_and_begin_anew_after_a_success() {
        for seed in 0..200 {
            let mut backoff = Backoff::new(MIN, MAX, seed);
            for failures in 0..80 {
                let whole = MIN.saturating_mul(1 << failures.min(20)).min(MAX);
                let pause = backoff.pause();
                assert!(pause >= whole / 2 && pause <= whole, "{pause:?} after {failures} failures");
            }
            backoff.reset();
            assert!(backoff.pause() <= MIN);
        }
    }

    #[test]
    fn two_seeds_pause_differently() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(MIN, MAX, seed);
            [(); 8].map(|()| backoff.pause())
        };
        assert_ne!(pauses(3), pauses(5));
    }
}
