//! The simulator's own pseudo-random numbers: xoshiro256** seeded by SplitMix64 (Blackman and Vigna, 2018).
//!
//! One seed decides a whole run, so the generator may never change under a kept seed: that is why it is written out here
//! rather than taken from a library whose next version may draw differently.

/// A stream of pseudo-random numbers, fully decided by its seed.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut mix = seed;
        let mut next = || {
            mix = mix.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mix;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    /// A stream of its own for one part of the simulation, so that one part drawing more does not shift another's draws.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.bits())
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= shifted;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// A number in `0..bound`; 0 if the bound is 0. The bias of the multiplication is below 2^-32 for every bound used here.
    pub fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.bits()) * u128::from(bound);
        (wide >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True with a probability of `per_million` in a million.
    pub fn chance(&mut self, per_million: u64) -> bool {
        per_million > 0 && self.below(1_000_000) < per_million
    }

    /// An index into something of `len` elements; 0 if it is empty.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// One element of a non-empty slice.
    ///
    /// # Panics
    /// If the slice is empty.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }

    /// A waiting time whose mean is `mean`: exponential, cut at eight times the mean, never 0.
    pub fn interval(&mut self, mean: u64) -> u64 {
        // -ln(u) in fixed point would need floats that round alike everywhere; the sum of fair coin tosses does not.
        // A geometric number of half-mean-long steps, each of uniform length, has the same mean and no memory.
        let mut total = 0;
        for _ in 0..8 {
            total += self.below(mean.max(1));
            if self.bits() & 1 == 0 {
                break;
            }
        }
        total + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        let mut rng = Rng::new(1);
        let drawn: Vec<u64> = (0..3).map(|_| rng.bits()).collect();
        assert_eq!(drawn, [12966619160104079557, 9600361134598540522, 10590380919521690900]);
    }

    #[test]
    fn draws_stay_in_range_and_reach_its_ends() {
        let mut rng = Rng::new(7);
        let drawn: Vec<u64> = (0..1000).map(|_| rng.between(3, 5)).collect();
        assert!((3..=5).all(|n| drawn.contains(&n)) && drawn.iter().all(|n| (3..=5).contains(n)));
        assert!(!rng.chance(0) && rng.chance(1_000_000));
    }

    #[test]
    fn intervals_have_about_their_mean() {
        let mut rng = Rng::new(3);
        let total: u64 = (0..20_000).map(|_| rng.interval(1000)).sum();
        assert!((900..1100).contains(&(total / 20_000)), "mean {}", total / 20_000);
    }
}
