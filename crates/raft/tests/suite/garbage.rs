//! Bytes that no replica sent: refused or harmless, never a panic.

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Boot, Class, Config, Consensus, Effect, Entry, Input, Kind, LogReadId, LogSlice, Mark, Message,
    NodeId, ProposalId, ReadId, ReadMode, ReplicaId, Slot, SnapshotMeta, StepError, Time,
};
use conclave_raft::{Raft, RaftConfig, describe};
use proptest::prelude::*;

use crate::cluster::{Cluster, ELECTION, HEARTBEAT, replica};

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (0..12_u64, 0..5_u64, 0..3_u8, prop::collection::vec(any::<u8>(), 0..20));
    let make = |(slot, term, kind, payload): (u64, u64, u8, Vec<u8>)| Entry {
        slot: Slot(slot),
        ballot: Ballot::term(term),
        kind: Kind::from_code(kind).unwrap(),
        id: ProposalId::NONE,
        payload: Bytes::from(payload),
    };
    prop::collection::vec(entry.prop_map(make), 0..4)
}

/// Small numbers, and a few that overflow.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..12_u64, 1 => any::<u64>(), 1 => Just(u64::MAX), 1 => Just(1 << 62)]
}

fn varint(tag: u8, mut value: u64, out: &mut Vec<u8>) {
    out.push(tag << 3);
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

/// A head that decodes, with anything in its fields, some of them unknown.
fn head() -> impl Strategy<Value = Vec<u8>> {
    let fields = prop::collection::vec((1..7_u8, number()), 0..5);
    (0..8_u64, 3..17_u8, fields).prop_map(|(term, kind, fields)| {
        let mut body = Vec::new();
        fields.into_iter().for_each(|(tag, value)| varint(tag, value, &mut body));
        let mut head = Vec::new();
        varint(1, 1, &mut head);
        varint(2, term, &mut head);
        // Field numbers from 16 on take two bytes; there is no such kind anyway.
        head.extend([(kind % 16) << 3 | 2, u8::try_from(body.len()).unwrap()]);
        head.extend(body);
        head
    })
}

fn heads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![6 => head(), 1 => prop::collection::vec(any::<u8>(), 0..60)]
}

fn cluster(leads: bool) -> Cluster {
    let mut cluster = Cluster::new(3, 3);
    cluster.elect_this(replica(if leads { 1 } else { 2 }));
    cluster.propose(replica(if leads { 1 } else { 2 }), 4).unwrap();
    cluster.settle();
    cluster
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_of_garbage(leads: bool, sent in prop::collection::vec((1..5_u64, heads(), entries(), 0..1_500_u64), 1..12)) {
        let mut cluster = cluster(leads);
        let raft = cluster.nodes.get_mut(&replica(1)).unwrap().raft.as_mut().unwrap();
        let (mut now, mut effects) = (cluster.now, Vec::new());
        for (from, head, entries, pass_ms) in sent {
            let message =
                Message { from: ReplicaId(from), to: replica(1), class: Class::Append, head: head[..].into(), entries: entries.into() };
            let _ = describe(&message);
            let before = raft.status();
            match raft.step(now, Input::Message(message)) {
                Ok(()) => {}
                Err(StepError::BadMessage { .. }) => prop_assert_eq!(raft.status(), before),
                Err(other) => prop_assert!(false, "{other:?}"),
            }
            raft.drain(&mut effects);
            for effect in std::mem::take(&mut effects) {
                if let Effect::Persist { mark, .. } = effect {
                    raft.step(now, Input::Persisted(mark)).unwrap();
                }
            }
            now = now.after(std::time::Duration::from_millis(pass_ms));
            raft.step(now, Input::Tick).unwrap();
        }
    }

    #[test]
    fn messages_with_flipped_bits(seed: u64, flips in prop::collection::vec((any::<usize>(), any::<usize>(), 0..8_u32), 1..20)) {
        let mut cluster = Cluster::new(3, seed);
        cluster.elect_this(replica(1));
        for (at, byte, bit) in flips {
            let _ = cluster.propose(replica(1), 1);
            cluster.tick_at(cluster.now.after(HEARTBEAT));
            if cluster.network.is_empty() {
                break;
            }
            let place = at % cluster.network.len();
            let mut message = cluster.network[place].clone();
            let mut head = message.head.to_vec();
            let byte = byte % head.len();
            head[byte] ^= 1 << bit;
            message.head = head[..].into();
            // A peer that lies can break agreement; here it only must not break the process. So a twin listens that nobody asks.
            let to = message.to;
            let boot = Boot {
                replica: to,
                meta: cluster.nodes[&to].disk.meta.clone(),
                state: cluster.nodes[&to].disk.state.clone(),
                entries: cluster.nodes[&to].disk.entries.values().cloned().collect(),
                first: Slot(1),
                now: cluster.now,
                seed,
            };
            let mut twin = Raft::new(boot, RaftConfig::default()).unwrap();
            let _ = twin.step(cluster.now, Input::Message(message));
            twin.drain(&mut Vec::new());
            cluster.deliver_at(0);
            cluster.sync(to);
        }
        cluster.run(ELECTION);
    }

    #[test]
    fn a_record_of_garbage(meta in prop::collection::vec(any::<u8>(), 0..20)) {
        let state = SnapshotMeta {
            config: Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id)))),
            ..SnapshotMeta::default()
        };
        let (replica, now) = (ReplicaId(1), Time(0));
        let boot = Boot { replica, meta: Bytes::from(meta), state, entries: Vec::new(), first: Slot(1), now, seed: 1 };
        if let Ok(mut raft) = Raft::new(boot, RaftConfig::default()) {
            raft.step(Time(u64::MAX / 2), Input::Tick).unwrap();
            raft.drain(&mut Vec::new());
        }
    }

    #[test]
    fn completions_that_nobody_awaits(leads: bool, slot in number(), term in 0..4_u64, sequence in number()) {
        let mut cluster = cluster(leads);
        let mark = Mark { ballot: Ballot::term(term), sequence };
        let before = cluster.status(replica(1));
        for input in [
            Input::Persisted(mark),
            Input::SnapshotInstalled(mark),
            Input::SnapshotFailed,
            Input::LogRead { id: LogReadId(slot), result: LogSlice::Compacted },
            Input::LogRead { id: LogReadId(slot), result: LogSlice::Entries(Vec::new()) },
        ] {
            cluster.input(replica(1), input).unwrap();
        }
        prop_assert_eq!(cluster.status(replica(1)), before);
    }
}

#[test]
fn time_that_stands_still_or_ends_is_no_harm() {
    let mut cluster = cluster(true);
    let raft = cluster.nodes.get_mut(&replica(1)).unwrap().raft.as_mut().unwrap();
    raft.step(Time(0), Input::Tick).unwrap();
    raft.step(Time(u64::MAX), Input::Tick).unwrap();
    raft.step(Time(u64::MAX), Input::ReadBarrier { id: ReadId(1), mode: ReadMode::Quorum }).unwrap();
    raft.drain(&mut Vec::new());
}
