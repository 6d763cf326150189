//! Quorum arithmetic against a deliberately dumb twin, and the configuration's record against garbage.
//!
//! The twin knows one thing: a majority is a subset with more than half of the members. Everything else it finds by going
//! through all subsets.

use std::collections::{BTreeMap, BTreeSet};

use conclave_consensus::{Config, MEMBERS_MAX, NodeId, Quorums, ReplicaId, Slot};
use proptest::prelude::*;

type Set = BTreeSet<ReplicaId>;

/// Every subset of `members` of at least that size.
fn subsets(members: &Set, size: usize) -> Vec<Set> {
    let list: Vec<_> = members.iter().copied().collect();
    (0..1_u32 << list.len())
        .map(|bits| {
            list.iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, id)| *id).collect()
        })
        .filter(|subset: &Set| subset.len() >= size)
        .collect()
}

/// Every set that decides: enough of the voters and, in a joint configuration, of the outgoing voters too.
fn quorums(config: &Config, size: impl Fn(Quorums) -> u8) -> Vec<Set> {
    let of = |members: &Set, sizes: Option<Quorums>| {
        subsets(members, sizes.map_or(members.len() / 2 + 1, |sizes| usize::from(size(sizes))))
    };
    let incoming = of(&config.voters, config.quorums);
    if !config.is_joint() {
        return incoming;
    }
    let outgoing = of(&config.outgoing, config.outgoing_quorums);
    incoming.iter().flat_map(|one| outgoing.iter().map(move |other| one | other)).collect()
}

fn elect_quorums(config: &Config) -> Vec<Set> {
    quorums(config, |sizes| sizes.elect)
}

fn commit_quorums(config: &Config) -> Vec<Set> {
    quorums(config, |sizes| sizes.commit)
}

/// Sizes that fit so many voters, or none.
fn sizes(voters: usize, elect: u8, more: u8) -> Option<Quorums> {
    let voters = u8::try_from(voters).expect("a handful");
    if elect == 0 || voters == 0 {
        return None;
    }
    let elect = (elect - 1) % voters + 1;
    let least = voters + 1 - elect;
    Some(Quorums { elect, commit: least + more % (voters + 1 - least) })
}

/// Up to five voters, up to five outgoing, some learners, over eight replicas.
fn config() -> impl Strategy<Value = Config> {
    let ids = || (1..=8_u64).prop_map(ReplicaId);
    let voters = prop::collection::btree_set(ids(), 1..=5);
    let outgoing = prop::collection::btree_set(ids(), 0..=5);
    let learners = prop::collection::btree_set(ids(), 0..=3);
    let drawn = (0..6_u8, 0..6_u8, 0..6_u8, 0..6_u8, 0..3_u64);
    (voters, outgoing, learners, 9..20_u64, drawn).prop_map(|(voters, outgoing, learners, next, drawn)| {
        let learners: Set = learners.into_iter().filter(|id| !voters.contains(id)).collect();
        let members: Set = &(&voters | &outgoing) | &learners;
        let nodes: BTreeMap<_, _> = members.into_iter().map(|id| (id, NodeId(id.0 * 100))).collect();
        let quorums = sizes(voters.len(), drawn.0, drawn.1);
        let outgoing_quorums = sizes(outgoing.len(), drawn.2, drawn.3);
        let next_replica = ReplicaId(next);
        Config { voters, outgoing, learners, nodes, next_replica, number: drawn.4, quorums, outgoing_quorums }
    })
}

fn subset() -> impl Strategy<Value = Set> {
    prop::collection::btree_set((1..=8_u64).prop_map(ReplicaId), 0..=8)
}

proptest! {
    #[test]
    fn a_set_is_a_quorum_if_it_contains_one(config in config(), has in subset()) {
        let contains = |quorums: Vec<Set>| quorums.iter().any(|quorum| quorum.is_subset(&has));
        prop_assert_eq!(config.is_elect_quorum(|id| has.contains(&id)), contains(elect_quorums(&config)));
        prop_assert_eq!(config.is_commit_quorum(|id| has.contains(&id)), contains(commit_quorums(&config)));
    }

    #[test]
    fn every_elect_quorum_meets_every_commit_quorum(config in config(), one in subset(), other in subset()) {
        if config.is_elect_quorum(|id| one.contains(&id)) && config.is_commit_quorum(|id| other.contains(&id)) {
            prop_assert!(!one.is_disjoint(&other));
        }
    }

    /// What lets a read barrier pass meets every elect quorum. (The converse does not hold: half of four voters meet every
    /// majority, and are not counted as enough.)
    #[test]
    fn what_confirms_a_read_meets_every_elect_quorum(config in config(), has in subset()) {
        if config.meets_every_elect_quorum(|id| has.contains(&id)) {
            prop_assert!(elect_quorums(&config).iter().all(|quorum| !quorum.is_disjoint(&has)));
        }
    }

    #[test]
    fn committed_is_the_highest_slot_that_some_quorum_reached(
        config in config(),
        at in prop::collection::vec(0..6_u64, 8),
    ) {
        let slot = |id: ReplicaId| Slot(at[usize::try_from(id.0 - 1).unwrap()]);
        let lowest_of = |quorum: &Set| quorum.iter().map(|id| slot(*id)).min().unwrap();
        let twin = commit_quorums(&config).iter().map(lowest_of).max();
        prop_assert_eq!(config.committed(slot), twin);
    }

    #[test]
    fn learners_count_for_nothing(config in config()) {
        prop_assert!(!config.is_elect_quorum(|id| config.learners.contains(&id) && !config.is_voter(id)));
    }

    #[test]
    fn a_record_reads_back(config in config()) {
        prop_assert_eq!(Config::decode(&config.encode()), Ok(config));
    }

    #[test]
    fn garbage_is_refused_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(config) = Config::decode(&bytes) {
            prop_assert_eq!(&config.encode()[..], &bytes[..], "only what encode writes is accepted");
        }
    }

    #[test]
    fn a_changed_record_is_another_or_none(config in config(), place: prop::sample::Index, flip in 1..=255_u8) {
        let mut bytes = config.encode().to_vec();
        let place = place.index(bytes.len());
        bytes[place] ^= flip;
        if let Ok(other) = Config::decode(&bytes) {
            prop_assert_ne!(&other, &config);
            prop_assert_eq!(&other.encode()[..], &bytes[..]);
        }
        bytes.truncate(place);
        prop_assert!(Config::decode(&bytes).is_err());
    }
}

#[test]
fn the_middle_one_of_any_number_of_voters_commits() {
    for voters in 1..=MEMBERS_MAX as u64 {
        let config = Config::of_voters((1..=voters).map(|id| (ReplicaId(id), NodeId(id))));
        // In an order that is not that of the ids.
        let slot = |replica: ReplicaId| Slot(replica.0 * 67 % 131);
        let mut slots: Vec<Slot> = config.members().map(slot).collect();
        slots.sort_unstable();
        let reached = slots[slots.len() - (slots.len() / 2 + 1)];
        assert_eq!(config.committed(slot), Some(reached), "of {voters}");
    }
}

#[test]
fn nobody_decides_in_an_empty_configuration() {
    let config = Config::default();
    assert!(!config.is_elect_quorum(|_| true));
    assert_eq!(config.committed(|_| Slot(9)), None);
}
