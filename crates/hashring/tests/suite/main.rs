//! What the papers promise, and what the planner promises, as properties.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod flow;
mod histories;
mod lookups;
mod papers;
mod pinned;
mod plans;
mod tables;

/// Random numbers from a seed: SplitMix64.
struct Rng(u64);

impl Rng {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// Both ends included.
    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }
}

/// Keys, hashed.
fn keys(count: u64) -> impl Iterator<Item = conclave_hashring::KeyHash> {
    (0..count).map(|key| conclave_hashring::KeyHash::of(&key.to_le_bytes()))
}
