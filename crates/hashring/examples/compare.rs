//! Balance, movement and cost of all algorithms side by side, as a table and as a chart.
//!
//! `cargo run --release -p conclave-hashring --example compare [FILE.svg]`; without an argument the chart goes to `docs/hashring.svg`.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap, error::Error, fmt::Write as _, fs, hint::black_box, path::PathBuf, time::Instant,
};

use conclave_hashring::{
    Anchor, BoundedRing, Cluster, Excess, Jump, KeyHash, Lookup, Maglev, Member, Node, NodeId, Plan,
    Rendezvous, Ring, SLOTS_DEFAULT, Skeleton, Slots, Table, Throttle, TooFewNodes,
};

const NODES: u64 = 100;
const KEYS: u64 = 1_000_000;

/// Slots of a table as a lookup: what the planner reaches, beside what hashing alone does.
struct Slotted {
    slots: Slots,
    table: Table,
}

impl Slotted {
    fn new() -> Result<Self, Box<dyn Error>> {
        let mut slotted = Self { slots: Slots::default(), table: Table::vacant(SLOTS_DEFAULT, 1)? };
        slotted.settle(NODES)?;
        Ok(slotted)
    }

    fn settle(&mut self, nodes: u64) -> Result<(), Box<dyn Error>> {
        let member = |id: u64| Member { id: NodeId(id), ..Member::new(&format!("n{id}")) };
        let cluster = Cluster { members: (1..=nodes).map(member).collect(), ..Cluster::default() };
        for step in &Plan::new(&self.table, &cluster, &[], &Throttle::NONE)?.steps {
            self.table.apply(step)?;
        }
        Ok(())
    }
}

impl Lookup for Slotted {
    #[inline]
    fn node(&self, key: KeyHash) -> NodeId {
        self.table.owner(self.slots.of(key)).unwrap_or_default()
    }

    fn replicas(&self, key: KeyHash, out: &mut [NodeId]) -> Result<(), TooFewNodes> {
        if let [first] = out {
            *first = self.node(key);
            return Ok(());
        }
        Err(TooFewNodes { asked: out.len(), nodes: 1 })
    }

    fn nodes(&self) -> usize {
        self.table.nodes().len()
    }

    fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
    }
}

struct Row {
    name: &'static str,
    /// The fullest node beside the mean.
    fullest: f64,
    /// Keys that moved when one node went, beside those that it had.
    moved: f64,
    lookup_ns: f64,
    memory_bytes: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let nodes = Node::numbered(NODES);
    let last = NodeId(NODES);
    let mut rows = Vec::new();
    let slotted = Slotted::new()?;
    let mut after = Slotted { slots: slotted.slots, table: slotted.table.clone() };
    after.settle(NODES - 1)?;
    rows.push(measure("slot table", &slotted, &after));
    let anchor = Anchor::new(&nodes)?;
    let mut after = anchor.clone();
    after.remove(last)?;
    rows.push(measure("anchor", &anchor, &after));
    rows.push(measure("maglev", &Maglev::new(&nodes)?, &Maglev::new(&nodes[..NODES as usize - 1])?));
    let ring = Ring::new(&nodes)?;
    let mut after = ring.clone();
    after.remove(last)?;
    rows.push(measure("ring", &ring, &after));
    let jump = Jump::new(&nodes)?;
    let mut after = jump.clone();
    after.pop()?;
    rows.push(measure("jump", &jump, &after));
    let skeleton = Skeleton::new(&nodes)?;
    let mut after = skeleton.clone();
    after.remove(last)?;
    rows.push(measure("skeleton", &skeleton, &after));
    let rendezvous = Rendezvous::new(&nodes)?;
    let mut after = rendezvous.clone();
    after.remove(last)?;
    rows.push(measure("rendezvous", &rendezvous, &after));
    rows.push(bounded(&nodes)?);

    println!("{NODES} nodes of one weight, {KEYS} keys");
    println!(
        "{:<12}{:>16}{:>22}{:>12}{:>14}",
        "", "fullest / mean", "moved / least to move", "lookup ns", "memory bytes"
    );
    for row in &rows {
        println!(
            "{:<12}{:>16.3}{:>22.3}{:>12.2}{:>14}",
            row.name, row.fullest, row.moved, row.lookup_ns, row.memory_bytes
        );
    }
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/hashring.svg");
    fs::write(std::env::args_os().nth(1).map_or(default, PathBuf::from), chart(&rows)?)?;
    Ok(())
}

