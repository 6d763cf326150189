//! Reads under a lease (thesis, section 6.4.1): where they save the round, when they must not, and what the clocks' bound is for.

use std::time::Duration;

use bytes::Bytes;
use conclave_consensus::{
    Class, Consensus, Entries, Input, MembershipChange, Message, NodeId, ReadMode, ReplicaId, Time, Timing,
};
use conclave_raft::{RaftConfig, describe};

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

const DRIFT_PPM: u32 = 100_000;

fn config(drift_ppm: u32) -> RaftConfig {
    RaftConfig { lease_drift_ppm: Some(drift_ppm), ..RaftConfig::default() }
}

fn led_by_one(voters: u64, config: RaftConfig) -> Cluster {
    let mut cluster = Cluster::with(voters, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster
}

/// Whether a read at the replica is answered before any message arrives.
fn at_once(cluster: &mut Cluster, id: ReplicaId) -> bool {
    let read = cluster.read(id, ReadMode::Lease);
    cluster.answered.get(&read).is_some_and(Option::is_some)
}

#[test]
fn thesis_6_4_1_a_leader_with_a_lease_asks_nobody() {
    let mut cluster = led_by_one(5, config(DRIFT_PPM));
    assert!(!at_once(&mut cluster, replica(1)), "nobody has answered a beat yet");
    cluster.run(HEARTBEAT);
    assert!(at_once(&mut cluster, replica(1)));
    assert!(!at_once(&mut cluster, replica(2)), "only a leader has a lease");
    let before = cluster.network.len();
    assert!(at_once(&mut cluster, replica(1)) && cluster.network.len() == before);
    let mut cluster = led_by_one(5, RaftConfig::default());
    cluster.run(HEARTBEAT);
    assert!(!at_once(&mut cluster, replica(1)), "not without a word about the clocks");
    cluster.settle();
}

#[test]
fn thesis_6_4_1_a_lease_runs_from_the_sending_of_the_beat_and_ends_before_the_promise() {
    let mut cluster = led_by_one(3, config(DRIFT_PPM));
    cluster.run(HEARTBEAT * 2);
    let sent = cluster.now;
    // The next beat is answered late: what counts is when it left.
    cluster.tick_at(cluster.now.after(HEARTBEAT));
    let left = cluster.now;
    assert!(left > sent);
    cluster.now = left.after(HEARTBEAT / 2);
    cluster.settle();
    cluster.isolate(replica(1));
    let span = ELECTION * (1_000_000 - DRIFT_PPM) / (1_000_000 + DRIFT_PPM);
    cluster.now = left.after(span - Duration::from_millis(1));
    assert!(at_once(&mut cluster, replica(1)));
    cluster.now = left.after(span + Duration::from_millis(1));
    assert!(!at_once(&mut cluster, replica(1)));
}

/// A leader cut off from a group that goes on without it is asked for reads all the time, its clock slow and the others' fast by so
/// much. Returns how many reads it served, and how many of those were stale.
fn reads_of_a_deposed_leader(bound_ppm: u32, slow_ppm: i64, fast_ppm: i64, seed: u64) -> (usize, u64) {
    let mut cluster = Cluster::with(3, 0, seed, config(bound_ppm));
    cluster.drift_ppm = [(replica(1), -slow_ppm), (replica(2), fast_ppm), (replica(3), fast_ppm)].into();
    for id in cluster.ids() {
        cluster.crash(id);
        cluster.restart(id);
    }
    cluster.elect_this(replica(1));
    cluster.stale_reads = Some(0);
    cluster.run(ELECTION * 2);
    cluster.isolate(replica(1));
    let mut served = 0;
    for _ in 0..300 {
        cluster.run(HEARTBEAT / 10);
        if let Some(leader) = cluster.serving().filter(|leader| *leader != replica(1)) {
            cluster.propose(leader, 1).unwrap();
            cluster.settle();
        }
        served += usize::from(at_once(&mut cluster, replica(1)));
    }
    (served, cluster.stale_reads.unwrap())
}

#[test]
fn within_the_stated_drift_no_read_is_stale_and_beyond_it_some_are() {
    let drift = i64::from(DRIFT_PPM);
    let mut beyond = 0;
    for seed in 0..40 {
        let (served, stale) = reads_of_a_deposed_leader(DRIFT_PPM, drift, drift, seed);
        assert!(served > 50 && stale == 0, "seed {seed}: {served} served, {stale} stale");
        beyond += reads_of_a_deposed_leader(0, drift, drift, seed).1;
    }
    assert!(beyond > 0, "the bound is what keeps them fresh");
    let (_, stale) = reads_of_a_deposed_leader(DRIFT_PPM, 800_000, 0, 1);
    assert!(stale > 0, "a clock five times too slow");
}

#[test]
fn a_lease_is_dropped_before_leadership_is_handed_over_and_for_good() {
    let mut cluster = led_by_one(3, config(DRIFT_PPM));
    cluster.run(HEARTBEAT * 2);
    assert!(at_once(&mut cluster, replica(1)));
    cluster.transfer(replica(1), replica(3)).unwrap();
    assert!(!at_once(&mut cluster, replica(1)));
    // The heir is told to stand, and the message is late: the transfer is given up meanwhile.
    let place = cluster.network.iter().position(|message| message.to == replica(3)).unwrap();
    let late = cluster.network.remove(place).unwrap();
    assert!(describe(&late).contains("timeout-now"));
    for _ in 0..12 {
        cluster.tick_at(cluster.now.after(HEARTBEAT));
        cluster.network.retain(|message| !describe(message).contains("timeout-now"));
        cluster.settle();
    }
    assert_eq!(cluster.serving(), Some(replica(1)));
    assert!(!at_once(&mut cluster, replica(1)), "the heir may stand yet, and nobody would make it wait");
    cluster.settle();
    cluster.isolate(replica(1));
    cluster.input(replica(3), Input::Message(late)).unwrap();
    cluster.settle();
    assert_eq!(cluster.serving(), Some(replica(3)));
    cluster.propose(replica(3), 1).unwrap();
    cluster.settle();
    assert!(!at_once(&mut cluster, replica(1)));
}

/// Replica 1 keeps leases of two seconds, the others would wait for half a second.
fn patient_leader() -> Cluster {
    let mut cluster = Cluster::with(3, 0, 1, config(0));
    for (id, election_ms) in [(1, 2_000), (2, 500), (3, 500)] {
        let timing = Timing { heartbeat: HEARTBEAT, election: Duration::from_millis(election_ms) };
        cluster.configs_of.insert(replica(id), RaftConfig { timing, ..config(0) });
        cluster.crash(replica(id));
        cluster.restart(replica(id));
    }
    cluster.elect_this(replica(1));
    cluster.run(HEARTBEAT * 2);
    cluster.isolate(replica(1));
    cluster
}

/// Lets the others do what they can while 1 reads; the cluster itself fails on a stale read.
fn read_while_others_stand(cluster: &mut Cluster) {
    assert!(at_once(cluster, replica(1)));
    for _ in 0..100 {
        cluster.run(HEARTBEAT / 2);
        if let Some(leader) = cluster.serving().filter(|leader| *leader != replica(1)) {
            cluster.propose(leader, 1).unwrap();
            cluster.settle();
        }
        cluster.read(replica(1), ReadMode::Lease);
    }
    assert!(cluster.serving().is_some_and(|leader| leader != replica(1)), "they wait, but not for ever");
}

#[test]
fn a_promise_is_as_long_as_the_leader_relies_on_it_whatever_the_own_timeout_is() {
    read_while_others_stand(&mut patient_leader());
}

#[test]
fn a_booted_replica_keeps_the_longest_promise_it_may_have_made() {
    let mut cluster = patient_leader();
    for id in [2, 3] {
        cluster.crash(replica(id));
        cluster.restart(replica(id));
    }
    read_while_others_stand(&mut cluster);
}

#[test]
fn a_promise_is_not_made_before_it_is_durable() {
    let mut cluster = Cluster::with(3, 0, 1, config(0));
    cluster.elect_this(replica(1));
    cluster.stalled.extend([replica(2), replica(3)]);
    cluster.run(HEARTBEAT * 2);
    assert!(!at_once(&mut cluster, replica(1)));
    cluster.stalled.clear();
    cluster.run(HEARTBEAT);
    assert!(at_once(&mut cluster, replica(1)));
}

#[test]
fn a_promise_binds_in_a_later_term_too() {
    let mut cluster = led_by_one(3, config(0));
    cluster.run(HEARTBEAT * 2);
    let ms = Duration::from_millis;
    // The newest of those under way.
    let message_to = |cluster: &mut Cluster, to: u64| {
        let place = cluster.network.iter().rposition(|message| message.to == replica(to)).unwrap();
        Input::Message(cluster.network.remove(place).unwrap())
    };
    // The answers to a beat stay away for long: 1 hears of 2 and 3 at the last moment, and leads on.
    cluster.tick_at(cluster.now.after(HEARTBEAT));
    let answers: Vec<Input> = [2, 3]
        .into_iter()
        .map(|id| {
            let beat = message_to(&mut cluster, id);
            cluster.input(replica(id), beat).unwrap();
            message_to(&mut cluster, 1)
        })
        .collect();
    let due = cluster.nodes[&replica(3)].raft.as_ref().unwrap().next_deadline().unwrap();
    let earlier = |span: Duration| Time(due.0 - u64::try_from(span.as_nanos()).unwrap());
    cluster.now = earlier(ms(20));
    for answer in answers {
        cluster.input(replica(1), answer).unwrap();
    }
    cluster.now = earlier(ms(10));
    cluster.input(replica(1), Input::Tick).unwrap();
    let beat = message_to(&mut cluster, 2);
    cluster.network.clear();
    // Meanwhile 3 stands, with 2's word that it would vote for it.
    cluster.now = due;
    cluster.input(replica(3), Input::Tick).unwrap();
    let question = message_to(&mut cluster, 2);
    cluster.input(replica(2), question).unwrap();
    let answer = message_to(&mut cluster, 3);
    cluster.input(replica(3), answer).unwrap();
    cluster.network.clear();
    cluster.sync(replica(3));
    let vote = message_to(&mut cluster, 2);
    // 1's beat comes first. Then 2 hears of the new term by some late answer of 3's, and then of the candidate.
    cluster.input(replica(2), beat).unwrap();
    let answer = message_to(&mut cluster, 1);
    cluster.input(replica(1), answer).unwrap();
    assert!(at_once(&mut cluster, replica(1)));
    let head = Bytes::from_static(&[0x08, 1, 0x10, 2, 0x7a, 0]); // version 1, term 2, "your term is over"
    let late = Message {
        from: replica(3),
        to: replica(2),
        class: Class::Control,
        head: head.into(),
        entries: Entries::default(),
    };
    cluster.input(replica(2), Input::Message(late)).unwrap();
    assert_eq!(cluster.status(replica(2)).ballot.round, 2);
    cluster.input(replica(2), vote).unwrap();
    cluster.isolate(replica(1));
    cluster.settle();
    assert_ne!(cluster.serving(), Some(replica(3)), "2 promised 1 its silence");
    assert!(at_once(&mut cluster, replica(1)));
    cluster.cut.clear();
    cluster.run(ELECTION * 4);
    assert!(cluster.serving().is_some());
}

#[test]
fn a_sole_voter_keeps_its_promise_to_the_leader_that_made_it_one() {
    let mut cluster = led_by_one(2, config(0));
    cluster.run(HEARTBEAT * 2);
    // 1 removes itself; 2 holds the last configuration, in which it is alone, and 1 does not know.
    cluster.reconfigure(replica(1), &[MembershipChange::Remove(replica(1))]).unwrap();
    while cluster.status(replica(2)).config.voters.len() != 1 || cluster.status(replica(2)).config.is_joint()
    {
        cluster.sync(replica(1));
        cluster.sync(replica(2));
        assert!(cluster.deliver_at(0));
    }
    cluster.sync(replica(2));
    cluster.isolate(replica(1));
    cluster.network.clear();
    cluster.crash(replica(2));
    cluster.restart(replica(2));
    for _ in 0..40 {
        cluster.run(HEARTBEAT / 2);
        if cluster.serving() == Some(replica(2)) {
            cluster.propose(replica(2), 1).unwrap();
            cluster.settle();
        }
        cluster.read(replica(1), ReadMode::Lease);
    }
    assert_eq!(cluster.serving(), Some(replica(2)));
}

#[test]
fn a_lease_counts_both_sets_of_a_joint_configuration() {
    let mut cluster = led_by_one(3, config(0));
    cluster.run(HEARTBEAT * 2);
    let changes = [4, 5, 6, 7].map(|node| MembershipChange::AddVoter(NodeId(node)));
    cluster.reconfigure(replica(1), &changes).unwrap();
    assert!(!at_once(&mut cluster, replica(1)), "the new ones have promised nothing");
    cluster.run(HEARTBEAT * 2);
    assert!(at_once(&mut cluster, replica(1)));
}
