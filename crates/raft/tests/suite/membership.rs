//! Changes of membership: the thesis' chapter 4, section by section, and what went wrong in other systems.

use std::collections::BTreeSet;

use conclave_consensus::{
    ChangeError, Config, Consensus as _, Input, Kind, MembershipChange as Change, NodeId, Outcome, ReadMode,
    ReplicaId, Slot, StepError,
};
use conclave_raft::RaftConfig;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

fn led_by_one(voters: u64) -> Cluster {
    let mut cluster = Cluster::new(voters, 1);
    cluster.elect_this(replica(1));
    cluster
}

fn voters(cluster: &Cluster, id: ReplicaId) -> BTreeSet<NodeId> {
    let config = cluster.status(id).config;
    config.voters.iter().map(|id| config.nodes[id]).collect()
}

fn nodes<const N: usize>(ids: [u64; N]) -> BTreeSet<NodeId> {
    ids.map(NodeId).into()
}

/// The member on a node.
fn on(cluster: &Cluster, id: ReplicaId, node: u64) -> ReplicaId {
    let config = cluster.status(id).config;
    *config.nodes.iter().find(|(_, on)| **on == NodeId(node)).unwrap().0
}

fn is_settled(cluster: &Cluster, id: ReplicaId) -> bool {
    let told = &cluster.nodes[&id].told;
    told.as_ref().is_some_and(|(config, _, committed)| *committed && !config.is_joint())
}

#[test]
fn thesis_4_3_voters_change_through_a_joint_configuration_that_ends_by_itself() {
    let mut cluster = led_by_one(3);
    let changes = [Change::AddVoter(NodeId(4)), Change::Remove(replica(2)), Change::AddLearner(NodeId(5))];
    let id = cluster.reconfigure(replica(1), &changes).unwrap();
    assert!(cluster.status(replica(1)).config.is_joint(), "in force on append");
    cluster.run(HEARTBEAT * 5);
    let entry = cluster.chosen.values().find(|entry| entry.id == id).unwrap();
    assert!(
        Config::decode(&entry.payload).unwrap().is_joint(),
        "the entry that decides comes back with the id"
    );
    assert_eq!(cluster.lost.get(&id), None);
    for node in [1, 3, 4, 5] {
        let at = on(&cluster, replica(1), node);
        assert_eq!(voters(&cluster, at), nodes([1, 3, 4]), "{at}");
        assert!(is_settled(&cluster, at), "{at}");
        assert_eq!(
            cluster.nodes[&at].delivered,
            cluster.nodes[&replica(1)].delivered,
            "{at} began with nothing"
        );
    }
    let (config, _, committed) = cluster.nodes[&replica(2)].told.clone().unwrap();
    assert!(committed && config.has_removed(replica(2)), "the one that left knows that it may be destroyed");
}

#[test]
fn thesis_4_3_in_a_joint_configuration_both_majorities_must_agree() {
    let changes = [2, 3].map(|id| Change::Remove(replica(id)));
    let changes = [&changes[..], &[Change::AddVoter(NodeId(4)), Change::AddVoter(NodeId(5))]].concat();
    for silent in [[2, 3], [4, 5]] {
        let mut cluster = led_by_one(3);
        cluster.reconfigure(replica(1), &changes).unwrap();
        for node in silent {
            let id = on(&cluster, replica(1), node);
            cluster.isolate(id);
        }
        let before = cluster.status(replica(1)).committed;
        cluster.propose(replica(1), 1).unwrap();
        let read = cluster.read(replica(1), ReadMode::Quorum);
        cluster.run(ELECTION / 2);
        assert_eq!(cluster.status(replica(1)).committed, before, "{silent:?} are silent");
        assert_eq!(cluster.answered.get(&read), None, "nor is a read confirmed");
        cluster.run(ELECTION);
        assert_ne!(cluster.status(replica(1)).leader, Some(replica(1)), "check-quorum counts both");
        cluster.cut.clear();
        let leader = cluster.elect();
        cluster.run(ELECTION * 2);
        let leader = cluster.serving().unwrap_or(leader);
        // Where 2 and 3 hold it, it goes on; where they do not, one of them may lead and replace it.
        let (done, undone) = (nodes([1, 4, 5]), nodes([1, 2, 3]));
        let now = voters(&cluster, leader);
        assert!(now == done || (silent == [2, 3] && now == undone), "{now:?}");
    }
}

