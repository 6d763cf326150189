//! Random histories of clusters: nodes come, go, drain, change weights. After each change the plan is held against everything it promises, and its number of
//! moves against the fewest there can be: a minimum-cost flow up to fifty nodes, a bound that counts above.

use conclave_hashring::{Bounds, Cluster, Member, NodeId, Plan, Slot, Table, Throttle, Weight};

use super::{
    Rng,
    flow::{Taker, fewest_changes},
};

/// Up to so many nodes the flow is asked.
const FLOW_NODES_MAX: usize = 50;

/// What a history is about.
struct Shape {
    rows: u32,
    replicas: u8,
    /// 0: nobody has a zone.
    zones: u64,
    nodes_max: usize,
    events: u32,
    /// Weights are all 1, or from 0.5 to 8.
    skewed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) plans: u64,
    pub(crate) moves: u64,
    pub(crate) fewest: u64,
    pub(crate) above_fewest: u64,
}

fn shape(rng: &mut Rng) -> Shape {
    let replicas = [1, 1, 2, 3][rng.index(4)];
    let skewed = rng.below(2) == 0;
    if replicas == 1 {
        let rows = [256, 1024, 16_384][rng.index(3)];
        let nodes_max = [10, 50, 50, 200, 1000][rng.index(5)];
        return Shape { rows, replicas, zones: rng.below(5), nodes_max, events: 5, skewed };
    }
    let zones = [0, 2, 3, 4, 6][rng.index(5)];
    Shape {
        rows: [32, 64, 128][rng.index(3)],
        replicas,
        zones,
        nodes_max: [6, 12, 20][rng.index(3)],
        events: 5,
        skewed,
    }
}

fn member(rng: &mut Rng, shape: &Shape, number: u64) -> Member {
    let mut member = Member::new(&format!("n{number}"));
    if shape.zones > 0 {
        member = member.in_zone(&format!("z{}", rng.below(shape.zones)));
    }
    if shape.skewed {
        member = member.weighing(Weight::new(rng.between(5, 80) as f64 / 10.0).unwrap());
    }
    member
}

/// Changes the cluster somehow, and leaves nodes enough.
fn change(rng: &mut Rng, shape: &Shape, cluster: &mut Cluster, next: &mut u64) {
    let many = if rng.below(3) == 0 { rng.between(1, 1 + cluster.members.len() as u64 / 3) } else { 1 };
    for _ in 0..many {
        let count = cluster.members.len();
        let takers = cluster.members.iter().filter(|member| !member.draining).count();
        let spare = takers > usize::from(shape.replicas);
        match rng.below(6) {
            0..=2 if count < shape.nodes_max => {
                cluster.members.push(member(rng, shape, *next));
                *next += 1;
            }
            3 if spare || (count > 0 && takers < count) => {
                let at = rng.index(count);
                if spare || cluster.members[at].draining {
                    cluster.members.remove(at);
                }
            }
            4 if spare => {
                let at = rng.index(count);
                cluster.members[at].draining = true;
            }
            5 if count > 0 && shape.skewed => {
                let at = rng.index(count);
                cluster.members[at].weight = member(rng, shape, 0).weight;
            }
            _ => {}
        }
    }
}

/// How many replicas of a row may be in one zone, counted in another way than the planner does: zones are filled in turns.
fn zone_limit(replicas: u8, takers: &[Taker]) -> usize {
    let zones = takers.iter().map(|taker| taker.zone).max().unwrap() + 1;
    let mut free: Vec<usize> =
        (0..zones).map(|zone| takers.iter().filter(|taker| taker.zone == zone).count()).collect();
    let (mut placed, mut rounds) = (0, 0);
    while placed < usize::from(replicas) {
        rounds += 1;
        for free in &mut free {
            if *free > 0 {
                *free -= 1;
                placed += 1;
            }
        }
    }
    rounds
}

fn takers(cluster: &Cluster, plan: &Plan) -> Vec<Taker> {
    let mut zones: Vec<String> = Vec::new();
    cluster
        .members
        .iter()
        .filter(|member| !member.draining)
        .map(|member| {
            let zone = member.zone.clone().unwrap_or_else(|| format!("of {}", member.name));
            let at = zones.iter().position(|known| *known == zone).unwrap_or_else(|| {
                zones.push(zone);
                zones.len() - 1
            });
            let Bounds { least, most } = plan.bounds[&member.id];
            Taker { id: member.id.0, zone: at, least, most }
        })
        .collect()
}

fn rows_of(table: &Table) -> Vec<Vec<u64>> {
    (0..table.rows()).map(|slot| table.row(Slot(slot)).map(|id| id.0).collect()).collect()
}

/// The most that a row has in one zone; those that are no takers do not count.
fn crowded(row: &[u64], zone_of: &impl Fn(u64) -> Option<usize>) -> usize {
    let zones: Vec<usize> = row.iter().filter_map(|id| zone_of(*id)).collect();
    zones.iter().map(|zone| zones.iter().filter(|other| *other == zone).count()).max().unwrap_or(0)
}

