//! Random schedules: loss, duplication, reordering, crashes that lose what was not synced, hanging disks, cut links, checkpoints.
//! The cluster checks safety at every step; at the end everything heals, and it must make progress and account for everything.

use std::time::Duration;

use conclave_consensus::{Config, MembershipChange, NodeId, Quorums, ReadMode};
use conclave_paxos::PaxosConfig;
use proptest::prelude::*;

use crate::cluster::{Cluster, HEARTBEAT, replica};

#[derive(Clone, Debug)]
pub(crate) enum Act {
    Deliver(usize),
    Settle,
    Lose(usize),
    Duplicate(usize),
    Sync(u64),
    Stall(u64),
    Pass(u64),
    Propose(u64, u64),
    Read(u64),
    Crash(u64),
    Restart(u64),
    Cut(u64, u64),
    Isolate(u64),
    Heal,
    Checkpoint(u64),
    Fetch(u64),
    Transfer(u64, u64),
    Reconfigure(Vec<(u8, u64)>),
}

fn act() -> impl Strategy<Value = Act> {
    let who = 1..=5_u64;
    prop_oneof![
        12 => any::<usize>().prop_map(Act::Deliver),
        4 => Just(Act::Settle),
        3 => any::<usize>().prop_map(Act::Lose),
        3 => any::<usize>().prop_map(Act::Duplicate),
        6 => who.clone().prop_map(Act::Sync),
        1 => who.clone().prop_map(Act::Stall),
        8 => (1..2_500_u64).prop_map(Act::Pass),
        8 => (who.clone(), 1..4_u64).prop_map(|(id, count)| Act::Propose(id, count)),
        3 => who.clone().prop_map(Act::Read),
        2 => who.clone().prop_map(Act::Crash),
        3 => who.clone().prop_map(Act::Restart),
        1 => (who.clone(), who.clone()).prop_map(|(from, to)| Act::Cut(from, to)),
        2 => who.clone().prop_map(Act::Isolate),
        2 => Just(Act::Heal),
        2 => who.clone().prop_map(Act::Checkpoint),
        2 => who.clone().prop_map(Act::Fetch),
        1 => (who.clone(), who).prop_map(|(from, to)| Act::Transfer(from, to)),
    ]
}

/// The same, and changes of membership: several at once, of replicas and nodes that may or may not be there.
pub(crate) fn act_or_change() -> impl Strategy<Value = Act> {
    let change = (0..5_u8, 1..8_u64);
    prop_oneof![
        9 => act(),
        1 => prop::collection::vec(change, 1..4).prop_map(Act::Reconfigure),
    ]
}

fn changes(cluster: &Cluster, of: &[(u8, u64)]) -> Vec<MembershipChange> {
    let ids = cluster.ids();
    let who = |at: u64| ids[usize::try_from(at).unwrap() % ids.len()];
    let change =
        |(kind, at): &(u8, u64)| match kind {
            0 => MembershipChange::AddLearner(NodeId(*at)),
            1 => MembershipChange::AddVoter(NodeId(*at)),
            2 => MembershipChange::Promote(who(*at)),
            3 => MembershipChange::SetQuorums((*at < 6).then(|| Quorums {
                elect: u8::try_from(*at).unwrap(),
                commit: u8::try_from(6 - *at).unwrap(),
            })),
            _ => MembershipChange::Remove(who(*at)),
        };
    of.iter().map(change).collect()
}

fn perform(cluster: &mut Cluster, act: &Act) {
    let ids = cluster.ids();
    let who = |id: u64| ids[usize::try_from(id - 1).unwrap() % ids.len()];
    let place = |cluster: &Cluster, at: usize| at % cluster.network.len().max(1);
    match *act {
        Act::Deliver(at) => {
            // Mostly near the front: far reorderings are rarer than near ones.
            let at = if at % 4 == 0 { place(cluster, at) } else { 0 };
            cluster.deliver_at(at);
        }
        Act::Settle => cluster.settle(),
        Act::Lose(at) => {
            let at = place(cluster, at);
            cluster.network.remove(at);
        }
        Act::Duplicate(at) => {
            if let Some(message) = cluster.network.get(place(cluster, at)).cloned() {
                cluster.network.push_back(message);
            }
        }
        Act::Sync(id) => {
            cluster.sync(who(id));
        }
        Act::Stall(id) => {
            cluster.stalled.insert(who(id));
        }
        Act::Pass(ms) => {
            let time = cluster.now.after(Duration::from_millis(ms));
            cluster.tick_at(time);
        }
        // Whoever leads is asked more often than chance would.
        Act::Propose(id, count) => {
            let id = if id % 2 == 0 { cluster.serving().unwrap_or(who(id)) } else { who(id) };
            let _ = cluster.propose(id, count);
        }
        Act::Read(id) => {
            let mode = if id % 2 == 0 { ReadMode::Lease } else { ReadMode::Follower };
            cluster.read(who(id), mode);
        }
        Act::Crash(id) => cluster.crash(who(id)),
        Act::Restart(id) => cluster.restart(who(id)),
        Act::Cut(from, to) => {
            cluster.cut.insert((who(from), who(to)));
        }
        Act::Isolate(id) => cluster.isolate(who(id)),
        Act::Heal => {
            cluster.cut.clear();
            cluster.stalled.clear();
        }
        Act::Checkpoint(id) => cluster.checkpoint(who(id)),
        Act::Fetch(id) => {
            cluster.fetch(who(id));
        }
        Act::Reconfigure(ref of) => {
            let at = cluster.serving().unwrap_or(who(1));
            let changes = changes(cluster, of);
            let _ = cluster.reconfigure(at, &changes);
        }
        Act::Transfer(from, to) => {
            let (from, to) = (cluster.serving().unwrap_or(who(from)), who(to));
            let _ = cluster.transfer(from, to);
        }
    }
}

