//! Rendezvous, or highest random weight (Thaler & Ravishankar, *Using Name-Based Mappings to Increase Hit Rates*, 1998; weights after
//! Schindelhauer & Schomaker, *Weighted Distributed Hash Tables*, SPAA 2005).
//!
//! Every node draws for every key, and the best draw has it. A node that goes leaves each of its keys to the next best, so nothing else
//! moves; a node of weight `w` of `W` has `w/W` of the keys, exactly but for chance; the R best are R replicas, and the order among them is
//! stable too. A draw `u` counts as `−ln(u)/w`, and the least wins.
//!
//! A lookup looks at each node. Almost all are dismissed without a logarithm: since `−ln(u) ≥ 1 − u`, a node with `1 − u ≥ best · w` cannot win.
//! For many nodes take [`Skeleton`](crate::Skeleton).

use crate::{
    hash::{KeyHash, draw, ln, unit},
    lookup::{Lookup, TooFewNodes},
    node::{NODES_MAX, Node, NodeId, NodesError, check, check_alike, with, without},
};

/// Nodes that draw. Memory: 32 bytes a node.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    nodes: Vec<Node>,
    seeds: Vec<u64>,
    weights: Vec<f64>,
    /// All weigh the same, so the draws themselves are compared.
    alike: bool,
}

/// The score of a draw: the less the better.
#[inline]
pub(crate) fn score(draw: u64, weight: f64) -> f64 {
    -ln(unit(draw)) / weight
}

/// Whether a draw cannot score below `best`, told without a logarithm.
#[inline]
pub(crate) fn hopeless(draw: u64, weight: f64, best: f64) -> bool {
    1.0 - unit(draw) >= best * weight
}

impl Rendezvous {
    /// Of these nodes, in whatever order.
    ///
    /// # Errors
    /// If there are no nodes, too many, or two with one id.
    pub fn new(nodes: &[Node]) -> Result<Self, NodesError> {
        check(nodes, NODES_MAX)?;
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable_by_key(|node| node.id);
        Ok(Self {
            seeds: nodes.iter().map(|node| node.id.seed()).collect(),
            weights: nodes.iter().map(|node| f64::from(node.weight.thousandths())).collect(),
            alike: check_alike(&nodes).is_ok(),
            nodes,
        })
    }

    /// Adds a node.
    ///
    /// # Errors
    /// As [`Self::new`]; all is then as it was.
    pub fn add(&mut self, node: Node) -> Result<(), NodesError> {
        *self = Self::new(&with(&self.nodes, node))?;
        Ok(())
    }

    /// Takes a node out.
    ///
    /// # Errors
    /// If it is not there, or is the last.
    pub fn remove(&mut self, id: NodeId) -> Result<(), NodesError> {
        *self = Self::new(&without(&self.nodes, id)?)?;
        Ok(())
    }

    /// The nodes, in the order of their ids.
    #[must_use]
    pub fn members(&self) -> &[Node] {
        &self.nodes
    }

    fn best_alike(&self, key: KeyHash) -> usize {
        // Two chains, so that one comparison need not wait for the other.
        let mut best = [(0_u64, 0_usize); 2];
        let mut pairs = self.seeds.chunks_exact(2);
        let mut index = 0;
        for pair in &mut pairs {
            for (side, seed) in pair.iter().enumerate() {
                let drawn = draw(key.0, *seed);
                if drawn > best[side].0 {
                    best[side] = (drawn, index + side);
                }
            }
            index += 2;
        }
        if let [seed] = pairs.remainder() {
            let drawn = draw(key.0, *seed);
            if drawn > best[0].0 {
                best[0] = (drawn, index);
            }
        }
        let [even, odd] = best;
        if odd.0 > even.0 || (odd.0 == even.0 && odd.1 < even.1) { odd.1 } else { even.1 }
    }

    fn best_weighted(&self, key: KeyHash) -> usize {
        let mut best = (f64::INFINITY, 0);
        for (index, (seed, weight)) in self.seeds.iter().zip(&self.weights).enumerate() {
            let drawn = draw(key.0, *seed);
            if hopeless(drawn, *weight, best.0) {
                continue;
            }
            let scored = score(drawn, *weight);
            if scored < best.0 {
                best = (scored, index);
            }
        }
        best.1
    }
}

impl Lookup for Rendezvous {
    #[inline]
    fn node(&self, key: KeyHash) -> NodeId {
        let best = if self.alike { self.best_alike(key) } else { self.best_weighted(key) };
        self.nodes[best].id
    }

    fn replicas(&self, key: KeyHash, out: &mut [NodeId]) -> Result<(), TooFewNodes> {
        TooFewNodes::check(out.len(), self.nodes.len())?;
        if out.is_empty() {
            return Ok(());
        }
        // The best so far, best first, as many as are wanted.
        let mut best: Vec<(f64, NodeId)> = Vec::with_capacity(out.len() + 1);
        for (index, (seed, weight)) in self.seeds.iter().zip(&self.weights).enumerate() {
            let drawn = draw(key.0, *seed);
            if best.len() == out.len() && hopeless(drawn, *weight, best[out.len() - 1].0) {
                continue;
            }
            let scored = score(drawn, *weight);
            let at = best.partition_point(|(other, _)| *other <= scored);
            best.insert(at, (scored, self.nodes[index].id));
            best.truncate(out.len());
        }
        for (place, (_, id)) in out.iter_mut().zip(best) {
            *place = id;
        }
        // Where all weigh the same, two draws that differ in their last bits only may have one score; the first place is `node`'s in any case.
        let first = self.node(key);
        if out[0] != first {
            let was = out[0];
            if let Some(place) = out.iter_mut().find(|id| **id == first) {
                *place = was;
            }
            out[0] = first;
        }
        Ok(())
    }

    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.nodes.len() * (size_of::<Node>() + 16)
    }
}
