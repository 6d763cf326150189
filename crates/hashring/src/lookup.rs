//! What all algorithms answer: the node of a key, and several distinct ones.

use crate::{hash::KeyHash, node::NodeId};

/// From a key to its node, and to more of them for copies.
///
/// Every structure holds one node at least, so a lookup always has an answer. Structures built from the same nodes give the same
/// answers on every machine; where an algorithm's answer also depends on the order in which nodes came and went, its page says so.
pub trait Lookup {
    /// The node of a key.
    fn node(&self, key: KeyHash) -> NodeId;

    /// Fills `out` with as many distinct nodes as it has places. The first is [`Self::node`]'s.
    ///
    /// # Errors
    /// If there are fewer nodes than places; `out` is then as it was.
    fn replicas(&self, key: KeyHash, out: &mut [NodeId]) -> Result<(), TooFewNodes>;

    /// How many nodes there are.
    fn nodes(&self) -> usize;

    /// What the structure keeps in memory.
    fn memory_bytes(&self) -> usize;
}

/// More distinct nodes were asked for than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{asked} distinct nodes of {nodes}")]
pub struct TooFewNodes {
    /// How many were asked for.
    pub asked: usize,
    /// How many there are.
    pub nodes: usize,
}

impl TooFewNodes {
    pub(crate) fn check(asked: usize, nodes: usize) -> Result<(), Self> {
        if asked > nodes { Err(Self { asked, nodes }) } else { Ok(()) }
    }
}

/// Hashed again this often for each place, a lookup stops drawing and takes nodes in order.
const DRAWS_A_PLACE: u64 = 16;

/// Distinct nodes from a structure that has no order of its own among the nodes: it is asked again with other hashes of the key, a bounded
/// number of times, and what is still missing is taken from `all` in order, from a place that depends on the key.
pub(crate) fn redraw(
    key: KeyHash,
    all: &[NodeId],
    out: &mut [NodeId],
    node: impl Fn(KeyHash) -> NodeId,
) -> Result<(), TooFewNodes> {
    TooFewNodes::check(out.len(), all.len())?;
    let (mut filled, mut salt) = (0, 0);
    while filled < out.len() && salt < DRAWS_A_PLACE * out.len() as u64 {
        let drawn = node(key.again(salt));
        if !out[..filled].contains(&drawn) {
            out[filled] = drawn;
            filled += 1;
        }
        salt += 1;
    }
    let start = key.again(salt).below(all.len() as u64) as usize;
    for candidate in all[start..].iter().chain(&all[..start]) {
        if filled == out.len() {
            break;
        }
        if !out[..filled].contains(candidate) {
            out[filled] = *candidate;
            filled += 1;
        }
    }
    Ok(())
}
