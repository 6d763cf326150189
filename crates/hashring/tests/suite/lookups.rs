//! What every algorithm keeps: one node for a key, distinct replicas, errors for what cannot be.

use conclave_hashring::{
    Anchor, BoundedRing, Excess, Jump, KeyHash, Lookup, Maglev, Node, NodeId, NodesError, Rendezvous, Ring,
    Skeleton, TooFewNodes, Weight,
};

use super::{Rng, keys};

type Build = fn(&[Node]) -> Result<Box<dyn Lookup>, NodesError>;

const ALL: [(&str, Build); 7] = [
    ("ring", |nodes| Ok(Box::new(Ring::new(nodes)?))),
    ("rendezvous", |nodes| Ok(Box::new(Rendezvous::new(nodes)?))),
    ("skeleton", |nodes| Ok(Box::new(Skeleton::new(nodes)?))),
    ("jump", |nodes| Ok(Box::new(Jump::new(nodes)?))),
    ("maglev", |nodes| Ok(Box::new(Maglev::new(nodes)?))),
    ("anchor", |nodes| Ok(Box::new(Anchor::new(nodes)?))),
    ("bounded", |nodes| Ok(Box::new(BoundedRing::new(nodes, Excess::default())?))),
];

#[test]
fn replicas_are_distinct_and_begin_with_the_node() {
    for (name, build) in ALL {
        for count in [1, 2, 3, 7, 40] {
            let lookup = build(&Node::numbered(count)).unwrap();
            assert_eq!(lookup.nodes(), count as usize);
            assert!(lookup.memory_bytes() > 0);
            for key in keys(300) {
                for wanted in [0, 1, 3.min(count as usize), count as usize] {
                    let mut out = vec![NodeId(u64::MAX); wanted];
                    lookup.replicas(key, &mut out).unwrap();
                    assert!(out.first().is_none_or(|first| *first == lookup.node(key)), "{name}");
                    let distinct: std::collections::BTreeSet<_> = out.iter().collect();
                    assert_eq!(distinct.len(), wanted, "{name}: {out:?}");
                    assert!(out.iter().all(|id| (1..=count).contains(&id.0)), "{name}: {out:?}");
                }
            }
            let mut out = vec![NodeId(9); count as usize + 1];
            let error = TooFewNodes { asked: out.len(), nodes: count as usize };
            assert_eq!(lookup.replicas(KeyHash(1), &mut out), Err(error), "{name}");
            assert!(out.iter().all(|id| *id == NodeId(9)), "{name}: nothing was written");
        }
    }
}

#[test]
fn what_cannot_be_built_is_refused() {
    let twice = [Node::new(NodeId(4)), Node::new(NodeId(4))];
    let uneven = [Node::new(NodeId(1)), Node::weighing(NodeId(2), Weight::MAX)];
    let many = Node::numbered(65_535);
    for (name, build) in ALL {
        assert_eq!(build(&[]).err(), Some(NodesError::Empty), "{name}");
        assert_eq!(build(&twice).err(), Some(NodesError::Twice(NodeId(4))), "{name}");
        assert!(matches!(build(&many).err(), Some(NodesError::TooMany { .. })), "{name}");
        let weighted = build(&uneven).map(|_| ());
        match name {
            "jump" | "anchor" => assert_eq!(weighted, Err(NodesError::Weighted(NodeId(2)))),
            "ring" | "bounded" => {
                assert!(matches!(weighted, Err(NodesError::TooMany { .. })), "too many points")
            }
            _ => assert_eq!(weighted, Ok(()), "{name}"),
        }
    }
    assert!(matches!(
        Maglev::with_entries(&Node::numbered(9), 7),
        Err(NodesError::TooMany { count: 9, max: 7 })
    ));
    assert!(Maglev::with_entries(&Node::numbered(9), u32::MAX).is_err());
    assert!(Anchor::with_capacity(&Node::numbered(9), 8).is_err());
    assert!(Anchor::with_capacity(&Node::numbered(9), 1 << 20).is_err());
    assert_eq!((Excess::thousandths(0), Excess::thousandths(10_001)), (None, None));
}

