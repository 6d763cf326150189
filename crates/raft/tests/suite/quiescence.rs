//! Groups that sleep: when they do, what wakes them, and that no leader sleeps through its end.

use std::time::Duration;

use bytes::Bytes;
use conclave_consensus::{Class, Consensus, Entries, Epoch, Input, Message, NodeId, ReadMode, ReplicaId};
use conclave_raft::{RaftConfig, describe};

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

const ALIVE_FOR: Duration = Duration::from_millis(500);

fn config() -> RaftConfig {
    RaftConfig { quiesce: true, ..RaftConfig::default() }
}

fn cluster(voters: u64, config: RaftConfig) -> Cluster {
    let mut cluster = Cluster::with(voters, 0, 1, config);
    cluster.alive_for = Some(ALIVE_FOR);
    cluster.elect_this(replica(1));
    cluster
}

fn asleep(voters: u64) -> Cluster {
    let mut cluster = cluster(voters, config());
    cluster.run(ELECTION);
    assert!(all_sleep(&cluster));
    cluster
}

fn sleeps(cluster: &Cluster, id: ReplicaId) -> bool {
    cluster.nodes[&id].raft.as_ref().is_none_or(|raft| raft.next_deadline().is_none())
}

fn all_sleep(cluster: &Cluster) -> bool {
    cluster.ids().into_iter().all(|id| sleeps(cluster, id))
}

fn sent(cluster: &Cluster) -> usize {
    cluster.transcript.iter().filter(|line| line.contains('→') && !line.contains("writes")).count()
}

#[test]
fn an_idle_group_sends_nothing_and_wants_no_tick() {
    let mut cluster = asleep(3);
    let before = sent(&cluster);
    cluster.run(ELECTION * 100);
    assert!(all_sleep(&cluster));
    assert_eq!((sent(&cluster), cluster.serving()), (before, Some(replica(1))));
    assert!(
        cluster.status(replica(1)).progress.iter().all(|peer| peer.active),
        "their nodes answer for them"
    );
}

#[test]
fn it_does_not_unless_it_is_wanted_and_the_host_speaks_of_nodes() {
    for (quiesce, alive_for) in [(false, Some(ALIVE_FOR)), (true, None)] {
        let mut cluster = Cluster::with(3, 0, 1, RaftConfig { quiesce, ..config() });
        cluster.alive_for = alive_for;
        cluster.elect_this(replica(1));
        for _ in 0..30 {
            cluster.run(HEARTBEAT);
            assert!(cluster.ids().into_iter().all(|id| !sleeps(&cluster, id)));
        }
    }
}

#[test]
fn a_proposal_wakes_it_and_is_chosen_at_once_and_then_it_sleeps_again() {
    let mut cluster = asleep(3);
    cluster.run(ELECTION * 20);
    let (begun, term) = (cluster.now, cluster.status(replica(1)).ballot);
    let ids = cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    assert!(cluster.chosen.values().any(|entry| entry.id == ids[0]) && cluster.now == begun);
    cluster.run(ELECTION);
    assert!(all_sleep(&cluster));
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot), (Some(replica(1)), term));
}

#[test]
fn reads_are_served_in_its_sleep_by_waking_it() {
    let mut cluster = asleep(5);
    for mode in [ReadMode::Quorum, ReadMode::Lease] {
        let read = cluster.read(replica(1), mode);
        let asked = cluster.read(replica(2), ReadMode::Follower);
        cluster.settle();
        assert!(cluster.answered[&read].is_some() && cluster.answered[&asked].is_some());
        cluster.run(ELECTION);
        assert!(all_sleep(&cluster));
    }
}

#[test]
fn a_lease_does_not_outlive_the_beats_that_renewed_it() {
    let mut cluster = cluster(3, RaftConfig { lease_drift_ppm: Some(0), ..config() });
    cluster.run(ELECTION * 10);
    assert!(all_sleep(&cluster));
    let read = cluster.read(replica(1), ReadMode::Lease);
    assert!(!cluster.answered.contains_key(&read), "nobody has promised anything for long");
    cluster.settle();
    assert!(cluster.answered[&read].is_some());
}

