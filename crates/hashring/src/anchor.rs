//! AnchorHash (Mendelson et al., *AnchorHash: A Scalable Consistent Hash*, IEEE/ACM ToN 2021, algorithm 3).
//!
//! Any node may go at any time, and lookups stay as fast as a table's. There are more *buckets* than nodes. A key that falls on a bucket that was
//! removed is hashed again among those that were there right after its removal, and so on: each removal spreads its keys evenly over
//! the rest (*balance*), moves no other, and adding takes back the last removal (*minimal disruption*). With `a` buckets and `n` nodes a lookup takes
//! about `1 + ln(a/n)` steps.
//!
//! Which bucket a node has depends on what came and went before: all who look up must see the same changes in the same order. For arbitrary
//! weights give a node several ids, or take another algorithm.

use std::collections::BTreeMap;

use crate::{
    hash::{KeyHash, draw, mix},
    lookup::{Lookup, TooFewNodes, redraw},
    node::{NODES_MAX, Node, NodeId, NodesError, check, check_alike},
};

/// A bucket as lookups see it (the paper's `A` and `K`).
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// 0 while it works; else how many worked right after its removal.
    removed_at: u16,
    /// Who took its place among those that worked.
    successor: u16,
}

/// Buckets with nodes. Memory: 16 bytes a bucket, 2 more while it is free, and 16 a node.
#[derive(Clone, Debug)]
pub struct Anchor {
    buckets: Vec<Bucket>,
    /// Whose each bucket is, or was last.
    ids: Vec<NodeId>,
    /// The paper's `W`: those that work come first.
    working: Vec<u16>,
    /// The paper's `L`: where each stands in `working`.
    place: Vec<u16>,
    /// Removed buckets, the last one at the end.
    removed: Vec<u16>,
    bucket_of: BTreeMap<NodeId, u16>,
}

impl Anchor {
    /// Of these nodes, with room for a sixteenth more, and one: what is free costs lookups time.
    ///
    /// # Errors
    /// If there are no nodes, too many, two with one id, or different weights.
    pub fn new(nodes: &[Node]) -> Result<Self, NodesError> {
        Self::with_capacity(nodes, (nodes.len() + nodes.len() / 16 + 1).min(NODES_MAX))
    }

    /// Of these nodes, and never more than `capacity`.
    ///
    /// # Errors
    /// If there are no nodes, more than `capacity`, two with one id, or different weights; or if `capacity` is beyond [`NODES_MAX`].
    pub fn with_capacity(nodes: &[Node], capacity: usize) -> Result<Self, NodesError> {
        check(nodes, capacity)?;
        check_alike(nodes)?;
        if capacity > NODES_MAX {
            return Err(NodesError::TooMany { count: capacity, max: NODES_MAX });
        }
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable_by_key(|node| node.id);
        let (count, all) = (nodes.len() as u16, 0..capacity as u16);
        let mut ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
        let bucket_of = ids.iter().copied().zip(0..).collect();
        ids.resize(capacity, NodeId::default());
        Ok(Self {
            // As if all had worked, and the later ones been removed from the end.
            buckets: all
                .clone()
                .map(|b| Bucket { removed_at: if b < count { 0 } else { b }, successor: b })
                .collect(),
            ids,
            working: all.clone().collect(),
            place: all.clone().collect(),
            removed: all.skip(usize::from(count)).rev().collect(),
            bucket_of,
        })
    }

    /// Adds a node, in the bucket that was removed last.
    ///
    /// # Errors
    /// If it is there, or every bucket works.
    pub fn add(&mut self, id: NodeId) -> Result<(), NodesError> {
        if self.bucket_of.contains_key(&id) {
            return Err(NodesError::Twice(id));
        }
        let max = self.buckets.len();
        let bucket = self.removed.pop().ok_or(NodesError::TooMany { count: max + 1, max })?;
        let count = self.bucket_of.len();
        let at = usize::from(bucket);
        self.buckets[at].removed_at = 0;
        self.place[usize::from(self.working[count])] = count as u16;
        self.working[usize::from(self.place[at])] = bucket;
        self.buckets[at].successor = bucket;
        self.ids[at] = id;
        self.bucket_of.insert(id, bucket);
        Ok(())
    }

    /// Takes a node out, whichever it is.
    ///
    /// # Errors
    /// If it is not there, or is the last.
    pub fn remove(&mut self, id: NodeId) -> Result<(), NodesError> {
        let bucket = *self.bucket_of.get(&id).ok_or(NodesError::Unknown(id))?;
        if self.bucket_of.len() == 1 {
            return Err(NodesError::Empty);
        }
        self.bucket_of.remove(&id);
        let (count, at) = (self.bucket_of.len(), usize::from(bucket));
        self.removed.push(bucket);
        self.buckets[at].removed_at = count as u16;
        let last = self.working[count];
        let hole = self.place[at];
        self.working[usize::from(hole)] = last;
        self.place[usize::from(last)] = hole;
        self.buckets[at].successor = last;
        Ok(())
    }

    #[inline]
    fn bucket(&self, key: KeyHash) -> usize {
        let mut bucket = key.below(self.buckets.len() as u64) as usize;
        loop {
            let removed_at = self.buckets[bucket].removed_at;
            if removed_at == 0 {
                return bucket;
            }
            let again = KeyHash(draw(key.0, mix(bucket as u64)));
            let mut next = again.below(u64::from(removed_at)) as usize;
            while self.buckets[next].removed_at >= removed_at {
                next = usize::from(self.buckets[next].successor);
            }
            bucket = next;
        }
    }
}

impl Lookup for Anchor {
    #[inline]
    fn node(&self, key: KeyHash) -> NodeId {
        self.ids[self.bucket(key)]
    }

    /// The places after the first come from other hashes of the key.
    fn replicas(&self, key: KeyHash, out: &mut [NodeId]) -> Result<(), TooFewNodes> {
        TooFewNodes::check(out.len(), self.bucket_of.len())?;
        let all: Vec<NodeId> = self.bucket_of.keys().copied().collect();
        redraw(key, &all, out, |key| self.node(key))
    }

    fn nodes(&self) -> usize {
        self.bucket_of.len()
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.buckets.len() * (4 + 8 + 2 + 2)
            + self.removed.len() * 2
            + self.bucket_of.len() * 16
    }
}