/// The loads of all nodes, by a table from an id.
fn loads(rows: &[Vec<u64>]) -> std::collections::BTreeMap<u64, u32> {
    let mut loads = std::collections::BTreeMap::new();
    for id in rows.iter().flatten() {
        *loads.entry(*id).or_insert(0) += 1;
    }
    loads
}

/// Carries the plan out and looks at the table after every step.
fn carry_out(
    table: &mut Table,
    plan: &Plan,
    cluster: &Cluster,
    takers: &[Taker],
    limit: usize,
    context: &str,
) {
    let by_id: std::collections::BTreeMap<u64, &Taker> =
        takers.iter().map(|taker| (taker.id, taker)).collect();
    // A node that drains is in its zone until it is empty; one that is gone is nowhere.
    let mut zones: std::collections::BTreeMap<u64, &str> = std::collections::BTreeMap::new();
    for member in &cluster.members {
        zones.insert(member.id.0, member.zone.as_deref().unwrap_or(&member.name));
    }
    let names: std::collections::BTreeSet<&str> = zones.values().copied().collect();
    let zone_of = |id: u64| zones.get(&id).and_then(|zone| names.iter().position(|name| name == zone));
    let before = rows_of(table);
    let loads_before = loads(&before);
    let crowd_before: Vec<usize> = before.iter().map(|row| crowded(row, &zone_of)).collect();
    let mut last = before.clone();
    for step in &plan.steps {
        table.apply(step).unwrap_or_else(|error| panic!("{context}: {error}"));
        let after = rows_of(table);
        for (row, nodes) in after.iter().enumerate() {
            if *nodes == last[row] {
                continue;
            }
            assert!(nodes.len() >= last[row].len(), "{context}: row {row} has fewer replicas than before");
            let lost = last[row].iter().filter(|id| !nodes.contains(id)).count();
            let won = nodes.iter().filter(|id| !last[row].contains(id)).count();
            assert!(
                lost <= 1 && (won <= 1 || last[row].is_empty()),
                "{context}: row {row} changes in several places"
            );
            let crowd = crowded(nodes, &zone_of);
            assert!(
                crowd <= limit.max(crowd_before[row]),
                "{context}: row {row} has {crowd} in one zone on the way"
            );
        }
        for (id, load) in loads(&after) {
            let most = by_id.get(&id).map_or(0, |taker| taker.most);
            let had = loads_before.get(&id).copied().unwrap_or(0);
            assert!(
                load <= most.max(had) + 1,
                "{context}: node {id} has {load} on the way, of {most}, and had {had}"
            );
        }
        last = after;
    }
}

/// Runs one history. Panics where a promise is broken.
pub(crate) fn run(seed: u64, tally: &mut Tally) {
    let mut rng = Rng(seed);
    let shape = shape(&mut rng);
    let mut cluster = Cluster { may_share_zones: true, ..Cluster::default() };
    let mut next = 0;
    let first =
        rng.between(u64::from(shape.replicas), shape.nodes_max as u64 / 2 + u64::from(shape.replicas));
    for _ in 0..first {
        cluster.members.push(member(&mut rng, &shape, next));
        next += 1;
    }
    let mut table = Table::vacant(shape.rows, shape.replicas).unwrap();
    for event in 0..=shape.events {
        if event > 0 {
            change(&mut rng, &shape, &mut cluster, &mut next);
        }
        let context = format!("seed {seed}, event {event}");
        // Many steps are the slow part of a large table; small ones have them.
        let throttle = if shape.rows > 1024 { Throttle::NONE } else { Throttle::default() };
        let plan =
            Plan::new(&table, &cluster, &[], &throttle).unwrap_or_else(|error| panic!("{context}: {error}"));
        let takers = takers(&cluster, &plan);
        let limit = zone_limit(shape.replicas, &takers);
        let before = rows_of(&table);
        carry_out(&mut table, &plan, &cluster, &takers, limit, &context);
        let after = rows_of(&table);
        judge(&shape, &cluster, &after, &takers, limit, &context);

        let moves = plan.moves().count() as u64;
        let changed = before.iter().zip(&after);
        let changed: usize = changed.map(|(was, is)| is.iter().filter(|id| !was.contains(id)).count()).sum();
        assert_eq!(moves, changed as u64, "{context}: no place moves twice");
        if shape.replicas == 1 {
            nothing_moves_needlessly(&before, &takers, &plan, &context);
        }
        let fewest = fewest(&shape, &before, &takers, limit, &context);
        tally.plans += 1;
        tally.moves += moves;
        tally.fewest += fewest;
        tally.above_fewest += u64::from(moves > fewest);
        assert!(moves >= fewest, "{context}: {moves} moves, and {fewest} were thought to be the fewest");
        assert!(moves * 100 <= fewest * 101, "{context}: {moves} moves, where {fewest} are enough");
        let decoded = Table::decode(&table.encode());
        assert_eq!(decoded.as_ref(), Ok(&table), "{context}");
    }
}

