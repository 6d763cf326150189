//! The paper, section by section (Ongaro and Ousterhout, extended version).

use conclave_consensus::{Consensus, Input, ProposalId, Slot, StepError};
use conclave_raft::RaftConfig;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

#[test]
fn section_5_1_a_leader_that_hears_of_a_higher_term_steps_down() {
    let mut cluster = Cluster::new(3, 1);
    let old = cluster.elect();
    cluster.isolate(old);
    let new = cluster.ids().into_iter().find(|id| *id != old).unwrap();
    cluster.elect_this(new);
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.status(old).leader, Some(new));
    assert_eq!(cluster.status(old).ballot, cluster.status(new).ballot);
}

#[test]
fn section_5_2_election_timeouts_are_spread_between_one_and_two() {
    let dues: Vec<u64> = (0..200)
        .map(|seed| {
            Cluster::new(3, seed).nodes[&replica(1)].raft.as_ref().unwrap().next_deadline().unwrap().0
        })
        .collect();
    let election = u64::try_from(ELECTION.as_nanos()).unwrap();
    assert!(dues.iter().all(|due| (election..2 * election).contains(due)));
    assert!(dues.iter().any(|due| *due < election * 5 / 4) && dues.iter().any(|due| *due > election * 7 / 4));
}

#[test]
fn section_5_2_the_first_candidate_to_ask_gets_the_vote_and_no_second_one() {
    let mut cluster = Cluster::new(3, 1);
    two_candidates(&mut cluster);
    assert_eq!(cluster.serving(), Some(replica(2)), "2 asked first");
    assert_eq!(cluster.status(replica(1)).leader, None);
}

#[test]
fn section_5_2_a_candidate_follows_a_leader_of_its_term() {
    let mut cluster = Cluster::new(3, 1);
    two_candidates(&mut cluster);
    assert_eq!(cluster.serving(), Some(replica(2)));
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.status(replica(1)).leader, Some(replica(2)));
    assert_eq!(cluster.status(replica(1)).ballot.round, 1);
}

/// Both become candidates of term 1: each has 3's pre-vote before either asks for its vote. 2 asks first.
fn two_candidates(cluster: &mut Cluster) {
    for id in [replica(1), replica(2)] {
        cluster.cut.insert((replica(1), replica(2)));
        cluster.cut.insert((replica(2), replica(1)));
        cluster.now = cluster.now.after(ELECTION * 2);
        cluster.input(id, Input::Tick).unwrap();
    }
    while cluster.deliver_at(0) {}
    cluster.sync(replica(2));
    cluster.sync(replica(1));
    cluster.settle();
}

#[test]
fn section_5_2_a_sole_voter_is_elected_at_its_first_tick_without_a_message() {
    let mut cluster = Cluster::new(1, 1);
    cluster.run(std::time::Duration::ZERO);
    assert_eq!(cluster.serving(), Some(replica(1)));
    let ids = cluster.propose(replica(1), 3).unwrap();
    cluster.settle();
    assert_eq!(cluster.chosen.values().filter(|entry| ids.contains(&entry.id)).count(), 3);
}

#[test]
fn section_5_3_figure_7_every_log_becomes_the_leaders() {
    let logs: [&[u64]; 7] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    let mut cluster = Cluster::of_logs(7, &logs, RaftConfig::default());
    cluster.elect_this(replica(1));
    cluster.run(HEARTBEAT * 3);
    for id in cluster.ids() {
        assert_eq!(cluster.terms(id), [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 8], "{id}");
        assert_eq!(cluster.nodes[&id].delivered, Slot(11));
    }
}

#[test]
fn section_5_3_one_rejection_skips_a_whole_term() {
    let long: Vec<u64> = std::iter::repeat_n(1, 3).chain(std::iter::repeat_n(2, 50)).collect();
    let other: Vec<u64> = std::iter::repeat_n(1, 3).chain(std::iter::repeat_n(3, 60)).collect();
    let mut cluster = Cluster::of_logs(4, &[&other, &long, &other], RaftConfig::default());
    cluster.elect_this(replica(1));
    let rejections =
        cluster.transcript.iter().filter(|line| line.contains("2→1") && line.contains("rejects"));
    assert!(rejections.count() <= 2, "{}", cluster.transcript.join("\n"));
    assert_eq!(cluster.terms(replica(2)), cluster.terms(replica(1)));
}

#[test]
fn section_5_3_entries_of_a_lower_term_replace_those_of_a_higher_one() {
    let logs: [&[u64]; 3] = [&[1, 2, 2, 2, 4], &[1, 2, 2, 2, 4], &[1, 3, 3, 3]];
    let config = RaftConfig { message_bytes_max: 1, ..RaftConfig::default() };
    let mut cluster = Cluster::of_logs(4, &logs, config);
    cluster.elect_this(replica(1));
    cluster.run(HEARTBEAT * 5);
    assert_eq!(cluster.terms(replica(3)), [1, 2, 2, 2, 4, 5]);
}

