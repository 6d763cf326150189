//! Partitions that are not clean: links that lose everything in one direction, bridges, leaders that hear too few. As long as some
//! replica and a majority hear each other, one of them leads within bounded time, and then leadership rests.

use std::{collections::BTreeSet, time::Duration};

use conclave_consensus::ReplicaId;
use conclave_raft::RaftConfig;
use proptest::prelude::*;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

/// Within so much a leader serves, whatever was cut before.
const WITHIN: Duration = Duration::from_secs(20);

fn cut(cluster: &mut Cluster, one: u64, other: u64) {
    cluster.cut.insert((replica(one), replica(other)));
    cluster.cut.insert((replica(other), replica(one)));
}

/// Whether the replica and a majority, itself included, hear each other.
fn reaches_a_majority(cut: &BTreeSet<(ReplicaId, ReplicaId)>, id: ReplicaId, of: u64) -> bool {
    let hears = |other: &ReplicaId| !cut.contains(&(id, *other)) && !cut.contains(&(*other, id));
    2 * (1..=of).map(replica).filter(|other| *other == id || hears(other)).count() as u64 > of
}

/// Waits for a leader, then sees it stay. Returns it.
fn rests_with_a_leader(cluster: &mut Cluster) -> ReplicaId {
    cluster.run(WITHIN);
    let leader = cluster.serving().expect("a leader within bounded time");
    let (term, before) = (cluster.status(leader).ballot, cluster.status(leader).committed);
    cluster.propose(leader, 1).unwrap();
    cluster.run(ELECTION * 10);
    assert_eq!(
        (cluster.serving(), cluster.status(leader).ballot),
        (Some(leader), term),
        "leadership goes round"
    );
    assert!(cluster.status(leader).committed > before, "and nothing is committed");
    leader
}

#[test]
fn a_chain_of_three_keeps_its_leader_at_either_end() {
    for leader in [1, 2, 3] {
        let mut cluster = Cluster::new(3, leader);
        cluster.elect_this(replica(leader));
        cut(&mut cluster, 1, 3);
        let term = cluster.status(replica(leader)).ballot;
        cluster.run(ELECTION * 20);
        assert_eq!(
            (cluster.serving(), cluster.status(replica(leader)).ballot),
            (Some(replica(leader)), term)
        );
    }
}

#[test]
fn a_leader_that_loses_its_quorum_gives_way_to_the_one_that_has_one() {
    // All links but those of 1 are gone; 5 leads and hears 1 alone.
    let mut cluster = Cluster::new(5, 1);
    cluster.elect_this(replica(5));
    for one in 2..=5 {
        for other in one + 1..=5 {
            cut(&mut cluster, one, other);
        }
    }
    assert_eq!(rests_with_a_leader(&mut cluster), replica(1));
}

#[test]
fn a_bridge_between_two_pairs_keeps_one_leader() {
    for leader in 1..=5 {
        let mut cluster = Cluster::new(5, leader);
        cluster.elect_this(replica(leader));
        // 1 and 2 on one side, 4 and 5 on the other; 3 hears all.
        for (one, other) in [(1, 4), (1, 5), (2, 4), (2, 5)] {
            cut(&mut cluster, one, other);
        }
        assert_eq!(rests_with_a_leader(&mut cluster), replica(leader), "with 3 each side is a majority");
    }
}

#[test]
fn a_follower_that_hears_nothing_and_is_heard_deposes_nobody() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.cut.insert((replica(1), replica(3)));
    cluster.cut.insert((replica(2), replica(3)));
    let term = cluster.status(replica(1)).ballot;
    cluster.run(ELECTION * 20);
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot), (Some(replica(1)), term));
}

#[test]
fn a_leader_that_is_heard_and_hears_nothing_gives_way() {
    let mut cluster = Cluster::new(5, 1);
    cluster.elect_this(replica(1));
    for id in 2..=5 {
        cluster.cut.insert((replica(id), replica(1)));
    }
    assert_ne!(rests_with_a_leader(&mut cluster), replica(1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_lasting_loss_of_links_leaves_a_leader_if_one_can_be(
        voters in 3..6_u64,
        leader in 1..4_u64,
        seed: u64,
        links in prop::collection::vec((1..6_u64, 1..6_u64), 1..14),
        quiesce: bool,
    ) {
        let links: BTreeSet<_> = links.into_iter().map(|(from, to)| (replica(from), replica(to))).collect();
        prop_assume!((1..=voters).any(|id| reaches_a_majority(&links, replica(id), voters)));
        let mut cluster = Cluster::with(voters, 0, seed, RaftConfig { quiesce, ..RaftConfig::default() });
        cluster.alive_for = quiesce.then_some(HEARTBEAT * 5);
        cluster.elect_this(replica(leader));
        cluster.run(ELECTION);
        cluster.cut = links.clone();
        let leader = rests_with_a_leader(&mut cluster);
        prop_assert!(reaches_a_majority(&links, leader, voters));
    }
}