/// Between two nodes that stay, something moves only where the one has too much or the other too little.
fn nothing_moves_needlessly(before: &[Vec<u64>], takers: &[Taker], plan: &Plan, context: &str) {
    let loads = loads(before);
    let load = |taker: &Taker| loads.get(&taker.id).copied().unwrap_or(0);
    let by_id: std::collections::BTreeMap<u64, &Taker> =
        takers.iter().map(|taker| (taker.id, taker)).collect();
    for change in plan.moves() {
        let Some(from) = change.from.and_then(|from| by_id.get(&from.0)) else { continue };
        let to = by_id[&change.to.0];
        assert!(load(from) > from.most || load(to) < to.least, "{context}: {}", plan.explain(change));
    }
}

fn judge(shape: &Shape, cluster: &Cluster, rows: &[Vec<u64>], takers: &[Taker], limit: usize, context: &str) {
    let zone_of = |id: u64| takers.iter().find(|taker| taker.id == id).map(|taker| taker.zone);
    if shape.replicas > 1 {
        for (number, row) in rows.iter().enumerate() {
            assert!(
                row.iter().all(|id| zone_of(*id).is_some()),
                "{context}: row {number} is on who may have nothing"
            );
            assert!(crowded(row, &zone_of) <= limit, "{context}: row {number} shares a zone");
        }
    }
    let loads = loads(rows);
    assert_eq!(
        loads.values().sum::<u32>(),
        shape.rows * u32::from(shape.replicas),
        "{context}: every place is taken"
    );
    for taker in takers {
        let load = loads.get(&taker.id).copied().unwrap_or(0);
        assert!(
            (taker.least..=taker.most).contains(&load),
            "{context}: {load} is not in {}..={}",
            taker.least,
            taker.most
        );
    }
    assert!(loads.keys().all(|id| takers.iter().any(|taker| taker.id == *id)), "{context}");
    if shape.replicas == 1 {
        // The bounds are those of the documentation: share = slots × weight / total.
        let weight = |id: u64| {
            let member = cluster.members.iter().find(|member| member.id == NodeId(id)).unwrap();
            u64::from(member.weight.thousandths())
        };
        let total: u64 = takers.iter().map(|taker| weight(taker.id)).sum();
        for taker in takers {
            let part = u64::from(shape.rows) * weight(taker.id);
            assert_eq!(
                u64::from(taker.most),
                (part.div_ceil(total)).max(part * 105 / (total * 100)).min(u64::from(shape.rows)),
                "{context}"
            );
            assert_eq!(u64::from(taker.least), part * 95 / (total * 100), "{context}");
        }
    }
}

fn fewest(shape: &Shape, before: &[Vec<u64>], takers: &[Taker], limit: usize, context: &str) -> u64 {
    if takers.len() <= FLOW_NODES_MAX {
        let fewest = fewest_changes(before, usize::from(shape.replicas), takers, limit);
        return fewest.unwrap_or_else(|| panic!("{context}: the flow finds no placement"));
    }
    // What has no node that may keep it, with what is above the bounds, or else what is missing below them.
    let loads = loads(before);
    let load = |id: u64| u64::from(loads.get(&id).copied().unwrap_or(0));
    let kept: u64 = takers.iter().map(|taker| load(taker.id).min(u64::from(taker.most))).sum();
    let missing: u64 = takers.iter().map(|taker| u64::from(taker.least).saturating_sub(load(taker.id))).sum();
    (u64::from(shape.rows) * u64::from(shape.replicas) - kept).max(missing)
}

#[test]
fn plans_move_the_fewest_over_random_histories() {
    let mut tally = Tally::default();
    (0..60).for_each(|seed| run(seed, &mut tally));
    assert!(tally.plans > 300 && tally.moves > tally.plans, "{tally:?}");
}

/// `HISTORIES=from..to` says which seeds; ten thousand if it is not set.
#[test]
#[ignore = "ten thousand histories take minutes: cargo xtask prove placement"]
fn ten_thousand_histories() {
    let given = std::env::var("HISTORIES").unwrap_or_else(|_| "100000..110000".to_owned());
    let (from, to) = given.split_once("..").expect("HISTORIES=from..to");
    let (from, to): (u64, u64) = (from.parse().unwrap(), to.parse().unwrap());
    let mut tally = Tally::default();
    for seed in from..to {
        run(seed, &mut tally);
        if (seed + 1 - from).is_multiple_of(1_000) {
            println!("placement: seeds {from}..{} held: {tally:?}", seed + 1);
        }
    }
    println!("placement: seeds {from}..{to} held: {tally:?}");
}
