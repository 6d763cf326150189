//! Changes of membership: stops, what follows them, and what went wrong in other systems.

use std::collections::BTreeSet;

use conclave_consensus::{
    ChangeError, Config, Consensus, Input, Kind, MembershipChange as Change, NodeId, Quorums, QuorumsError,
    ReadMode, ReplicaId, Slot, StepError,
};
use conclave_paxos::{PaxosConfig, describe};

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
fn voters_change_through_a_joint_configuration_that_ends_by_itself() {
    let mut cluster = led_by_one(3);
    let changes = [Change::AddVoter(NodeId(4)), Change::Remove(replica(2)), Change::AddLearner(NodeId(5))];
    let id = cluster.reconfigure(replica(1), &changes).unwrap();
    assert!(!cluster.status(replica(1)).config.is_joint(), "in force when the stop is chosen, not before");
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
fn ballots_bear_the_number_of_their_configuration_and_slots_go_on() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 2).unwrap();
    cluster.settle();
    assert_eq!(cluster.status(replica(1)).ballot.config, 0);
    cluster.reconfigure(replica(1), &[Change::AddLearner(NodeId(4))]).unwrap();
    cluster.run(HEARTBEAT);
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot.config), (Some(replica(1)), 1));
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    let kinds: Vec<Kind> = cluster.chosen.values().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [Kind::Command, Kind::Command, Kind::Config, Kind::Command]);
}

#[test]
fn nothing_is_proposed_beyond_a_stop() {
    let mut cluster = led_by_one(3);
    cluster.reconfigure(replica(1), &[Change::AddLearner(NodeId(4))]).unwrap();
    assert_eq!(cluster.propose(replica(1), 1), Err(StepError::NotLeader { leader: None }));
    assert!(cluster.status(replica(1)).serving, "reads go on");
    cluster.settle();
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    cluster.check_outcomes();
}

#[test]
fn in_a_joint_configuration_both_majorities_must_agree() {
    let changes = [2, 3].map(|id| Change::Remove(replica(id)));
    let changes = [&changes[..], &[Change::AddVoter(NodeId(4)), Change::AddVoter(NodeId(5))]].concat();
    for silent in [[2, 3], [4, 5]] {
        let mut cluster = led_by_one(3);
        cluster.reconfigure(replica(1), &changes).unwrap();
        while !cluster.status(replica(1)).config.is_joint() {
            cluster.sync_all();
            assert!(cluster.deliver_at(0));
        }
        for node in silent {
            let id = on(&cluster, replica(1), node);
            cluster.isolate(id);
        }
        cluster.run(ELECTION * 3);
        assert_eq!(cluster.serving(), None, "{silent:?} are silent");
        cluster.cut.clear();
        cluster.run(ELECTION * 6);
        let leader = cluster.serving().unwrap();
        assert_eq!(voters(&cluster, leader), nodes([1, 4, 5]));
    }
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
    let another = [Change::AddLearner(NodeId(5))];
    assert_eq!(cluster.reconfigure(replica(1), &another), Err(StepError::ChangeInProgress));
    cluster.run(HEARTBEAT);
    cluster.reconfigure(replica(1), &another).unwrap();
    cluster.run(HEARTBEAT);
    cluster.isolate(replica(3));
    cluster.transfer(replica(1), replica(3)).unwrap();
    let refused = cluster.reconfigure(replica(1), &learner);
    assert_eq!(refused, Err(StepError::NotLeader { leader: None }), "while leadership is handed over");
}

