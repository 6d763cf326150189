//! Batching, pipelining, bounds and catching up.

use bytes::Bytes;
use conclave_consensus::{Effect, Input, LogOp, NodeId, Proposal, ProposalId, ReadMode, Slot, StepError};
use conclave_raft::RaftConfig;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

fn proposal(sequence: u64, size: usize) -> Proposal {
    Proposal { id: ProposalId { node: NodeId(1), sequence }, payload: Bytes::from(vec![7; size]) }
}

#[test]
fn what_is_proposed_before_a_drain_leaves_in_one_write_and_one_message_a_follower() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    for sequence in 1_000..1_010 {
        let batch = vec![proposal(sequence, 16)];
        cluster.step(replica(1), Input::Propose { batch, only_in: None }).unwrap();
    }
    let from = cluster.transcript.len();
    cluster.drain(replica(1));
    let lines = cluster.transcript[from..].join("\n");
    assert_eq!(lines.matches("append t1").count(), 2, "{lines}");
    assert_eq!(lines.matches("writes").count(), 1, "{lines}");
    cluster.settle();
    assert_eq!(cluster.chosen.len(), 11);
}

#[test]
fn a_follower_acknowledges_once_a_drain() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    for _ in 0..5 {
        cluster.propose(replica(1), 1).unwrap();
    }
    let for_two: Vec<_> =
        cluster.network.iter().filter(|message| message.to == replica(2)).cloned().collect();
    assert_eq!(for_two.len(), 5, "pipelined: none waits for the one before it");
    cluster.network.retain(|message| message.to != replica(2));
    for message in for_two {
        cluster.step(replica(2), Input::Message(message)).unwrap();
    }
    cluster.drain(replica(2));
    cluster.sync(replica(2));
    assert_eq!(cluster.under_way("2→1 append-reply").len(), 1);
}

#[test]
fn a_commit_is_told_at_once_and_rides_on_entries_if_there_are_any() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    assert!((1..=3).all(|id| cluster.nodes[&replica(id)].delivered == Slot(2)), "no beat was needed");
    // Now the acknowledgement that commits slot 3 is stepped together with a new proposal.
    cluster.propose(replica(1), 1).unwrap();
    cluster.sync_all();
    while !cluster.network.iter().any(|message| message.to == replica(1)) {
        assert!(cluster.deliver_at(0) || cluster.sync(replica(2)));
        cluster.sync(replica(2));
    }
    let place = cluster.network.iter().position(|message| message.to == replica(1)).unwrap();
    let acknowledgement = cluster.network.remove(place).unwrap();
    cluster.step(replica(1), Input::Message(acknowledgement)).unwrap();
    cluster.step(replica(1), Input::Propose { batch: vec![proposal(1_000, 1)], only_in: None }).unwrap();
    let from = cluster.transcript.len();
    cluster.drain(replica(1));
    let lines = cluster.transcript[from..].join("\n");
    assert_eq!(lines.matches("commit 3 [4/1]").count(), 2, "{lines}");
    assert_eq!(lines.matches("append t1").count(), 2, "{lines}");
}

#[test]
fn what_is_under_way_to_a_silent_follower_is_bounded() {
    let config = RaftConfig { inflight_messages_max: 3, ..RaftConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.isolate(replica(3));
    let from = cluster.transcript.len();
    for _ in 0..20 {
        cluster.propose(replica(1), 1).unwrap();
        cluster.settle();
    }
    let with_entries = |line: &&String| line.starts_with("  1→3 append") && !line.ends_with("[]");
    assert_eq!(cluster.transcript[from..].iter().filter(with_entries).count(), 3);
    assert_eq!(cluster.chosen.len(), 21, "the others go on");
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 5);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(21));
}

#[test]
fn bytes_under_way_are_bounded_too() {
    let config = RaftConfig { inflight_bytes_max: 1_000, message_bytes_max: 500, ..RaftConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.isolate(replica(3));
    for sequence in 0..10 {
        let batch = vec![proposal(2_000 + sequence, 400)];
        cluster.input(replica(1), Input::Propose { batch, only_in: None }).unwrap();
    }
    let bytes: usize =
        cluster.network.iter().filter(|message| message.to == replica(3)).map(|m| m.size_bytes()).sum();
    assert!(bytes < 2_000, "{bytes}");
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(11));
}

#[test]
fn lost_messages_are_noticed_within_two_beats() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.propose(replica(1), 3).unwrap();
    cluster.network.clear();
    cluster.run(HEARTBEAT * 3);
    assert!((1..=3).all(|id| cluster.nodes[&replica(id)].delivered == Slot(4)));
}

#[test]
fn a_follower_that_lost_what_was_not_synced_is_sent_it_again() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.stalled.insert(replica(3));
    cluster.propose(replica(1), 5).unwrap();
    cluster.settle();
    cluster.crash(replica(3));
    cluster.stalled.clear();
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(6));
}

#[test]
fn a_laggard_is_served_from_the_log_where_memory_does_not_reach() {
    let config = RaftConfig {
        cache_kept_bytes: 0,
        cache_bytes_max: 1,
        message_bytes_max: 300,
        ..RaftConfig::default()
    };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.crash(replica(3));
    for _ in 0..30 {
        cluster.propose(replica(1), 2).unwrap();
        cluster.settle();
    }
    cluster.run(ELECTION);
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(61));
    assert!(cluster.nodes[&replica(3)].fetching.is_none());
}

