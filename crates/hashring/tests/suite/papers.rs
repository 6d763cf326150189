//! Each paper's guarantee.

use std::collections::BTreeMap;

use conclave_hashring::{
    Anchor, BoundedRing, Excess, Jump, KeyHash, Lookup, Maglev, Node, NodeId, NodesError, Rendezvous, Ring,
    Skeleton, Weight,
};
use proptest::prelude::*;

use super::{Rng, keys};

fn loads(lookup: &dyn Lookup, count: u64) -> BTreeMap<NodeId, u64> {
    let mut loads = BTreeMap::new();
    keys(count).for_each(|key| *loads.entry(lookup.node(key)).or_default() += 1);
    loads
}

/// Every key that moved, moved to or from `node`.
fn only_through(node: NodeId, before: &dyn Lookup, after: &dyn Lookup) -> bool {
    keys(3_000).all(|key| {
        let (was, is) = (before.node(key), after.node(key));
        was == is || was == node || is == node
    })
}

fn weighted() -> impl Strategy<Value = Vec<Node>> {
    prop::collection::btree_map(0..1_000_u64, 0.2..5.0_f64, 2..40).prop_map(|nodes| {
        nodes
            .into_iter()
            .map(|(id, weight)| Node::weighing(NodeId(id), Weight::new(weight).unwrap()))
            .collect()
    })
}

