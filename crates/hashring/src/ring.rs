//! The ring with virtual nodes (Karger et al., *Consistent Hashing and Random Trees*, STOC 1997).
//!
//! Each node stands at many points of a circle of 2⁶⁴; a key belongs to the first point at or after its hash. A node that comes takes
//! the arcs before its points, and nothing else moves (*monotonicity*, their definition of consistent); with `v` points a node of
//! average weight the loads differ by about `1/√v` of the mean (*balance*).
//!
//! The search is not binary: the circle is cut into about as many equal arcs as there are points, a small table says where each begins, and
//! a few points are looked at from there. That is constant on average, since points are spread like random numbers.

use crate::{
    hash::{KeyHash, draw, mix},
    lookup::{Lookup, TooFewNodes},
    node::{NODES_MAX, Node, NodeId, NodesError, Weight, check, with, without},
};

/// Points a node of weight one has if nothing else is said: loads within about 8 % of the mean.
pub const POINTS_DEFAULT: u32 = 160;
/// Most points of a ring, all nodes together.
pub const RING_POINTS_MAX: usize = 1 << 26;

/// A ring of nodes. Memory: 14 to 18 bytes a point, and 24 a node.
#[derive(Clone, Debug)]
pub struct Ring {
    nodes: Vec<Node>,
    ids: Vec<NodeId>,
    points_each: u32,
    /// In ascending order.
    points: Vec<u64>,
    /// Whose they are.
    owners: Vec<u16>,
    /// For each arc the first point that is not before it.
    arcs: Vec<u32>,
    /// A hash's upper bits say which arc: so far they are shifted.
    shift: u32,
}

impl Ring {
    /// A ring of these nodes with [`POINTS_DEFAULT`] points for each ordinary one.
    ///
    /// # Errors
    /// If there are no nodes, too many, or two with one id.
    pub fn new(nodes: &[Node]) -> Result<Self, NodesError> {
        Self::with_points(nodes, POINTS_DEFAULT)
    }

    /// A ring with so many points for a node of weight one, and in proportion for others; at least one each.
    ///
    /// # Errors
    /// If there are no nodes, too many, or two with one id; or more than [`RING_POINTS_MAX`] points.
    pub fn with_points(nodes: &[Node], points_each: u32) -> Result<Self, NodesError> {
        check(nodes, NODES_MAX)?;
        let points: usize = nodes.iter().map(|node| points_of(node.weight, points_each) as usize).sum();
        if points > RING_POINTS_MAX {
            return Err(NodesError::TooMany { count: points, max: RING_POINTS_MAX });
        }
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable_by_key(|node| node.id);
        let mut all: Vec<(u64, u16)> = Vec::with_capacity(points);
        for (index, node) in nodes.iter().enumerate() {
            let seed = node.id.seed();
            let own = points_of(node.weight, points_each);
            all.extend((0..u64::from(own)).map(|point| (draw(mix(point), seed), index as u16)));
        }
        // Two nodes at one point: the one with the lower id has it, whoever came first.
        all.sort_unstable();
        all.dedup_by_key(|(point, _)| *point);
        Ok(Self::of_points(nodes, points_each, &all))
    }

    fn of_points(nodes: Vec<Node>, points_each: u32, all: &[(u64, u16)]) -> Self {
        let bits = all.len().next_power_of_two().trailing_zeros().max(1);
        let shift = 64 - bits;
        let mut arcs = vec![0_u32; 1 << bits];
        let mut next = 0;
        for (arc, first) in arcs.iter_mut().enumerate() {
            while next < all.len() && (all[next].0 >> shift) < arc as u64 {
                next += 1;
            }
            *first = next as u32;
        }
        Self {
            ids: nodes.iter().map(|node| node.id).collect(),
            nodes,
            points_each,
            points: all.iter().map(|(point, _)| *point).collect(),
            owners: all.iter().map(|(_, owner)| *owner).collect(),
            arcs,
            shift,
        }
    }

    /// Adds a node.
    ///
    /// # Errors
    /// As [`Self::with_points`]; the ring is then as it was.
    pub fn add(&mut self, node: Node) -> Result<(), NodesError> {
        *self = Self::with_points(&with(&self.nodes, node), self.points_each)?;
        Ok(())
    }

    /// Takes a node out.
    ///
    /// # Errors
    /// If it is not there, or is the last.
    pub fn remove(&mut self, id: NodeId) -> Result<(), NodesError> {
        *self = Self::with_points(&without(&self.nodes, id)?, self.points_each)?;
        Ok(())
    }

    /// The nodes, in the order of their ids.
    #[must_use]
    pub fn members(&self) -> &[Node] {
        &self.nodes
    }

    /// The point at or after a hash, on the circle.
    #[inline]
    fn point(&self, hash: u64) -> usize {
        let mut at = self.arcs[(hash >> self.shift) as usize] as usize;
        while at < self.points.len() && self.points[at] < hash {
            at += 1;
        }
        if at == self.points.len() { 0 } else { at }
    }

    /// The nodes clockwise from a key, as indices into [`Self::members`], each as often as it has points.
    pub(crate) fn clockwise(&self, key: KeyHash) -> impl Iterator<Item = usize> + '_ {
        let start = self.point(key.0);
        self.owners[start..].iter().chain(&self.owners[..start]).map(|owner| usize::from(*owner))
    }
}

fn points_of(weight: Weight, points_each: u32) -> u32 {
    let points =
        u64::from(weight.thousandths()) * u64::from(points_each) / u64::from(Weight::ONE.thousandths());
    u32::try_from(points).unwrap_or(u32::MAX).max(1)
}

impl Lookup for Ring {
    #[inline]
    fn node(&self, key: KeyHash) -> NodeId {
        self.ids[usize::from(self.owners[self.point(key.0)])]
    }

    fn replicas(&self, key: KeyHash, out: &mut [NodeId]) -> Result<(), TooFewNodes> {
        TooFewNodes::check(out.len(), self.nodes.len())?;
        let mut filled = 0;
        for owner in self.clockwise(key) {
            if filled == out.len() {
                break;
            }
            if !out[..filled].contains(&self.ids[owner]) {
                out[filled] = self.ids[owner];
                filled += 1;
            }
        }
        // A node whose every point another had first is on no arc: it comes last.
        for id in &self.ids {
            if filled < out.len() && !out[..filled].contains(id) {
                out[filled] = *id;
                filled += 1;
            }
        }
        Ok(())
    }

    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.nodes.len() * (size_of::<Node>() + size_of::<NodeId>())
            + self.points.len() * 10
            + self.arcs.len() * 4
    }
}
