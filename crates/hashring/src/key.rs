//! From a key to its slot: hash tags, policies for prefixes, and the slot's number.
//!
//! The *placement key* is the part of a key that decides where it is. It is, in this order:
//!
//! 1. what stands between the first `{` and the next `}` after it, if that is not empty: `cart/{u17}/items` and `{u17}` are together;
//! 2. by the policy of the longest prefix that has one: the whole key ([`Policy::Hash`]); its first `n` parts as `/` divides them
//!    ([`Policy::Colocate`]); or nothing, since the policy names the slot ([`Policy::Pin`]);
//! 3. the whole key.
//!
//! A pinned prefix comes before tags: what is pinned stays where it is pinned. The slot is the placement key's [hash](KeyHash) modulo the number of
//! slots, which is a power of two.
//!
//! | key | slot of 16,384 |
//! |---|---|
//! | (empty) | 5314 |
//! | `a` | 3615 |
//! | `abc` | 14672 |
//! | `cart/{a}/items` | 3615 |

use std::fmt;

use crate::hash::KeyHash;

/// Slots of a table if nothing else is said.
pub const SLOTS_DEFAULT: u32 = 16_384;
/// Most slots, or rows, of a table.
pub const SLOTS_MAX: u32 = 65_536;
/// Most prefixes with a policy.
pub const PREFIXES_MAX: usize = 4_096;
/// Longest prefix with a policy, in bytes.
pub const PREFIX_BYTES_MAX: usize = 1_024;

/// A slot: a row of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many slots keys are spread over: a power of two up to [`SLOTS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots(u32);

impl Default for Slots {
    /// [`SLOTS_DEFAULT`].
    fn default() -> Self {
        Self(SLOTS_DEFAULT)
    }
}

impl Slots {
    /// So many.
    ///
    /// # Errors
    /// If that is no power of two, or more than [`SLOTS_MAX`].
    pub fn new(count: u32) -> Result<Self, KeyError> {
        if count.is_power_of_two() && count <= SLOTS_MAX {
            Ok(Self(count))
        } else {
            Err(KeyError::Slots(count))
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0
    }

    /// The slot of a hash: its lowest bits.
    #[must_use]
    #[inline]
    pub fn of(self, key: KeyHash) -> Slot {
        Slot(key.0 as u32 & (self.0 - 1))
    }
}

/// How the keys below a prefix are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Each by itself, by all its bytes.
    Hash,
    /// Together with those that have the first parts in common. A part ends with `/`, counted from the key's beginning; a key with fewer goes by
    /// all its bytes. At least 1.
    Colocate {
        /// How many parts.
        depth: u32,
    },
    /// All in one slot.
    Pin {
        /// Which.
        slot: Slot,
    },
}

/// Policies that no key can be placed by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The number of slots.
    #[error("{0} slots: it is a power of two, and at most {SLOTS_MAX}")]
    Slots(u32),
    /// Two policies for one prefix.
    #[error("two policies for one prefix {0:?}")]
    Twice(Vec<u8>),
    /// A prefix pinned to a slot that is not there.
    #[error("slot {slot} of {slots}")]
    NoSuchSlot {
        /// The slot.
        slot: Slot,
        /// How many there are.
        slots: u32,
    },
    /// Placed together by the first nought parts.
    #[error("a depth of 0 puts everything in one slot: pin it instead")]
    DepthZero,
    /// Too many prefixes.
    #[error("{0} prefixes, and at most {PREFIXES_MAX} are possible")]
    TooMany(usize),
    /// A prefix is too long.
    #[error("a prefix of {0} bytes, and at most {PREFIX_BYTES_MAX} are possible")]
    TooLong(usize),
}

/// Where keys are: the number of slots and what is said of prefixes. Memory: the prefixes, and 40 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyspace {
    slots: Slots,
    /// In the order of the prefixes.
    policies: Vec<(Vec<u8>, Policy)>,
    /// The lengths of prefixes that occur, longest first.
    lengths: Vec<usize>,
}

impl Keyspace {
    /// Of so many slots and these policies, in whatever order.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn new(slots: Slots, policies: Vec<(Vec<u8>, Policy)>) -> Result<Self, KeyError> {
        if policies.len() > PREFIXES_MAX {
            return Err(KeyError::TooMany(policies.len()));
        }
        for (prefix, policy) in &policies {
            match policy {
                Policy::Colocate { depth: 0 } => return Err(KeyError::DepthZero),
                Policy::Pin { slot } if slot.0 >= slots.0 => {
                    return Err(KeyError::NoSuchSlot { slot: *slot, slots: slots.0 });
                }
                _ if prefix.len() > PREFIX_BYTES_MAX => return Err(KeyError::TooLong(prefix.len())),
                _ => {}
            }
        }
        let mut policies = policies;
        policies.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(pair) = policies.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(KeyError::Twice(pair[0].0.clone()));
        }
        let mut lengths: Vec<usize> = policies.iter().map(|(prefix, _)| prefix.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Ok(Self { slots, policies, lengths })
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> Slots {
        self.slots
    }

    /// The slot of a key.
    #[must_use]
    #[inline]
    pub fn slot(&self, key: &[u8]) -> Slot {
        match self.policy(key) {
            Policy::Pin { slot } => slot,
            policy => self.slots.of(KeyHash::of(placement_key(key, policy))),
        }
    }

    /// The policy of the longest prefix of the key that has one.
    #[must_use]
    pub fn policy(&self, key: &[u8]) -> Policy {
        for length in &self.lengths {
            let Some(prefix) = key.get(..*length) else { continue };
            if let Ok(at) = self.policies.binary_search_by(|(other, _)| other.as_slice().cmp(prefix)) {
                return self.policies[at].1;
            }
        }
        Policy::Hash
    }
}

