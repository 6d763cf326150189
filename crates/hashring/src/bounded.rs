//! Consistent hashing with bounded loads (Mirrokni, Thorup & Zadimoghaddam, SODA 2018).
//!
//! A [ring](crate::Ring) whose nodes are full at `⌈(1 + ε) · load · weight / total⌉`: what comes next goes on clockwise to the first that has room.
//! No node takes what would bring it above that bound, though what others give back, or a node that comes, lowers the bound below what some hold
//! already: they take nothing until they are below it. The smaller ε, the longer the walk, about `1/ε²` nodes. It is for loads that come and go, such as requests
//! under way or connections: who takes a key remembers the node and gives it back.

use crate::{
    hash::KeyHash,
    lookup::{Lookup, TooFewNodes},
    node::{Node, NodeId, NodesError},
    ring::Ring,
};

/// How far above its share a node may be, in thousandths: from 1 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Excess(u32);

impl Excess {
    /// So many thousandths; `None` out of bounds.
    #[must_use]
    pub fn thousandths(excess: u32) -> Option<Self> {
        (1..=10_000).contains(&excess).then_some(Self(excess))
    }
}

impl Default for Excess {
    /// A quarter.
    fn default() -> Self {
        Self(250)
    }
}

/// A ring that counts what its nodes hold. Memory: the ring's, and 8 bytes a node.
#[derive(Clone, Debug)]
pub struct BoundedRing {
    ring: Ring,
    excess: Excess,
    loads: Vec<u64>,
    load: u64,
    weight: u64,
}

impl BoundedRing {
    /// Of these nodes, which hold nothing.
    ///
    /// # Errors
    /// As [`Ring::new`].
    pub fn new(nodes: &[Node], excess: Excess) -> Result<Self, NodesError> {
        let ring = Ring::new(nodes)?;
        Ok(Self { loads: vec![0; nodes.len()], load: 0, weight: total(&ring), ring, excess })
    }

    /// Takes the [node](Lookup::node) of a key. Its load is one more until [`Self::release`].
    pub fn take(&mut self, key: KeyHash) -> NodeId {
        let node = self.first(key);
        self.loads[node] += 1;
        self.load += 1;
        self.ring.members()[node].id
    }

    /// The first clockwise that has room for one more. The bounds add up to more than all loads with this one, so that a node with room exists; if it is on
    /// no arc, the ring's nodes in order stand in.
    fn first(&self, key: KeyHash) -> usize {
        let arcs = self.ring.clockwise(key);
        arcs.chain(0..self.loads.len()).find(|node| self.has_room(*node)).unwrap_or(0)
    }

    fn has_room(&self, node: usize) -> bool {
        self.loads[node] < self.bound(node, self.load + 1)
    }

    /// Gives back what [`Self::take`] took. A node that holds nothing, or is gone, stays as it is; says whether it held something.
    pub fn release(&mut self, id: NodeId) -> bool {
        let Ok(node) = self.ring.members().binary_search_by_key(&id, |node| node.id) else { return false };
        let held = self.loads[node] > 0;
        if held {
            self.loads[node] -= 1;
            self.load -= 1;
        }
        held
    }

    /// Adds a node, which holds nothing.
    ///
    /// # Errors
    /// As [`Ring::add`].
    pub fn add(&mut self, node: Node) -> Result<(), NodesError> {
        self.ring.add(node)?;
        let at = self.ring.members().partition_point(|other| other.id < node.id);
        self.loads.insert(at, 0);
        self.weight = total(&self.ring);
        Ok(())
    }

    /// Takes a node out, and returns how much it held: the caller takes nodes for those keys anew.
    ///
    /// # Errors
    /// As [`Ring::remove`].
    pub fn remove(&mut self, id: NodeId) -> Result<u64, NodesError> {
        let at = self.ring.members().partition_point(|other| other.id < id);
        self.ring.remove(id)?;
        let held = self.loads.remove(at);
        self.load -= held;
        self.weight = total(&self.ring);
        Ok(held)
    }

    /// What a node holds; 0 if it is not there.
    #[must_use]
    pub fn load(&self, id: NodeId) -> u64 {
        self.ring.members().binary_search_by_key(&id, |node| node.id).map_or(0, |node| self.loads[node])
    }

    /// The most a node may hold at the load of this moment; 0 if it is not there.
    #[must_use]
    pub fn bound_of(&self, id: NodeId) -> u64 {
        self.ring
            .members()
            .binary_search_by_key(&id, |node| node.id)
            .map_or(0, |node| self.bound(node, self.load))
    }

    /// What all nodes hold together.
    #[must_use]
    pub fn total_load(&self) -> u64 {
        self.load
    }

    fn bound(&self, node: usize, load: u64) -> u64 {
        let weight = u128::from(self.ring.members()[node].weight.thousandths());
        let scaled = u128::from(load) * u128::from(1_000 + self.excess.0) * weight;
        scaled.div_ceil(u128::from(self.weight) * 1_000) as u64
    }
}

impl Lookup for BoundedRing {
    /// Whom [`Self::take`] would take at the loads of this moment.
    fn node(&self, key: KeyHash) -> NodeId {
        self.ring.members()[self.first(key)].id
    }

    /// Those with room clockwise, then those without.
    fn replicas(&self, key: KeyHash, out: &mut [NodeId]) -> Result<(), TooFewNodes> {
        TooFewNodes::check(out.len(), self.loads.len())?;
        let round = || self.ring.clockwise(key).chain(0..self.loads.len());
        let mut filled = 0;
        for node in round().filter(|node| self.has_room(*node)).chain(round()) {
            if filled == out.len() {
                break;
            }
            let id = self.ring.members()[node].id;
            if !out[..filled].contains(&id) {
                out[filled] = id;
                filled += 1;
            }
        }
        Ok(())
    }

    fn nodes(&self) -> usize {
        self.loads.len()
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() - size_of::<Ring>() + self.ring.memory_bytes() + self.loads.len() * 8
    }
}

fn total(ring: &Ring) -> u64 {
    ring.members().iter().map(|node| u64::from(node.weight.thousandths())).sum()
}