#[test]
fn thesis_4_1_no_change_before_an_entry_of_the_term_is_committed() {
    let mut cluster = led_by_one(3);
    cluster.stalled.extend([replica(2), replica(3)]);
    cluster.crash(replica(1));
    cluster.restart(replica(1));
    cluster.stalled.clear();
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.input(replica(1), Input::Tick).unwrap();
    while cluster.status(replica(1)).leader != Some(replica(1)) {
        if !cluster.deliver_at(0) {
            cluster.sync_all();
        }
    }
    let refused = cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4))]);
    assert_eq!(refused, Err(StepError::NotServing));
    cluster.settle();
    assert!(cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4))]).is_ok());
}

#[test]
fn one_change_at_a_time_and_only_where_it_can_be_made() {
    let mut cluster = led_by_one(3);
    let learner = [Change::AddLearner(NodeId(4))];
    let leader = Some(replica(1));
    assert_eq!(cluster.reconfigure(replica(2), &learner), Err(StepError::NotLeader { leader }));
    for (change, why) in [
        (Change::Remove(replica(9)), ChangeError::UnknownReplica(replica(9))),
        (Change::Promote(replica(2)), ChangeError::NotLearner(replica(2))),
        (Change::AddVoter(NodeId(3)), ChangeError::NodeTaken(NodeId(3))),
    ] {
        assert_eq!(cluster.reconfigure(replica(1), &[change]), Err(StepError::Change(why)));
    }
    let all = [1, 2, 3].map(|id| Change::Remove(replica(id)));
    assert_eq!(cluster.reconfigure(replica(1), &all), Err(StepError::Change(ChangeError::NoVoters)));
    cluster.reconfigure(replica(1), &learner).unwrap();
    assert!(!cluster.status(replica(1)).config.is_joint(), "learners alone: a simple change");
    let another = [Change::AddLearner(NodeId(5))];
    assert_eq!(cluster.reconfigure(replica(1), &another), Err(StepError::ChangeInProgress));
    cluster.settle();
    cluster.reconfigure(replica(1), &another).unwrap();
    cluster.settle();
    cluster.isolate(replica(3));
    cluster.transfer(replica(1), replica(3)).unwrap();
    let refused = cluster.reconfigure(replica(1), &learner);
    assert_eq!(refused, Err(StepError::NotLeader { leader: None }), "while leadership is handed over");
}

#[test]
fn thesis_4_2_1_a_learner_is_promoted_once_it_has_caught_up() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 20).unwrap();
    cluster.settle();
    cluster.reconfigure(replica(1), &[Change::AddLearner(NodeId(4))]).unwrap();
    let learner = on(&cluster, replica(1), 4);
    cluster.isolate(learner);
    cluster.settle();
    let refused = cluster.reconfigure(replica(1), &[Change::Promote(learner)]);
    assert_eq!(
        refused,
        Err(StepError::LearnerNotReady { replica: learner, matched: Slot(0), last: Slot(22) }),
        "all in vain while it lacks more than a tenth"
    );
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 3);
    cluster.reconfigure(replica(1), &[Change::Promote(learner)]).unwrap();
    cluster.run(HEARTBEAT);
    assert_eq!(voters(&cluster, replica(1)), nodes([1, 2, 3, 4]));
    cluster.crash(replica(2));
    cluster.propose(replica(1), 1).unwrap();
    cluster.run(HEARTBEAT);
    assert_eq!(cluster.nodes[&learner].delivered, cluster.nodes[&replica(1)].delivered, "its vote counts");
    cluster.transfer(replica(1), learner).unwrap();
    cluster.settle();
    assert_eq!(cluster.serving(), Some(learner));
}