#[test]
fn changes_that_cannot_be_leave_all_as_it_was() {
    let nodes = Node::numbered(2);
    let (known, unknown) = (NodeId(2), NodeId(3));
    let mut ring = Ring::new(&nodes).unwrap();
    assert_eq!(ring.add(nodes[1]), Err(NodesError::Twice(known)));
    assert_eq!(ring.remove(unknown), Err(NodesError::Unknown(unknown)));
    assert_eq!(ring.remove(known), Ok(()));
    assert_eq!(ring.remove(NodeId(1)), Err(NodesError::Empty));
    let mut rendezvous = Rendezvous::new(&nodes).unwrap();
    assert_eq!(rendezvous.add(nodes[1]), Err(NodesError::Twice(known)));
    assert_eq!(rendezvous.remove(unknown), Err(NodesError::Unknown(unknown)));
    assert_eq!(rendezvous.remove(known), Ok(()));
    assert_eq!(rendezvous.remove(NodeId(1)), Err(NodesError::Empty));
    let mut skeleton = Skeleton::new(&nodes).unwrap();
    assert_eq!(skeleton.add(nodes[1]), Err(NodesError::Twice(known)));
    assert_eq!(skeleton.remove(unknown), Err(NodesError::Unknown(unknown)));
    assert_eq!(skeleton.remove(known), Ok(()));
    assert_eq!(skeleton.remove(NodeId(1)), Err(NodesError::Empty));
    let mut jump = Jump::new(&nodes).unwrap();
    assert_eq!(jump.push(known), Err(NodesError::Twice(known)));
    assert_eq!(jump.pop(), Ok(known));
    assert_eq!(jump.pop(), Err(NodesError::Empty));
    let mut anchor = Anchor::with_capacity(&nodes, 2).unwrap();
    assert_eq!(anchor.add(known), Err(NodesError::Twice(known)));
    assert_eq!(anchor.add(unknown), Err(NodesError::TooMany { count: 3, max: 2 }));
    assert_eq!(anchor.remove(unknown), Err(NodesError::Unknown(unknown)));
    assert_eq!(anchor.remove(known), Ok(()));
    assert_eq!(anchor.remove(NodeId(1)), Err(NodesError::Empty));
    assert_eq!(anchor.node(KeyHash(7)), NodeId(1));
    let mut bounded = BoundedRing::new(&nodes, Excess::default()).unwrap();
    assert_eq!(bounded.remove(unknown), Err(NodesError::Unknown(unknown)));
    assert!(!bounded.release(unknown) && !bounded.release(known));
}

/// The answers are part of the format: programs of other versions route by them too.
#[test]
fn answers_are_these() {
    let nodes: Vec<Node> = ["a", "b", "c", "d", "e"].map(|name| Node::new(NodeId::named(name))).to_vec();
    let at = |id: NodeId| nodes.iter().position(|node| node.id == id).unwrap();
    for (name, expected) in [
        ("ring", "4334420114412042"),
        ("rendezvous", "3243003023232421"),
        ("skeleton", "3243003023232421"),
        ("jump", "1342412104311231"),
        ("maglev", "1341333431210333"),
        ("anchor", "0131042443314212"),
        ("bounded", "4334420114412042"),
    ] {
        let (_, build) = ALL.iter().find(|(known, _)| *known == name).unwrap();
        let lookup = build(&nodes).unwrap();
        let answers: String = keys(16).map(|key| at(lookup.node(key)).to_string()).collect();
        assert_eq!(answers, expected, "{name}");
    }
}

/// What the documentation says of memory, in bytes for each of a thousand nodes.
#[test]
fn memory_is_as_stated() {
    for (name, least, most) in [
        ("ring", 160 * 14 + 24, 160 * 18 + 24),
        ("rendezvous", 32, 33),
        ("skeleton", 18, 20),
        ("jump", 8, 9),
        ("maglev", 208, 210),
        ("anchor", 32, 35),
        ("bounded", 160 * 14 + 32, 160 * 18 + 33),
    ] {
        let (_, build) = ALL.iter().find(|(known, _)| *known == name).unwrap();
        let each = build(&Node::numbered(1_000)).unwrap().memory_bytes() / 1_000;
        assert!((least..=most).contains(&each), "{name}: {each}");
    }
}

/// Bounded loads behind the trait: a full node is passed over by lookups too, and comes last among replicas.
#[test]
fn a_full_node_is_passed_over() {
    let mut ring = BoundedRing::new(&Node::numbered(4), Excess::thousandths(1).unwrap()).unwrap();
    for key in keys(399) {
        let expected = ring.node(key);
        let mut order = [NodeId(0); 4];
        ring.replicas(key, &mut order).unwrap();
        let full = |id: NodeId| {
            let load = ring.load(id);
            // One more is on its way.
            u128::from(load) >= (u128::from(ring.total_load() + 1) * 1_001).div_ceil(4 * 1_000)
        };
        assert!(order.is_sorted_by_key(|id| full(*id)), "{order:?}");
        assert!(!full(expected));
        assert_eq!(ring.take(key), expected);
    }
}

#[test]
fn the_order_of_the_list_does_not_matter() {
    let mut rng = Rng(5);
    let nodes = Node::numbered(30);
    let mut shuffled = nodes.clone();
    for at in (1..shuffled.len()).rev() {
        shuffled.swap(at, rng.index(at + 1));
    }
    for (name, build) in ALL.iter().filter(|(name, _)| *name != "jump") {
        let (one, other) = (build(&nodes).unwrap(), build(&shuffled).unwrap());
        assert!(keys(2_000).all(|key| one.node(key) == other.node(key)), "{name}");
    }
}
