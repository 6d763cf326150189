//! Maglev (Eisenbud et al., *Maglev: A Fast and Reliable Software Network Load Balancer*, NSDI 2016, section 3.4).
//!
//! A table of a prime number of entries, filled in turns: each node walks its own permutation of the entries and takes the next that is free.
//! A lookup is one product and one load. Shares differ by one entry at most between nodes of one weight, so with a hundred entries a node by
//! one percent; a change of nodes moves what it must and a few entries more, which is the price for the balance.
//!
//! Turns are by weight: in each round a node has `weight / heaviest` turns.

use crate::{
    hash::{KeyHash, mix},
    lookup::{Lookup, TooFewNodes, redraw},
    node::{NODES_MAX, Node, NodeId, NodesError, check},
};

/// Entries if nothing else is said: the paper's.
pub const MAGLEV_ENTRIES_DEFAULT: u32 = 65_537;
/// Most entries of a table.
pub const MAGLEV_ENTRIES_MAX: u32 = 1 << 26;

const FREE: u16 = u16::MAX;

/// A filled table. Memory: 2 bytes an entry, 8 a node.
#[derive(Clone, Debug)]
pub struct Maglev {
    ids: Vec<NodeId>,
    entries: Vec<u16>,
}

impl Maglev {
    /// A table of [`MAGLEV_ENTRIES_DEFAULT`] entries; for more than 655 nodes of one for every hundredth of a node.
    ///
    /// # Errors
    /// If there are no nodes, too many, or two with one id.
    pub fn new(nodes: &[Node]) -> Result<Self, NodesError> {
        let entries = u32::try_from(nodes.len() * 100).unwrap_or(MAGLEV_ENTRIES_MAX);
        Self::with_entries(nodes, entries.max(MAGLEV_ENTRIES_DEFAULT))
    }

    /// A table of the first prime that is not below `entries`.
    ///
    /// Keys keep their nodes only between tables of one size.
    ///
    /// # Errors
    /// If there are no nodes, two with one id, or more than there are entries; or more than [`MAGLEV_ENTRIES_MAX`] entries.
    pub fn with_entries(nodes: &[Node], entries: u32) -> Result<Self, NodesError> {
        if entries > MAGLEV_ENTRIES_MAX {
            return Err(NodesError::TooMany { count: entries as usize, max: MAGLEV_ENTRIES_MAX as usize });
        }
        let size = prime_from(u64::from(entries));
        check(nodes, NODES_MAX.min(size as usize))?;
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable_by_key(|node| node.id);
        Ok(Self { entries: fill(&nodes, size), ids: nodes.iter().map(|node| node.id).collect() })
    }

    /// The entries: for each the index of its node in the order of ids.
    #[must_use]
    pub fn entries(&self) -> &[u16] {
        &self.entries
    }
}

/// A node's walk through all entries: by steps of its own, which is a permutation since the number of entries is prime.
struct Walk {
    at: u64,
    skip: u64,
    /// Thousandths of the heaviest node that it has saved for its next turn.
    saved: u64,
}

fn fill(nodes: &[Node], size: u64) -> Vec<u16> {
    let mut entries = vec![FREE; size as usize];
    let heaviest = nodes.iter().map(|node| u64::from(node.weight.thousandths())).max().unwrap_or(1);
    let mut walks: Vec<Walk> = nodes
        .iter()
        .map(|node| {
            let seed = node.id.seed();
            Walk { at: seed % size, skip: mix(seed) % (size - 1).max(1) + 1, saved: 0 }
        })
        .collect();
    let mut left = size;
    while left > 0 {
        for (index, (walk, node)) in walks.iter_mut().zip(nodes).enumerate() {
            walk.saved += u64::from(node.weight.thousandths());
            if walk.saved < heaviest || left == 0 {
                continue;
            }
            walk.saved -= heaviest;
            while entries[walk.at as usize] != FREE {
                walk.at = (walk.at + walk.skip) % size;
            }
            entries[walk.at as usize] = index as u16;
            left -= 1;
        }
    }
    entries
}

/// The first prime from there on.
fn prime_from(number: u64) -> u64 {
    let prime = |n: u64| n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    (number.max(2)..).find(|n| prime(*n)).unwrap_or(2)
}

impl Lookup for Maglev {
    #[inline]
    fn node(&self, key: KeyHash) -> NodeId {
        let entry = key.below(self.entries.len() as u64) as usize;
        self.ids[usize::from(self.entries[entry])]
    }

    /// The places after the first come from other hashes of the key.
    fn replicas(&self, key: KeyHash, out: &mut [NodeId]) -> Result<(), TooFewNodes> {
        redraw(key, &self.ids, out, |key| self.node(key))
    }

    fn nodes(&self) -> usize {
        self.ids.len()
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.entries.len() * 2 + self.ids.len() * size_of::<NodeId>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_a_prime_number_of_entries() {
        assert_eq!([0, 2, 3, 4, 65_536, 65_537].map(prime_from), [2, 2, 3, 5, 65_537, 65_537]);
    }
}