#[test]
fn thesis_4_2_1_where_it_is_wanted_the_leader_promotes_by_itself() {
    let config = RaftConfig { promote_within_entries: Some(2), ..RaftConfig::default() };
    let mut cluster = Cluster::with(1, 0, 1, config);
    cluster.run(HEARTBEAT);
    cluster.propose(replica(1), 20).unwrap();
    cluster.settle();
    cluster.reconfigure(replica(1), &[2, 3].map(|node| Change::AddLearner(NodeId(node)))).unwrap();
    let late = on(&cluster, replica(1), 3);
    cluster.isolate(late);
    cluster.run(HEARTBEAT * 4);
    assert_eq!(voters(&cluster, replica(1)), nodes([1, 2]), "the one that answers");
    cluster.run(ELECTION * 2);
    assert_eq!(voters(&cluster, replica(1)), nodes([1, 2]));
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 4);
    assert_eq!(voters(&cluster, replica(1)), nodes([1, 2, 3]));
}

#[test]
fn thesis_4_2_2_a_leader_that_is_removed_leads_to_the_end_without_counting_itself_and_hands_over() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 3).unwrap();
    cluster.reconfigure(replica(1), &[Change::Remove(replica(1))]).unwrap();
    cluster.isolate(replica(3));
    let before = cluster.status(replica(1)).committed;
    for _ in 0..4 {
        cluster.run(HEARTBEAT);
    }
    let config = cluster.status(replica(1)).config;
    assert!(config.is_joint() && cluster.status(replica(1)).committed < Slot(before.0 + 5));
    assert_eq!(cluster.serving(), Some(replica(1)), "1 and 2 are no majority of 2 and 3");
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 3);
    let begun = cluster.now;
    cluster.settle();
    assert_eq!(cluster.now, begun);
    let leader = cluster.serving().unwrap();
    assert_ne!(leader, replica(1));
    assert_eq!(voters(&cluster, leader), nodes([2, 3]));
    let (config, _, committed) = cluster.nodes[&replica(1)].told.clone().unwrap();
    assert!(committed && config.has_removed(replica(1)));
    assert_eq!(cluster.status(replica(1)).leader, None);
    let term = cluster.status(leader).ballot;
    cluster.run(ELECTION * 10);
    assert_eq!(
        (cluster.serving(), cluster.status(leader).ballot),
        (Some(leader), term),
        "it does not stand again"
    );
    cluster.check_outcomes();
}

#[test]
fn thesis_4_2_2_a_replica_stands_until_the_end_of_its_membership_is_committed() {
    let mut cluster = Cluster::new(2, 1);
    cluster.elect_this(replica(2));
    cluster.reconfigure(replica(2), &[Change::Remove(replica(2))]).unwrap();
    while cluster.status(replica(2)).config.is_joint() {
        cluster.sync_all();
        assert!(cluster.deliver_at(0));
    }
    // Nobody else holds the entry by which 2 is out; and 1, which is to be alone, cannot win a vote of 2's against it.
    cluster.isolate(replica(2));
    cluster.network.clear();
    cluster.run(ELECTION * 3);
    assert_eq!(cluster.serving(), None);
    cluster.cut.clear();
    cluster.run(ELECTION * 6);
    assert_eq!(cluster.serving(), Some(replica(1)));
    assert_eq!(voters(&cluster, replica(1)), nodes([1]));
    let term = cluster.status(replica(1)).ballot;
    cluster.run(ELECTION * 6);
    assert_eq!(cluster.status(replica(1)).ballot, term, "then it rests");
}