#[test]
fn when_the_leaders_node_dies_another_leads() {
    let mut cluster = asleep(3);
    cluster.run(ELECTION * 20);
    cluster.crash(replica(1));
    cluster.run(ALIVE_FOR + ELECTION * 2);
    let leader = cluster.serving().unwrap();
    assert_ne!(leader, replica(1));
    cluster.propose(leader, 1).unwrap();
    cluster.run(ELECTION);
    assert!(all_sleep(&cluster), "with two of three");
    cluster.restart(replica(1));
    cluster.run(ELECTION);
    assert!(all_sleep(&cluster));
    assert_eq!(
        cluster.nodes[&replica(1)].delivered,
        cluster.nodes[&leader].delivered,
        "and wakes for the third"
    );
}

#[test]
fn a_node_that_came_back_before_it_was_missed_wakes_who_relied_on_it() {
    for id in [1, 3] {
        let mut cluster = asleep(3);
        cluster.run(ELECTION * 20);
        cluster.crash(replica(id));
        cluster.restart(replica(id));
        cluster.run(ELECTION * 5);
        assert!(cluster.serving().is_some() && all_sleep(&cluster), "{id}");
        let leader = cluster.serving().unwrap();
        cluster.propose(leader, 1).unwrap();
        cluster.settle();
        assert!(cluster.ids().into_iter().all(|id| cluster.status(id).leader == Some(leader)));
    }
}

#[test]
fn a_leader_that_hears_too_few_nodes_wakes_and_goes() {
    let mut cluster = asleep(3);
    cluster.run(ELECTION * 20);
    cluster.isolate(replica(1));
    cluster.run(ALIVE_FOR + ELECTION + HEARTBEAT * 2);
    assert_ne!(cluster.status(replica(1)).leader, Some(replica(1)));
    cluster.run(ELECTION * 2);
    assert!(cluster.serving().is_some_and(|leader| leader != replica(1)));
}

#[test]
fn a_replica_that_was_not_told_to_sleep_wakes_the_leader_and_no_election_comes_of_it() {
    let mut cluster = cluster(3, config());
    let term = cluster.status(replica(1)).ballot;
    for _ in 0..60 {
        cluster.tick_at(cluster.now.after(HEARTBEAT / 2));
        let lost = |message: &Message| message.to == replica(3) && describe(message).contains("sleep");
        cluster.network.retain(|message| !lost(message));
        cluster.settle();
        assert!(!sleeps(&cluster, replica(1)), "not before 3 has said that it sleeps");
    }
    cluster.run(ELECTION);
    assert!(all_sleep(&cluster));
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot), (Some(replica(1)), term));
}

#[test]
fn a_replica_that_is_behind_does_not_sleep_and_nobody_leaves_it_behind() {
    let mut cluster = cluster(3, config());
    cluster.stalled.insert(replica(3));
    cluster.propose(replica(1), 1).unwrap();
    cluster.run(ELECTION / 2);
    assert!(!sleeps(&cluster, replica(1)) && !sleeps(&cluster, replica(3)));
    cluster.stalled.clear();
    cluster.run(ELECTION);
    assert!(all_sleep(&cluster));
    assert_eq!(cluster.nodes[&replica(3)].delivered, cluster.nodes[&replica(1)].delivered);
}

/// Tells a replica that its term is over, as a late answer of some third one would.
fn raise_term(cluster: &mut Cluster, from: u64, to: u64) {
    let term = u8::try_from(cluster.status(replica(to)).ballot.round + 1).unwrap();
    let head = Bytes::from(vec![0x08, 1, 0x10, term, 0x7a, 0]);
    let (from, to) = (replica(from), replica(to));
    let message = Message { from, to, class: Class::Control, head: head.into(), entries: Entries::default() };
    cluster.input(to, Input::Message(message)).unwrap();
}

