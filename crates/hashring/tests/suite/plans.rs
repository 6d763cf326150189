//! Plans, case by case. What holds for all of them is in `histories`.

use std::collections::BTreeMap;

use conclave_hashring::{
    Bounds, Cluster, Member, Move, NODES_MAX, NodeId, Plan, PlanError, Reason, Slack, Slot, Step, Table,
    Throttle, Weight,
};

fn members(count: usize) -> Vec<Member> {
    (0..count).map(|number| Member::new(&format!("g{number}"))).collect()
}

fn zoned(count: usize, zones: usize) -> Vec<Member> {
    members(count)
        .into_iter()
        .enumerate()
        .map(|(n, member)| member.in_zone(&format!("z{}", n % zones)))
        .collect()
}

fn cluster(members: Vec<Member>) -> Cluster {
    Cluster { members, ..Cluster::default() }
}

fn settle(table: &mut Table, cluster: &Cluster) -> Plan {
    let plan = Plan::new(table, cluster, &[], &Throttle::NONE).unwrap();
    plan.steps.iter().for_each(|step| table.apply(step).unwrap());
    plan
}

fn filled(rows: u32, replicas: u8, cluster: &Cluster) -> Table {
    let mut table = Table::vacant(rows, replicas).unwrap();
    settle(&mut table, cluster);
    table
}

#[test]
fn a_node_that_joins_takes_its_share_and_nothing_else_moves() {
    let mut cluster = cluster(members(9));
    let mut table = filled(16_384, 1, &cluster);
    cluster.members = members(10);
    let plan = settle(&mut table, &cluster);
    let joined = cluster.members[9].id;
    assert!(plan.moves().all(|change| change.to == joined));
    assert_eq!(plan.moves().count(), 1556, "⌊0.95 · 1638.4⌋");
    assert_eq!(plan.bounds[&joined], Bounds { least: 1556, most: 1720 });
    assert!(settle(&mut table, &cluster).steps.is_empty(), "it is as it is to be");
}

#[test]
fn moves_explain_themselves() {
    let mut cluster = cluster(members(3));
    cluster.slack = Slack::thousandths(0).unwrap();
    let mut table = filled(12, 1, &cluster);
    cluster.members[2].draining = true;
    let plan = settle(&mut table, &cluster);
    let told = plan.explain(plan.moves().next().unwrap());
    assert!(
        told.starts_with("slot ") && told.contains(": g2 → g") && told.ends_with(", because g2 drains"),
        "{told}"
    );
    cluster.members.pop();
    cluster.members.push(Member::new("g3"));
    let plan = settle(&mut table, &cluster);
    let told = plan.explain(plan.moves().next().unwrap());
    assert!(
        told.contains("→ g3, because") && told.ends_with("has 6 slots and is to have 4 at most"),
        "{told}"
    );
    let mut empty = Table::vacant(1, 1).unwrap();
    let plan = settle(&mut empty, &cluster);
    assert!(plan.explain(plan.moves().next().unwrap()).ends_with(", because nobody has it"));
    cluster.members.remove(1);
    let plan = settle(&mut table, &cluster);
    let gone = NodeId::named("g1");
    assert!(plan.moves().all(|change| change.reason == Reason::Gone && change.from == Some(gone)));
    assert!(plan.explain(plan.moves().next().unwrap()).ends_with(&format!("because node {gone} is gone")));
}

#[test]
fn pins_are_kept_and_cost_the_others_nothing() {
    let mut cluster = cluster(members(4));
    let mut table = filled(64, 1, &cluster);
    let node = cluster.members[3].id;
    let slots: Vec<Slot> =
        (0..64).map(Slot).filter(|slot| table.owner(*slot) != Some(node)).take(2).collect();
    cluster.pins = slots.iter().map(|slot| (*slot, node)).collect();
    let plan = settle(&mut table, &cluster);
    assert!(slots.iter().all(|slot| table.owner(*slot) == Some(node)));
    let pinned = plan.moves().filter(|change| change.reason == Reason::Pinned).count();
    assert_eq!(pinned, 2);
    assert!(plan.moves().count() <= 4, "two go there, and two may have to leave");
    assert!(settle(&mut table, &cluster).steps.is_empty());
    // A node with more pins than its share holds them all, and little else; the rest share what is left.
    cluster.pins = (0..40).map(|slot| (Slot(slot), node)).collect();
    let plan = settle(&mut table, &cluster);
    assert_eq!(plan.bounds[&node], Bounds { least: 40, most: 42 });
    assert!(cluster.members[..3].iter().all(|member| (7..=8).contains(&table.load(member.id))));
}