/// 3 alone knows that 4 is to have a vote, and lacks what 4 holds; 2 lacks what 3 holds; and 1, which wrote what 4 holds, is gone.
#[test]
fn thesis_4_2_2_a_learner_whose_vote_is_counted_on_stands_if_its_log_is_the_longest() {
    let mut cluster = Cluster::with(3, 1, 1, RaftConfig::default());
    cluster.elect_this(replica(3));
    cluster.run(HEARTBEAT * 2);
    cluster.isolate(replica(3));
    cluster.reconfigure(replica(3), &[Change::Promote(replica(4))]).unwrap();
    cluster.settle();
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.input(replica(1), Input::Tick).unwrap();
    while cluster.status(replica(1)).leader != Some(replica(1)) {
        let synced = cluster.sync_all();
        assert!(cluster.deliver_at(0) || synced);
    }
    cluster.cut.extend([(replica(1), replica(2)), (replica(2), replica(1))]);
    cluster.settle();
    let longest = cluster.status(replica(4)).last;
    cluster.crash(replica(1));
    cluster.cut.clear();
    cluster.run(ELECTION * 8);
    let leader = cluster.serving().expect("two of three voters are up");
    assert!([replica(2), replica(3)].contains(&leader), "{leader}: what has no vote only helps out");
    assert!(cluster.status(leader).committed > longest, "what 4 held is chosen");
    assert!(cluster.propose(leader, 1).is_ok());
    let term = cluster.status(leader).ballot;
    cluster.run(ELECTION * 6);
    assert_eq!(cluster.status(leader).ballot, term, "then it rests");
    cluster.check_outcomes();
}

/// 3 alone knows that 4 is to have a vote, and is of an earlier term than the leader that 4 hears.
#[test]
fn thesis_4_2_2_a_learner_that_hears_a_leader_is_not_called_by_a_candidate_of_an_earlier_term() {
    let mut cluster = Cluster::with(3, 1, 1, RaftConfig::default());
    cluster.elect_this(replica(3));
    cluster.run(HEARTBEAT * 2);
    cluster.isolate(replica(3));
    cluster.reconfigure(replica(3), &[Change::Promote(replica(4))]).unwrap();
    cluster.run(ELECTION * 6);
    let leader = cluster.serving().expect("two of three are connected");
    assert_eq!(cluster.status(replica(4)).leader, Some(leader));
    cluster.cut.remove(&(replica(3), replica(4)));
    cluster.now = cluster.now.after(HEARTBEAT * 3);
    cluster.input(replica(3), Input::Tick).unwrap();
    assert_eq!(cluster.under_way("3→4 pre-vote").len(), 1);
    cluster.network.retain(|message| message.from == replica(3) && message.to == replica(4));
    assert!(cluster.deliver_at(0));
    assert_eq!(cluster.under_way("4→3 pre-vote-reply").len(), 1, "it tells of its term");
    assert_eq!(cluster.nodes[&replica(4)].raft.as_ref().unwrap().next_deadline(), None);
}

#[test]
fn thesis_4_2_2_a_leader_on_its_way_out_takes_no_proposals() {
    let mut cluster = led_by_one(3);
    cluster.reconfigure(replica(1), &[Change::Remove(replica(1))]).unwrap();
    assert!(cluster.propose(replica(1), 1).is_ok(), "in the joint configuration it still has a vote");
    while cluster.status(replica(1)).config.is_joint() {
        cluster.sync_all();
        assert!(cluster.deliver_at(0));
    }
    assert_eq!(cluster.status(replica(1)).leader, Some(replica(1)));
    assert_eq!(cluster.propose(replica(1), 1), Err(StepError::NotLeader { leader: None }));
    cluster.settle();
    cluster.check_outcomes();
}

#[test]
fn thesis_4_2_3_a_removed_replica_that_does_not_know_it_disturbs_nobody() {
    let mut cluster = led_by_one(4);
    cluster.isolate(replica(4));
    cluster.reconfigure(replica(1), &[Change::Remove(replica(4))]).unwrap();
    cluster.run(ELECTION * 10);
    let term = cluster.status(replica(1)).ballot;
    cluster.cut.clear();
    cluster.run(ELECTION * 10);
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot), (Some(replica(1)), term));
    assert!(cluster.status(replica(4)).config.is_voter(replica(4)), "it was away for too long to be told");
    // Nor may it win once the leader is gone: its log lacks what a majority holds.
    cluster.crash(replica(1));
    cluster.run(ELECTION * 6);
    assert!([Some(replica(2)), Some(replica(3))].contains(&cluster.serving()));
}