#[test]
fn a_leader_that_leads_no_more_while_the_others_sleep_leaves_no_group_without_one() {
    let mut cluster = asleep(3);
    cluster.run(ELECTION * 20);
    raise_term(&mut cluster, 2, 1);
    assert_eq!(cluster.status(replica(1)).leader, None);
    assert!(
        sleeps(&cluster, replica(2)) && sleeps(&cluster, replica(3)),
        "its node lives, so they believe in it"
    );
    cluster.run(ELECTION * 4);
    assert!(cluster.serving().is_some());
}

#[test]
fn a_follower_that_moves_on_wakes_the_leader_it_slept_by() {
    let mut cluster = asleep(3);
    cluster.run(ELECTION * 20);
    raise_term(&mut cluster, 3, 2);
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).leader, None, "no stale leader sleeps on");
    cluster.run(ELECTION * 4);
    assert!(cluster.serving().is_some() && all_sleep(&cluster));
}

#[test]
fn it_can_be_handed_over_and_changed_in_its_sleep() {
    let mut cluster = asleep(3);
    cluster.transfer(replica(1), replica(2)).unwrap();
    cluster.settle();
    assert_eq!(cluster.serving(), Some(replica(2)));
    cluster.run(ELECTION);
    assert!(all_sleep(&cluster));
    let change = conclave_consensus::MembershipChange::Remove(replica(1));
    cluster.reconfigure(replica(2), &[change]).unwrap();
    cluster.run(ELECTION * 6);
    assert_eq!(cluster.status(replica(2)).config.voters.len(), 2);
    assert!(
        sleeps(&cluster, replica(2)) && sleeps(&cluster, replica(3)),
        "once the one that leaves was let go"
    );
}

/// A host tells a sleeping core no sooner than it steps it, of one node after the other: none of them was away in between.
#[test]
fn what_is_told_late_of_nodes_that_never_fell_silent_wakes_nobody() {
    let mut cluster = asleep(5);
    let term = cluster.status(replica(1)).ballot;
    cluster.now = cluster.now.after(ELECTION * 20);
    let alive_until = cluster.now.after(ALIVE_FOR);
    let word = |id: u64| Input::Peer { node: NodeId(id), epoch: Epoch(1), alive_until };
    for id in cluster.ids() {
        for node in (1..=5).filter(|node| *node != id.0) {
            cluster.input(id, word(node)).unwrap();
            assert!(sleeps(&cluster, id), "{id} is told of node {node}");
        }
    }
    let ids = cluster.propose(replica(1), 1).unwrap();
    cluster.input(replica(1), Input::Tick).unwrap();
    cluster.settle();
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot), (Some(replica(1)), term));
    assert!(cluster.chosen.values().any(|entry| entry.id == ids[0]));
}

#[test]
fn a_node_that_is_said_to_be_silent_and_back_wakes_the_leader() {
    let mut cluster = asleep(5);
    cluster.now = cluster.now.after(ELECTION * 20);
    let (silent, back) = (cluster.now, cluster.now.after(ALIVE_FOR));
    let word = |alive_until| Input::Peer { node: NodeId(4), epoch: Epoch(1), alive_until };
    cluster.input(replica(1), word(silent)).unwrap();
    assert!(sleeps(&cluster, replica(1)), "there is a quorum without it");
    cluster.input(replica(1), word(back)).unwrap();
    assert!(!sleeps(&cluster, replica(1)), "it may lack something");
    // Of the others the core was told long ago. None of them is known to have fallen silent, so it leads on.
    cluster.now = cluster.now.after(ELECTION / 2);
    cluster.settle();
    cluster.input(replica(1), Input::Tick).unwrap();
    assert_eq!(cluster.status(replica(1)).leader, Some(replica(1)));
}