/// Within five standard deviations of what the weight promises.
fn by_weight(nodes: &[Node], lookup: &dyn Lookup) {
    let count = 20_000;
    let loads = loads(lookup, count);
    let total: f64 = nodes.iter().map(|node| f64::from(node.weight.thousandths())).sum();
    for node in nodes {
        let part = f64::from(node.weight.thousandths()) / total;
        let load = loads.get(&node.id).copied().unwrap_or(0) as f64;
        let spread = (count as f64 * part * (1.0 - part)).sqrt();
        assert!(
            (load - count as f64 * part).abs() <= 5.0 * spread + 1.0,
            "{} of {part}",
            load / count as f64
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Karger et al.: monotone. A node that comes takes keys, and the others exchange none; one that goes, likewise.
    #[test]
    fn ring_is_monotone(nodes in weighted(), gone in any::<prop::sample::Index>()) {
        let node = nodes[gone.index(nodes.len())];
        let full = Ring::new(&nodes).unwrap();
        let mut less = full.clone();
        less.remove(node.id).unwrap();
        prop_assert!(only_through(node.id, &full, &less));
        let mut again = less;
        again.add(node).unwrap();
        prop_assert!(keys(3_000).all(|key| again.node(key) == full.node(key)));
    }

    /// Thaler and Ravishankar: minimal disruption; and the next replica is who has the key when the first goes.
    #[test]
    fn rendezvous_leaves_keys_to_the_next_best(nodes in weighted(), gone in any::<prop::sample::Index>()) {
        let node = nodes[gone.index(nodes.len())];
        let full = Rendezvous::new(&nodes).unwrap();
        let mut less = full.clone();
        less.remove(node.id).unwrap();
        prop_assert!(only_through(node.id, &full, &less));
        for key in keys(500) {
            let mut pair = [NodeId(0); 2];
            full.replicas(key, &mut pair).unwrap();
            let expected = if pair[0] == node.id { pair[1] } else { pair[0] };
            prop_assert_eq!(less.node(key), expected);
        }
    }

    /// Schindelhauer and Schomaker: shares are as the weights.
    #[test]
    fn rendezvous_keeps_to_weights(nodes in weighted()) {
        by_weight(&nodes, &Rendezvous::new(&nodes).unwrap());
    }

    /// Yao and Ravishankar, with weights: shares as the weights when it is built, minimal disruption from then on.
    #[test]
    fn skeleton_is_rendezvous_in_fewer_draws(nodes in weighted(), gone in any::<prop::sample::Index>()) {
        let full = Skeleton::new(&nodes).unwrap();
        by_weight(&nodes, &full);
        let node = nodes[gone.index(nodes.len())];
        let mut less = full.clone();
        less.remove(node.id).unwrap();
        prop_assert!(only_through(node.id, &full, &less));
        for key in keys(500) {
            let mut pair = [NodeId(0); 2];
            full.replicas(key, &mut pair).unwrap();
            let expected = if pair[0] == node.id { pair[1] } else { pair[0] };
            prop_assert_eq!(less.node(key), expected);
        }
        let copy = Skeleton::from_clusters(less.clusters().to_vec()).unwrap();
        prop_assert!(keys(500).all(|key| copy.node(key) == less.node(key)));
        let mut again = less;
        again.add(node).unwrap();
        prop_assert!(keys(3_000).all(|key| again.node(key) == full.node(key)));
    }

    /// Lamping and Veach: from n to n + 1 buckets a key stays or goes to the last, with a probability of 1/(n + 1).
    #[test]
    fn jump_moves_keys_to_the_last_only(count in 1..500_u64) {
        let before = Jump::new(&Node::numbered(count)).unwrap();
        let mut after = before.clone();
        after.push(NodeId(count + 1)).unwrap();
        prop_assert!(only_through(NodeId(count + 1), &before, &after));
        let all = 50_000;
        let moved = keys(all).filter(|key| after.node(*key) == NodeId(count + 1)).count() as f64;
        let expected = all as f64 / (count + 1) as f64;
        prop_assert!((moved - expected).abs() <= 5.0 * expected.sqrt() + 1.0, "{} for {}", moved, expected);
    }

    /// Eisenbud et al.: every node has nearly the same number of entries.
    #[test]
    fn maglev_is_even(count in 1..400_u64) {
        let maglev = Maglev::new(&Node::numbered(count)).unwrap();
        let mut entries = BTreeMap::new();
        maglev.entries().iter().for_each(|node| *entries.entry(node).or_insert(0_u32) += 1);
        prop_assert_eq!(entries.len() as u64, count);
        prop_assert!(entries.values().max().unwrap() - entries.values().min().unwrap() <= 1);
    }

    /// The same by weight.
    #[test]
    fn maglev_keeps_to_weights(nodes in weighted()) {
        let maglev = Maglev::new(&nodes).unwrap();
        let total: f64 = nodes.iter().map(|node| f64::from(node.weight.thousandths())).sum();
        let all = maglev.entries().len() as f64;
        for (index, node) in nodes.iter().enumerate() {
            let own = maglev.entries().iter().filter(|entry| usize::from(**entry) == index).count() as f64;
            let share = all * f64::from(node.weight.thousandths()) / total;
            prop_assert!((own - share).abs() <= 0.01 * share + 2.0, "{} of {}", own, share);
        }
    }

    /// Mendelson et al.: minimal disruption and balance, whoever goes and in whatever order; adding takes removals back.
    #[test]
    fn anchor_stands_arbitrary_removals(seed in any::<u64>(), count in 2..60_u64) {
        let mut rng = Rng(seed);
        let mut anchor = Anchor::with_capacity(&Node::numbered(count), count as usize + 10).unwrap();
        let mut here: Vec<u64> = (1..=count).collect();
        let mut history = Vec::new();
        for _ in 0..rng.below(count) {
            let gone = NodeId(here.swap_remove(rng.index(here.len())));
            let before = anchor.clone();
            anchor.remove(gone).unwrap();
            prop_assert!(only_through(gone, &before, &anchor));
            history.push((gone, before));
        }
        let nodes: Vec<Node> = here.iter().map(|id| Node::new(NodeId(*id))).collect();
        by_weight(&nodes, &anchor);
        for (gone, before) in history.into_iter().rev() {
            anchor.add(gone).unwrap();
            prop_assert!(keys(300).all(|key| anchor.node(key) == before.node(key)));
        }
        for id in count + 1..=count + 10 {
            let before = anchor.clone();
            anchor.add(NodeId(id)).unwrap();
            prop_assert!(only_through(NodeId(id), &before, &anchor));
        }
    }

    /// Mirrokni, Thorup and Zadimoghaddam: no load above ⌈(1 + ε) · its part of all⌉, whatever comes and goes.
    #[test]
    fn bounded_loads_are_bounded(nodes in weighted(), seed in any::<u64>(), excess in 1..1_000_u32) {
        let mut rng = Rng(seed);
        let mut ring = BoundedRing::new(&nodes, Excess::thousandths(excess).unwrap()).unwrap();
        let mut held = Vec::new();
        for _ in 0..400 {
            if rng.below(4) > 0 || held.is_empty() {
                let node = ring.take(KeyHash(rng.bits()));
                prop_assert!(ring.load(node) <= ring.bound_of(node));
                held.push(node);
            } else {
                prop_assert!(ring.release(held.swap_remove(rng.index(held.len()))));
            }
            prop_assert_eq!(ring.total_load(), held.len() as u64);
        }
        let first = nodes[0].id;
        let lost = held.iter().filter(|id| **id == first).count() as u64;
        prop_assert_eq!(ring.remove(first), Ok(lost));
        prop_assert_eq!(ring.total_load(), held.len() as u64 - lost);
        ring.add(nodes[0]).unwrap();
        prop_assert_eq!(ring.load(first), 0);
        prop_assert!(ring.memory_bytes() > 0);
    }
}

/// Eisenbud et al., figure 12 and section 3.4: with a hundred entries a node, a node that goes disturbs few entries of others.
#[test]
fn maglev_disturbs_little() {
    let before = Maglev::new(&Node::numbered(100)).unwrap();
    let after = Maglev::new(&Node::numbered(99)).unwrap();
    let others =
        keys(50_000).filter(|key| before.node(*key) != NodeId(100) && before.node(*key) != after.node(*key));
    let others = others.count();
    assert!(others < 1_500, "{others} of 50,000 keys moved between nodes that stayed");
}

/// Whole clusters of a skeleton may go: their keys move, and nobody else's.
#[test]
fn skeleton_stands_empty_clusters() {
    let mut skeleton = Skeleton::new(&Node::numbered(100)).unwrap();
    for id in skeleton.clusters()[2].nodes.clone().iter().chain(&skeleton.clusters()[4].nodes.clone()) {
        let before = skeleton.clone();
        skeleton.remove(id.id).unwrap();
        assert!(only_through(id.id, &before, &skeleton));
    }
    let mut all = vec![NodeId(0); skeleton.nodes()];
    skeleton.replicas(KeyHash(3), &mut all).unwrap();
    assert!(!all.contains(&NodeId(0)));
}

/// A cluster that weighed nothing gets no key, and a node that was added to it would have none.
#[test]
fn skeleton_has_no_cluster_without_weight() {
    let mut clusters = Skeleton::new(&Node::numbered(40)).unwrap().clusters().to_vec();
    clusters[1].nominal = 0;
    assert_eq!(Skeleton::from_clusters(clusters).map(|_| ()), Err(NodesError::Empty));
}

/// The bound is on taking. What others give back lowers everybody's bound, and who is above it then takes nothing until it is below.
#[test]
fn who_is_above_its_bound_takes_nothing() {
    let mut ring = BoundedRing::new(&Node::numbered(4), Excess::default()).unwrap();
    let held: Vec<NodeId> = keys(1_000).map(|key| ring.take(key)).collect();
    held.iter().filter(|id| **id != NodeId(1)).for_each(|id| assert!(ring.release(*id)));
    let load = ring.load(NodeId(1));
    assert!(load == ring.total_load() && load > ring.bound_of(NodeId(1)));
    for key in keys(1_000) {
        let above = ring.load(NodeId(1)) > ring.bound_of(NodeId(1));
        assert!(ring.take(key) != NodeId(1) || !above);
    }
    assert!((1..=4).map(NodeId).all(|id| ring.load(id) <= ring.bound_of(id)));
}

/// Karger et al., balance: with v points a node the loads spread by about 1/√v.
#[test]
fn ring_is_balanced_by_its_points() {
    let spread = |points| {
        let ring = Ring::with_points(&Node::numbered(50), points).unwrap();
        let loads = loads(&ring, 100_000);
        let variance: f64 =
            loads.values().map(|load| (*load as f64 / 2_000.0 - 1.0).powi(2)).sum::<f64>() / 50.0;
        variance.sqrt()
    };
    let (few, many) = (spread(25), spread(2_500));
    assert!((0.1..0.35).contains(&few), "{few}");
    assert!((0.01..0.05).contains(&many), "{many}");
}

/// The search by arcs is a binary search's answer.
#[test]
fn ring_finds_what_a_search_finds() {
    for count in [1, 2, 9, 60] {
        let nodes = Node::numbered(count);
        let few = Ring::with_points(&nodes, 3).unwrap();
        // Every point of a node, found by asking: just at and around it the owner is the same as for the next key clockwise.
        let mut rng = Rng(count);
        for _ in 0..2_000 {
            let key = KeyHash(rng.bits() | u64::MAX << rng.below(64));
            let mut all = vec![NodeId(0); count as usize];
            few.replicas(key, &mut all).unwrap();
            assert_eq!(all[0], few.node(key));
        }
    }
}
