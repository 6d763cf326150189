//! What went wrong in other systems, each as a test that fails if it goes wrong here.

use std::time::Duration;

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Class, Input, Mark, Message, NodeId, Outcome, ProposalId, ReadMode, Slot, StepError,
};
use conclave_paxos::{PaxosConfig, describe};

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

#[test]
pub(crate) fn leadership_is_never_handed_to_a_learner_or_to_nobody() {
    let mut cluster = Cluster::with(3, 1, 1, PaxosConfig::default());
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
pub(crate) fn a_learner_counts_for_nothing_and_receives_everything() {
    let mut cluster = Cluster::with(3, 2, 1, PaxosConfig::default());
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
pub(crate) fn a_late_answer_to_a_former_life_answers_no_newer_read() {
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
pub(crate) fn a_leader_whose_disk_hangs_goes() {
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
fn a_proposal_for_another_ballot_is_dropped() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    let batch = |sequence| {
        let id = ProposalId { node: NodeId(1), sequence };
        (id, vec![conclave_consensus::Proposal { id, payload: Bytes::new() }])
    };
    let ballot = cluster.status(replica(1)).ballot;
    for (at, round, sequence) in [(1, 9, 1_000), (2, 1, 1_001)] {
        let (id, batch) = batch(sequence);
        let only_in = Some(Ballot { round, ..ballot });
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
    refused(&mut cluster, Message { head: Bytes::from(vec![0; 3_000]).into(), ..message.clone() });
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
pub(crate) fn a_booted_replica_promises_nothing_as_long_as_it_may_have_heard_a_leader() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.crash(replica(1));
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.crash(replica(3));
    cluster.restart(replica(3));
    cluster.input(replica(2), Input::Tick).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(2)).ballot.replica, replica(1), "nobody is free");
    // Nor is it to be had by asking outright.
    let ballot = cluster.status(replica(3)).ballot;
    cluster.input(replica(2), Input::Tick).unwrap();
    assert_eq!(cluster.status(replica(3)).ballot, ballot);
    cluster.run(ELECTION * 4);
    assert!(cluster.serving().is_some());
}

#[test]
fn no_promise_leaves_before_it_is_durable() {
    let mut cluster = Cluster::new(3, 1);
    cluster.stalled.extend([replica(2), replica(3)]);
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.input(replica(1), Input::Tick).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).ballot.replica, replica(1), "it stands");
    assert!(cluster.transcript.iter().all(|line| !line.starts_with("  2→1 promise")));
    cluster.stalled = [replica(1)].into();
    cluster.settle();
    assert_eq!(cluster.serving(), Some(replica(1)));
}

#[test]
fn no_promise_is_asked_for_before_the_own_one_is_durable() {
    let mut cluster = Cluster::new(3, 1);
    cluster.stalled.insert(replica(1));
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.input(replica(1), Input::Tick).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).ballot.replica, replica(1));
    assert!(cluster.transcript.iter().all(|line| !line.starts_with("  1→2 prepare ")));
}

#[test]
fn a_promise_outlives_a_restart() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    // What 1 proposes is on its way to 3 when 3 promises a higher ballot, and reboots.
    cluster.propose(replica(1), 1).unwrap();
    let place = cluster.network.iter().position(|message| message.to == replica(3)).unwrap();
    let late = cluster.network.remove(place).unwrap();
    cluster.network.clear();
    cluster.isolate(replica(1));
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.elect_this(replica(2));
    cluster.crash(replica(3));
    cluster.restart(replica(3));
    cluster.input(replica(3), Input::Message(late)).unwrap();
    assert_eq!(cluster.under_way("3→1 nack").len(), 1);
    assert_eq!(cluster.status(replica(3)).last, Slot(0));
}

#[test]
pub(crate) fn no_read_is_served_before_all_is_chosen_that_was_found() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.propose(replica(1), 3).unwrap();
    while cluster.chosen.is_empty() {
        cluster.sync_all();
        assert!(cluster.deliver_at(0));
    }
    // Chosen, as 1 knows, and 2 and 3 do not.
    let chosen = *cluster.chosen.keys().next_back().unwrap();
    cluster.network.clear();
    cluster.crash(replica(1));
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.input(replica(2), Input::Tick).unwrap();
    while cluster.status(replica(2)).leader != Some(replica(2)) {
        cluster.sync_all();
        assert!(cluster.deliver_at(0));
    }
    cluster.stalled.extend([replica(2), replica(3)]);
    assert!(!cluster.status(replica(2)).serving && cluster.status(replica(2)).committed < chosen);
    let read = cluster.read(replica(2), ReadMode::Quorum);
    cluster.settle();
    assert_eq!(cluster.answered.get(&read), None, "it waits");
    cluster.stalled.clear();
    cluster.settle();
    assert!(cluster.answered[&read].is_some_and(|at| at >= chosen));
}

#[test]
pub(crate) fn what_is_written_over_is_durable_only_with_its_own_write() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    // 3 holds a value of 1's durably; 2, elected without it, has another one chosen there.
    cluster.isolate(replica(2));
    cluster.stalled.insert(replica(1));
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    cluster.crash(replica(1));
    cluster.stalled.clear();
    cluster.cut.clear();
    cluster.restart(replica(1));
    assert_eq!(cluster.nodes[&replica(3)].disk.entries.len(), 1);
    cluster.isolate(replica(3));
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.elect_this(replica(2));
    cluster.propose(replica(2), 1).unwrap();
    cluster.settle();
    assert_eq!(cluster.chosen.len(), 1);
    // 3 hears of it, and of the next slot before.
    cluster.cut.clear();
    cluster.tick_at(cluster.now.after(HEARTBEAT));
    let mut held = Vec::new();
    for _ in 0..40 {
        cluster.sync_all();
        if let Some(place) = cluster.network.iter().position(|message| {
            message.to == replica(3) && describe(message).contains("accept ") && !message.entries.is_empty()
        }) {
            held.push(cluster.network.remove(place).unwrap());
            if held.len() == 1 {
                cluster.propose(replica(2), 1).unwrap();
            }
        }
        cluster.deliver_at(0);
    }
    assert_eq!((held.len(), cluster.chosen.len()), (2, 2));
    cluster.stalled.insert(replica(3));
    for message in held.into_iter().rev() {
        cluster.input(replica(3), Input::Message(message)).unwrap();
    }
    cluster.run(HEARTBEAT);
    cluster.sync_first(replica(3)); // The write of slot 2.
    assert_eq!(
        (cluster.status(replica(3)).persisted, cluster.status(replica(3)).applied),
        (Slot(0), Slot(0))
    );
    cluster.stalled.clear();
    cluster.run(HEARTBEAT * 4);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(2));
}