#[test]
fn replicas_stay_out_of_each_others_zones() {
    let cluster = cluster(zoned(12, 4));
    let mut table = filled(256, 3, &cluster);
    let zone = |id: NodeId| cluster.members.iter().find(|member| member.id == id).unwrap().zone.clone();
    for slot in (0..256).map(Slot) {
        let zones: std::collections::BTreeSet<_> = table.row(slot).map(zone).collect();
        assert_eq!(zones.len(), 3, "{slot}");
    }
    assert!(cluster.members.iter().all(|member| table.load(member.id) == 64));
    // A whole zone goes. Its replicas go to the zone that the row does not use.
    let mut less = cluster.clone();
    less.members.retain(|member| member.zone.as_deref() != Some("z0"));
    let before = table.clone();
    let plan = settle(&mut table, &less);
    assert_eq!(plan.moves().count(), 192);
    for slot in (0..256).map(Slot) {
        let kept = before.row(slot).filter(|id| zone(*id).as_deref() != Some("z0"));
        assert!(kept.into_iter().all(|id| table.row(slot).any(|other| other == id)), "{slot}");
    }
}

#[test]
fn pinned_replicas_leave_room_for_their_zone() {
    let mut cluster = cluster(zoned(6, 3));
    let mut table = filled(32, 3, &cluster);
    let all: Vec<NodeId> = cluster.members.iter().map(|member| member.id).collect();
    cluster.pins = (0..32).map(|slot| (Slot(slot), all[slot as usize % 6])).collect();
    settle(&mut table, &cluster);
    for (slot, node) in &cluster.pins {
        assert!(table.row(*slot).any(|id| id == *node));
        let zones: std::collections::BTreeSet<_> =
            table.row(*slot).map(|id| all.iter().position(|other| *other == id).unwrap() % 3).collect();
        assert_eq!(zones.len(), 3);
    }
}

#[test]
fn a_zone_that_cannot_hold_its_share_holds_what_it_can() {
    let mut all = zoned(4, 4);
    all[0].weight = Weight::new(100.0).unwrap();
    let cluster = cluster(all);
    let table = filled(99, 3, &cluster);
    let loads: Vec<u32> = cluster.members.iter().map(|member| table.load(member.id)).collect();
    assert_eq!(loads, [99, 66, 66, 66], "one replica of each slot, and no more");
}

#[test]
fn steps_are_throttled() {
    let mut cluster = cluster(members(6));
    let table = filled(1024, 1, &cluster);
    cluster.members.truncate(5);
    cluster.members.push(Member::new("other"));
    cluster.members[0].draining = true;
    let sizes: Vec<u64> = (0..1024).map(|slot| 1_000 + slot).collect();
    let throttle = Throttle { moves_max: 20, node_moves_max: 6, bytes_max: 12_000 };
    let plan = Plan::new(&table, &cluster, &sizes, &throttle).unwrap();
    let mut total = 0;
    for step in &plan.steps {
        assert!(!step.moves.is_empty() && step.moves.len() <= 20 && step.bytes() <= 12_000);
        let mut parts: BTreeMap<NodeId, u32> = BTreeMap::new();
        for change in &step.moves {
            assert_eq!(change.bytes, sizes[change.slot.0 as usize]);
            *parts.entry(change.to).or_default() += 1;
            *parts.entry(change.from.unwrap()).or_default() += 1;
            total += change.bytes;
        }
        assert!(parts.values().all(|moves| *moves <= 6), "{parts:?}");
    }
    assert_eq!(plan.bytes(), total);
    // A step at a time even where one move alone is beyond the bytes.
    let least = Throttle { moves_max: 0, node_moves_max: 0, bytes_max: 0 };
    let plan = Plan::new(&table, &cluster, &sizes, &least).unwrap();
    assert!(plan.steps.iter().all(|step| step.moves.len() == 1));
}

