//! Phase 1: what a new leader adopts, fills and leaves out; and phase 2: what is chosen in which order.

use bytes::Bytes;
use conclave_consensus::{Input, Kind, MembershipChange, Message, NodeId, Outcome, ReplicaId, Slot};
use conclave_paxos::{PaxosConfig, describe};

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

fn led_by_one(voters: u64) -> Cluster {
    let mut cluster = Cluster::new(voters, 1);
    cluster.elect_this(replica(1));
    cluster
}

/// Takes the first message under way whose description contains `what`.
fn take(cluster: &mut Cluster, what: &str) -> Message {
    let place = cluster.network.iter().position(|message| describe(message).contains(what));
    cluster.network.remove(place.unwrap_or_else(|| panic!("no {what}"))).unwrap()
}

fn give(cluster: &mut Cluster, message: Message) {
    cluster.input(message.to, Input::Message(message)).unwrap();
}

fn kinds(cluster: &Cluster) -> Vec<Kind> {
    cluster.chosen.values().map(|entry| entry.kind).collect()
}

/// Lets replica `id` stand and win, with the others' clocks where they are free.
fn elect_next(cluster: &mut Cluster, id: ReplicaId) {
    cluster.now = cluster.now.after(ELECTION * 2);
    cluster.elect_this(id);
}

#[test]
fn slots_are_accepted_and_chosen_in_any_order_and_delivered_in_theirs() {
    let mut cluster = led_by_one(3);
    cluster.cut.insert((replica(1), replica(3)));
    let mut proposals = Vec::new();
    for _ in 0..3 {
        cluster.propose(replica(1), 1).unwrap();
        cluster.sync(replica(1));
        proposals.push(take(&mut cluster, "1→2 accept"));
    }
    give(&mut cluster, proposals.pop().unwrap());
    give(&mut cluster, proposals.pop().unwrap());
    cluster.sync(replica(2));
    assert_eq!(cluster.under_way("2→1 accepted 0.1.1 up to 0, 3–3").len(), 1);
    assert_eq!(cluster.under_way("2→1 accepted 0.1.1 up to 0, 2–2").len(), 1);
    cluster.settle();
    assert!(cluster.chosen.is_empty(), "what was chosen waits for what was not");
    give(&mut cluster, proposals.pop().unwrap());
    cluster.settle();
    assert_eq!(cluster.chosen.len(), 3);
}

#[test]
fn a_lost_proposal_is_made_again() {
    let mut cluster = led_by_one(3);
    cluster.cut.insert((replica(1), replica(3)));
    for lost in [true, false] {
        cluster.propose(replica(1), 1).unwrap();
        if lost {
            take(&mut cluster, "1→2 accept");
        }
        cluster.settle();
    }
    assert!(cluster.chosen.is_empty());
    cluster.run(HEARTBEAT * 3);
    assert_eq!(cluster.chosen.len(), 2);
}

#[test]
fn the_highest_ballot_binds_a_new_leader_and_gaps_are_filled() {
    let mut cluster = led_by_one(3);
    // Slot 2 reaches 2, slot 1 nobody.
    let first = cluster.propose(replica(1), 1).unwrap();
    cluster.network.clear();
    let second = cluster.propose(replica(1), 1).unwrap();
    let message = take(&mut cluster, "1→2 accept");
    give(&mut cluster, message);
    cluster.sync(replica(2));
    cluster.crash(replica(1));
    elect_next(&mut cluster, replica(3));
    assert_eq!(kinds(&cluster), [Kind::Noop, Kind::Command]);
    assert_eq!(cluster.chosen[&Slot(2)].id, second[0]);
    // The first's slot went to a no-op: its proposer, had it lived, would have been told.
    cluster.restart(replica(1));
    cluster.run(ELECTION);
    assert!(cluster.chosen.values().all(|entry| entry.id != first[0]));
}

#[test]
fn a_value_in_a_gap_that_was_chosen_is_not_replaced_by_a_no_op() {
    let mut cluster = led_by_one(3);
    // Both slots are chosen by 1 and 2; 3 has the second alone.
    cluster.propose(replica(1), 1).unwrap();
    let lost = take(&mut cluster, "1→3 accept");
    cluster.propose(replica(1), 1).unwrap();
    cluster.settle();
    assert_eq!(kinds(&cluster), [Kind::Command; 2]);
    drop(lost);
    cluster.crash(replica(1));
    elect_next(&mut cluster, replica(3));
    cluster.run(HEARTBEAT);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(2));
}

