//! Snapshots and compaction.

use conclave_consensus::{Ballot, Input, ReadMode, Slot, SnapshotMeta, StepError};
use conclave_raft::RaftConfig;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

fn tight() -> RaftConfig {
    RaftConfig { compaction_margin_entries: 2, compaction_lag_entries_max: 10, ..RaftConfig::default() }
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
    let (at_least, from) = cluster.nodes[&replica(3)].fetching.unwrap();
    assert_eq!((at_least, from), (Slot(cluster.nodes[&replica(1)].disk.first - 1), replica(1)));
    assert!(cluster.fetch(replica(3)));
    cluster.propose(replica(1), 1).unwrap();
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(22));
    assert!(cluster.status(replica(1)).progress.iter().all(|peer| peer.matched == Slot(22)));
}

/// Each round of reads sends a beat of its own; what a leader does once a heartbeat must not wait until reading stops.
#[test]
fn reads_without_pause_do_not_keep_a_replica_from_its_snapshot() {
    let mut cluster = Cluster::with(3, 0, 1, RaftConfig { inflight_messages_max: 4, ..tight() });
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
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(21));
}

/// The leader that offered one may be gone, and its successor has the same to offer.
#[test]
fn who_else_offers_a_snapshot_is_named_while_one_is_fetched() {
    let mut cluster = with_laggard();
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.nodes[&replica(3)].fetching.map(|(_, from)| from), Some(replica(1)));
    cluster.transfer(replica(1), replica(2)).unwrap();
    cluster.run(HEARTBEAT * 3);
    cluster.crash(replica(1));
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.nodes[&replica(3)].fetching.map(|(_, from)| from), Some(replica(2)));
    assert!(cluster.fetch(replica(3)));
    cluster.run(HEARTBEAT * 3);
    let delivered = cluster.nodes[&replica(2)].delivered;
    assert!(delivered > Slot(21));
    assert_eq!(cluster.nodes[&replica(3)].delivered, delivered);
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
    assert_eq!(cluster.status(replica(3)).last, Slot(1));
    cluster.run(HEARTBEAT * 3);
    assert!(cluster.fetch(replica(3)));
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(21));
}

#[test]
fn a_delayed_snapshot_unlearns_nothing() {
    let mut cluster = Cluster::new(3, 1);
    cluster.elect_this(replica(1));
    cluster.propose(replica(1), 9).unwrap();
    cluster.settle();
    let config = cluster.status(replica(3)).config;
    for slot in [1, 5, 10] {
        let meta =
            SnapshotMeta { slot: Slot(slot), ballot: Ballot::term(1), config: config.clone(), generation: 1 };
        let from = cluster.transcript.len();
        cluster.input(replica(3), Input::SnapshotReady(meta)).unwrap();
        assert!(cluster.transcript[from..].is_empty(), "refused");
    }
    assert_eq!((cluster.status(replica(3)).last, cluster.status(replica(3)).applied), (Slot(10), Slot(10)));
}

#[test]
fn the_suffix_above_a_snapshot_stays_where_it_fits() {
    // Replica 3 holds six entries and knows of no commit.
    for (term, last) in [(1, 6), (2, 4)] {
        let mut cluster = Cluster::of_logs(3, &[&[], &[], &[1, 1, 1, 1, 1, 1]], RaftConfig::default());
        let config = cluster.status(replica(3)).config;
        let meta = SnapshotMeta { slot: Slot(4), ballot: Ballot::term(term), config, generation: 1 };
        cluster.input(replica(3), Input::SnapshotReady(meta)).unwrap();
        cluster.sync(replica(3));
        let status = cluster.status(replica(3));
        assert_eq!((status.last, status.committed, status.applied), (Slot(last), Slot(4), Slot(4)));
        assert_eq!(status.persisted, Slot(last));
    }
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
    let asked = cluster.transcript.iter().any(|line| line.contains("3→1 pre-vote t"));
    assert!(!asked && cluster.status(replica(3)).ballot == term);
}

#[test]
fn a_margin_stays_below_a_checkpoint() {
    let mut cluster = Cluster::with(1, 0, 1, tight());
    cluster.run(HEARTBEAT);
    cluster.propose(replica(1), 9).unwrap();
    cluster.settle();
    cluster.checkpoint(replica(1));
    cluster.settle();
    assert_eq!(cluster.nodes[&replica(1)].disk.first, 9, "slots 9 and 10 stay");
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
    assert_eq!(cluster.nodes[&replica(1)].disk.first, 2, "it holds slot 1 only");
    for _ in 0..8 {
        cluster.propose(replica(1), 1).unwrap();
        cluster.settle();
    }
    cluster.checkpoint(replica(1));
    cluster.settle();
    assert_eq!(cluster.nodes[&replica(1)].disk.first, 8, "ten entries below the checkpoint at 17");
    cluster.crash(replica(3));
    cluster.run(ELECTION * 2);
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    cluster.checkpoint(replica(1));
    cluster.settle();
    assert_eq!(cluster.nodes[&replica(1)].disk.first, 17);
}

#[test]
fn a_checkpoint_of_what_was_never_handed_out_is_a_broken_driver() {
    let mut cluster = Cluster::new(1, 1);
    cluster.run(HEARTBEAT);
    let config = cluster.status(replica(1)).config;
    let meta = SnapshotMeta { slot: Slot(9), ballot: Ballot::term(1), config, generation: 0 };
    let now = cluster.now;
    use conclave_consensus::Consensus;
    let raft = cluster.node(replica(1)).raft.as_mut().unwrap();
    assert!(matches!(raft.step(now, Input::Compacted(meta)), Err(StepError::Broken(_))));
    assert!(matches!(raft.step(now, Input::Applied(Slot(9))), Err(StepError::Broken(_))));
}