#[test]
fn full_nodes_exchange() {
    // Both are full to the last slot, and pins want a slot of each at the other.
    let mut cluster = cluster(members(2));
    cluster.slack = Slack::thousandths(0).unwrap();
    let mut table = filled(8, 1, &cluster);
    let at = |node: usize| {
        (0..8).map(Slot).find(|slot| table.owner(*slot) == Some(cluster.members[node].id)).unwrap()
    };
    let (here, there) = (at(0), at(1));
    cluster.pins = vec![(here, cluster.members[1].id), (there, cluster.members[0].id)];
    let plan = settle(&mut table, &cluster);
    assert_eq!(plan.moves().count(), 2);
    assert_eq!(cluster.members.iter().map(|member| table.load(member.id)).collect::<Vec<_>>(), [4, 4]);
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let table = Table::vacant(8, 3).unwrap();
    let plan = |cluster: &Cluster| Plan::new(&table, cluster, &[], &Throttle::NONE).map(|_| ());
    assert_eq!(plan(&cluster(vec![])), Err(PlanError::NoNodes));
    let all_drain = members(3).into_iter().map(Member::draining).collect();
    assert_eq!(plan(&cluster(all_drain)), Err(PlanError::NoNodes));
    assert_eq!(plan(&cluster(members(2))), Err(PlanError::TooFewNodes { replicas: 3, nodes: 2 }));
    assert_eq!(plan(&cluster(zoned(9, 2))), Err(PlanError::TooFewZones { replicas: 3, zones: 2 }));
    assert_eq!(plan(&Cluster { may_share_zones: true, ..cluster(zoned(9, 2)) }), Ok(()));
    let mut twice = members(3);
    twice.push(Member::new("g1"));
    assert_eq!(plan(&cluster(twice)), Err(PlanError::IdTwice(NodeId::named("g1"))));
    let mut named = members(3);
    named.push(Member { id: NodeId(1), ..Member::new("g1") });
    assert_eq!(plan(&cluster(named)), Err(PlanError::NameTwice("g1".to_owned())));
    let pinned = |pins: Vec<(Slot, NodeId)>| plan(&Cluster { pins, ..cluster(zoned(6, 3)) });
    let node = |name| NodeId::named(name);
    let pin = |slot, node| Err(PlanError::Pin { slot: Slot(slot), node });
    assert_eq!(pinned(vec![(Slot(8), node("g1"))]), pin(8, node("g1")));
    assert_eq!(pinned(vec![(Slot(0), node("nobody"))]), pin(0, node("nobody")));
    assert_eq!(
        pinned(vec![(Slot(0), node("g0")), (Slot(0), node("g3"))]),
        Err(PlanError::PinsCollide(Slot(0)))
    );
    let sizes = Plan::new(&table, &cluster(members(3)), &[1], &Throttle::NONE).map(|_| ());
    assert_eq!(sizes, Err(PlanError::Sizes { sizes: 1, slots: 8 }));
    assert_eq!(Slack::thousandths(1_001), None);
}

