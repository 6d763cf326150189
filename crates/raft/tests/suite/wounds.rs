//! What went wrong in other systems, each as a test that fails if it goes wrong here.

use std::time::Duration;

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Class, Config, Consensus, Entry, Input, Kind, Mark, Message, NodeId, Outcome, ProposalId,
    ReadMode, ReplicaId, Slot, SnapshotMeta, StepError,
};
use conclave_raft::RaftConfig;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

#[test]
fn a_membership_change_is_in_force_on_append_and_reverted_by_truncation() {
    let mut cluster = Cluster::of_logs(2, &[&[1], &[1, 2], &[1, 2]], RaftConfig::default());
    cluster.crash(replica(1));
    let mut config = Config::of_voters((1..=3).map(|id| (replica(id), NodeId(id))));
    config.learners.insert(replica(4));
    config.nodes.insert(replica(4), NodeId(4));
    config.next_replica = ReplicaId(5);
    let entry = Entry {
        slot: Slot(2),
        ballot: Ballot::term(1),
        kind: Kind::Config,
        id: ProposalId::NONE,
        payload: config.encode(),
    };
    cluster.node(replica(1)).disk.entries.insert(Slot(2), entry.clone());
    cluster.node(replica(1)).view = cluster.nodes[&replica(1)].disk.clone();
    cluster.restart(replica(1));
    assert_eq!(cluster.status(replica(1)).config, config, "nothing is committed, and yet it is in force");
    cluster.elect_this(replica(2));
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.status(replica(1)).config.nodes.len(), 3, "the entry was truncated");
    assert!(cluster.memberships > 0);
}

#[test]
fn a_replica_that_comes_back_does_not_depose_the_leader() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.isolate(replica(3));
    cluster.run(ELECTION * 10);
    let term = cluster.status(replica(1)).ballot;
    assert_eq!(cluster.status(replica(3)).ballot, term, "asking for pre-votes raises no term");
    cluster.cut.clear();
    cluster.run(ELECTION * 5);
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot), (Some(replica(1)), term));
}

#[test]
fn check_quorum_a_leader_that_hears_nobody_goes() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    // It can speak and not hear: its beats alone would keep the others from electing another for ever.
    cluster.cut.insert((replica(2), replica(1)));
    cluster.cut.insert((replica(3), replica(1)));
    cluster.run(ELECTION + HEARTBEAT);
    assert_ne!(cluster.status(replica(1)).leader, Some(replica(1)));
    cluster.run(ELECTION * 4);
    assert!(cluster.serving().is_some_and(|leader| leader != replica(1)));
}

#[test]
fn a_bridge_partition_does_not_make_leadership_go_round() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.cut.insert((replica(1), replica(2)));
    cluster.cut.insert((replica(2), replica(1)));
    let term = cluster.status(replica(1)).ballot;
    cluster.run(ELECTION * 20);
    assert_eq!((cluster.serving(), cluster.status(replica(3)).ballot), (Some(replica(1)), term));
}

#[test]
fn pre_vote_and_check_quorum_do_not_deadlock_over_a_higher_term() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.crash(replica(3));
    cluster.write_disk(replica(3), 9, &[]);
    cluster.restart(replica(3));
    cluster.run(ELECTION * 4);
    let leader = cluster.serving().unwrap();
    assert!(cluster.status(leader).ballot.round > 9);
    assert!(cluster.ids().into_iter().all(|id| cluster.status(id).leader == Some(leader)));
}

#[test]
fn a_granted_pre_vote_does_not_refresh_last_contact() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.crash(replica(1));
    cluster.now = cluster.now.after(ELECTION * 3);
    let due = |cluster: &Cluster| cluster.nodes[&replica(3)].raft.as_ref().unwrap().next_deadline();
    let before = due(&cluster);
    cluster.input(replica(2), Input::Tick).unwrap();
    cluster.network.retain(|message| message.to == replica(3));
    assert!(cluster.deliver_at(0));
    assert_eq!(cluster.under_way("3→2 pre-vote-reply t1 granted").len(), 1);
    assert_eq!(due(&cluster), before);
}

#[test]
fn a_booted_replica_votes_for_nobody_as_long_as_it_may_have_heard_a_leader() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.crash(replica(1));
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.crash(replica(3));
    cluster.restart(replica(3));
    cluster.input(replica(2), Input::Tick).unwrap();
    assert_eq!(cluster.under_way("2→3 pre-vote").len(), 1);
    cluster.settle();
    assert!(!cluster.transcript.last().unwrap().contains("3→2"), "it does not answer");
    cluster.run(ELECTION * 4);
    assert!(cluster.serving().is_some());
}