#[test]
fn thesis_4_1_a_replica_votes_for_a_candidate_that_its_configuration_does_not_name() {
    let mut cluster = led_by_one(3);
    cluster.isolate(replica(3));
    cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4))]).unwrap();
    cluster.run(HEARTBEAT * 3);
    let added = on(&cluster, replica(1), 4);
    assert_eq!(voters(&cluster, added), nodes([1, 2, 3, 4]));
    assert!(!cluster.status(replica(3)).config.nodes.contains_key(&added));
    // Of the four, 1 is gone; whoever leads needs 3.
    cluster.crash(replica(1));
    cluster.cut.clear();
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.elect_this(added);
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.status(replica(3)).leader, Some(added));
}

#[test]
fn a_joint_configuration_is_left_by_whoever_leads_next() {
    // The leader is gone before it can append what follows; or after, and nobody has it.
    for deliver in [false, true] {
        let mut cluster = led_by_one(3);
        cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4)), Change::Remove(replica(3))]).unwrap();
        while cluster.status(replica(2)).last < Slot(2) {
            assert!(cluster.deliver_at(0));
        }
        cluster.sync(replica(2));
        if deliver {
            while cluster.status(replica(1)).config.is_joint() {
                cluster.sync_all();
                assert!(cluster.deliver_at(0));
            }
            cluster.network.clear();
        }
        cluster.crash(replica(1));
        cluster.now = cluster.now.after(ELECTION * 3);
        let added = on(&cluster, replica(2), 4);
        cluster.run(ELECTION * 6);
        cluster.restart(replica(1));
        cluster.run(ELECTION * 6);
        let leader = cluster.serving().unwrap();
        assert_eq!(voters(&cluster, leader), nodes([1, 2, 4]), "{deliver}");
        assert!(is_settled(&cluster, leader) && is_settled(&cluster, added), "{deliver}");
    }
}

#[test]
fn a_joint_configuration_is_left_by_a_leader_that_stepped_down_and_came_back() {
    let mut cluster = led_by_one(3);
    cluster.reconfigure(replica(1), &[Change::Remove(replica(3))]).unwrap();
    cluster.isolate(replica(1));
    cluster.settle();
    cluster.run(ELECTION + HEARTBEAT);
    assert_eq!(cluster.serving(), None, "it stepped down with the joint configuration in its log alone");
    cluster.cut.clear();
    cluster.now = cluster.now.after(ELECTION);
    cluster.elect_this(replica(1));
    cluster.run(HEARTBEAT * 2);
    assert_eq!(voters(&cluster, replica(1)), nodes([1, 2]));
    assert!(is_settled(&cluster, replica(1)));
}

#[test]
fn a_joint_configuration_waits_for_the_end_of_a_transfer_that_comes_to_nothing() {
    let mut cluster = led_by_one(3);
    cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4))]).unwrap();
    cluster.isolate(replica(3));
    let id = cluster.transfer(replica(1), replica(3)).unwrap();
    cluster.run(ELECTION / 2);
    assert!(cluster.status(replica(1)).config.is_joint());
    cluster.run(ELECTION);
    assert_eq!(cluster.lost.get(&id), Some(&Outcome::Dropped));
    assert_eq!(voters(&cluster, replica(1)), nodes([1, 2, 3, 4]));
    assert!(is_settled(&cluster, replica(1)));
}

