//! Snapshots and compaction.

use conclave_consensus::{Ballot, Input, ReadMode, Slot, SnapshotMeta, StepError};
use conclave_paxos::PaxosConfig;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

fn tight() -> PaxosConfig {
    PaxosConfig { compaction_margin_entries: 2, compaction_lag_entries_max: 10, ..PaxosConfig::default() }
}

/// Replica 3 is away while 1 and 2 go on and cut their logs.
fn with_laggard() -> Cluster {
    let mut cluster = Cluster::with(3, 0, 1, tight());
    cluster.elect_this(replica(1));
    cluster.crash(replica(3));
    for _ in 0..20 {
        cluster.propose(replica(1), 1).unwrap();
        cluster.settle();
    }
    cluster.run(ELECTION * 2);
    cluster.checkpoint(replica(1));
    cluster.checkpoint(replica(2));
    cluster.settle();
    cluster
}

#[test]
fn a_replica_too_far_behind_fetches_a_snapshot_and_goes_on_from_it() {
    let mut cluster = with_laggard();
    assert!(cluster.nodes[&replica(1)].disk.first > 10);
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 3);
    let (at_least, from) = cluster.nodes[&replica(3)].fetching.clone().unwrap();
    assert_eq!(
        (at_least, from),
        (Slot(cluster.nodes[&replica(1)].disk.first - 1), [1, 2].map(replica).to_vec())
    );
    assert!(cluster.fetch(replica(3)));
    cluster.propose(replica(1), 1).unwrap();
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(21));
    assert!(cluster.status(replica(1)).progress.iter().all(|peer| peer.matched == Slot(21)));
}

/// Each round of reads sends a beat of its own; what a leader does once a heartbeat must not wait until reading stops.
#[test]
fn reads_without_pause_do_not_keep_a_replica_from_its_snapshot() {
    let mut cluster = Cluster::with(3, 0, 1, PaxosConfig { inflight_messages_max: 4, ..tight() });
    cluster.elect_this(replica(1));
    cluster.crash(replica(3));
    for step in 0..120 {
        cluster.propose(replica(1), 1).unwrap();
        if step == 60 {
            cluster.checkpoint(replica(1));
        }
        if step == 80 {
            cluster.restart(replica(3));
        }
        cluster.read(replica(1), ReadMode::Quorum);
        cluster.run(HEARTBEAT / 5);
    }
    assert!(cluster.nodes[&replica(3)].fetching.is_some(), "no snapshot was offered in eight heartbeats");
}

#[test]
fn a_fetch_that_failed_is_asked_for_again() {
    let mut cluster = with_laggard();
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 3);
    cluster.node(replica(3)).fetching = None;
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.nodes[&replica(3)].fetching, None, "one at a time");
    cluster.input(replica(3), Input::SnapshotFailed).unwrap();
    cluster.run(HEARTBEAT * 3);
    assert!(cluster.fetch(replica(3)));
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(20));
}

/// The leader that offered one may be gone, and a replica that was just added knows of no other that has one.
#[test]
fn who_else_offers_a_snapshot_is_named_while_one_is_fetched() {
    let mut cluster = with_laggard();
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.nodes[&replica(3)].fetching.clone().unwrap().1[0], replica(1));
    cluster.transfer(replica(1), replica(2)).unwrap();
    cluster.run(HEARTBEAT * 3);
    cluster.crash(replica(1));
    cluster.run(HEARTBEAT * 3);
    assert_eq!(
        cluster.nodes[&replica(3)].fetching.clone().unwrap().1,
        [replica(2)],
        "of the others it knows"
    );
    assert!(cluster.fetch(replica(3)));
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.nodes[&replica(3)].delivered, cluster.nodes[&replica(2)].delivered);
}

#[test]
fn a_crash_before_the_snapshot_is_the_state_leaves_the_old_one() {
    let mut cluster = with_laggard();
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 3);
    cluster.stalled.insert(replica(3));
    assert!(cluster.fetch(replica(3)));
    cluster.settle();
    cluster.crash(replica(3));
    cluster.stalled.clear();
    cluster.restart(replica(3));
    assert_eq!(cluster.status(replica(3)).last, Slot(0));
    cluster.run(HEARTBEAT * 3);
    assert!(cluster.fetch(replica(3)));
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(20));
}

#[test]
fn a_delayed_snapshot_unlearns_nothing() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.propose(replica(1), 9).unwrap();
    cluster.settle();
    let config = cluster.status(replica(3)).config;
    for slot in [1, 5, 9] {
        let meta = SnapshotMeta {
            slot: Slot(slot),
            ballot: Ballot::default(),
            config: config.clone(),
            generation: 1,
        };
        let from = cluster.transcript.len();
        cluster.input(replica(3), Input::SnapshotReady(meta)).unwrap();
        assert!(cluster.transcript[from..].is_empty(), "refused");
    }
    assert_eq!((cluster.status(replica(3)).last, cluster.status(replica(3)).applied), (Slot(9), Slot(9)));
}