#[test]
fn leadership_is_never_handed_to_a_learner_or_to_nobody() {
    let mut cluster = Cluster::with(3, 1, 1, RaftConfig::default());
    cluster.elect_this(replica(1));
    for to in [replica(4), replica(9), replica(1)] {
        assert_eq!(cluster.transfer(replica(1), to), Err(StepError::NotTransferable(to)));
    }
    assert_eq!(
        cluster.transfer(replica(2), replica(3)),
        Err(StepError::NotLeader { leader: Some(replica(1)) })
    );
}

#[test]
fn a_learner_counts_for_nothing_and_receives_everything() {
    let mut cluster = Cluster::with(3, 2, 1, RaftConfig::default());
    cluster.elect_this(replica(1));
    cluster.crash(replica(2));
    cluster.crash(replica(3));
    let committed = cluster.status(replica(1)).committed;
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).committed, committed, "two learners and one voter are no quorum");
    cluster.run(ELECTION * 5);
    assert_eq!(cluster.serving(), None, "nor do learners stand for election");
    cluster.restart(replica(2));
    cluster.elect();
    cluster.run(ELECTION);
    assert!(cluster.nodes[&replica(4)].delivered > committed);
}

#[test]
fn no_read_is_served_before_the_leader_committed_in_its_term() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.propose(replica(1), 3).unwrap();
    cluster.settle(); // Chosen, but 2 and 3 may not know.
    let chosen = *cluster.chosen.keys().next_back().unwrap();
    cluster.crash(replica(1));
    cluster.stalled.insert(replica(3));
    cluster.now = cluster.now.after(ELECTION * 3);
    // 3 votes; after that its disk hangs, so the no-op of the new term cannot be chosen.
    cluster.stalled.clear();
    while cluster.status(replica(2)).leader != Some(replica(2)) {
        cluster.now = cluster.now.after(HEARTBEAT * 4);
        cluster.input(replica(2), Input::Tick).unwrap();
        for _ in 0..4 {
            while cluster.status(replica(2)).leader != Some(replica(2)) && cluster.deliver_at(0) {}
            cluster.sync(replica(3));
            if cluster.status(replica(2)).leader != Some(replica(2)) {
                cluster.sync(replica(2));
            }
        }
    }
    cluster.stalled.extend([replica(2), replica(3)]);
    assert!(!cluster.status(replica(2)).serving);
    let read = cluster.read(replica(2), ReadMode::Quorum);
    cluster.settle();
    assert_eq!(cluster.answered.get(&read), None, "it waits");
    cluster.stalled.clear();
    cluster.settle();
    assert!(cluster.answered[&read].is_some_and(|at| at > chosen));
}

#[test]
fn a_leader_that_was_paused_and_replaced_serves_no_read() {
    for mode in [ReadMode::Quorum, ReadMode::Lease, ReadMode::Follower] {
        let mut cluster = Cluster::new(3, 1);
        cluster.elect_this(replica(1));
        cluster.isolate(replica(1)); // Paused: it sees no time pass and no message arrive.
        let paused_at = cluster.now;
        cluster.now = cluster.now.after(ELECTION * 4);
        cluster.elect_this(replica(2));
        cluster.propose(replica(2), 1).unwrap();
        cluster.settle();
        // It wakes and, before anything else, is asked to read. Its clock went on in its sleep.
        assert!(cluster.now > paused_at.after(ELECTION));
        let read = cluster.read(replica(1), mode);
        cluster.settle();
        assert!(!matches!(cluster.answered.get(&read), Some(Some(_))), "{mode:?}");
        cluster.cut.clear();
        cluster.run(ELECTION);
        assert_eq!(cluster.answered.get(&read), Some(&None), "{mode:?}: it fails, and can be asked again");
    }
}

#[test]
fn a_late_answer_to_a_former_life_answers_no_newer_read() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.read(replica(3), ReadMode::Follower);
    while cluster.under_way("1→3 read-reply").is_empty() {
        assert!(cluster.deliver_at(0));
    }
    let late = cluster.network.iter().position(|message| message.to == replica(3)).unwrap();
    let late = cluster.network.remove(late).unwrap();
    cluster.crash(replica(3));
    cluster.settle();
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 2);
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    let read = cluster.read(replica(3), ReadMode::Follower);
    cluster.network.clear();
    cluster.input(replica(3), Input::Message(late)).unwrap();
    assert_eq!(cluster.answered.get(&read), None);
    cluster.run(ELECTION);
    assert!(cluster.answered[&read].is_some(), "the question is asked again");
}

