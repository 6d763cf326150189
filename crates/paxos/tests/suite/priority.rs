//! Who should lead: replicas of higher priority are handed leadership, and cannot make a group pay for it.

use conclave_consensus::ReplicaId;
use conclave_paxos::PaxosConfig;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

fn cluster(priorities: &[u8]) -> Cluster {
    let mut cluster = Cluster::new(priorities.len() as u64, 1);
    for (id, priority) in (1..).map(replica).zip(priorities) {
        cluster.configs_of.insert(id, PaxosConfig { priority: *priority, ..PaxosConfig::default() });
        cluster.crash(id);
        cluster.restart(id);
    }
    cluster.elect_this(replica(1));
    cluster
}

#[test]
pub(crate) fn leadership_goes_to_the_highest_priority_that_is_in_step() {
    let mut cluster = cluster(&[1, 2, 3]);
    cluster.propose(replica(1), 3).unwrap();
    cluster.run(ELECTION * 2);
    assert_eq!(cluster.serving(), Some(replica(3)));
    assert!(cluster.lost.is_empty(), "nobody asked for it, so nobody is told: {:?}", cluster.lost);
    let term = cluster.status(replica(3)).ballot;
    cluster.run(ELECTION * 10);
    assert_eq!((cluster.serving(), cluster.status(replica(3)).ballot), (Some(replica(3)), term), "and stays");
}

#[test]
fn equals_leave_leadership_where_it_is() {
    let mut cluster = cluster(&[2, 2, 2]);
    cluster.run(ELECTION * 10);
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot.round), (Some(replica(1)), 1));
}

#[test]
fn one_that_lags_or_is_silent_waits_until_it_is_back() {
    let mut cluster = cluster(&[1, 1, 9]);
    cluster.isolate(replica(3));
    cluster.propose(replica(1), 3).unwrap();
    cluster.run(ELECTION * 4);
    assert_eq!(cluster.serving(), Some(replica(1)));
    cluster.cut.clear();
    cluster.run(ELECTION * 2);
    assert_eq!(cluster.serving(), Some(replica(3)));
}

#[test]
fn one_that_cannot_take_over_costs_the_group_little() {
    let mut cluster = cluster(&[1, 1, 9]);
    // 3 is in step and never stands: what tells it to is lost.
    let mut refused = 0;
    for _ in 0..200 {
        cluster.tick_at(cluster.now.after(HEARTBEAT));
        cluster.network.retain(|message| !conclave_paxos::describe(message).contains("take-over"));
        cluster.settle();
        refused += usize::from(cluster.propose(replica(1), 1).is_err());
        cluster.settle();
    }
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot.round), (Some(replica(1)), 1));
    assert!((1..=60).contains(&refused), "one election timeout in four at most: {refused} of 200");
}

#[test]
fn a_learner_is_preferred_by_nobody() {
    let mut cluster = Cluster::with(3, 1, 1, PaxosConfig::default());
    let learner: ReplicaId = replica(4);
    cluster.configs_of.insert(learner, PaxosConfig { priority: 9, ..PaxosConfig::default() });
    cluster.crash(learner);
    cluster.restart(learner);
    cluster.elect_this(replica(1));
    cluster.run(ELECTION * 6);
    assert_eq!(cluster.serving(), Some(replica(1)));
}