#[test]
fn a_change_that_is_truncated_is_lost_and_no_longer_in_force() {
    let mut cluster = led_by_one(3);
    cluster.isolate(replica(1));
    let id = cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4))]).unwrap();
    let added = on(&cluster, replica(1), 4);
    cluster.settle();
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.elect_this(replica(2));
    cluster.cut.clear();
    cluster.run(ELECTION);
    assert_eq!(cluster.lost.get(&id), Some(&Outcome::Dropped));
    assert_eq!(voters(&cluster, replica(1)), nodes([1, 2, 3]));
    // The next leader adds a replica elsewhere: the two must not answer to one name, or votes for one count for the other.
    cluster.reconfigure(replica(2), &[Change::AddVoter(NodeId(5))]).unwrap();
    assert_ne!(on(&cluster, replica(2), 5), added);
    cluster.run(HEARTBEAT * 3);
    assert!(cluster.status(replica(2)).config.has_removed(added), "what came to nothing may be destroyed");
    cluster.check_outcomes();
}

#[test]
fn learners_count_in_no_quorum_of_reads_leadership_or_joint_configurations() {
    let mut cluster = Cluster::with(3, 2, 1, RaftConfig::default());
    cluster.elect_this(replica(1));
    cluster.isolate(replica(2));
    cluster.isolate(replica(3));
    let read = cluster.read(replica(1), ReadMode::Quorum);
    let asked = cluster.read(replica(4), ReadMode::Follower);
    cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(6))]).unwrap();
    cluster.run(ELECTION / 2);
    assert!(!cluster.answered.contains_key(&read) && !cluster.answered.contains_key(&asked));
    assert!(cluster.status(replica(1)).config.is_joint());
    cluster.run(ELECTION);
    assert_eq!(cluster.serving(), None);
    assert_eq!(cluster.answered[&read], None);
}

#[test]
fn a_new_replica_catches_up_by_a_snapshot_that_does_not_name_it() {
    let config =
        RaftConfig { compaction_margin_entries: 1, compaction_lag_entries_max: 2, ..RaftConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.propose(replica(1), 9).unwrap();
    cluster.settle();
    cluster.checkpoint(replica(1));
    cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4))]).unwrap();
    let added = on(&cluster, replica(1), 4);
    cluster.run(HEARTBEAT * 2);
    assert!(cluster.fetch(added));
    let (config, _, committed) = cluster.nodes[&added].told.clone().unwrap();
    assert!(committed && !config.nodes.contains_key(&added) && !config.has_removed(added), "not yet added");
    // A crash in between leaves a replica that knows a membership without itself, and waits.
    cluster.settle();
    cluster.crash(added);
    cluster.restart(added);
    cluster.run(ELECTION);
    assert_eq!(cluster.nodes[&added].delivered, cluster.nodes[&replica(1)].delivered);
    assert_eq!(voters(&cluster, added), nodes([1, 2, 3, 4]));
}

/// One entry a message, so that it is behind the change that adds it for a while.
#[test]
fn a_new_replica_that_begins_at_slot_1_knows_who_the_first_members_were() {
    let config = RaftConfig { message_bytes_max: 1, inflight_messages_max: 1, ..RaftConfig::default() };
    let mut cluster = Cluster::with(3, 1, 1, config);
    cluster.elect_this(replica(1));
    let founding = cluster.status(replica(1)).config;
    cluster.propose(replica(1), 9).unwrap();
    cluster.settle();
    cluster.reconfigure(replica(1), &[Change::AddLearner(NodeId(5))]).unwrap();
    let added = on(&cluster, replica(1), 5);
    let mut checkpoints = 0;
    while cluster.nodes[&added].delivered < cluster.status(replica(1)).last {
        if !cluster.sync_all() && !cluster.deliver_at(0) {
            cluster.run(HEARTBEAT);
        }
        cluster.checkpoint(added);
        let state = &cluster.nodes[&added].disk.state;
        if (Slot(1)..Slot(11)).contains(&state.slot) {
            checkpoints += 1;
            assert_eq!(state.config, founding, "a checkpoint of slot {}", state.slot);
        }
    }
    assert!(checkpoints > 0);
}