#[test]
fn a_learner_is_promoted_once_it_has_caught_up() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 20).unwrap();
    cluster.settle();
    cluster.reconfigure(replica(1), &[Change::AddLearner(NodeId(4))]).unwrap();
    while cluster.status(replica(1)).config.learners.is_empty() {
        cluster.sync_all();
        assert!(cluster.deliver_at(0));
    }
    let learner = on(&cluster, replica(1), 4);
    cluster.isolate(learner);
    cluster.run(HEARTBEAT * 2);
    let refused = cluster.reconfigure(replica(1), &[Change::Promote(learner)]);
    assert_eq!(
        refused,
        Err(StepError::LearnerNotReady { replica: learner, matched: Slot(0), last: Slot(21) }),
        "all in vain while it lacks more than a tenth"
    );
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 3);
    cluster.reconfigure(replica(1), &[Change::Promote(learner)]).unwrap();
    cluster.run(HEARTBEAT * 2);
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
fn where_it_is_wanted_the_leader_promotes_by_itself() {
    let config = PaxosConfig { promote_within_entries: Some(2), ..PaxosConfig::default() };
    let mut cluster = Cluster::with(1, 0, 1, config);
    cluster.run(HEARTBEAT);
    cluster.propose(replica(1), 20).unwrap();
    cluster.settle();
    cluster.reconfigure(replica(1), &[2, 3].map(|node| Change::AddLearner(NodeId(node)))).unwrap();
    while cluster.status(replica(1)).config.learners.is_empty() {
        cluster.sync_all();
    }
    let late = on(&cluster, replica(1), 3);
    cluster.isolate(late);
    cluster.run(HEARTBEAT * 6);
    assert_eq!(voters(&cluster, replica(1)), nodes([1, 2]), "the one that answers");
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 6);
    assert_eq!(voters(&cluster, replica(1)), nodes([1, 2, 3]));
}

#[test]
fn a_leader_that_is_removed_leads_to_the_end_and_hands_over() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 3).unwrap();
    cluster.reconfigure(replica(1), &[Change::Remove(replica(1))]).unwrap();
    let begun = cluster.now;
    cluster.settle();
    cluster.run(HEARTBEAT * 2);
    let leader = cluster.serving().unwrap();
    assert!(leader != replica(1) && cluster.now.since(begun) <= HEARTBEAT * 2, "nobody waited for silence");
    assert_eq!(voters(&cluster, leader), nodes([2, 3]));
    let (config, _, committed) = cluster.nodes[&replica(1)].told.clone().unwrap();
    assert!(committed && config.has_removed(replica(1)));
    let ballot = cluster.status(leader).ballot;
    cluster.run(ELECTION * 10);
    assert_eq!((cluster.serving(), cluster.status(leader).ballot), (Some(leader), ballot), "it is done");
    cluster.check_outcomes();
}

#[test]
fn a_removed_replica_that_does_not_know_it_disturbs_nobody() {
    let mut cluster = led_by_one(4);
    cluster.isolate(replica(4));
    cluster.reconfigure(replica(1), &[Change::Remove(replica(4))]).unwrap();
    cluster.run(ELECTION * 10);
    let ballot = cluster.status(replica(1)).ballot;
    cluster.cut.clear();
    cluster.run(ELECTION * 10);
    assert_eq!((cluster.serving(), cluster.status(replica(1)).ballot), (Some(replica(1)), ballot));
    // Once it asks who leads it hears that more was chosen than it knows, and learns how it ended.
    let (config, _, committed) = cluster.nodes[&replica(4)].told.clone().unwrap();
    assert!(committed && config.has_removed(replica(4)));
}

#[test]
fn an_old_configuration_is_not_revived() {
    let mut cluster = led_by_one(3);
    // 3 misses that it is replaced. What it asks for in the old configuration's name, nobody grants.
    cluster.isolate(replica(3));
    cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4)), Change::Remove(replica(3))]).unwrap();
    cluster.run(ELECTION * 8);
    let added = on(&cluster, replica(1), 4);
    cluster.crash(replica(1));
    cluster.cut.clear();
    cluster.run(ELECTION * 6);
    let leader = cluster.serving().unwrap();
    assert!([replica(2), added].contains(&leader));
    assert!(!cluster.status(replica(3)).serving && cluster.status(replica(3)).config.number == 2);
}

#[test]
fn a_joint_configuration_is_left_by_whoever_leads_next() {
    // The leader is gone before its stop is chosen, when that is, or when the joint configuration is settled.
    for stage in 0..3 {
        let mut cluster = led_by_one(3);
        cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4)), Change::Remove(replica(3))]).unwrap();
        let reached = |cluster: &Cluster| match stage {
            0 => cluster.nodes[&replica(2)].disk.entries.len() == 1,
            1 => cluster.status(replica(1)).config.is_joint(),
            _ => cluster.status(replica(1)).last >= Slot(2),
        };
        while !reached(&cluster) {
            cluster.sync_all();
            assert!(cluster.deliver_at(0));
        }
        cluster.crash(replica(1));
        cluster.run(ELECTION * 6);
        cluster.restart(replica(1));
        cluster.run(ELECTION * 6);
        let leader = cluster.serving().unwrap();
        if voters(&cluster, leader) == nodes([1, 2, 3]) {
            assert_eq!(stage, 0, "nobody may have found it");
            continue;
        }
        assert_eq!(voters(&cluster, leader), nodes([1, 2, 4]), "{stage}");
        let added = on(&cluster, leader, 4);
        assert!(is_settled(&cluster, leader) && is_settled(&cluster, added), "{stage}");
    }
}