pub(crate) fn config(tight: bool) -> PaxosConfig {
    if !tight {
        return PaxosConfig {
            compaction_margin_entries: 2,
            compaction_lag_entries_max: 4,
            ..PaxosConfig::default()
        };
    }
    PaxosConfig {
        inflight_messages_max: 2,
        inflight_bytes_max: 300,
        message_bytes_max: 150,
        unchosen_entries_max: 6,
        apply_window_entries: 2,
        cache_kept_bytes: 0,
        cache_bytes_max: 100,
        compaction_margin_entries: 1,
        compaction_lag_entries_max: 2,
        read_rounds_max: 1,
        ..PaxosConfig::default()
    }
}

fn explore(voters: u64, seed: u64, tight: bool, acts: &[Act]) {
    play(Cluster::with(voters, 0, seed, config(tight)), seed, acts);
}

pub(crate) fn play(mut cluster: Cluster, seed: u64, acts: &[Act]) {
    if seed.is_multiple_of(2) {
        cluster.elect();
    }
    for act in acts {
        perform(&mut cluster, act);
    }
    cluster.cut.clear();
    cluster.stalled.clear();
    for id in cluster.ids() {
        cluster.restart(id);
    }
    // A group may need a replica that needs a snapshot before anyone can serve.
    for _ in 0..200 {
        cluster.run(HEARTBEAT);
        for id in cluster.ids() {
            cluster.fetch(id);
        }
    }
    let leader = cluster.elect();
    let ids = cluster.propose(leader, 1).unwrap();
    cluster.run(HEARTBEAT * 20);
    let last = cluster.chosen.values().next_back().unwrap();
    // Something that a replica accepted long ago may come after it.
    assert!(cluster.chosen.values().any(|entry| entry.id == ids[0]), "no progress after everything healed");
    let config = cluster.status(leader).config;
    assert!(!config.is_joint(), "a joint configuration was never left");
    for id in config.members() {
        let status = cluster.status(leader);
        assert_eq!(cluster.nodes[&id].delivered, last.slot, "{id} did not catch up: {status:?}");
        assert_eq!(cluster.status(id).config, config, "{id}");
    }
    // Who was removed, or whose addition came to nothing, is destroyed, and what it has not told is unknown.
    for id in cluster.ids().into_iter().filter(|id| !config.nodes.contains_key(id)) {
        cluster.crash(id);
    }
    cluster.check_outcomes();
}

/// `SCHEDULES` of each kind, 300 if it is not set.
fn cases() -> u32 {
    std::env::var("SCHEDULES").ok().and_then(|count| count.parse().ok()).unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn three_replicas(seed: u64, tight: bool, acts in prop::collection::vec(act(), 1..120)) {
        explore(3, seed, tight, &acts);
    }

    #[test]
    fn five_replicas(seed: u64, tight: bool, acts in prop::collection::vec(act(), 1..120)) {
        explore(5, seed, tight, &acts);
    }

    /// Leases without a doubt about clocks, and replicas that are wished for as leaders.
    #[test]
    fn with_leases_and_priorities(seed: u64, tight: bool, acts in prop::collection::vec(act_or_change(), 1..120)) {
        let config = PaxosConfig { lease_drift_ppm: Some(0), ..config(tight) };
        let mut cluster = Cluster::with(3, 0, seed, config);
        for id in cluster.ids() {
            let priority = u8::try_from(seed % 3).unwrap() * u8::try_from(id.0).unwrap();
            cluster.configs_of.insert(id, PaxosConfig { priority, ..config });
            cluster.crash(id);
            cluster.restart(id);
        }
        play(cluster, seed, &acts);
    }

    /// Five replicas of which more elect than choose, or fewer; and one that learns.
    #[test]
    fn with_quorums_of_other_sizes(seed: u64, tight: bool, acts in prop::collection::vec(act_or_change(), 1..120)) {
        let elect = u8::try_from(seed % 5 + 1).unwrap();
        let mut initial = Config::of_voters((1..=5).map(|id| (replica(id), NodeId(id))));
        initial.quorums = Some(Quorums { elect, commit: 6 - elect });
        play(Cluster::of(initial, seed, config(tight)), seed, &acts);
    }

    #[test]
    fn a_changing_group(voters in 1..4_u64, seed: u64, tight: bool, acts in prop::collection::vec(act_or_change(), 1..150)) {
        explore(voters, seed, tight, &acts);
    }
}
