//! Random histories with pins: nodes come, go and drain, and slots are pinned to some of them, with zones and several replicas.

use std::collections::BTreeMap;

use conclave_hashring::{Cluster, Member, NodeId, Plan, PlanError, Slack, Slot, Table, Throttle, Weight};

use super::Rng;

fn member(rng: &mut Rng, number: usize, zones: u64) -> Member {
    let mut member = Member::new(&format!("n{number}"));
    if zones > 0 && rng.below(5) > 0 {
        member = member.in_zone(&format!("z{}", rng.below(zones)));
    }
    if rng.below(3) == 0 {
        member = member.weighing(Weight::new([0.001, 0.5, 2.0, 10.0, 1e6][rng.index(5)]).unwrap());
    }
    member
}

fn pin_some(rng: &mut Rng, cluster: &mut Cluster, rows: u64) {
    cluster.pins.clear();
    for _ in 0..rng.below(rows + 1) {
        let member = &cluster.members[rng.index(cluster.members.len())];
        if !member.draining {
            cluster.pins.push((Slot(rng.below(rows) as u32), member.id));
        }
    }
}

fn change(rng: &mut Rng, cluster: &mut Cluster, next: &mut usize, zones: u64) {
    let at = rng.index(cluster.members.len());
    match rng.below(4) {
        0 if cluster.members.len() > 1 => {
            cluster.members.remove(at);
        }
        1 => cluster.members[at].draining ^= true,
        2 => cluster.members[at] = member(rng, *next, zones),
        _ => cluster.members.push(member(rng, *next, zones)),
    }
    *next += 1;
}

/// Carries the plan out and holds it against what it reports.
fn carry_out(table: &mut Table, cluster: &Cluster, plan: &Plan, context: &str) {
    let loads = |table: &Table| -> BTreeMap<NodeId, u32> {
        plan.bounds.keys().map(|node| (*node, table.load(*node))).collect()
    };
    let had = loads(table);
    for step in &plan.steps {
        table.apply(step).unwrap_or_else(|error| panic!("{context}: {error}"));
        for (node, load) in loads(table) {
            let limit = plan.bounds[&node].most.max(had[&node]);
            assert!(load <= limit + 1, "{context}: {node} has {load} on the way, of {limit}");
        }
    }
    for (node, load) in loads(table) {
        let bounds = plan.bounds[&node];
        assert!((bounds.least..=bounds.most).contains(&load), "{context}: {node} has {load}, of {bounds:?}");
    }
    for (slot, node) in &cluster.pins {
        assert!(table.row(*slot).any(|other| other == *node), "{context}: {slot} is not at {node}");
    }
}

/// Returns how many plans were made.
fn run(seed: u64) -> u32 {
    let mut rng = Rng(seed);
    let (rows, replicas, zones) = (rng.between(1, 24), rng.between(1, 4) as u8, rng.below(5));
    let mut cluster = Cluster {
        may_share_zones: rng.below(4) > 0,
        slack: Slack::thousandths([0, 50, 200, 1000][rng.index(4)]).unwrap(),
        ..Cluster::default()
    };
    let mut next = rng.between(2, 10) as usize;
    cluster.members = (0..next).map(|number| member(&mut rng, number, zones)).collect();
    let mut table = Table::vacant(rows as u32, replicas).unwrap();
    let mut plans = 0;
    for event in 0..4 {
        let context = format!("seed {seed}, event {event}");
        pin_some(&mut rng, &mut cluster, rows);
        let throttle = Throttle {
            moves_max: rng.between(1, 8) as u32,
            node_moves_max: rng.between(1, 4) as u32,
            ..Throttle::NONE
        };
        match Plan::new(&table, &cluster, &[], &throttle) {
            Ok(plan) => {
                carry_out(&mut table, &cluster, &plan, &context);
                let again = Plan::new(&table, &cluster, &[], &throttle).unwrap();
                let told: Vec<String> = again.moves().map(|change| again.explain(change)).collect();
                assert!(told.is_empty(), "{context}: it is settled, and {told:?}");
                assert_eq!(again.bounds, plan.bounds, "{context}");
                plans += 1;
            }
            Err(
                PlanError::PinsCollide(_)
                | PlanError::NoNodes
                | PlanError::TooFewNodes { .. }
                | PlanError::TooFewZones { .. },
            ) => {}
            Err(error) => panic!("{context}: {error}"),
        }
        change(&mut rng, &mut cluster, &mut next, zones);
    }
    plans
}

#[test]
fn plans_with_pins_do_what_they_report() {
    let plans: u32 = (0..20_000).map(run).sum();
    assert!(plans > 20_000, "{plans}");
}