#[test]
fn a_leader_refuses_what_it_cannot_bound() {
    let config = RaftConfig {
        uncommitted_entries_max: 4,
        uncommitted_bytes_max: 1_000,
        entry_bytes_max: 500,
        ..RaftConfig::default()
    };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.isolate(replica(1));
    let mut offer = |sizes: &[usize]| {
        let batch = sizes.iter().zip(5_000..).map(|(size, sequence)| proposal(sequence, *size)).collect();
        cluster.input(replica(1), Input::Propose { batch, only_in: None })
    };
    assert_eq!(offer(&[501]), Err(StepError::TooLarge { size_bytes: 501, size_bytes_max: 500 }));
    assert_eq!(offer(&[1, 1]), Ok(()));
    assert_eq!(offer(&[1, 1, 1]), Err(StepError::Busy), "as a whole");
    assert_eq!(offer(&[500, 500]), Err(StepError::Busy));
    assert_eq!(offer(&[1, 1]), Ok(()));
    assert_eq!(offer(&[1]), Err(StepError::Busy));
}

#[test]
fn commit_stays_within_a_window_of_what_is_applied() {
    let config = RaftConfig { apply_window_entries: 3, ..RaftConfig::default() };
    let mut cluster = Cluster::with(1, 0, 1, config);
    cluster.run(std::time::Duration::ZERO);
    let batch = (0..10).map(|sequence| proposal(sequence + 1, 1)).collect();
    let (now, raft) = (cluster.now, cluster.nodes.get_mut(&replica(1)).unwrap().raft.as_mut().unwrap());
    use conclave_consensus::Consensus;
    raft.step(now, Input::Propose { batch, only_in: None }).unwrap();
    let mut effects = Vec::new();
    raft.drain(&mut effects);
    let [Effect::Persist { mark, ops, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert!(matches!(&ops[..], [LogOp::Put(entries)] if entries.len() == 10), "{ops:?}");
    raft.step(now, Input::Persisted(*mark)).unwrap();
    for expected in [&[2, 3, 4][..], &[5, 6, 7], &[8, 9, 10], &[11], &[]] {
        effects.clear();
        raft.drain(&mut effects);
        let given: Vec<u64> = effects
            .iter()
            .flat_map(|effect| if let Effect::Commit(entries) = effect { &entries[..] } else { &[] })
            .map(|entry| entry.slot.0)
            .collect();
        assert_eq!(given, expected);
        if let Some(last) = given.last() {
            raft.step(now, Input::Applied(Slot(*last))).unwrap();
        }
    }
}

#[test]
fn reads_that_arrive_together_share_a_round() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    let from = cluster.transcript.len();
    for id in 0..50 {
        for to in 1..=3 {
            let input =
                Input::ReadBarrier { id: conclave_consensus::ReadId(id * 3 + to), mode: ReadMode::Follower };
            let _ = cluster.nodes.get_mut(&replica(to)).unwrap().raft.as_mut().map(|raft| {
                use conclave_consensus::Consensus;
                raft.step(cluster.now, input)
            });
        }
    }
    let mut effects = Vec::new();
    for id in 1..=3 {
        use conclave_consensus::Consensus;
        cluster.nodes.get_mut(&replica(id)).unwrap().raft.as_mut().unwrap().drain(&mut effects);
    }
    let _ = from;
    assert_eq!(effects.len(), 4, "one question of each follower, one beat to each: {effects:?}");
}

#[test]
fn of_three_the_leader_answers_a_question_at_once_and_of_five_it_asks_another() {
    for (voters, answered_alone) in [(3, true), (5, false)] {
        let mut cluster = Cluster::new(voters, 1);
        cluster.elect_this(replica(1));
        cluster.settle();
        for other in 3..=voters {
            cluster.isolate(replica(other));
        }
        let read = cluster.read(replica(2), ReadMode::Follower);
        cluster.settle();
        assert_eq!(cluster.answered.contains_key(&read), answered_alone, "{voters} voters");
    }
}

#[test]
fn a_question_of_an_older_term_is_no_vote_for_its_leader() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.isolate(replica(1));
    // 2 asks 1, and the question is on its way while 2 and 3 go on to another term.
    let read = cluster.read(replica(2), ReadMode::Follower);
    cluster.now = cluster.now.after(ELECTION * 4);
    cluster.elect_this(replica(3));
    cluster.propose(replica(3), 1).unwrap();
    cluster.settle();
    assert_eq!(cluster.answered.get(&read), Some(&None), "it failed with the change of leader");
    let again = cluster.read(replica(2), ReadMode::Follower);
    cluster.settle();
    let newest = *cluster.chosen.keys().next_back().unwrap();
    assert_eq!(cluster.answered[&again], Some(newest), "the new leader's, with what it chose");
}

#[test]
fn reads_are_served_on_any_replica_and_see_what_was_acknowledged() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    for round in 1..10 {
        cluster.propose(replica(1), 2).unwrap();
        cluster.settle();
        for id in 1..=3 {
            let read = cluster.read(replica(id), ReadMode::Follower);
            cluster.settle();
            assert_eq!(cluster.answered[&read], Some(Slot(1 + 2 * round)));
        }
    }
    let refused = cluster.read(replica(2), ReadMode::Quorum);
    assert_eq!(cluster.answered[&refused], None, "only a leader confirms by itself");
}

#[test]
fn waiting_reads_are_bounded() {
    let config = RaftConfig { reads_max: 2, ..RaftConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    for id in [replica(1), replica(2)] {
        cluster.read(id, ReadMode::Follower);
        cluster.read(id, ReadMode::Follower);
        let one_more = Input::ReadBarrier { id: conclave_consensus::ReadId(9_999), mode: ReadMode::Follower };
        assert_eq!(cluster.input(id, one_more), Err(StepError::Busy));
    }
    cluster.settle();
    assert_eq!(cluster.answered.len(), 4);
    cluster.check_outcomes();
}
