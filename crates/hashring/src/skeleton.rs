//! Rendezvous through a skeleton, for many nodes (Yao & Ravishankar's hierarchy of virtual nodes above clusters of real ones, with weights).
//!
//! Nodes are in clusters of about sixteen. Above the clusters stands a tree of virtual nodes with eight children each, which is fixed when it is built: each
//! child has the weight that its clusters had then. A key goes down by weighted [rendezvous](crate::Rendezvous) among the children, and among the nodes of
//! the cluster where it arrives. That takes some 32 draws for 1,000 nodes and 40 for 4,000.
//!
//! A node that goes leaves its keys to the rest of its cluster, one that comes takes keys from its cluster only, and nothing else moves, ever. The price is
//! that load spreads within clusters: while one of sixteen is gone, the other fifteen have a fifteenth more. A node that is added comes to the
//! cluster that has lost the most; one beside a tree that is complete wants [`Skeleton::new`], after which shares are as the weights again.
//!
//! Which cluster a node is in depends on what came and went before: all who look up must see the same changes in the same order, or
//! copy [`Skeleton::clusters`].

use crate::{
    hash::{KeyHash, draw, mix},
    lookup::{Lookup, TooFewNodes},
    node::{NODES_MAX, Node, NodeId, NodesError, check},
    rendezvous::{hopeless, score},
};

/// So many nodes are put in a cluster.
const CLUSTER_NODES: usize = 16;
const CHILDREN: usize = 8;
/// A key whose cluster is empty is drawn again so often; then the first cluster that is not has it.
const DRAWS_MAX: u64 = 64;

/// One of the clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// What its nodes weighed when the tree was built, in thousandths of an ordinary node.
    pub nominal: u64,
    /// Those that are there, in the order of their ids.
    pub nodes: Vec<Node>,
}

impl Cluster {
    fn weight(&self) -> u64 {
        self.nodes.iter().map(|node| u64::from(node.weight.thousandths())).sum()
    }
}

/// A tree of virtual nodes over clusters of real ones. Memory: 16 bytes a node, about 3 for its part of the tree.
#[derive(Clone, Debug)]
pub struct Skeleton {
    clusters: Vec<Cluster>,
    /// What weighs what: the clusters, then the virtual nodes above them, level by level.
    levels: Vec<Vec<f64>>,
    count: usize,
}

impl Skeleton {
    /// Of these nodes, in the order of their ids.
    ///
    /// # Errors
    /// If there are no nodes, too many, or two with one id.
    pub fn new(nodes: &[Node]) -> Result<Self, NodesError> {
        check(nodes, NODES_MAX)?;
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable_by_key(|node| node.id);
        // Neighbours in the list are often neighbours in a rack: they are dealt out.
        let count = nodes.len().div_ceil(CLUSTER_NODES);
        let mut clusters = vec![Cluster { nominal: 0, nodes: Vec::new() }; count];
        for (index, node) in nodes.into_iter().enumerate() {
            clusters[index % count].nodes.push(node);
        }
        for cluster in &mut clusters {
            cluster.nominal = cluster.weight();
        }
        Self::from_clusters(clusters)
    }

    /// As another skeleton stands, from its [`Self::clusters`].
    ///
    /// # Errors
    /// If there are no nodes, too many, or two with one id; or if a cluster weighed nothing: it would get no key.
    pub fn from_clusters(mut clusters: Vec<Cluster>) -> Result<Self, NodesError> {
        let nodes: Vec<Node> = clusters.iter().flat_map(|cluster| &cluster.nodes).copied().collect();
        check(&nodes, NODES_MAX)?;
        if clusters.iter().any(|cluster| cluster.nominal == 0) {
            return Err(NodesError::Empty);
        }
        if clusters.len() > NODES_MAX {
            return Err(NodesError::TooMany { count: clusters.len(), max: NODES_MAX });
        }
        for cluster in &mut clusters {
            cluster.nodes.sort_unstable_by_key(|node| node.id);
        }
        // Whole thousandths, and sums far below 2⁵³: no rounding.
        let mut levels = vec![clusters.iter().map(|cluster| cluster.nominal as f64).collect::<Vec<f64>>()];
        while let Some(below) = levels.last().filter(|below| below.len() > CHILDREN) {
            levels.push(below.chunks(CHILDREN).map(|children| children.iter().sum()).collect());
        }
        Ok(Self { clusters, levels, count: nodes.len() })
    }