#[test]
fn a_leader_whose_disk_hangs_goes() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.stalled.insert(replica(1));
    let ids = cluster.propose(replica(1), 1).unwrap();
    cluster.run(ELECTION + HEARTBEAT);
    assert_ne!(cluster.status(replica(1)).leader, Some(replica(1)), "although everyone hears it");
    cluster.run(ELECTION * 4);
    assert!(cluster.serving().is_some_and(|leader| leader != replica(1)));
    assert!(cluster.chosen.values().any(|entry| entry.id == ids[0]), "the others hold it durably");
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    let before = cluster.status(replica(1)).committed;
    cluster.stalled.extend([replica(2), replica(3)]);
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).committed, before, "followers that did not sync");
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.stalled.extend([replica(1), replica(3)]);
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).committed, before, "a leader that did not sync");
    cluster.stalled = [replica(1)].into();
    cluster.settle();
    assert!(cluster.status(replica(1)).committed > before, "a quorum without the leader");
    assert_eq!(
        cluster.status(replica(1)).applied,
        before,
        "but the leader applies only what is durable with it"
    );
}

#[test]
fn a_sole_voter_acknowledges_nothing_before_it_is_durable() {
    let mut cluster = Cluster::new(1, 1);
    cluster.run(Duration::ZERO);
    cluster.stalled.insert(replica(1));
    let before = cluster.status(replica(1)).committed;
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).committed, before);
}

#[test]
fn no_vote_leaves_before_it_is_durable() {
    let mut cluster = Cluster::new(3, 1);
    cluster.stalled.extend([replica(2), replica(3)]);
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.input(replica(1), Input::Tick).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).ballot.round, 1, "it stands");
    assert!(cluster.transcript.iter().all(|line| !line.starts_with("  2→1 vote-reply")));
    cluster.stalled = [replica(1)].into();
    cluster.settle();
    assert_eq!(cluster.serving(), Some(replica(1)));
}

#[test]
fn no_vote_is_asked_for_before_the_own_one_is_durable() {
    let mut cluster = Cluster::new(3, 1);
    cluster.stalled.insert(replica(1));
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.input(replica(1), Input::Tick).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).ballot.round, 1);
    assert!(cluster.transcript.iter().all(|line| !line.starts_with("  1→2 vote ")));
}

#[test]
fn a_late_completion_of_another_time_is_not_todays() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.stalled.insert(replica(1));
    cluster.propose(replica(1), 1).unwrap();
    let persisted = cluster.status(replica(1)).persisted;
    for (term, sequence) in [(0, 3), (1, 99), (1, 1), (7, 3)] {
        let mark = Mark { ballot: Ballot::term(term), sequence };
        cluster.input(replica(1), Input::Persisted(mark)).unwrap();
        cluster.input(replica(1), Input::SnapshotInstalled(mark)).unwrap();
        assert_eq!(cluster.status(replica(1)).persisted, persisted, "{mark:?}");
    }
}

#[test]
fn a_write_that_was_truncated_meanwhile_does_not_count_when_it_completes() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.stalled.insert(replica(3));
    cluster.propose(replica(1), 4).unwrap();
    while cluster.status(replica(3)).last < Slot(5) {
        assert!(cluster.deliver_at(0));
    }
    // 3 has four entries under way to its disk. Nobody else holds them; a leader of a later term replaces them by one.
    cluster.crash(replica(1));
    cluster.network.clear();
    cluster.node(replica(2)).raft.as_ref().unwrap();
    assert_eq!(cluster.status(replica(2)).last, Slot(5));
    cluster.crash(replica(2));
    assert_eq!(cluster.nodes[&replica(3)].disk.entries.len(), 1);
    assert_eq!(cluster.status(replica(3)).persisted, Slot(1));
    cluster.restart(replica(1));
    cluster.restart(replica(2));
    cluster.isolate(replica(3));
    cluster.elect_this(replica(2));
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 3); // 3's disk still hangs; the truncation queues behind the four entries.
    assert!(cluster.status(replica(3)).persisted < Slot(2));
    cluster.stalled.clear();
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.terms(replica(3)), cluster.terms(replica(2)));
}

