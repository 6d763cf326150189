//! Placement: the table as it is stored and shipped, and clusters as operators describe them.

use std::collections::BTreeMap;

use conclave_hashring::{
    Anchor, BoundedRing, Cluster, Excess, Jump, KeyHash, Keyspace, Lookup, Maglev, Member, Node, NodeId,
    Plan, Policy, Rendezvous, Ring, Skeleton, Slack, Slot, Slots, Table, Throttle, Weight,
};

use super::Source;

/// The bytes as a table, and again with a checksum that fits, so that what lies behind it is reached.
pub(super) fn table(data: &[u8]) {
    judge(data);
    let mut sealed = data[..data.len().saturating_sub(8)].to_vec();
    let checksum = KeyHash::of(&sealed).0;
    sealed.extend_from_slice(&checksum.to_le_bytes());
    judge(&sealed);
}

/// What is accepted is what would be written, and can be read and planned from.
fn judge(data: &[u8]) {
    let Ok(table) = Table::decode(data) else { return };
    assert_eq!(table.encode(), data, "one encoding for each table");
    for slot in (0..table.rows()).map(Slot) {
        let row: Vec<_> = table.row(slot).collect();
        assert!(row.len() <= usize::from(table.replicas()));
        assert!(row.iter().all(|id| row.iter().filter(|other| *other == id).count() == 1));
    }
    if table.rows() > 64 {
        return;
    }
    let members = (0..9).map(|number| Member::new(&format!("n{number}"))).collect();
    let cluster = Cluster { members, ..Cluster::default() };
    let plan = Plan::new(&table, &cluster, &[], &Throttle::default());
    let Ok(plan) = plan else { return };
    let mut after = table;
    if plan.steps.iter().all(|step| after.apply(step).is_ok()) {
        assert!((0..after.rows()).all(|slot| after.row(Slot(slot)).count() == usize::from(after.replicas())));
    }
}

pub(super) fn table_seeds() -> Vec<Vec<u8>> {
    let seed = |(rows, replicas, nodes): (u32, u8, u32)| {
        let mut table = Table::vacant(rows, replicas).expect("a shape that can be");
        let members = (0..nodes).map(|number| Member::new(&format!("n{number}"))).collect();
        let cluster = Cluster { members, ..Cluster::default() };
        let plan = Plan::new(&table, &cluster, &[], &Throttle::NONE).expect("a plan");
        plan.steps.iter().for_each(|step| table.apply(step).expect("a step of this plan"));
        table.encode()
    };
    let mut seeds: Vec<_> = [(1, 1, 1), (16, 1, 3), (9, 3, 5), (33, 2, 4)].map(seed).to_vec();
    seeds.push(Table::vacant(8, 2).expect("a shape that can be").encode());
    seeds
}