/// The part of a key that decides where it is; all of it under [`Policy::Pin`], which does not ask.
#[must_use]
pub fn placement_key(key: &[u8], policy: Policy) -> &[u8] {
    if let Policy::Pin { .. } = policy {
        return key;
    }
    if let Some(tag) = tag(key) {
        return tag;
    }
    match policy {
        Policy::Colocate { depth } => {
            let mut ends = key.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            match ends.nth(depth.saturating_sub(1) as usize) {
                Some((end, _)) => &key[..=end],
                None => key,
            }
        }
        Policy::Hash | Policy::Pin { .. } => key,
    }
}

/// What stands in the first pair of braces, if that is not empty.
fn tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let inner = &key[open + 1..];
    let close = inner.iter().position(|byte| *byte == b'}')?;
    (close > 0).then(|| &inner[..close])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(key: &str, policy: Policy) -> String {
        String::from_utf8(placement_key(key.as_bytes(), policy).to_vec()).unwrap()
    }

    #[test]
    fn tags_decide_as_in_redis_clusters() {
        for (key, expected) in [
            ("{u17}/cart", "u17"),
            ("cart/{u17}/items", "u17"),
            ("a{b}{c}", "b"),
            ("a{}{c}", "a{}{c}"),
            ("a{{b}}", "{b"),
            ("a{b", "a{b"),
            ("a}b{c}", "c"),
            ("", ""),
        ] {
            assert_eq!(part(key, Policy::Hash), expected, "{key}");
        }
    }

    #[test]
    fn a_depth_counts_the_parts_from_the_beginning() {
        let at = |depth| Policy::Colocate { depth };
        assert_eq!(part("a/b/c", at(1)), "a/");
        assert_eq!(part("a/b/c", at(2)), "a/b/");
        assert_eq!(part("a/b/c", at(3)), "a/b/c");
        assert_eq!(part("/a/b", at(2)), "/a/");
        assert_eq!(part("a/{t}/c", at(1)), "t", "a tag comes first");
    }

    #[test]
    fn the_longest_prefix_decides() {
        let pin = Policy::Pin { slot: Slot(7) };
        let deep = Policy::Colocate { depth: 2 };
        let keys = Keyspace::new(
            Slots::default(),
            vec![(b"a/".to_vec(), deep), (b"a/pin/".to_vec(), pin), (b"b".to_vec(), Policy::Hash)],
        )
        .unwrap();
        assert_eq!(keys.policy(b"a/x/y"), deep);
        assert_eq!(keys.policy(b"a/pin/y"), pin);
        assert_eq!(keys.policy(b"a/pi"), deep);
        assert_eq!(keys.policy(b"c"), Policy::Hash);
        assert_eq!(keys.slot(b"a/pin/{tag}"), Slot(7));
        assert_eq!(keys.slot(b"a/x/1"), keys.slot(b"a/x/2"));
        assert_ne!(keys.slot(b"b/x/1"), keys.slot(b"b/x/2"));
    }

    #[test]
    fn keys_are_in_the_slots_of_the_table_above() {
        let keys = Keyspace::default();
        for (key, slot) in [("", 5314), ("a", 3615), ("abc", 14672), ("cart/{a}/items", 3615)] {
            assert_eq!(keys.slot(key.as_bytes()), Slot(slot), "{key}");
        }
    }

    #[test]
    fn policies_that_place_nothing_are_refused() {
        let of = |policies| Keyspace::new(Slots::default(), policies).map(|_| ());
        assert_eq!(Slots::new(0), Err(KeyError::Slots(0)));
        assert_eq!(Slots::new(12_000), Err(KeyError::Slots(12_000)));
        assert_eq!(Slots::new(1 << 17), Err(KeyError::Slots(1 << 17)));
        assert_eq!(of(vec![(vec![1], Policy::Colocate { depth: 0 })]), Err(KeyError::DepthZero));
        assert_eq!(of(vec![(vec![1], Policy::Hash), (vec![1], Policy::Hash)]), Err(KeyError::Twice(vec![1])));
        assert_eq!(of(vec![(vec![0; 1025], Policy::Hash)]), Err(KeyError::TooLong(1025)));
        let far = Policy::Pin { slot: Slot(16_384) };
        assert!(matches!(of(vec![(vec![1], far)]), Err(KeyError::NoSuchSlot { .. })));
    }
}
