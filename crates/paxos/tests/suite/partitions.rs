//! Partitions that are not clean. The three of the Omni-Paxos paper (section 2) with five replicas, and any others: as long as some replica and
//! a quorum hear each other, one of them leads within four election timeouts, whatever its log lacks, and then leadership rests.

use std::collections::BTreeSet;

use conclave_consensus::{Input, Message, ReplicaId};
use conclave_paxos::PaxosConfig;
use proptest::prelude::*;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

/// Within so many election timeouts something is chosen again.
const WITHIN: u32 = 4;

fn cut(cluster: &mut Cluster, one: u64, other: u64) {
    cluster.cut.insert((replica(one), replica(other)));
    cluster.cut.insert((replica(other), replica(one)));
}

/// Leaves only these links of five replicas.
fn leave(cluster: &mut Cluster, links: &[(u64, u64)]) {
    for one in 1..=5 {
        for other in one + 1..=5 {
            if !links.contains(&(one, other)) {
                cut(cluster, one, other);
            }
        }
    }
}

/// Proposes at whoever serves until something is chosen that was proposed from now on; says after how many election timeouts.
fn until_chosen(cluster: &mut Cluster) -> f64 {
    let begun = cluster.now;
    let mut ids = BTreeSet::new();
    let limit = ELECTION * WITHIN;
    while cluster.now.since(begun) <= limit {
        let up: Vec<ReplicaId> = cluster.ids().into_iter().filter(|id| cluster.status(*id).serving).collect();
        for id in up {
            ids.extend(cluster.propose(id, 1).into_iter().flatten());
        }
        cluster.run(HEARTBEAT / 10);
        if cluster.chosen.values().any(|entry| ids.contains(&entry.id)) {
            return cluster.now.since(begun).as_secs_f64() / ELECTION.as_secs_f64();
        }
    }
    panic!("nothing was chosen in {WITHIN} election timeouts");
}

/// Then leadership stays where it is.
fn rests(cluster: &mut Cluster) -> ReplicaId {
    let leader = cluster.serving().unwrap();
    let ballot = cluster.status(leader).ballot;
    cluster.run(ELECTION * 20);
    assert_eq!((cluster.serving(), cluster.status(leader).ballot), (Some(leader), ballot), "it goes round");
    leader
}

#[test]
fn quorum_loss_whoever_is_left_with_a_quorum_leads() {
    let mut longest = 0.0_f64;
    for seed in 0..50 {
        let mut cluster = Cluster::new(5, seed);
        cluster.elect_this(replica(5));
        cluster.propose(replica(5), 3).unwrap();
        cluster.run(ELECTION);
        // Everyone hears 1 and nobody else; the leader lives, and 1 hears it.
        leave(&mut cluster, &[(1, 2), (1, 3), (1, 4), (1, 5)]);
        longest = longest.max(until_chosen(&mut cluster));
        assert_eq!(rests(&mut cluster), replica(1));
    }
    println!("quorum loss: {longest:.2} election timeouts at most");
}

#[test]
fn constrained_election_the_only_one_that_can_lead_may_lack_what_was_chosen() {
    let mut longest = 0.0_f64;
    for seed in 0..50 {
        let mut cluster = Cluster::new(5, seed);
        cluster.elect_this(replica(5));
        // 1 is away while much is chosen.
        cluster.isolate(replica(1));
        for _ in 0..20 {
            cluster.propose(replica(5), 3).unwrap();
            cluster.run(HEARTBEAT);
        }
        let last = *cluster.chosen.keys().next_back().unwrap();
        cluster.cut.clear();
        // Then the leader is gone, and the others hear 1 alone.
        leave(&mut cluster, &[(1, 2), (1, 3), (1, 4)]);
        assert!(cluster.status(replica(1)).committed < last);
        longest = longest.max(until_chosen(&mut cluster));
        assert_eq!(rests(&mut cluster), replica(1));
    }
    println!("constrained election: {longest:.2} election timeouts at most");
}

#[test]
fn chained_replicas_do_not_take_leadership_from_each_other() {
    let mut longest = 0.0_f64;
    for seed in 0..50 {
        for leader in 1..=5 {
            let mut cluster = Cluster::new(5, seed);
            cluster.elect_this(replica(leader));
            cluster.propose(replica(leader), 3).unwrap();
            cluster.run(ELECTION);
            leave(&mut cluster, &[(1, 2), (2, 3), (3, 4), (4, 5)]);
            longest = longest.max(until_chosen(&mut cluster));
            assert!([2, 3, 4].map(replica).contains(&rests(&mut cluster)));
        }
    }
    println!("chained: {longest:.2} election timeouts at most");
}

