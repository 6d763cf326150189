//! The hashes that everything here is built on. They are part of the format: two programs place a key alike only if they hash alike.
//!
//! - A key, or a node's name, is hashed with XXH3 (64 bits, seed 0, default secret): [`KeyHash::of`]. XXH3 is stable since
//!   xxHash 0.8.0 and has implementations in most languages.
//! - A draw for a key and a node is the folded product of the two, one half of the 128 bits laid over the other: one multiplication, no table.
//!
//! | input | XXH3, 64 bits |
//! |---|---|
//! | (empty) | `2d06800538d394c2` |
//! | `a` | `e6c632b61e964e1f` |
//! | `abc` | `78af5f94892f3950` |
//!
//! The unit tests hold longer vectors, one for each of XXH3's ways through an input. From a hash to a slot: [`key`](crate::key).

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// The hash of a key: what all lookups start from, so that a caller who asks several structures hashes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// Hashes a key with XXH3.
    #[must_use]
    #[inline]
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }

    /// Another hash of the same key, one for each `salt`; itself for 0.
    #[inline]
    pub(crate) fn again(self, salt: u64) -> Self {
        if salt == 0 { self } else { Self(draw(self.0, salt.wrapping_mul(GOLDEN))) }
    }

    /// The hash as a number in `0..end`, every one of them as often: the upper bits of a product instead of a division.
    #[inline]
    pub(crate) fn below(self, end: u64) -> u64 {
        ((u128::from(self.0) * u128::from(end)) >> 64) as u64
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// 2⁶⁴ divided by the golden ratio, odd.
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The two halves of the 128-bit product, one laid over the other.
#[inline]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// What `seed` draws for `key`: uniform over keys, and independent for different seeds that are themselves well mixed.
#[inline]
pub(crate) fn draw(key: u64, seed: u64) -> u64 {
    fold(key ^ seed, seed | 1)
}

/// Mixes a number whose bits are not random: the finaliser of SplitMix64.
#[inline]
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A draw as a number in the open interval from 0 to 1, of 53 bits.
#[inline]
pub(crate) fn unit(draw: u64) -> f64 {
    ((draw >> 11) as f64 + 0.5) * (1.0 / (1_u64 << 53) as f64)
}

/// The natural logarithm, for `x` in the open interval from 0 to 1, to about 1 in 10¹⁵.
///
/// The system's own differs in its last bits from platform to platform, and two programs would place a key differently. This
/// one is made of additions, multiplications and one division, which IEEE 754 defines to the last bit.
pub(crate) fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh((m − 1) / (m + 1)), and the argument is at most 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 1.0 / 21.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        series = series * square + 1.0 / odd;
    }
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * (s + s * square * series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_the_table_says() {
        let long: Vec<u8> = (0..=255).collect();
        let vectors: [(&[u8], u64); 7] = [
            (b"", 0x2d06800538d394c2),
            (b"a", 0xe6c632b61e964e1f),
            (b"abc", 0x78af5f94892f3950),
            (b"hello world", 0xd447b1ea40e6988b),
            (b"0123456789abcdef0123456789", 0x702d0f3829db3fa7),
            (&long[..200], 0xf42a8864feaf0703),
            (&long, 0x9408a4433b952d71),
        ];
        for (key, expected) in vectors {
            assert_eq!(KeyHash::of(key), KeyHash(expected), "{key:?}: {}", KeyHash::of(key));
        }
    }

    #[test]
    fn draws_are_as_documented() {
        assert_eq!(fold(u64::MAX, u64::MAX), 1 ^ (u64::MAX - 1));
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf, "the first output of SplitMix64 from seed 0");
        assert_eq!(draw(0, 2), 2 * 3);
        assert_eq!(KeyHash(7).again(0), KeyHash(7));
        assert_eq!(KeyHash(u64::MAX).below(10), 9);
    }

    #[test]
    fn the_logarithm_is_the_systems_but_for_its_last_bits() {
        for step in 0..100_000_u64 {
            let x = unit(mix(step));
            assert!((ln(x) - x.ln()).abs() <= 2e-15 * x.ln().abs(), "{x}");
        }
        for x in [unit(0), unit(u64::MAX), 0.5, f64::MIN_POSITIVE] {
            assert!((ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1.0), "{x}");
        }
    }
}