/// Whoever knew that the stop was chosen is gone for good. Of the others one promised a ballot of the next configuration, and takes part in the old one no more.
#[test]
fn what_ended_a_configuration_is_found_without_whoever_knew_it() {
    for (promises, lost) in [(2, None), (3, None), (2, Some(Slot(4))), (2, Some(Slot(5))), (3, Some(Slot(4)))]
    {
        let mut cluster = led_by_one(3);
        cluster.propose(replica(1), 3).unwrap();
        cluster.run(HEARTBEAT);
        cluster.propose(replica(1), 1).unwrap();
        cluster.reconfigure(replica(1), &[Change::AddLearner(NodeId(4))]).unwrap();
        while cluster.status(replica(1)).ballot.config == 0 {
            let is_lost = |entry: &conclave_consensus::Entry| Some(entry.slot) == lost;
            cluster
                .network
                .retain(|message| message.to != replica(2) || !message.entries.iter().any(is_lost));
            cluster.sync_all();
            assert!(cluster.deliver_at(0));
        }
        cluster.network.clear();
        cluster.sync(replica(1));
        cluster.network.retain(|message| message.to == replica(promises));
        assert_eq!(cluster.under_way("prepare 1.").len(), 1);
        cluster.crash(replica(1));
        cluster.settle();
        assert_eq!(cluster.status(replica(promises)).ballot.config, 1);
        cluster.run(ELECTION * 8);
        let leader = cluster.serving().unwrap_or_else(|| panic!("nobody leads: {promises} {lost:?}"));
        let learner = on(&cluster, leader, 4);
        assert!(cluster.status(leader).config.learners.contains(&learner));
        cluster.propose(leader, 1).unwrap();
        cluster.run(HEARTBEAT * 2);
        assert_eq!(cluster.nodes[&learner].delivered, cluster.nodes[&leader].delivered);
    }
}

#[test]
fn who_stands_in_a_configuration_and_learns_that_it_has_no_vote_there_gives_up() {
    let mut cluster = led_by_one(4);
    cluster.reconfigure(replica(1), &[Change::Remove(replica(4))]).unwrap();
    // 1 leads in the last configuration, and 2 is about to hear what came before it.
    while !cluster.status(replica(1)).serving || cluster.status(replica(1)).ballot.config < 2 {
        cluster.sync_all();
        assert!(cluster.deliver_at(0));
    }
    let is_late = |message: &conclave_consensus::Message| describe(message).starts_with("1→2 accept 2.");
    cluster.network.retain(is_late);
    let late = cluster.network.pop_front().unwrap();
    cluster.crash(replica(1));
    // 4 stands in it before the others look for a leader, and learns only then that it has no vote.
    cluster.stalled.insert(replica(4));
    while cluster.status(replica(4)).ballot.replica != replica(4) {
        cluster.now = cluster.now.after(ELECTION / 5);
        cluster.input(replica(4), Input::Tick).unwrap();
        cluster.settle();
    }
    assert_eq!(cluster.status(replica(4)).ballot.config, 2);
    cluster.input(replica(2), Input::Message(late)).unwrap();
    cluster.sync(replica(2));
    cluster.network.clear();
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.stalled.clear();
    for _ in 0..100 {
        cluster.sync_all();
        cluster.deliver_at(0);
        assert_ne!(cluster.serving(), Some(replica(4)), "it has no vote");
    }
    assert_eq!(cluster.status(replica(4)).config.number, 2);
    cluster.run(ELECTION * 4);
    assert!([replica(2), replica(3)].contains(&cluster.serving().unwrap()));
}

