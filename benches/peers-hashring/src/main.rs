//! Lookups side by side: ours and the crate that is published for the same algorithm, in turns, over the same keys.
//!
//! Each crate is used as its own documentation says. Keys are hashed beforehand; where a crate insists on hashing them itself it gets a hasher that
//! passes a number through, so that what is measured is the search. Ring: as many points on both sides. All take turns, round by round; the median of the
//! rounds counts, and the fastest is told too.

#![forbid(unsafe_code)]

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::hint::black_box;
use std::time::Instant;

use conclave_hashring::{
    Anchor, Cluster, Jump, KeyHash, Lookup, Maglev, Member, Node, POINTS_DEFAULT, Plan, Rendezvous, Ring,
    SLOTS_DEFAULT, Skeleton, Slots, Table, Throttle, Weight, jump,
};
use maglev::ConsistentHasher;

const KEYS: usize = 16_384;
const ROUNDS: usize = 101;

/// Passes a number through, mixed with what came before if something did.
#[derive(Clone, Default)]
struct Through(u64);

impl Hasher for Through {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = if self.0 == 0 { number } else { (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15) };
    }
}

type Builder = BuildHasherDefault<Through>;

/// A point of the ring crate: its hash is where it stands.
struct Point {
    at: u64,
    node: u64,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.at);
    }
}

/// A lookup under measure.
struct Subject<'a> {
    name: String,
    node: Box<dyn Fn(&[KeyHash]) -> u64 + 'a>,
    rounds_ns: Vec<f64>,
}

/// Looks all keys up in one loop, which is compiled for each lookup by itself.
fn subject<'a>(name: &str, node: impl Fn(KeyHash) -> u64 + 'a) -> Subject<'a> {
    let all = move |keys: &[KeyHash]| keys.iter().fold(0, |sum: u64, key| sum.wrapping_add(node(*key)));
    Subject { name: name.to_owned(), node: Box::new(all), rounds_ns: Vec::new() }
}

fn number(seed: u64) -> u64 {
    KeyHash::of(&seed.to_le_bytes()).0
}