fn keys() -> Vec<KeyHash> {
    (0..KEYS).map(|key| KeyHash::of(&key.to_le_bytes())).collect()
}

fn measure<L: Lookup>(name: &'static str, before: &L, after: &L) -> Row {
    let keys = keys();
    let placed = |lookup: &L| keys.iter().map(|key| lookup.node(*key)).collect::<Vec<NodeId>>();
    let lookup_ns = fastest(|| {
        black_box(keys.iter().fold(0, |sum: u64, key| sum.wrapping_add(before.node(*key).0)));
    });
    row(name, &placed(before), &placed(after), lookup_ns, before.memory_bytes())
}

/// Bounded loads: all keys are taken one after the other, and once more without the last node.
fn bounded(nodes: &[Node]) -> Result<Row, Box<dyn Error>> {
    let keys = keys();
    let empty = BoundedRing::new(nodes, Excess::default())?;
    let mut less = empty.clone();
    less.remove(NodeId(NODES))?;
    let placed = |ring: &BoundedRing| {
        let mut ring = ring.clone();
        keys.iter().map(|key| ring.take(*key)).collect::<Vec<NodeId>>()
    };
    let lookup_ns = fastest(|| {
        let mut ring = empty.clone();
        black_box(keys.iter().fold(0, |sum: u64, key| sum.wrapping_add(ring.take(*key).0)));
    });
    Ok(row("bounded", &placed(&empty), &placed(&less), lookup_ns, empty.memory_bytes()))
}

/// Nanoseconds a key in the fastest of some rounds: whatever disturbs a round makes it slower.
fn fastest(mut round: impl FnMut()) -> f64 {
    let rounds = (0..7).map(|_| {
        let started = Instant::now();
        round();
        started.elapsed().as_secs_f64() * 1e9 / KEYS as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn row(name: &'static str, before: &[NodeId], after: &[NodeId], lookup_ns: f64, memory_bytes: usize) -> Row {
    let mut loads: BTreeMap<NodeId, u64> = BTreeMap::new();
    before.iter().for_each(|node| *loads.entry(*node).or_default() += 1);
    let moved = before.iter().zip(after).filter(|(was, is)| was != is).count();
    let had = loads.get(&NodeId(NODES)).copied().unwrap_or(1);
    Row {
        name,
        fullest: loads.values().copied().max().unwrap_or(0) as f64 * NODES as f64 / KEYS as f64,
        moved: moved as f64 / had as f64,
        lookup_ns,
        memory_bytes,
    }
}

/// Three panels of bars, by hand.
fn chart(rows: &[Row]) -> Result<String, std::fmt::Error> {
    let height = 90 + rows.len() * 26;
    let mut svg = String::new();
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="960" height="{height}" font-family="sans-serif" font-size="13">"##
    )?;
    writeln!(svg, r##"<rect width="100%" height="100%" fill="#ffffff"/>"##)?;
    writeln!(
        svg,
        r##"<text x="20" y="26" font-size="15">{NODES} nodes of one weight, {KEYS} keys; one node goes</text>"##
    )?;
    panel(&mut svg, rows, 110, "fullest node, of the mean", 3, |row| row.fullest)?;
    panel(&mut svg, rows, 400, "moved, of the least to move", 3, |row| row.moved)?;
    panel(&mut svg, rows, 690, "ns a lookup", 1, |row| row.lookup_ns)?;
    for (at, row) in rows.iter().enumerate() {
        writeln!(svg, r##"<text x="100" y="{}" text-anchor="end">{}</text>"##, 89 + at * 26, row.name)?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn panel(
    svg: &mut String,
    rows: &[Row],
    left: u32,
    title: &str,
    digits: usize,
    value: impl Fn(&Row) -> f64,
) -> std::fmt::Result {
    const WIDTH: f64 = 190.0;
    let most = rows.iter().map(&value).fold(f64::MIN_POSITIVE, f64::max);
    writeln!(svg, r##"<text x="{left}" y="56" fill="#444444">{title}</text>"##)?;
    for (at, row) in rows.iter().enumerate() {
        let (top, wide) = (74 + at * 26, value(row) / most * WIDTH);
        writeln!(svg, r##"<rect x="{left}" y="{top}" width="{wide:.1}" height="20" fill="#4878a8"/>"##)?;
        let text = f64::from(left) + wide + 6.0;
        writeln!(svg, r##"<text x="{text:.1}" y="{}">{:.digits$}</text>"##, top + 15, value(row))?;
    }
    Ok(())
}
