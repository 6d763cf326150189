//! Nodes: who they are and how much each is to hold.

use std::fmt;

use crate::hash::{KeyHash, mix};

/// Most nodes of one structure: an index into them takes two bytes, and one value means "nobody".
pub const NODES_MAX: usize = 65_534;

/// Who a node is. Placement depends on this number alone and never on a node's place in a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The id of a node that is known by a name, such as an address: the name's XXH3. Two of 65,534 names meet with a
    /// probability of one in eight billion, and then they are refused as [`NodesError::Twice`].
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self(KeyHash::of(name.as_bytes()).0)
    }

    /// The id with its bits mixed, for draws: ids may be small numbers.
    pub(crate) fn seed(self) -> u64 {
        mix(self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How much a node is to hold beside others, in thousandths of an ordinary node: between 1 and [`Weight::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

impl Weight {
    /// An ordinary node.
    pub const ONE: Weight = Weight(1_000);
    /// A million ordinary nodes.
    pub const MAX: Weight = Weight(1_000_000_000);

    /// So many ordinary nodes, rounded to thousandths.
    ///
    /// # Errors
    /// If that is no number, less than a thousandth, or more than [`Weight::MAX`].
    pub fn new(weight: f64) -> Result<Self, WeightError> {
        let thousandths = (weight * 1_000.0).round();
        if (1.0..=f64::from(Self::MAX.0)).contains(&thousandths) {
            Ok(Self(thousandths as u32))
        } else {
            Err(WeightError(weight))
        }
    }

    /// The weight in thousandths of an ordinary node.
    #[must_use]
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f64::from(self.0) / 1_000.0).fmt(f)
    }
}

/// A weight of zero, below zero, beyond bounds, or no number at all.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("a weight is between 0.001 and 1000000, not {0}")]
pub struct WeightError(pub f64);

/// A node as the algorithms want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Who it is.
    pub id: NodeId,
    /// How much it is to hold.
    pub weight: Weight,
}

impl Node {
    /// An ordinary node.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self { id, weight: Weight::ONE }
    }

    /// A node of that weight.
    #[must_use]
    pub fn weighing(id: NodeId, weight: Weight) -> Self {
        Self { id, weight }
    }

    /// Ordinary nodes with the ids 1 to `count`.
    #[must_use]
    pub fn numbered(count: u64) -> Vec<Node> {
        (1..=count).map(|id| Node::new(NodeId(id))).collect()
    }
}

/// A list of nodes that no structure can be built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodesError {
    /// There is none.
    #[error("no nodes")]
    Empty,
    /// Two have the same id.
    #[error("node {0} is there twice")]
    Twice(NodeId),
    /// More than the structure holds.
    #[error("{count} nodes, and at most {max} are possible")]
    TooMany {
        /// How many there are.
        count: usize,
        /// The most that are possible.
        max: usize,
    },
    /// A node that is to be removed is not there.
    #[error("node {0} is not there")]
    Unknown(NodeId),
    /// The structure knows no weights, and one differs from the others.
    #[error("node {0} has another weight than the rest, and this structure treats all alike")]
    Weighted(NodeId),
}

/// Refuses what no structure can be built from.
pub(crate) fn check(nodes: &[Node], max: usize) -> Result<(), NodesError> {
    if nodes.is_empty() {
        return Err(NodesError::Empty);
    }
    if nodes.len() > max {
        return Err(NodesError::TooMany { count: nodes.len(), max });
    }
    let mut ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(NodesError::Twice(pair[0])),
        None => Ok(()),
    }
}

/// Refuses weights that differ, for a structure that cannot keep to them.
pub(crate) fn check_alike(nodes: &[Node]) -> Result<(), NodesError> {
    match nodes.iter().find(|node| node.weight != nodes[0].weight) {
        Some(node) => Err(NodesError::Weighted(node.id)),
        None => Ok(()),
    }
}

/// These nodes and one more.
pub(crate) fn with(nodes: &[Node], node: Node) -> Vec<Node> {
    [nodes, &[node]].concat()
}

/// These nodes but one, which must be among them.
pub(crate) fn without(nodes: &[Node], id: NodeId) -> Result<Vec<Node>, NodesError> {
    let rest: Vec<Node> = nodes.iter().copied().filter(|node| node.id != id).collect();
    if rest.len() == nodes.len() { Err(NodesError::Unknown(id)) } else { Ok(rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_mean_nothing_are_refused() {
        for weight in [0.0, -1.0, 0.000_4, f64::NAN, f64::INFINITY, -f64::INFINITY, 1e7] {
            assert!(Weight::new(weight).is_err(), "{weight}");
        }
        assert_eq!(Weight::new(1.0), Ok(Weight::ONE));
        assert_eq!(Weight::new(0.001).map(Weight::thousandths), Ok(1));
        assert_eq!(Weight::new(1e6), Ok(Weight::MAX));
    }

    #[test]
    fn lists_that_mean_nothing_are_refused() {
        assert_eq!(check(&[], 9), Err(NodesError::Empty));
        assert_eq!(check(&Node::numbered(3), 2), Err(NodesError::TooMany { count: 3, max: 2 }));
        let twice = [Node::new(NodeId(7)), Node::new(NodeId(1)), Node::new(NodeId(7))];
        assert_eq!(check(&twice, 9), Err(NodesError::Twice(NodeId(7))));
        let mut uneven = Node::numbered(3);
        uneven[2].weight = Weight::MAX;
        assert_eq!(check_alike(&uneven), Err(NodesError::Weighted(NodeId(3))));
    }
}
