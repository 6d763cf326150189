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
    let mut state = advance(key.0);
    let (mut bucket, mut next) = (0, (1 << 31) / divisor(state));
    // A jump multiplies by 2³¹/divisor. That does not depend on the bucket, so a division need not wait for the one before it: with the quotient in
    // fixed point, of 32 bits after the point, only a product is left between two jumps.
    while next < u64::from(buckets.min(NEAR)) {
        bucket = next;
        state = advance(state);
        let count = (bucket + 1) << 32;
        let product = u128::from(count) * u128::from((1 << 63) / divisor(state));
        next = (product >> 64) as u64;
        // The quotient was cut off by less than one of its last bits: if the product is that near below a whole number, look again.
        if (product as u64).checked_add(count).is_none() {
            next = rounded(bucket, divisor(state));
        }
    }
    while next < u64::from(buckets) {
        bucket = next;
        state = advance(state);
        next = rounded(bucket, divisor(state));
    }
    bucket as u32
}

/// The paper rounds `(bucket + 1) · 2³¹/divisor` to 53 bits, twice. Below so many buckets that changes the whole part only of what is whole itself: anything else is a
/// `1/divisor` away from it at least, which is one part of 2⁵¹ or more.
const NEAR: u32 = 1 << 20;

#[inline]
fn advance(state: u64) -> u64 {
    state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1)
}

#[inline]
fn divisor(state: u64) -> u64 {
    (state >> 33) + 1
}

/// The next bucket as the paper computes it.
#[inline]
fn rounded(bucket: u64, divisor: u64) -> u64 {
    ((bucket + 1) as f64 * ((1_u64 << 31) as f64 / divisor as f64)) as u64
}

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
        // From a few buckets to the most.
        for step in 0..20_000_u64 {
            let buckets = 1 + (mix(step ^ 78) as u32 >> (step % 31));
            let key = mix(!step);
            assert_eq!(i64::from(jump(KeyHash(key), buckets)), paper(key, i64::from(buckets)));
        }
        assert_eq!(i64::from(jump(KeyHash(5), u32::MAX)), paper(5, i64::from(u32::MAX)));
        assert_eq!(jump(KeyHash(5), 0), 0);
    }
    /// A product that is whole before it is rounded: the paper's second jump from `count - 1` by `2³¹/(count · 2ᵏ)`, which is one less than the whole
    /// number for some counts, 49 the least of them.
    #[test]
    fn rounding_is_the_papers() {
        let inverse = (0..6).fold(1_u64, |x, _| {
            x.wrapping_mul(2_u64.wrapping_sub(x.wrapping_mul(2_862_933_555_777_941_757)))
        });
        assert_eq!(advance(inverse.wrapping_mul(4)), 5);
        let mut less = 0;
        for (count, bits) in (3..200_u64).step_by(2).flat_map(|count| (0..8).map(move |bits| (count, bits))) {
            let wanted = count << bits;
            // Of the states with that divisor one that comes after a first jump to `count - 1`.
            let state = (0..)
                .map(|low| ((wanted - 1) << 33) | (mix(low) >> 31))
                .map(|state| (state - 1).wrapping_mul(inverse));
            let first = state.into_iter().find(|state| (1 << 31) / divisor(*state) == count - 1).unwrap();
            assert_eq!(divisor(advance(first)), wanted);
            let key = (first.wrapping_sub(1)).wrapping_mul(inverse);
            for buckets in
                [count, (1 << (31 - bits)) - 1, 1 << (31 - bits), (1 << (31 - bits)) + 1, u64::from(u32::MAX)]
            {
                let bucket = i64::from(jump(KeyHash(key), buckets as u32));
                assert_eq!(bucket, paper(key, buckets as i64), "{count} · 2^{bits}, {buckets}");
            }
            less += u32::from(rounded(count - 1, wanted) < (1 << 31) >> bits);
        }
        assert!(less > 0, "no product was rounded below a whole number");
    }
}