/// A history of clusters, one after the other, for one table; and every structure and keyspace made of the same.
pub(super) fn cluster(data: &[u8]) {
    let mut from = Source::new(data);
    let rows = [1, 2, 5, 16, 33, 64][usize::from(from.byte() % 6)];
    let Ok(mut table) = Table::vacant(rows, from.byte() % 10) else { return };
    while !from.is_empty() {
        let cluster = described(&mut from);
        let sizes: Vec<u64> = match from.byte() % 4 {
            0 => vec![from.number(); table.rows() as usize],
            1 => vec![from.number(); usize::from(from.byte())],
            _ => Vec::new(),
        };
        let throttle = match from.byte() % 2 {
            0 => Throttle::NONE,
            _ => Throttle {
                moves_max: from.number() as u32,
                node_moves_max: from.number() as u32,
                bytes_max: from.number(),
            },
        };
        match Plan::new(&table, &cluster, &sizes, &throttle) {
            Ok(plan) => carry_out(&mut table, &cluster, &plan),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        lookups(&cluster);
        keyspace(&mut from);
    }
}

/// Any weight that a program can ask for.
fn weight(from: &mut Source<'_>) -> Option<Weight> {
    let wanted = match from.byte() % 10 {
        0 => f64::from_bits(u64::from_le_bytes(std::array::from_fn(|_| from.byte()))),
        1 => f64::NAN,
        2 => 0.0,
        3 => -1.0,
        4 => f64::INFINITY,
        5 => 0.001,
        6 => 1e6,
        _ => f64::from(from.byte()) / 4.0,
    };
    let weight = Weight::new(wanted);
    assert!(weight.is_err() || (0.000_5..1_000_000.001).contains(&wanted), "{wanted}");
    weight.ok()
}

fn described(from: &mut Source<'_>) -> Cluster {
    let mut members = Vec::new();
    for _ in 0..from.byte() % 24 {
        let mut member = Member::new(&format!("n{}", from.byte() % 32));
        let about = from.byte();
        member.weight = if about & 1 == 0 { Weight::ONE } else { weight(from).unwrap_or(Weight::ONE) };
        member.zone = (about & 6 > 0).then(|| format!("z{}", about >> 6));
        member.draining = about & 56 == 8;
        if about & 56 == 16 {
            member.id = NodeId(from.number());
        }
        members.push(member);
    }
    let mut pins = Vec::new();
    for _ in 0..(from.byte() % 16).saturating_sub(8) {
        let node = match members.get(usize::from(from.byte())) {
            Some(member) => member.id,
            None => NodeId(from.number()),
        };
        pins.push((Slot(from.number() as u32), node));
    }
    Cluster {
        slack: Slack::thousandths(u32::from(from.byte()) * 5).unwrap_or_default(),
        may_share_zones: from.byte().is_multiple_of(2),
        members,
        pins,
    }
}

/// After each step everybody has at least what it had; in the end everything is as the cluster wants it, and there is nothing more to do.
fn carry_out(table: &mut Table, cluster: &Cluster, plan: &Plan) {
    for step in &plan.steps {
        let before = table.clone();
        table.apply(step).expect("a step of this plan");
        assert!(
            (0..table.rows()).map(Slot).all(|slot| table.row(slot).count() >= before.row(slot).count()),
            "fewer replicas on the way"
        );
    }
    plan.moves().for_each(|change| assert!(!plan.explain(change).is_empty()));
    let takers: BTreeMap<NodeId, &Member> =
        cluster.members.iter().filter(|member| !member.draining).map(|member| (member.id, member)).collect();
    let zone = |id: &NodeId| takers[id].zone.as_ref().unwrap_or(&takers[id].name);
    let mut sizes: BTreeMap<&String, usize> = BTreeMap::new();
    takers.keys().for_each(|id| *sizes.entry(zone(id)).or_default() += 1);
    // The least that lets every replica be somewhere: one, while zones suffice.
    let holds = |limit: usize| sizes.values().map(|size| limit.min(*size)).sum::<usize>();
    let limit = (1..).find(|limit| holds(*limit) >= usize::from(table.replicas())).expect("enough nodes");
    for slot in (0..table.rows()).map(Slot) {
        let row: Vec<NodeId> = table.row(slot).collect();
        assert_eq!(row.len(), usize::from(table.replicas()), "slot {slot} lacks replicas");
        assert!(row.iter().all(|id| takers.contains_key(id)), "slot {slot} is at who may have nothing");
        let crowd = |id: &NodeId| row.iter().filter(|other| zone(other) == zone(id)).count();
        assert!(row.iter().all(|id| crowd(id) <= limit), "slot {slot} shares a zone needlessly");
    }
    assert!(cluster.pins.iter().all(|(slot, id)| table.row(*slot).any(|other| other == *id)), "a pin");
    if cluster.pins.is_empty() {
        for (id, bounds) in &plan.bounds {
            assert!((bounds.least..=bounds.most).contains(&table.load(*id)), "node {id} is out of bounds");
        }
        let again = Plan::new(table, cluster, &[], &Throttle::NONE).expect("a plan was made before");
        assert!(again.steps.is_empty(), "what is settled moves");
    }
}

/// What can be built answers with nodes that are there.
fn lookups(cluster: &Cluster) {
    let nodes: Vec<Node> =
        cluster.members.iter().map(|member| Node::weighing(member.id, member.weight)).collect();
    let light = nodes.iter().all(|node| node.weight <= Weight::new(100.0).expect("between bounds"));
    let mut built: Vec<Box<dyn Lookup>> = Vec::new();
    let mut add = |lookup: Result<Box<dyn Lookup>, conclave_hashring::NodesError>| match lookup {
        Ok(lookup) => built.push(lookup),
        Err(error) => assert!(!error.to_string().is_empty()),
    };
    add(Rendezvous::new(&nodes).map(|lookup| Box::new(lookup) as Box<dyn Lookup>));
    add(Skeleton::new(&nodes).map(|lookup| Box::new(lookup) as Box<dyn Lookup>));
    add(Jump::new(&nodes).map(|lookup| Box::new(lookup) as Box<dyn Lookup>));
    add(Anchor::new(&nodes).map(|lookup| Box::new(lookup) as Box<dyn Lookup>));
    add(Maglev::with_entries(&nodes, 101).map(|lookup| Box::new(lookup) as Box<dyn Lookup>));
    if light {
        add(Ring::with_points(&nodes, 3).map(|lookup| Box::new(lookup) as Box<dyn Lookup>));
        add(BoundedRing::new(&nodes, Excess::default()).map(|lookup| Box::new(lookup) as Box<dyn Lookup>));
    }
    for (lookup, key) in built.iter().flat_map(|lookup| (0..8_u64).map(move |key| (lookup, key))) {
        let key = KeyHash::of(&key.to_le_bytes());
        let mut all = vec![NodeId::default(); lookup.nodes()];
        lookup.replicas(key, &mut all).expect("as many as there are");
        assert_eq!(all[0], lookup.node(key));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), nodes.len());
        assert!(lookup.replicas(key, &mut vec![NodeId::default(); nodes.len() + 1]).is_err());
    }
}