#[test]
fn what_was_accepted_above_a_snapshot_stays_on_the_disk_too() {
    // 3 accepts the last two of six, or all but the last two, and knows of none to be chosen; then it learns of four by a snapshot.
    for (lost, slot) in [(0..4, 4), (4..6, 2), (0..0, 4), (1..3, 2)] {
        let mut cluster = Cluster::new(3, 1);
        cluster.elect_this(replica(1));
        cluster.cut.insert((replica(1), replica(2)));
        for place in 0..6 {
            cluster.propose(replica(1), 1).unwrap();
            cluster.network.retain(|message| message.to == replica(3) && !lost.contains(&place));
            while cluster.deliver_at(0) {}
            cluster.sync(replica(3));
            cluster.network.clear();
        }
        let accepted = cluster.nodes[&replica(3)].disk.entries.clone();
        let config = cluster.status(replica(3)).config;
        let ballot = Ballot { round: 9, ..Ballot::default() };
        let meta = SnapshotMeta { slot: Slot(slot), ballot, config, generation: 1 };
        cluster.input(replica(3), Input::SnapshotReady(meta)).unwrap();
        cluster.sync(replica(3));
        let status = cluster.status(replica(3));
        assert_eq!((status.committed, status.applied), (Slot(slot), Slot(slot)));
        let above = |entries: &std::collections::BTreeMap<Slot, conclave_consensus::Entry>| {
            entries.range(Slot(slot + 1)..).map(|(_, entry)| entry.clone()).collect::<Vec<_>>()
        };
        assert_eq!(above(&cluster.nodes[&replica(3)].disk.entries), above(&accepted), "{lost:?} {slot}");
        cluster.crash(replica(3));
        cluster.restart(replica(3));
        assert_eq!(
            cluster.status(replica(3)).last,
            accepted.keys().next_back().copied().unwrap().max(Slot(slot))
        );
    }
}

#[test]
fn a_crash_between_the_filler_and_the_snapshot_leaves_no_trace() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.cut.insert((replica(1), replica(2)));
    cluster.propose(replica(1), 1).unwrap();
    cluster.network.clear();
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    let config = cluster.status(replica(3)).config;
    let meta = SnapshotMeta { slot: Slot(1), config, generation: 1, ..SnapshotMeta::default() };
    cluster.input(replica(3), Input::SnapshotReady(meta)).unwrap();
    assert!(cluster.transcript.iter().any(|line| line == "  3 writes [1]"), "the filler");
    cluster.sync_first(replica(3));
    cluster.crash(replica(3));
    assert!(cluster.nodes[&replica(3)].disk.entries.contains_key(&Slot(1)));
    cluster.restart(replica(3));
    assert_eq!(cluster.status(replica(3)).persisted, Slot(0), "slot 1 is a gap as before");
    cluster.cut.clear();
    cluster.run(ELECTION * 3);
    cluster.check_outcomes();
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(2));
}

#[test]
fn nobody_stands_for_election_while_it_installs() {
    let mut cluster = with_laggard();
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 3);
    cluster.stalled.insert(replica(3));
    assert!(cluster.fetch(replica(3)));
    cluster.isolate(replica(3));
    let term = cluster.status(replica(3)).ballot;
    cluster.run(ELECTION * 5);
    let later = cluster.now.after(ELECTION * 2);
    cluster.tick_at(later);
    assert!(cluster.under_way("3→1 beat").is_empty() && cluster.status(replica(3)).ballot == term);
    cluster.settle();
    cluster.stalled.clear();
    cluster.settle();
    let later = cluster.now.after(ELECTION * 2);
    cluster.tick_at(later);
    assert!(!cluster.under_way("3→1 beat").is_empty(), "and then it may");
}

#[test]
fn a_margin_stays_below_a_checkpoint() {
    let mut cluster = Cluster::with(1, 0, 1, tight());
    cluster.run(HEARTBEAT);
    cluster.propose(replica(1), 9).unwrap();
    cluster.settle();
    cluster.checkpoint(replica(1));
    cluster.settle();
    assert_eq!(cluster.nodes[&replica(1)].disk.first, 8, "slots 8 and 9 stay");
}

#[test]
fn the_log_waits_for_a_live_follower_but_not_for_ever_and_not_for_a_dead_one() {
    let mut cluster = Cluster::with(3, 0, 1, tight());
    cluster.elect_this(replica(1));
    cluster.stalled.insert(replica(3)); // It lives and answers beats, and acknowledges nothing.
    for _ in 0..8 {
        cluster.propose(replica(1), 1).unwrap();
        cluster.settle();
    }
    cluster.checkpoint(replica(1));
    cluster.settle();
    assert_eq!(cluster.nodes[&replica(1)].disk.first, 1, "it holds nothing");
    for _ in 0..8 {
        cluster.propose(replica(1), 1).unwrap();
        cluster.settle();
    }
    cluster.checkpoint(replica(1));
    cluster.settle();
    assert_eq!(cluster.nodes[&replica(1)].disk.first, 7, "ten entries below the checkpoint at 16");
    cluster.crash(replica(3));
    cluster.run(ELECTION * 2);
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    cluster.checkpoint(replica(1));
    cluster.settle();
    assert_eq!(cluster.nodes[&replica(1)].disk.first, 16);
}

#[test]
fn a_checkpoint_of_what_was_never_handed_out_is_a_broken_driver() {
    let mut cluster = Cluster::new(1, 1);
    cluster.run(HEARTBEAT);
    let config = cluster.status(replica(1)).config;
    let meta = SnapshotMeta { slot: Slot(9), ballot: Ballot::default(), config, generation: 0 };
    let now = cluster.now;
    use conclave_consensus::Consensus;
    let core = cluster.node(replica(1)).core.as_mut().unwrap();
    assert!(matches!(core.step(now, Input::Compacted(meta)), Err(StepError::Broken(_))));
    assert!(matches!(core.step(now, Input::Applied(Slot(9))), Err(StepError::Broken(_))));
}