#[test]
fn a_chain_of_three_keeps_its_leader_at_either_end() {
    for leader in [1, 2, 3] {
        let mut cluster = Cluster::new(3, leader);
        cluster.elect_this(replica(leader));
        cut(&mut cluster, 1, 3);
        let ballot = cluster.status(replica(leader)).ballot;
        cluster.run(ELECTION * 20);
        assert_eq!(
            (cluster.serving(), cluster.status(replica(leader)).ballot),
            (Some(replica(leader)), ballot)
        );
    }
}

#[test]
fn one_that_comes_back_deposes_nobody() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.isolate(replica(3));
    cluster.run(ELECTION * 10);
    let ballot = cluster.status(replica(1)).ballot;
    assert_eq!(cluster.status(replica(3)).ballot, ballot, "looking for a leader raises no ballot");
    cluster.cut.clear();
    cluster.run(ELECTION * 5);
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot), (Some(replica(1)), ballot));
}

#[test]
fn one_that_hears_nothing_and_is_heard_deposes_nobody() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.cut.extend([1, 2].map(|from| (replica(from), replica(3))));
    let ballot = cluster.status(replica(1)).ballot;
    cluster.run(ELECTION * 20);
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot), (Some(replica(1)), ballot));
}

#[test]
pub(crate) fn a_leader_that_is_heard_and_hears_nothing_gives_way() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.cut.extend([2, 3].map(|from| (replica(from), replica(1))));
    cluster.run(ELECTION + HEARTBEAT);
    assert_ne!(cluster.status(replica(1)).leader, Some(replica(1)));
    until_chosen(&mut cluster);
    assert_ne!(rests(&mut cluster), replica(1));
}

#[test]
pub(crate) fn a_higher_promise_of_one_that_was_away_costs_one_election() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.run(ELECTION);
    // 3 stands and promises itself, and is cut off before anyone hears of it.
    cluster.crash(replica(1));
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.input(replica(3), Input::Tick).unwrap();
    while cluster.status(replica(3)).ballot.replica != replica(3) {
        assert!(cluster.deliver_at(0));
    }
    cluster.isolate(replica(3));
    cluster.settle();
    cluster.restart(replica(1));
    cluster.run(ELECTION * 4);
    let before = cluster.status(cluster.serving().unwrap()).ballot;
    assert!(before < cluster.status(replica(3)).ballot, "{before:?}");
    cluster.cut.clear();
    until_chosen(&mut cluster);
    cluster.run(ELECTION * 2);
    let leader = cluster.serving().unwrap();
    assert!(cluster.status(leader).ballot.round <= before.round + 2);
    assert!(cluster.ids().into_iter().all(|id| cluster.status(id).leader == Some(leader)));
    rests(&mut cluster);
}

/// Whether the replica and a majority, itself included, hear each other.
fn reaches_a_majority(cut: &BTreeSet<(ReplicaId, ReplicaId)>, id: ReplicaId, of: u64) -> bool {
    let hears = |other: &ReplicaId| !cut.contains(&(id, *other)) && !cut.contains(&(*other, id));
    2 * (1..=of).map(replica).filter(|other| *other == id || hears(other)).count() as u64 > of
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_lasting_loss_of_links_leaves_a_leader_if_one_can_be(
        seed: u64,
        leader in 1..6_u64,
        cuts in prop::collection::btree_set((1..6_u64, 1..6_u64), 0..14),
    ) {
        let mut cluster = Cluster::with(5, 0, seed, PaxosConfig::default());
        cluster.elect_this(replica(leader));
        cluster.cut = cuts.into_iter().map(|(from, to)| (replica(from), replica(to))).collect();
        let cut = cluster.cut.clone();
        if (1..=5).any(|id| reaches_a_majority(&cut, replica(id), 5)) {
            // Where links lose everything in one direction, a replica may hear a leader that does not hear it.
            cluster.run(ELECTION * 4);
            until_chosen(&mut cluster);
            rests(&mut cluster);
        }
    }
}

/// Answers to the search that it began before come late: they are no reason to take the ballot back that it just promised.
#[test]
fn whoever_promised_another_gives_it_time() {
    let mut cluster = Cluster::new(3, 1);
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.input(replica(3), Input::Tick).unwrap();
    while !cluster.under_way("3→").is_empty() {
        cluster.deliver_at(0);
    }
    let late: Vec<_> = cluster.network.drain(..).collect();
    assert_eq!(late.len(), 2);
    cluster.input(replica(2), Input::Tick).unwrap();
    while cluster.status(replica(3)).ballot.replica != replica(2) {
        cluster.sync_all();
        assert!(cluster.deliver_at(0));
    }
    for message in late {
        cluster.input(replica(3), Input::Message(message)).unwrap();
    }
    assert_eq!(cluster.status(replica(3)).ballot.replica, replica(2));
    cluster.settle();
    assert_eq!(cluster.serving(), Some(replica(2)));
}