#[test]
fn section_5_4_1_a_candidate_with_an_older_log_gets_no_vote() {
    let mut cluster = Cluster::of_logs(3, &[&[1, 1, 1, 1], &[1, 3], &[1, 3]], RaftConfig::default());
    cluster.cut.insert((replica(2), replica(3)));
    for _ in 0..5 {
        cluster.now = cluster.now.after(ELECTION * 2);
        cluster.input(replica(1), Input::Tick).unwrap();
        cluster.settle();
    }
    assert_eq!(cluster.status(replica(1)).leader, None, "a longer log of an older term is the older log");
    cluster.cut.clear();
    cluster.elect_this(replica(2));
}

#[test]
fn section_5_4_2_figure_8_an_entry_of_an_earlier_term_is_not_committed_by_counting() {
    let logs: [&[u64]; 5] = [&[1, 2], &[1, 2], &[1], &[1], &[1, 3]];
    let config = RaftConfig { message_bytes_max: 1, ..RaftConfig::default() }; // one entry a message
    let mut cluster = Cluster::of_logs(3, &logs, config);
    cluster.isolate(replica(5));
    // (c): replica 1 leads in term 4 and brings the entry of term 2 to a majority, but nothing of its own term.
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.input(replica(1), Input::Tick).unwrap();
    for _ in 0..1_000 {
        cluster.sync_all();
        // An entry of its own term never arrives: the message does, without it.
        for message in &mut cluster.network {
            message.entries =
                message.entries.iter().filter(|entry| entry.ballot.round < 4).cloned().collect();
        }
        if !cluster.deliver_at(0) {
            break;
        }
    }
    assert_eq!(cluster.status(replica(1)).leader, Some(replica(1)));
    assert!((1..=4).all(|id| cluster.terms(replica(id))[1] == 2), "a majority holds it");
    assert_eq!(cluster.status(replica(1)).committed, Slot(0));
    // (d): so replica 5 may yet replace it.
    cluster.cut.clear();
    cluster.crash(replica(1));
    cluster.run(ELECTION);
    cluster.elect_this(replica(5));
    cluster.restart(replica(1));
    cluster.run(ELECTION);
    assert!(cluster.ids().into_iter().all(|id| cluster.terms(id)[..2] == [1, 3]));
}

#[test]
fn section_5_4_2_figure_8_with_an_entry_of_its_own_term_the_earlier_one_is_committed_too() {
    let logs: [&[u64]; 5] = [&[1, 2], &[1, 2], &[1], &[1], &[1, 3]];
    let mut cluster = Cluster::of_logs(3, &logs, RaftConfig::default());
    cluster.isolate(replica(5));
    cluster.elect_this(replica(1)); // (e)
    assert_eq!(cluster.status(replica(1)).committed, Slot(3));
    cluster.cut.clear();
    cluster.run(ELECTION * 3);
    assert_eq!(cluster.terms(replica(5))[..3], [1, 2, cluster.terms(replica(1))[2]]);
}

#[test]
fn section_5_4_3_only_a_leader_takes_proposals() {
    let mut cluster = Cluster::new(3, 1);
    let leader = cluster.elect();
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    assert_eq!(cluster.propose(follower, 1), Err(StepError::NotLeader { leader: Some(leader) }));
    assert!(cluster.propose(leader, 1).is_ok());
}

#[test]
fn thesis_3_10_leadership_is_handed_over_at_once_although_the_leader_is_heard() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    let begun = cluster.now;
    cluster.propose(replica(1), 5).unwrap();
    let id = cluster.transfer(replica(1), replica(3)).unwrap();
    let refused = cluster.propose(replica(1), 1);
    assert_eq!(refused, Err(StepError::NotLeader { leader: None }), "no proposals meanwhile");
    cluster.settle();
    assert_eq!((cluster.serving(), cluster.now), (Some(replica(3)), begun), "no time passed");
    assert!(cluster.lost.contains_key(&id) && cluster.chosen.len() == 7);
}

#[test]
fn thesis_3_10_a_transfer_is_given_up_after_an_election_timeout() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.isolate(replica(3));
    let id: ProposalId = cluster.transfer(replica(1), replica(3)).unwrap();
    assert_eq!(cluster.transfer(replica(1), replica(2)), Err(StepError::Busy));
    cluster.run(ELECTION + HEARTBEAT);
    assert_eq!(cluster.lost.get(&id), Some(&conclave_consensus::Outcome::Dropped));
    assert!(cluster.propose(replica(1), 1).is_ok(), "it leads on");
}