#[test]
fn an_entry_truncated_once_and_chosen_after_all_was_never_called_dropped() {
    let mut cluster = Cluster::new(5, 1);
    cluster.elect_this(replica(1));
    cluster.run(HEARTBEAT * 2);
    // The entry reaches 1 and 2 only.
    for id in 3..=5 {
        cluster.cut.insert((replica(1), replica(id)));
    }
    let ids = cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    cluster.cut.clear();
    // 3 is elected without them, and its no-op takes the entry's slot at 1, and only there.
    cluster.isolate(replica(1));
    cluster.isolate(replica(2));
    cluster.now = cluster.now.after(ELECTION * 3);
    while cluster.status(replica(3)).leader != Some(replica(3)) {
        cluster.now = cluster.now.after(HEARTBEAT * 4);
        cluster.input(replica(3), Input::Tick).unwrap();
        for _ in 0..6 {
            cluster.sync_all();
            while cluster.status(replica(3)).leader != Some(replica(3)) && cluster.deliver_at(0) {}
        }
    }
    let no_op = cluster.network.iter().position(|message| message.to == replica(1)).unwrap();
    let no_op = cluster.network.remove(no_op).unwrap();
    cluster.network.clear();
    cluster.input(replica(1), Input::Message(no_op)).unwrap();
    cluster.sync(replica(1));
    assert_eq!(cluster.terms(replica(1)).last(), Some(&2), "truncated");
    assert!(cluster.lost.is_empty(), "nothing is said of it yet");
    // 2, which still holds the entry, is elected by 4 and 5 and has it chosen.
    cluster.network.clear();
    cluster.crash(replica(3));
    cluster.cut.clear();
    cluster.isolate(replica(1));
    cluster.elect_this(replica(2));
    assert!(cluster.chosen.values().any(|entry| entry.id == ids[0]));
    cluster.cut.clear();
    cluster.restart(replica(3));
    cluster.run(ELECTION * 3);
    assert!(cluster.lost.is_empty());
    cluster.check_outcomes();
}

#[test]
fn a_truncated_entry_is_dropped_once_its_successor_is_chosen_and_not_before() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.isolate(replica(1));
    let ids = cluster.propose(replica(1), 3).unwrap();
    cluster.settle();
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.elect_this(replica(2));
    assert!(cluster.lost.is_empty());
    cluster.cut.clear();
    cluster.run(ELECTION);
    assert!(ids.iter().all(|id| cluster.lost.get(id) == Some(&Outcome::Dropped)), "{:?}", cluster.lost);
    cluster.check_outcomes();
}

#[test]
fn a_proposal_for_another_ballot_is_dropped() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    let batch = |sequence| {
        let id = ProposalId { node: NodeId(1), sequence };
        (id, vec![conclave_consensus::Proposal { id, payload: Bytes::new() }])
    };
    for (at, term, sequence) in [(1, 9, 1_000), (2, 1, 1_001)] {
        let (id, batch) = batch(sequence);
        let only_in = Some(Ballot::term(term));
        cluster.input(replica(at), Input::Propose { batch, only_in }).unwrap();
        assert_eq!(cluster.lost.get(&id), Some(&Outcome::Dropped));
    }
    let only_in = Some(cluster.status(replica(1)).ballot);
    let (id, batch) = batch(1_002);
    cluster.input(replica(1), Input::Propose { batch, only_in }).unwrap();
    cluster.settle();
    assert!(cluster.chosen.values().any(|entry| entry.id == id));
}

#[test]
fn strangers_and_misdirected_messages_are_refused() {
    let mut cluster = Cluster::new(3, 1);
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.input(replica(1), Input::Tick).unwrap();
    let message = cluster.network[0].clone();
    let refused = |cluster: &mut Cluster, message: Message| {
        let status = cluster.status(replica(2));
        let done = cluster.input(replica(2), Input::Message(message));
        assert!(matches!(done, Err(StepError::BadMessage { .. })), "{done:?}");
        assert_eq!(cluster.status(replica(2)), status);
    };
    refused(&mut cluster, Message { to: replica(3), ..message.clone() });
    refused(&mut cluster, Message { from: replica(0), ..message.clone() });
    refused(&mut cluster, Message { from: replica(2), ..message.clone() });
    refused(&mut cluster, Message { head: [0; 2_000][..].into(), ..message.clone() });
    cluster.input(replica(2), Input::Message(Message { class: Class::Bulk, ..message })).unwrap();
    // A stranger's answer counts for nobody, although its question is one.
    cluster.network.clear();
    cluster.now = cluster.now.after(ELECTION * 4);
    cluster.input(replica(2), Input::Tick).unwrap();
    let question = cluster.network[0].clone();
    let to = question.to;
    cluster.input(to, Input::Message(question)).unwrap();
    let answer = cluster.network.iter().find(|message| message.to == replica(2)).unwrap().clone();
    refused(&mut cluster, Message { from: replica(7), ..answer });
}

#[test]
fn a_snapshot_brings_its_own_membership() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    let mut config = cluster.status(replica(3)).config;
    config.learners.insert(replica(4));
    config.nodes.insert(replica(4), NodeId(4));
    config.next_replica = ReplicaId(5);
    let meta =
        SnapshotMeta { slot: Slot(50), ballot: Ballot::term(1), config: config.clone(), generation: 7 };
    cluster.input(replica(3), Input::SnapshotReady(meta)).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(3)).config, config);
    assert_eq!(cluster.status(replica(3)).applied, Slot(50));
}
