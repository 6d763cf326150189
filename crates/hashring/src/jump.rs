//! Jump (Lamping & Veach, *A Fast, Minimal Memory, Consistent Hash Algorithm*, 2014).
//!
//! Buckets are numbered from 0, and only the last may go. From `n` buckets to `n + 1` each key moves to the one that was added with probability
//! `1/(n + 1)` or stays; the jumps between those moves are drawn directly, so a lookup takes about `ln n` steps and no memory.
//!
//! The buckets are those of the paper's own code: programs in other languages agree.

use crate::{
    hash::KeyHash,
    lookup::{Lookup, TooFewNodes, redraw},
    node::{NODES_MAX, Node, NodeId, NodesError, check, check_alike},
};

/// The bucket of a key among `buckets`; 0 where there are none.
#[must_use]
#[inline]
pub fn jump(key: KeyHash, buckets: u32) -> u32 {
    let mut state = key.0;
    let (mut bucket, mut next) = (0_u64, 0_u64);
    while next < u64::from(buckets) {
        bucket = next;
        state = state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        // The paper multiplies floating-point numbers; the quotient of integers is the same where it is not next to a whole number, and faster.
        let (product, divisor) = ((bucket + 1) << 31, (state >> 33) + 1);
        next = product / divisor;
        let (rest, near) = (product - next * divisor, (divisor >> NEAR_BITS) + 1);
        if rest.wrapping_sub(near) >= divisor.saturating_sub(2 * near) {
            next = ((bucket + 1) as f64 * ((1_u64 << 31) as f64 / divisor as f64)) as u64;
        }
    }
    bucket as u32
}

/// Two roundings to 53 bits change a quotient that can matter, one below 2³³, by less than 2⁻¹⁹.
const NEAR_BITS: u32 = 19;

/// Nodes in a row. Memory: 8 bytes a node.
///
/// The order matters: all who look up must have the same list. A node may be added, and the last one taken out.
#[derive(Clone, Debug)]
pub struct Jump {
    nodes: Vec<NodeId>,
}

impl Jump {
    /// Of these nodes, in their order.
    ///
    /// # Errors
    /// If there are no nodes, too many, two with one id, or different weights.
    pub fn new(nodes: &[Node]) -> Result<Self, NodesError> {
        check(nodes, NODES_MAX)?;
        check_alike(nodes)?;
        Ok(Self { nodes: nodes.iter().map(|node| node.id).collect() })
    }

    /// Adds a node at the end.
    ///
    /// # Errors
    /// If it is there, or there are [`NODES_MAX`].
    pub fn push(&mut self, id: NodeId) -> Result<(), NodesError> {
        if self.nodes.contains(&id) {
            return Err(NodesError::Twice(id));
        }
        if self.nodes.len() == NODES_MAX {
            return Err(NodesError::TooMany { count: NODES_MAX + 1, max: NODES_MAX });
        }
        self.nodes.push(id);
        Ok(())
    }

    /// Takes the last node out.
    ///
    /// # Errors
    /// If it is the only one.
    pub fn pop(&mut self) -> Result<NodeId, NodesError> {
        if self.nodes.len() == 1 {
            return Err(NodesError::Empty);
        }
        self.nodes.pop().ok_or(NodesError::Empty)
    }

    /// The nodes in order.
    #[must_use]
    pub fn members(&self) -> &[NodeId] {
        &self.nodes
    }
}

impl Lookup for Jump {
    #[inline]
    fn node(&self, key: KeyHash) -> NodeId {
        self.nodes[jump(key, self.nodes.len() as u32) as usize]
    }

    /// The places after the first come from other hashes of the key.
    fn replicas(&self, key: KeyHash, out: &mut [NodeId]) -> Result<(), TooFewNodes> {
        redraw(key, &self.nodes, out, |key| self.node(key))
    }

    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.nodes.len() * size_of::<NodeId>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::mix;

    /// The paper's figure 1, letter by letter.
    fn paper(mut key: u64, buckets: i64) -> i64 {
        let (mut b, mut j) = (-1_i64, 0_i64);
        while j < buckets {
            b = j;
            key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
            j = ((b + 1) as f64 * ((1_i64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
        }
        b
    }

    #[test]
    fn the_buckets_are_the_papers() {
        for step in 0..20_000_u64 {
            let buckets = 1 + (mix(step ^ 77) % 70_000) as u32;
            let key = mix(step);
            assert_eq!(i64::from(jump(KeyHash(key), buckets)), paper(key, i64::from(buckets)));
        }
        // States whose quotients are whole, or as good as: where rounding decides.
        for state in (1..64_u64).flat_map(|odd| (0..31).map(move |bits| (odd << bits) - 1)) {
            let inverse = (0..6).fold(1_u64, |x, _| {
                x.wrapping_mul(2_u64.wrapping_sub(x.wrapping_mul(2_862_933_555_777_941_757)))
            });
            let key = ((state & 0x7fff_ffff) << 33).wrapping_sub(1).wrapping_mul(inverse);
            for buckets in [3, 64, 1_000, 65_534, u32::MAX] {
                assert_eq!(i64::from(jump(KeyHash(key), buckets)), paper(key, i64::from(buckets)), "{state}");
            }
        }
        assert_eq!(i64::from(jump(KeyHash(5), u32::MAX)), paper(5, i64::from(u32::MAX)));
        assert_eq!(jump(KeyHash(5), 0), 0);
    }
}