    /// The clusters in order.
    #[must_use]
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// Adds a node, to the cluster that lacks the most of what it weighed.
    ///
    /// # Errors
    /// If it is there, or there are [`NODES_MAX`].
    pub fn add(&mut self, node: Node) -> Result<(), NodesError> {
        if self.find(node.id).is_some() {
            return Err(NodesError::Twice(node.id));
        }
        if self.count == NODES_MAX {
            return Err(NodesError::TooMany { count: NODES_MAX + 1, max: NODES_MAX });
        }
        let filled = |cluster: &Cluster| cluster.weight() as f64 / cluster.nominal as f64;
        let lacking = self.clusters.iter_mut().min_by(|a, b| filled(a).total_cmp(&filled(b)));
        let cluster = lacking.ok_or(NodesError::Empty)?;
        let at = cluster.nodes.partition_point(|other| other.id < node.id);
        cluster.nodes.insert(at, node);
        self.count += 1;
        Ok(())
    }

    /// Takes a node out.
    ///
    /// # Errors
    /// If it is not there, or is the last.
    pub fn remove(&mut self, id: NodeId) -> Result<(), NodesError> {
        let (cluster, place) = self.find(id).ok_or(NodesError::Unknown(id))?;
        if self.count == 1 {
            return Err(NodesError::Empty);
        }
        self.clusters[cluster].nodes.remove(place);
        self.count -= 1;
        Ok(())
    }

    fn find(&self, id: NodeId) -> Option<(usize, usize)> {
        self.clusters.iter().enumerate().find_map(|(cluster, nodes)| {
            nodes.nodes.binary_search_by_key(&id, |node| node.id).ok().map(|place| (cluster, place))
        })
    }

    /// Where a key arrives, whether anybody is there or not.
    fn descend(&self, key: KeyHash) -> usize {
        let mut at = 0;
        for (height, level) in self.levels.iter().enumerate().rev() {
            let mut best = (f64::INFINITY, at * CHILDREN);
            for (child, weight) in level.iter().enumerate().skip(at * CHILDREN).take(CHILDREN) {
                let drawn = draw(key.0, mix(((height as u64 + 1) << 32) | child as u64));
                if hopeless(drawn, *weight, best.0) {
                    continue;
                }
                let scored = score(drawn, *weight);
                if scored < best.0 {
                    best = (scored, child);
                }
            }
            at = best.1;
        }
        at
    }

    /// The nodes of a key, best first, without end: those of its cluster, then those of the clusters where it arrives when drawn again.
    fn fill(&self, key: KeyHash, out: &mut [NodeId]) -> usize {
        let mut filled = 0;
        let drawn = (0..DRAWS_MAX).map(|salt| self.descend(key.again(salt)));
        let mut best: Vec<(f64, NodeId)> = Vec::with_capacity(CLUSTER_NODES);
        for cluster in drawn.chain(0..self.clusters.len()) {
            best.clear();
            let fresh = self.clusters[cluster].nodes.iter().filter(|node| !out[..filled].contains(&node.id));
            best.extend(fresh.map(|node| {
                (score(draw(key.0, node.id.seed()), f64::from(node.weight.thousandths())), node.id)
            }));
            best.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for (_, id) in &best {
                if filled == out.len() {
                    return filled;
                }
                out[filled] = *id;
                filled += 1;
            }
            if filled == out.len() {
                break;
            }
        }
        filled
    }
}

impl Lookup for Skeleton {
    fn node(&self, key: KeyHash) -> NodeId {
        let nodes = &self.clusters[self.descend(key)].nodes;
        let mut best = (f64::INFINITY, None);
        for node in nodes {
            let (drawn, weight) = (draw(key.0, node.id.seed()), f64::from(node.weight.thousandths()));
            if hopeless(drawn, weight, best.0) {
                continue;
            }
            let scored = score(drawn, weight);
            if scored < best.0 {
                best = (scored, Some(node.id));
            }
        }
        best.1.unwrap_or_else(|| {
            let mut one = [NodeId::default()];
            self.fill(key, &mut one);
            one[0]
        })
    }

    /// Each place has the node that would have the key if those of the places before it were gone.
    fn replicas(&self, key: KeyHash, out: &mut [NodeId]) -> Result<(), TooFewNodes> {
        TooFewNodes::check(out.len(), self.count)?;
        self.fill(key, out);
        Ok(())
    }

    fn nodes(&self) -> usize {
        self.count
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self
                .clusters
                .iter()
                .map(|cluster| size_of::<Cluster>() + cluster.nodes.len() * size_of::<Node>())
                .sum::<usize>()
            + self.levels.iter().map(|level| level.len() * 8).sum::<usize>()
    }
}
