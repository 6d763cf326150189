//! A thousand groups, most of them asleep by what nodes say once for all.

use std::time::Duration;

use conclave_consensus::{GroupId, NodeId};

use crate::cluster::Cluster;

const GROUPS: u64 = 1_000;

fn groups() -> impl Iterator<Item = GroupId> {
    (1..=GROUPS).map(GroupId)
}

/// All elected and gone quiet.
fn quiet() -> Cluster {
    let mut cluster = Cluster::new(3, GROUPS, true);
    cluster.run(Duration::from_secs(20));
    assert!(groups().all(|group| cluster.leader(group).is_some()));
    cluster.take_tally();
    cluster
}

#[test]
fn groups_that_sleep_cost_one_heartbeat_between_nodes() {
    let mut cluster = quiet();
    cluster.run(Duration::from_mins(1));
    let tally = cluster.take_tally();
    assert_eq!((tally.other, tally.commands), (0, 0));
    assert!((3_594..=3_606).contains(&tally.alive), "ten a second between each two nodes: {tally:?}");
    assert!(tally.ticks <= 1_803, "nobody is woken for anything else: {tally:?}");
}

#[test]
fn groups_led_on_a_node_that_dies_elect_anew_and_the_others_stay() {
    let mut cluster = quiet();
    let dead = NodeId(2);
    let before: Vec<_> = groups().map(|group| cluster.leader(group).unwrap()).collect();
    assert!(before.iter().filter(|leader| **leader == dead).count() > GROUPS as usize / 10);
    cluster.nodes.get_mut(&dead).unwrap().up = false;
    cluster.run(Duration::from_secs(10));
    for (group, before) in groups().zip(&before) {
        let after = cluster.leader(group);
        if *before == dead { assert!(after.is_some(), "{group}") } else { assert_eq!(after, Some(*before)) }
    }
    cluster.run(Duration::from_secs(10));
    cluster.take_tally();
    cluster.run(Duration::from_secs(10));
    assert_eq!(cluster.take_tally().other, 0, "two of three are enough to sleep by");

    // One that only stood still comes back, and follows.
    cluster.nodes.get_mut(&dead).unwrap().up = true;
    cluster.run(Duration::from_secs(20));
    for group in groups() {
        let leader = cluster.leader(group).unwrap();
        assert_ne!(leader, dead);
        let led = |id: u64| cluster.nodes[&NodeId(id)].host.status(group).unwrap();
        assert!((1..=3).all(|id| led(id).leader.map(|replica| replica.0) == Some(leader.0)), "{group}");
    }
    cluster.take_tally();
    cluster.run(Duration::from_secs(10));
    assert_eq!(cluster.take_tally().other, 0);
}

#[test]
fn a_sleeping_group_takes_what_is_asked_of_it() {
    let mut cluster = quiet();
    for (place, group) in groups().step_by(97).enumerate() {
        cluster.propose(NodeId(place as u64 % 3 + 1), group);
        cluster.run(Duration::from_secs(1));
        assert_eq!(cluster.take_tally().commands, 3, "applied everywhere: {group}");
    }
    cluster.run(Duration::from_secs(5));
    cluster.take_tally();
    cluster.run(Duration::from_secs(10));
    assert_eq!(cluster.take_tally().other, 0);
}

/// Of five, one word of another's life is no quorum: the core must not judge before it has heard all that its host knows.
#[test]
fn a_group_of_five_keeps_its_leader_when_it_is_woken_after_a_long_sleep() {
    const FEW: u64 = 10;
    let mut cluster = Cluster::new(5, FEW, true);
    cluster.run(Duration::from_mins(1));
    let ballots = |cluster: &Cluster| -> Vec<_> {
        let leads = |group| cluster.leader(GroupId(group)).unwrap();
        let status = |group| cluster.nodes[&leads(group)].host.status(GroupId(group)).unwrap();
        (1..=FEW).map(|group| status(group).ballot).collect()
    };
    let before = ballots(&cluster);
    cluster.take_tally();
    for group in 1..=FEW {
        cluster.propose(NodeId(group % 5 + 1), GroupId(group));
    }
    cluster.run(Duration::from_secs(3));
    assert_eq!(cluster.take_tally().commands, 5 * FEW);
    assert_eq!(ballots(&cluster), before);
}