/// One that stood beside the leader that was elected promised itself a higher ballot. Nobody else promises it, and the leader's followers elect it anew.
#[test]
fn whoever_stood_too_late_deposes_nobody() {
    let mut cluster = Cluster::new(5, 1);
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.stalled.insert(replica(5));
    cluster.input(replica(5), Input::Tick).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(5)).ballot.replica, replica(5));
    cluster.input(replica(1), Input::Tick).unwrap();
    cluster.settle();
    assert_eq!(cluster.serving(), Some(replica(1)));
    let ids = cluster.propose(replica(1), 2).unwrap();
    cluster.stalled.clear();
    cluster.settle();
    assert_eq!(cluster.serving(), Some(replica(1)), "no time passed");
    assert_eq!(cluster.status(replica(5)).leader, Some(replica(1)));
    assert!(ids.iter().all(|id| cluster.chosen.values().any(|entry| entry.id == *id)));
    cluster.run(ELECTION * 3);
    assert_eq!(cluster.serving(), Some(replica(1)));
    cluster.check_outcomes();
}

/// Two replicas that were both told that they may stand, and stand: 1 has sent its prepares to 2 and 3, 5 to all.
fn two_stand() -> Cluster {
    let mut cluster = Cluster::new(5, 1);
    cluster.now = cluster.now.after(ELECTION * 3);
    for id in [replica(1), replica(5)] {
        cluster.input(id, Input::Tick).unwrap();
    }
    while !cluster.network.is_empty() {
        cluster.deliver_at(0);
    }
    cluster.sync(replica(1));
    cluster.sync(replica(5));
    assert_eq!(cluster.under_way("1→").len(), 4);
    assert_eq!(cluster.under_way("5→").len(), 4);
    cluster
}

/// Brings the messages under way on a link, and makes durable what the receiver wrote.
fn bring(cluster: &mut Cluster, from: u64, to: u64) {
    let is_on_it = |message: &Message| (message.from, message.to) == (replica(from), replica(to));
    for _ in 0..cluster.network.iter().filter(|message| is_on_it(message)).count() {
        let place = cluster.network.iter().position(is_on_it);
        cluster.deliver_at(place.unwrap());
    }
    cluster.sync(replica(to));
}

/// Whoever promised it and then promised a higher ballot takes part no more, and would elect the other: to stand anew would take that one's office in turn.
#[test]
fn a_leader_that_nobody_follows_leaves_a_higher_candidate_in_peace() {
    let mut cluster = two_stand();
    for acceptor in [2, 3] {
        bring(&mut cluster, 1, acceptor);
        bring(&mut cluster, acceptor, 1);
    }
    assert_eq!(cluster.serving(), Some(replica(1)));
    for acceptor in 2..=4 {
        bring(&mut cluster, 5, acceptor);
    }
    bring(&mut cluster, 1, 5);
    for _ in 0..3 {
        bring(&mut cluster, 5, 1);
    }
    let ballot = cluster.status(replica(5)).ballot;
    cluster.input(replica(1), Input::Tick).unwrap();
    cluster.settle();
    assert_eq!(cluster.serving(), Some(replica(5)), "no time passed");
    for id in cluster.ids() {
        assert_eq!(cluster.status(id).ballot, ballot);
    }
}

/// Those that heard the leader first promise nothing to the other, and it need only wait for their word.
#[test]
fn a_leader_that_is_refused_before_it_is_answered_waits_for_the_answers() {
    let mut cluster = two_stand();
    for acceptor in [2, 3] {
        bring(&mut cluster, 1, acceptor);
        bring(&mut cluster, acceptor, 1);
    }
    for other in 2..=5 {
        bring(&mut cluster, 1, other);
    }
    for other in [5, 4, 3, 2] {
        bring(&mut cluster, other, 1);
    }
    cluster.settle();
    assert_eq!(cluster.serving(), Some(replica(1)), "no time passed");
    assert_eq!(cluster.status(replica(1)).ballot.round, 2);
}

/// What they answered before it stood says nothing of whether they would promise it another ballot.
#[test]
fn whoever_stood_asks_anew_before_it_stands_again() {
    let mut cluster = two_stand();
    for acceptor in 2..=4 {
        bring(&mut cluster, 5, acceptor);
        bring(&mut cluster, 1, acceptor);
    }
    bring(&mut cluster, 2, 1);
    assert_eq!(cluster.status(replica(1)).ballot.round, 1);
    cluster.network.clear();
    cluster.stalled.insert(replica(1));
    cluster.now = cluster.now.after(HEARTBEAT * 3);
    cluster.input(replica(1), Input::Tick).unwrap();
    assert_eq!(cluster.under_way("1→").len(), 4, "a round");
    assert_eq!(cluster.status(replica(1)).ballot.round, 1);
}
