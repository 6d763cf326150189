//! What happened, reduced to one number: two runs of a seed must end with the same.

use crate::clock::{MS, SimTime};

/// A running hash over everything that a run does, and on demand the lines themselves.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    print: bool,
}

impl Trace {
    /// An empty trace; with `print` each event is also written to standard error.
    #[must_use]
    pub fn new(print: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, print }
    }

    /// Adds an event: when, at which node (0 for the world), what, and two numbers that tell it apart.
    pub fn note(&mut self, at: SimTime, node: u64, what: &'static str, a: u64, b: u64) {
        for number in [at, node, a, b] {
            self.mix(number);
        }
        for byte in what.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.events += 1;
        if self.print {
            eprintln!("{:>10}.{:06} n{node} {what} {a} {b}", at / MS, at % MS);
        }
    }

    /// Prints more about the last event, if events are printed; of no influence on the hash.
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.print {
            eprintln!("{:>18} {}", "", what());
        }
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    /// The hash over all events so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }
}

/// A hash of bytes for traces and checkers, the same on every machine and in every version.
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ (bytes.len() as u64);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut number = [0; 8];
        number.copy_from_slice(word);
        hash = (hash ^ u64::from_le_bytes(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    for byte in words.remainder() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_event_counts() {
        let hash_of = |at, node, what, a, b| {
            let mut trace = Trace::new(false);
            trace.note(at, node, what, a, b);
            trace.hash()
        };
        let base = hash_of(1, 2, "crash", 3, 4);
        for other in [
            hash_of(9, 2, "crash", 3, 4),
            hash_of(1, 9, "crash", 3, 4),
            hash_of(1, 2, "pause", 3, 4),
            hash_of(1, 2, "crash", 9, 4),
            hash_of(1, 2, "crash", 3, 9),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(hash_bytes(b"abc"), hash_bytes(b"abd"));
        assert_ne!(hash_bytes(b"12345678"), hash_bytes(b"12345679"));
    }
}