/// No node above the greater of its share, rounded up, and 1.05 of it, and no two replicas in one zone. The share is counted by weight alone, so weights
/// and zones are such that each can hold it; a share that cannot be held is `a_zone_that_cannot_hold_its_share_holds_what_it_can`.
fn balance_holds(count: usize, replicas: u8, skewed: bool) {
    const ZONES: usize = 8;
    let mut all = if replicas == 1 { members(count) } else { zoned(count, ZONES) };
    for (n, member) in all.iter_mut().enumerate().filter(|_| skewed) {
        member.weight = Weight::new(1.0 + (n % 7) as f64).unwrap();
    }
    let cluster = cluster(all);
    let weight = |member: &Member| u64::from(member.weight.thousandths());
    let total: u64 = cluster.members.iter().map(weight).sum();
    let of_zone = |zone: usize| cluster.members.iter().skip(zone).step_by(ZONES).map(weight).sum::<u64>();
    let held = replicas == 1 || (0..ZONES).all(|zone| of_zone(zone) * u64::from(replicas) <= total);
    let table = filled(16_384, replicas, &cluster);
    let index: BTreeMap<NodeId, usize> = cluster.members.iter().map(|member| member.id).zip(0..).collect();
    let mut loads = vec![0_u64; count];
    for slot in (0..16_384).map(Slot) {
        let row: Vec<usize> = table.row(slot).map(|id| index[&id]).collect();
        row.iter().for_each(|node| loads[*node] += 1);
        let zones: std::collections::BTreeSet<usize> = row.iter().map(|node| node % ZONES).collect();
        assert_eq!(row.len(), usize::from(replicas), "{count} nodes: slot {slot}");
        assert!(replicas == 1 || zones.len() == row.len(), "{count} nodes: slot {slot} shares a zone");
    }
    for (member, load) in cluster.members.iter().zip(loads).filter(|_| held) {
        let share = 16_384 * u64::from(replicas) * weight(member);
        let most = share.div_ceil(total).max(share * 105 / (total * 100));
        assert!(load <= most, "{count} nodes, {replicas} replicas: {load} of {most}");
    }
}

#[test]
fn balance_holds_from_three_to_a_thousand_nodes() {
    for count in [3, 4, 7, 10, 33, 100, 517, 1000] {
        for replicas in 1..=3 {
            balance_holds(count, replicas, false);
            balance_holds(count, replicas, true);
        }
    }
}

#[test]
#[ignore = "six thousand plans take minutes: cargo xtask prove placement"]
fn balance_holds_for_every_number_of_nodes() {
    for count in 3..=1_000 {
        for replicas in 1..=3 {
            balance_holds(count, replicas, false);
            balance_holds(count, replicas, true);
        }
    }
    println!("placement: 3 to 1,000 nodes, 1 to 3 replicas, equal and skewed weights: balanced");
}

/// A slot that nobody has is filled at once or one by one: here two of its places wait until their nodes have room, and a third does not.
#[test]
fn a_vacant_slot_that_was_begun_grows_one_by_one() {
    let mut cluster = cluster(members(4));
    cluster.slack = Slack::thousandths(0).unwrap();
    let all: Vec<NodeId> = cluster.members.iter().map(|member| member.id).collect();
    let mut table = Table::vacant(5, 3).unwrap();
    let begun = (0..4).flat_map(|row| [(row, 0), (row, 1), (row, 2 + row as usize / 2)]);
    let moves = begun.map(|(row, node)| Move {
        slot: Slot(row),
        from: None,
        to: all[node],
        reason: Reason::Vacant,
        bytes: 0,
    });
    table.apply(&Step { version: 0, moves: moves.collect() }).unwrap();
    cluster.pins = vec![(Slot(4), all[0]), (Slot(4), all[1])];
    settle(&mut table, &cluster);
    assert_eq!(table.row(Slot(4)).count(), 3);
    assert!(all.iter().all(|node| (3..=4).contains(&table.load(*node))));
}

/// Nodes that the table has already count once.
#[test]
fn as_many_nodes_as_are_possible_are_planned_for_again() {
    let mut cluster = cluster(members(NODES_MAX));
    let rows: Vec<Vec<NodeId>> = cluster.members.iter().map(|member| vec![member.id]).collect();
    let mut table = Table::from_rows(&rows).unwrap();
    let plan = Plan::new(&table, &cluster, &[], &Throttle::NONE).unwrap();
    assert!(plan.steps.is_empty());
    cluster.members[0] = Member::new("another");
    let error = Plan::new(&table, &cluster, &[], &Throttle::NONE).map(|_| ());
    assert_eq!(error, Err(PlanError::TooManyNodes(NODES_MAX + 1)));
    cluster.members.remove(0);
    settle(&mut table, &cluster);
    assert_eq!(table.nodes().len(), NODES_MAX - 1);
}