#[test]
fn who_was_removed_is_destroyed_only_when_the_others_remember_that_without_it() {
    let mut cluster = led_by_one(2);
    cluster.propose(replica(1), 5).unwrap();
    cluster.settle();
    cluster.reconfigure(replica(1), &[Change::Remove(replica(1))]).unwrap();
    for _ in 0..1_000 {
        let told = cluster.nodes[&replica(1)].told.clone();
        if told.is_some_and(|(config, _, committed)| committed && config.has_removed(replica(1))) {
            break;
        }
        if !cluster.deliver_at(0) && !cluster.sync_all() {
            cluster.tick_at(cluster.now.after(HEARTBEAT));
        }
    }
    // It is gone, and the other one's power fails.
    cluster.crash(replica(1));
    cluster.crash(replica(2));
    cluster.restart(replica(2));
    cluster.run(ELECTION * 4);
    assert_eq!(cluster.serving(), Some(replica(2)), "it waits for nobody");
    assert_eq!(cluster.nodes[&replica(2)].delivered, cluster.status(replica(2)).committed);
}

#[test]
fn new_voters_hold_what_was_decided_before_the_old_ones_go() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 20).unwrap();
    cluster.settle();
    // Two of the three new ones get nothing of what was.
    let all = [1, 2, 3].map(|id| Change::Remove(replica(id)));
    let changes = [&all[..], &[4, 5, 6].map(|node| Change::AddVoter(NodeId(node)))].concat();
    cluster.reconfigure(replica(1), &changes).unwrap();
    for _ in 0..60 {
        cluster.tick_at(cluster.now.after(HEARTBEAT / 2));
        for _ in 0..200 {
            cluster.network.retain(|message| {
                let new = message.to.0 > 4 && describe(message).contains("accept ");
                !(new && message.entries.iter().any(|entry| entry.slot < Slot(20)))
            });
            if !cluster.sync_all() & !cluster.deliver_at(0) {
                break;
            }
        }
    }
    for id in [1, 2, 3] {
        let told = cluster.nodes[&replica(id)].told.clone();
        let gone = told.is_some_and(|(config, _, committed)| committed && config.has_removed(replica(id)));
        assert!(!gone, "{id} may be destroyed, and its entries with it");
    }
    cluster.run(ELECTION * 6);
    assert_eq!(voters(&cluster, cluster.serving().unwrap()), nodes([4, 5, 6]));
}

#[test]
fn learners_count_in_no_quorum_of_reads_or_leadership() {
    let mut cluster = Cluster::with(3, 2, 1, PaxosConfig::default());
    cluster.elect_this(replica(1));
    cluster.isolate(replica(2));
    cluster.isolate(replica(3));
    let read = cluster.read(replica(1), ReadMode::Quorum);
    let asked = cluster.read(replica(4), ReadMode::Follower);
    cluster.run(ELECTION / 2);
    assert!(!cluster.answered.contains_key(&read) && !cluster.answered.contains_key(&asked));
    cluster.run(ELECTION);
    assert_eq!(cluster.serving(), None);
    assert_eq!(cluster.answered[&read], None);
}

#[test]
fn a_new_replica_catches_up_by_a_snapshot_that_does_not_name_it() {
    let config =
        PaxosConfig { compaction_margin_entries: 1, compaction_lag_entries_max: 2, ..PaxosConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.propose(replica(1), 9).unwrap();
    cluster.settle();
    cluster.checkpoint(replica(1));
    cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(4))]).unwrap();
    cluster.run(HEARTBEAT * 2);
    let added = on(&cluster, replica(1), 4);
    assert!(cluster.fetch(added));
    cluster.settle();
    // A crash in between leaves a replica that knows a membership without itself, and waits.
    cluster.crash(added);
    cluster.restart(added);
    cluster.run(ELECTION);
    assert_eq!(cluster.nodes[&added].delivered, cluster.nodes[&replica(1)].delivered);
    assert_eq!(voters(&cluster, added), nodes([1, 2, 3, 4]));
}

