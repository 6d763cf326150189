//! Placement: a lookup in each structure, and whole plans.
//!
//! Keys are hashed beforehand, but for one bench that shows what hashing costs. A figure is for 1,024 lookups of keys that do not depend on each other.

#![forbid(unsafe_code)]

use std::hint::black_box;

use conclave_hashring::{
    Anchor, Cluster, Jump, KeyHash, Keyspace, Lookup, Maglev, Member, Node, NodeId, Plan, Rendezvous, Ring,
    Skeleton, Slots, Table, Throttle, Weight,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const NODES: u64 = 1_000;
const KEYS: u64 = 1_024;

fn keys() -> Vec<KeyHash> {
    (0..KEYS).map(|key| KeyHash::of(&key.to_le_bytes())).collect()
}

fn members(count: u64) -> Vec<Member> {
    let member = |id: u64| {
        let weight = Weight::new(1.0 + (id % 4) as f64 / 2.0).expect("between bounds");
        Member {
            id: NodeId(id),
            ..Member::new(&format!("n{id}")).in_zone(&format!("z{}", id % 8)).weighing(weight)
        }
    };
    (1..=count).map(member).collect()
}

fn table(replicas: u8, cluster: &Cluster) -> Table {
    let mut table = Table::vacant(Slots::default().count(), replicas).expect("a shape that can be");
    let plan = Plan::new(&table, cluster, &[], &Throttle::NONE).expect("a plan");
    plan.steps.iter().for_each(|step| table.apply(step).expect("a step of this plan"));
    table
}

fn lookups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hashring/lookup");
    group.throughput(Throughput::Elements(KEYS));
    let keys = keys();
    let nodes = Node::numbered(NODES);
    let owners = table(1, &Cluster { members: members(NODES), ..Cluster::default() });
    let slots = Slots::default();
    group.bench_function("slot table", |bencher| {
        bencher.iter(|| {
            keys.iter().filter_map(|key| owners.owner(slots.of(*key))).fold(0, |sum, id| sum ^ id.0)
        });
    });
    let keyspace = Keyspace::default();
    let names: Vec<String> = (0..KEYS).map(|key| format!("users/{key:08}/cart")).collect();
    group.bench_function("key of 19 bytes to slot", |bencher| {
        bencher.iter(|| names.iter().fold(0, |sum, key| sum ^ keyspace.slot(key.as_bytes()).0));
    });
    let all: [(&str, Box<dyn Lookup>); 6] = [
        ("anchor", Box::new(Anchor::new(&nodes).expect("nodes"))),
        ("maglev", Box::new(Maglev::new(&nodes).expect("nodes"))),
        ("ring", Box::new(Ring::new(&nodes).expect("nodes"))),
        ("jump", Box::new(Jump::new(&nodes).expect("nodes"))),
        ("skeleton", Box::new(Skeleton::new(&nodes).expect("nodes"))),
        ("rendezvous", Box::new(Rendezvous::new(&nodes).expect("nodes"))),
    ];
    for (name, lookup) in all {
        group.bench_function(format!("{name}, {NODES} nodes"), |bencher| {
            bencher.iter(|| keys.iter().fold(0, |sum, key| sum ^ lookup.node(*key).0));
        });
    }
    group.finish();
}

fn plans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hashring/plan");
    group.sample_size(10);
    for replicas in [1, 3] {
        let cluster = Cluster { members: members(NODES), ..Cluster::default() };
        let vacant = Table::vacant(Slots::default().count(), replicas).expect("a shape that can be");
        group.bench_function(format!("from nothing, {replicas} replicas, {NODES} nodes"), |bencher| {
            bencher
                .iter(|| black_box(Plan::new(&vacant, &cluster, &[], &Throttle::default()).expect("a plan")));
        });
        let filled = table(replicas, &cluster);
        let mut changed = cluster.clone();
        changed.members.truncate(950);
        changed.members.extend(members(NODES + 50).split_off(NODES as usize));
        group.bench_function(format!("50 of {NODES} replaced, {replicas} replicas"), |bencher| {
            bencher
                .iter(|| black_box(Plan::new(&filled, &changed, &[], &Throttle::default()).expect("a plan")));
        });
    }
    group.finish();
}

criterion_group!(benches, lookups, plans);
criterion_main!(benches);