/// Whoever leads first may lose its first entry to the next, which leads an empty log too.
#[test]
fn whatever_leader_an_empty_log_has_it_begins_with_the_first_members() {
    let mut cluster = Cluster::new(3, 1);
    let founding = cluster.status(replica(1)).config;
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.input(replica(1), Input::Tick).unwrap();
    while cluster.status(replica(1)).leader.is_none() {
        cluster.sync_all();
        assert!(cluster.deliver_at(0));
    }
    cluster.isolate(replica(1));
    cluster.settle();
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.elect_this(replica(2));
    cluster.cut.clear();
    cluster.run(ELECTION);
    for id in 1..=3 {
        let first = &cluster.nodes[&replica(id)].disk.entries[&Slot(1)];
        assert_eq!((first.kind, Config::decode(&first.payload)), (Kind::Config, Ok(founding.clone())));
        assert_eq!(first.ballot.round, 2);
    }
}

#[test]
fn a_checkpoint_without_voters_is_nobodys() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 3).unwrap();
    cluster.reconfigure(replica(1), &[Change::AddLearner(NodeId(4))]).unwrap();
    cluster.settle();
    let ballot = cluster.status(replica(1)).ballot;
    // Of a slot whose membership is no longer in memory.
    let meta = conclave_consensus::SnapshotMeta { slot: Slot(2), ballot, ..Default::default() };
    let raft = cluster.nodes.get_mut(&replica(1)).unwrap().raft.as_mut().unwrap();
    use conclave_consensus::Consensus;
    assert!(matches!(raft.step(cluster.now, Input::Compacted(meta)), Err(StepError::Broken(_))));
}

#[test]
fn a_snapshot_carries_the_membership_of_its_slot_and_not_of_its_sender() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 3).unwrap();
    cluster.settle();
    cluster.checkpoint(replica(1));
    let meta = cluster.nodes[&replica(1)].disk.state.clone();
    cluster.reconfigure(replica(1), &[Change::AddLearner(NodeId(4))]).unwrap();
    cluster.settle();
    assert_eq!(meta.config.nodes.len(), 3);
    let entries = &cluster.nodes[&replica(1)].disk.entries;
    let ballot = entries[&Slot(4)].ballot;
    // Of a slot below the change, with the change: the driver took the membership of another moment.
    let config = cluster.status(replica(1)).config;
    let wrong = conclave_consensus::SnapshotMeta { slot: Slot(4), ballot, config, generation: 0 };
    let later = conclave_consensus::SnapshotMeta { slot: Slot(5), ..wrong.clone() };
    let raft = cluster.nodes.get_mut(&replica(1)).unwrap().raft.as_mut().unwrap();
    use conclave_consensus::Consensus;
    raft.step(cluster.now, Input::Compacted(later)).unwrap();
    let wrong = conclave_consensus::SnapshotMeta { config: meta.config, slot: Slot(5), ..wrong };
    assert!(matches!(raft.step(cluster.now, Input::Compacted(wrong)), Err(StepError::Broken(_))));
}

#[test]
fn a_crowd_is_replaced_at_once_under_load() {
    let mut cluster = led_by_one(3);
    let changes: Vec<Change> = [1, 2, 3]
        .map(|id| Change::Remove(replica(id)))
        .into_iter()
        .chain([4, 5, 6].map(|node| Change::AddVoter(NodeId(node))))
        .collect();
    cluster.propose(replica(1), 5).unwrap();
    cluster.reconfigure(replica(1), &changes).unwrap();
    let _ = cluster.propose(replica(1), 5);
    cluster.run(ELECTION);
    let leader = cluster.serving().unwrap();
    assert_eq!(voters(&cluster, leader), nodes([4, 5, 6]));
    for id in [1, 2, 3] {
        let (config, _, committed) = cluster.nodes[&replica(id)].told.clone().unwrap();
        assert!(committed && config.has_removed(replica(id)), "{id} may be destroyed");
        cluster.crash(replica(id));
    }
    cluster.propose(leader, 3).unwrap();
    cluster.run(HEARTBEAT);
    assert_eq!(cluster.chosen.values().filter(|entry| !entry.id.is_none()).count(), 14);
}