#[test]
fn a_checkpoint_with_another_membership_than_its_slots_is_a_broken_driver() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 3).unwrap();
    cluster.settle();
    cluster.checkpoint(replica(1));
    let meta = cluster.nodes[&replica(1)].disk.state.clone();
    cluster.reconfigure(replica(1), &[Change::AddLearner(NodeId(4))]).unwrap();
    cluster.run(HEARTBEAT);
    let config = cluster.status(replica(1)).config;
    let right = conclave_consensus::SnapshotMeta { slot: Slot(4), config, ..meta.clone() };
    let wrong = conclave_consensus::SnapshotMeta { slot: Slot(4), ..meta };
    let now = cluster.now;
    let core = cluster.node(replica(1)).core.as_mut().unwrap();
    core.step(now, Input::Compacted(right)).unwrap();
    assert!(matches!(core.step(now, Input::Compacted(wrong)), Err(StepError::Broken(_))));
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
    assert_eq!(cluster.chosen.values().filter(|entry| entry.kind == Kind::Command).count(), 8);
}

// ---- quorums of other sizes than majorities ----

/// Five replicas, led by 1, two of which choose and four of which elect.
fn fast() -> Cluster {
    let mut cluster = led_by_one(5);
    let sizes = Some(Quorums { elect: 4, commit: 2 });
    cluster.reconfigure(replica(1), &[Change::SetQuorums(sizes)]).unwrap();
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.status(replica(1)).config.quorums, sizes);
    cluster
}

#[test]
fn with_small_commit_quorums_two_choose_and_four_elect() {
    let mut cluster = fast();
    for id in [3, 4, 5] {
        cluster.crash(replica(id));
    }
    let before = cluster.status(replica(1)).committed;
    cluster.propose(replica(1), 3).unwrap();
    let read = cluster.read(replica(1), ReadMode::Quorum);
    cluster.run(ELECTION * 4);
    assert_eq!(cluster.serving(), Some(replica(1)), "two are enough to go on");
    assert_eq!(cluster.status(replica(1)).committed, Slot(before.0 + 3));
    assert!(cluster.answered[&read].is_some(), "and to meet every four that elect");
    cluster.crash(replica(1));
    cluster.restart(replica(3));
    cluster.restart(replica(4));
    cluster.run(ELECTION * 4);
    assert_eq!(cluster.serving(), None, "three are too few to elect");
    cluster.restart(replica(5));
    cluster.run(ELECTION * 4);
    assert_eq!(cluster.nodes[&replica(3)].delivered.0, before.0 + 3, "nothing that two chose is lost");
}

#[test]
fn sizes_that_would_not_meet_are_refused_across_a_change() {
    let mut cluster = fast();
    let why = QuorumsError::Apart { elect: 4, commit: 2, voters: 6 };
    let refused = Err(StepError::Change(ChangeError::Quorums(why)));
    assert_eq!(cluster.reconfigure(replica(1), &[Change::AddVoter(NodeId(6))]), refused);
    let sizes = Some(Quorums { elect: 5, commit: 2 });
    let changes = [Change::AddVoter(NodeId(6)), Change::SetQuorums(sizes)];
    cluster.reconfigure(replica(1), &changes).unwrap();
    cluster.run(HEARTBEAT * 5);
    let config = cluster.status(replica(1)).config;
    assert_eq!((config.voters.len(), config.quorums, config.is_joint()), (6, sizes, false));
    let apart = Change::SetQuorums(Some(Quorums { elect: 3, commit: 3 }));
    let why = QuorumsError::Apart { elect: 3, commit: 3, voters: 6 };
    assert_eq!(cluster.reconfigure(replica(1), &[apart]), Err(StepError::Change(ChangeError::Quorums(why))));
}

#[test]
fn with_small_elect_quorums_two_elect_and_four_choose() {
    let mut cluster = led_by_one(5);
    let sizes = Some(Quorums { elect: 2, commit: 4 });
    cluster.reconfigure(replica(1), &[Change::SetQuorums(sizes)]).unwrap();
    cluster.run(HEARTBEAT * 3);
    let id = cluster.propose(replica(1), 1).unwrap();
    cluster.run(HEARTBEAT);
    cluster.crash(replica(1));
    cluster.run(ELECTION * 4);
    let leader = cluster.serving().unwrap();
    cluster.propose(leader, 1).unwrap();
    cluster.run(HEARTBEAT);
    assert!(cluster.chosen.values().any(|entry| entry.id == id[0]));
    let other = (2..=5).map(replica).find(|id| *id != leader).unwrap();
    cluster.crash(other);
    cluster.run(ELECTION * 4);
    assert_eq!(cluster.serving(), None, "three choose nothing, so none of them is a leader to wish for");
}