fn measure(kind: &str, nodes: u64, keys: &[KeyHash], mut subjects: Vec<Subject<'_>>) {
    for _ in 0..ROUNDS {
        for subject in &mut subjects {
            let started = Instant::now();
            black_box((subject.node)(black_box(keys)));
            let took = started.elapsed().as_secs_f64() * 1e9 / keys.len() as f64;
            subject.rounds_ns.push(took);
        }
    }
    subjects.iter_mut().for_each(|subject| subject.rounds_ns.sort_by(f64::total_cmp));
    let median = |subject: &Subject<'_>| subject.rounds_ns[ROUNDS / 2];
    let ours = median(&subjects[0]);
    for subject in &subjects {
        let (ns, fastest) = (median(subject), subject.rounds_ns[0]);
        println!("{kind:<12}{nodes:>7}{:>28}{ns:>12.2}{fastest:>10.2}{:>10.2} x", subject.name, ns / ours);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let keys: Vec<KeyHash> = (0..KEYS as u64).map(|key| KeyHash(number(key))).collect();
    println!(
        "{:<12}{:>7}{:>28}{:>12}{:>10}{:>12}",
        "algorithm", "nodes", "crate", "median ns", "fastest", "of ours"
    );
    for count in [10, 100, 1_000] {
        let nodes = Node::numbered(count);

        let ours = Jump::new(&nodes)?;
        let buckets = count as u32;
        measure(
            "jump",
            count,
            &keys,
            vec![
                subject("conclave, bucket", |key| u64::from(jump(key, buckets))),
                subject("conclave, node", |key| ours.node(key).0),
                subject("jumpconsistenthash 0.1.0", |key| {
                    u64::from(jumpconsistenthash::jump_hash_from_u64(key.0, buckets))
                }),
                subject("jumphash 0.1.9", |key| {
                    u64::from(jumphash::CustomJumpHasher::new(Through::default()).slot(&key.0, buckets))
                }),
            ],
        );

        let ours = Ring::new(&nodes)?;
        let mut theirs = hashring::HashRing::with_hasher(Builder::default());
        let points = (0..count * u64::from(POINTS_DEFAULT))
            .map(|point| Point { at: number(point ^ 1 << 40), node: point % count });
        theirs.batch_add(points.collect());
        measure(
            "ring",
            count,
            &keys,
            vec![
                subject("conclave", |key| ours.node(key).0),
                subject("hashring 0.3.6", |key| theirs.get(&key.0).map_or(0, |point| point.node)),
            ],
        );

        let ours = Rendezvous::new(&nodes)?;
        let theirs = hrw_hash::HrwNodes::with_build_hasher(Builder::default(), (0..count).map(number));
        measure(
            "rendezvous",
            count,
            &keys[..KEYS / 8],
            vec![
                subject("conclave", |key| ours.node(key).0),
                subject("hrw-hash 2.0.3", |key| theirs.sorted(&key.0).next().copied().unwrap_or(0)),
            ],
        );

        let ours = Maglev::new(&nodes)?;
        let entries = ours.entries().len();
        // The other crate writes every node's whole permutation down first: 800 MB for a thousand nodes.
        let fewer = if count > 100 { 1_009 } else { entries };
        let theirs =
            maglev::Maglev::with_capacity_and_hasher((0..count).map(number), fewer, Builder::default());
        let name = if count > 100 { "maglev 0.2.1, 1,009 entries" } else { "maglev 0.2.1" };
        measure(
            "maglev",
            count,
            &keys,
            vec![
                subject("conclave", |key| ours.node(key).0),
                subject(name, |key| theirs.get(&key.0).copied().unwrap_or(0)),
            ],
        );

        let ours = Anchor::new(&nodes)?;
        let capacity = (count + count / 16 + 1) as u16;
        let theirs: anchorhash::AnchorHash<u64, u64, Builder> =
            anchorhash::Builder::with_hasher(Builder::default()).with_resources(0..count).build(capacity);
        measure(
            "anchor",
            count,
            &keys,
            vec![
                subject("conclave", |key| ours.node(key).0),
                subject("anchorhash 0.2.2", |key| theirs.get_resource(key.0).copied().unwrap_or(0)),
            ],
        );
        let skeleton = Skeleton::new(&nodes)?;
        measure("skeleton", count, &keys, vec![subject("conclave", |key| skeleton.node(key).0)]);

        let mut table = Table::vacant(SLOTS_DEFAULT, 1)?;
        let plan = Plan::new(&table, &cluster(count)?, &[], &Throttle::NONE)?;
        plan.steps.iter().try_for_each(|step| table.apply(step))?;
        let slots = Slots::default();
        measure(
            "slot table",
            count,
            &keys,
            vec![subject("conclave", |key| table.owner(slots.of(key)).map_or(0, |id| id.0))],
        );
    }
    plans()
}

/// Nodes of seven weights in eight zones.
fn cluster(count: u64) -> Result<Cluster, Box<dyn std::error::Error>> {
    let mut members = Vec::new();
    for id in 0..count {
        let member = Member::new(&format!("n{id}")).in_zone(&format!("z{}", id % 8));
        members.push(member.weighing(Weight::new(1.0 + (id % 7) as f64 / 2.0)?));
    }
    Ok(Cluster { members, ..Cluster::default() })
}

/// Whole plans, their steps included: from nothing, and from a table of which fifty nodes are gone and fifty others came.
fn plans() -> Result<(), Box<dyn std::error::Error>> {
    const NODES: u64 = 1_000;
    println!("\n{SLOTS_DEFAULT} slots, {NODES} nodes of seven weights in eight zones");
    println!(
        "{:<12}{:>24}{:>10}{:>10}{:>14}{:>14}",
        "replicas", "plan", "moves", "ms", "table bytes", "encoded"
    );
    for replicas in [1, 3] {
        let mut table = Table::vacant(SLOTS_DEFAULT, replicas)?;
        let all = cluster(NODES)?;
        let mut changed = cluster(NODES + 50)?;
        changed.members.drain(..50);
        for (what, cluster) in [("from nothing", &all), ("50 nodes replaced", &changed)] {
            let mut best_ms = f64::INFINITY;
            let mut moves = 0;
            for _ in 0..21 {
                let started = Instant::now();
                moves = black_box(Plan::new(&table, cluster, &[], &Throttle::default())?).moves().count();
                best_ms = best_ms.min(started.elapsed().as_secs_f64() * 1e3);
            }
            let plan = Plan::new(&table, cluster, &[], &Throttle::default())?;
            plan.steps.iter().try_for_each(|step| table.apply(step))?;
            let (memory, encoded) = (table.memory_bytes(), table.encode().len());
            println!("{replicas:<12}{what:>24}{moves:>10}{best_ms:>10.1}{memory:>14}{encoded:>14}");
        }
    }
    Ok(())
}