/// Else each repetition would ask for the next page, and of that as many more would come.
#[test]
fn a_page_that_is_told_again_asks_for_nothing() {
    let config = PaxosConfig { message_bytes_max: 1, ..PaxosConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.cut.extend([(replica(2), replica(1)), (replica(3), replica(1))]);
    cluster.propose(replica(1), 4).unwrap();
    cluster.settle();
    cluster.crash(replica(1));
    cluster.now = cluster.now.after(ELECTION * 3);
    cluster.input(replica(2), Input::Tick).unwrap();
    while cluster.under_way("3→2 promise").is_empty() {
        cluster.sync_all();
        assert!(cluster.deliver_at(0));
    }
    let page = cluster.network.back().unwrap().clone();
    for _ in 0..3 {
        cluster.input(replica(2), Input::Message(page.clone())).unwrap();
    }
    assert_eq!(cluster.under_way("2→3 prepare").len(), 1);
}

#[test]
fn promises_are_told_in_bounded_pages() {
    let config = PaxosConfig { message_bytes_max: 200, ..PaxosConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.stalled.insert(replica(1)); // So that nothing is chosen, and 3 gets nothing.
    cluster.cut.insert((replica(1), replica(3)));
    cluster.propose(replica(1), 20).unwrap();
    cluster.run(HEARTBEAT * 3);
    assert!(cluster.chosen.is_empty());
    cluster.crash(replica(1));
    cluster.stalled.clear();
    let from = cluster.transcript.len();
    elect_next(&mut cluster, replica(3));
    let pages = cluster.transcript[from..].iter().filter(|line| line.contains("2→3 promise"));
    assert!(pages.count() >= 10);
    assert_eq!(cluster.chosen.values().filter(|entry| entry.kind == Kind::Command).count(), 20);
}

#[test]
fn a_leader_that_lacks_what_was_chosen_asks_for_it_before_it_leads() {
    for memory in [32 << 20, 100] {
        let config = PaxosConfig { cache_kept_bytes: 0, cache_bytes_max: memory, ..PaxosConfig::default() };
        let mut cluster = Cluster::with(3, 0, 1, config);
        cluster.elect_this(replica(1));
        cluster.isolate(replica(3));
        cluster.propose(replica(1), 30).unwrap();
        cluster.run(HEARTBEAT * 3);
        cluster.cut.clear();
        cluster.crash(replica(1));
        elect_next(&mut cluster, replica(3));
        assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(30));
    }
}

#[test]
fn a_leader_that_lacks_what_nobodys_log_holds_fetches_a_snapshot_first() {
    let config =
        PaxosConfig { compaction_margin_entries: 1, compaction_lag_entries_max: 2, ..PaxosConfig::default() };
    let mut cluster = Cluster::with(3, 0, 1, config);
    cluster.elect_this(replica(1));
    cluster.isolate(replica(3));
    cluster.run(ELECTION * 2);
    cluster.propose(replica(1), 30).unwrap();
    cluster.run(HEARTBEAT * 3);
    cluster.checkpoint(replica(1));
    cluster.checkpoint(replica(2));
    cluster.cut.clear();
    cluster.crash(replica(1));
    cluster.now = cluster.now.after(ELECTION * 2);
    for _ in 0..40 {
        cluster.run(HEARTBEAT / 2);
        cluster.fetch(replica(3));
    }
    assert!(cluster.serving().is_some());
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(30));
}

#[test]
pub(crate) fn nothing_is_recovered_beyond_a_stop() {
    let mut cluster = led_by_one(3);
    // 1 accepts five commands, alone.
    cluster.isolate(replica(1));
    cluster.propose(replica(1), 5).unwrap();
    cluster.settle();
    // 2 is elected without it, and begins to add a voter, which nobody hears of.
    elect_next(&mut cluster, replica(2));
    cluster.isolate(replica(2));
    cluster.reconfigure(replica(2), &[MembershipChange::AddVoter(NodeId(4))]).unwrap();
    cluster.settle();
    cluster.crash(replica(3));
    // 1 and 2 are a quorum. In slot 1 the stop has the higher ballot; what 1 accepted beyond it counts no more.
    cluster.cut.clear();
    cluster.crash(replica(1));
    cluster.restart(replica(1));
    cluster.run(ELECTION * 6);
    assert_eq!(cluster.chosen[&Slot(1)].kind, Kind::Config);
    assert!(cluster.chosen.values().all(|entry| entry.kind != Kind::Command));
    assert_eq!(cluster.status(cluster.serving().unwrap()).config.voters.len(), 4);
}