/// Policies that are accepted place every key in a slot that is there.
fn keyspace(from: &mut Source<'_>) {
    let Ok(slots) = Slots::new(from.number() as u32) else { return };
    let mut policies = Vec::new();
    for _ in 0..from.byte() % 4 {
        let policy = match from.byte() % 3 {
            0 => Policy::Hash,
            1 => Policy::Colocate { depth: from.number() as u32 },
            _ => Policy::Pin { slot: Slot(from.number() as u32) },
        };
        policies.push((from.piece().to_vec(), policy));
    }
    let Ok(keys) = Keyspace::new(slots, policies) else { return };
    for _ in 0..4 {
        assert!(keys.slot(from.piece()).0 < slots.count());
    }
}

pub(super) fn cluster_seeds() -> Vec<Vec<u8>> {
    // Rows, replicas, then clusters: so many members of three bytes each, no pins, the slack, and what follows.
    let seed = |rows: u8, replicas: u8, counts: &[u8]| {
        let mut seed = vec![rows, replicas];
        for count in counts {
            seed.push(*count);
            seed.extend((0..*count).flat_map(|n| {
                [n, (n << 6) | 2 | (n % 2), 7 + n % 3, n * 8][..if n % 2 == 0 { 2 } else { 4 }].to_vec()
            }));
            seed.extend([0, 10, 0, 2, 1, 9, 3, 200, 16, 1, 1, 1, 2, 1, b'a', 3, b'a', b'/', b'b', 0, 0, 0]);
        }
        seed
    };
    vec![
        seed(3, 1, &[3, 4, 2]),
        seed(4, 3, &[9, 12, 8]),
        seed(5, 2, &[20, 23, 5]),
        seed(2, 5, &[8, 8]),
        vec![0, 0],
    ]
}