#[test]
fn who_promised_tells_the_leader_of_a_lower_ballot() {
    let mut cluster = led_by_one(3);
    cluster.isolate(replica(1));
    elect_next(&mut cluster, replica(2));
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 2);
    assert_eq!(cluster.status(replica(1)).leader, Some(replica(2)));
}

#[test]
fn the_first_proposal_at_a_slot_is_lost_when_another_is_chosen_there() {
    let mut cluster = led_by_one(3);
    cluster.isolate(replica(1));
    let ids = cluster.propose(replica(1), 3).unwrap();
    cluster.settle();
    elect_next(&mut cluster, replica(2));
    cluster.propose(replica(2), 2).unwrap();
    cluster.settle();
    cluster.cut.clear();
    cluster.run(HEARTBEAT * 3);
    let lost = |place: usize| cluster.lost.get(&ids[place]).copied();
    assert_eq!((lost(0), lost(1)), (Some(Outcome::Dropped), Some(Outcome::Dropped)));
    assert_ne!(lost(2), Some(Outcome::Dropped), "nothing is chosen there yet");
    cluster.run(ELECTION * 3);
    cluster.check_outcomes();
}

#[test]
fn a_replica_that_booted_is_told_again_what_is_chosen() {
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 5).unwrap();
    cluster.run(HEARTBEAT * 2);
    cluster.crash(replica(3));
    cluster.restart(replica(3));
    cluster.run(HEARTBEAT * 4);
    assert_eq!(cluster.nodes[&replica(3)].delivered, Slot(5));
}

#[test]
fn much_that_is_chosen_is_not_chosen_again_after_a_boot() {
    let mut cluster = Cluster::new(1, 1);
    cluster.run(HEARTBEAT);
    for _ in 0..5 {
        cluster.propose(replica(1), 1_000).unwrap();
        cluster.settle();
    }
    cluster.crash(replica(1));
    cluster.restart(replica(1));
    assert!(cluster.status(replica(1)).committed >= Slot(3_000), "it was recorded on the way");
}

#[test]
fn a_record_that_no_replica_can_have_written_is_refused() {
    use conclave_consensus::{Boot, Config, SnapshotMeta, Time};
    use conclave_paxos::{BootError, Paxos};
    let mut cluster = led_by_one(3);
    cluster.propose(replica(1), 2).unwrap();
    cluster.settle();
    let disk = cluster.nodes[&replica(1)].disk.clone();
    let config = Config::of_voters((1..=3).map(|id| (replica(id), NodeId(id))));
    let boot = |meta: Bytes, replica, entries| Boot {
        replica,
        meta,
        state: SnapshotMeta { config: config.clone(), ..SnapshotMeta::default() },
        entries,
        first: Slot(1),
        now: Time(0),
        seed: 1,
    };
    let refused = |boot| Paxos::new(boot, PaxosConfig::default()).unwrap_err();
    let entries: Vec<_> = disk.entries.values().cloned().collect();
    assert_eq!(refused(boot(disk.meta.clone(), replica(0), Vec::new())), BootError::Nobody);
    assert_eq!(refused(boot(Bytes::from_static(b"?"), replica(1), Vec::new())), BootError::Meta);
    assert_eq!(
        refused(boot(Bytes::new(), replica(1), entries.clone())),
        BootError::PromiseBehindLog(Slot(1))
    );
    let backwards = entries.iter().rev().cloned().collect();
    assert_eq!(
        refused(boot(disk.meta.clone(), replica(1), backwards)),
        BootError::Order { expected: Slot(3), found: Slot(1) }
    );
    let mut bad = entries.clone();
    bad[0].kind = Kind::Config;
    assert!(matches!(refused(boot(disk.meta.clone(), replica(1), bad)), BootError::Membership { .. }));
    let gap = vec![entries[1].clone()];
    let core = Paxos::new(boot(disk.meta, replica(1), gap), PaxosConfig::default()).unwrap();
    use conclave_consensus::Consensus;
    assert_eq!((core.status().persisted, core.status().last), (Slot(0), Slot(2)), "a gap is none of them");
}
