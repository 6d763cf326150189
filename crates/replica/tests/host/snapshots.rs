//! Snapshots: fetched piece by piece, served to whoever may need one.

use std::time::Duration;

use bytes::Bytes;
use conclave_consensus::{Config, Effect, NodeId, ReplicaId, Slot, SnapshotMeta, Time};
use conclave_replica::{HostEffect, HostInput};
use conclave_transport::Packet;

use crate::fixture::{Fixture, GROUP, says};

fn pull_of(effects: &[HostEffect]) -> (NodeId, u64, u64) {
    match effects {
        [HostEffect::Send { to, packet: Packet::SnapshotPull { fetch, piece, .. } }] => (*to, *fetch, *piece),
        other => panic!("expected a pull, got {other:?}"),
    }
}

fn piece(fetch: u64, piece: u64, body: &'static [u8], last: bool) -> Packet {
    Packet::SnapshotPiece { group: GROUP, fetch, piece, body: Bytes::from_static(body), last }
}

#[test]
fn a_snapshot_is_fetched_piece_by_piece_into_a_new_generation() {
    let mut fixture = Fixture::new();
    fixture.emit(Effect::FetchSnapshot { at_least: Slot(9), from: vec![ReplicaId(2), ReplicaId(3)] });
    let mut effects = Vec::new();
    fixture.host.drain(&mut effects);
    let (to, fetch, first) = pull_of(&effects);
    assert_eq!((to, first), (NodeId(20), 0));
    // From another node, of another fetch, or out of order: nobody's.
    for (from, packet) in [
        (30, piece(fetch, 0, b"a", false)),
        (20, piece(fetch + 1, 0, b"a", false)),
        (20, piece(fetch, 1, b"a", false)),
    ] {
        assert!(
            fixture
                .step(Time(0), HostInput::Packets { from: NodeId(from), packets: vec![packet] })
                .is_empty()
        );
    }
    let arrived = HostInput::Packets { from: NodeId(20), packets: vec![piece(fetch, 0, b"a", false)] };
    let effects = fixture.step(Time(0), arrived);
    assert!(matches!(effects[..], [HostEffect::StorePiece { piece: 0, generation: 5, last: false, .. }]));
    let effects = fixture.step(Time(0), HostInput::PieceStored { group: GROUP, fetch });
    assert_eq!(pull_of(&effects).2, 1);
    // Lost on the way: asked for again.
    let late = fixture.host.next_deadline().unwrap();
    assert_eq!(pull_of(&fixture.step(late, HostInput::Tick)), (NodeId(20), fetch, 1));
    let effects = fixture
        .step(late, HostInput::Packets { from: NodeId(20), packets: vec![piece(fetch, 1, b"b", true)] });
    assert!(matches!(effects[..], [HostEffect::StorePiece { piece: 1, last: true, .. }]));
    let meta = SnapshotMeta { slot: Slot(9), generation: 5, ..SnapshotMeta::default() };
    fixture.step(late, HostInput::SnapshotStored { group: GROUP, fetch, meta });
    assert_eq!(fixture.steps().last().map(String::as_str), Some("snapshot at 9"));
}

#[test]
fn a_source_that_cannot_serve_gives_way_to_the_next_and_then_the_fetch_fails() {
    let mut fixture = Fixture::new();
    fixture.emit(Effect::FetchSnapshot { at_least: Slot(9), from: vec![ReplicaId(2), ReplicaId(3)] });
    let mut effects = Vec::new();
    fixture.host.drain(&mut effects);
    let (_, fetch, _) = pull_of(&effects);
    let refused = |from| HostInput::Packets { from: NodeId(from), packets: vec![piece(fetch, 0, b"", true)] };
    assert_eq!(pull_of(&fixture.step(Time(0), refused(20))).0, NodeId(30));
    fixture.step(Time(0), refused(30));
    assert_eq!(fixture.steps().last().map(String::as_str), Some("SnapshotFailed"));
    assert_eq!(fixture.host.next_deadline(), None);
}

#[test]
fn a_silent_source_is_asked_a_few_times() {
    let mut fixture = Fixture::new();
    fixture.emit(Effect::FetchSnapshot { at_least: Slot(9), from: vec![ReplicaId(2)] });
    fixture.host.drain(&mut Vec::new());
    let mut now = Time(0);
    for _ in 0..20 {
        now = now.after(Duration::from_secs(3));
        fixture.step(now, HostInput::Tick);
    }
    assert_eq!(fixture.steps().iter().filter(|step| *step == "SnapshotFailed").count(), 1);
}

fn pull(node: u64, fetch: u64) -> HostInput {
    let pull = Packet::SnapshotPull { group: GROUP, fetch, at_least: 1, piece: 0 };
    HostInput::Packets { from: NodeId(node), packets: vec![pull] }
}

fn served(effects: &[HostEffect]) -> Vec<u64> {
    let to = |effect: &HostEffect| match effect {
        HostEffect::ServePiece { to, .. } => Some(to.0),
        _ => None,
    };
    effects.iter().filter_map(to).collect()
}

#[test]
fn snapshots_are_served_to_members_and_to_who_left() {
    let mut fixture = Fixture::new();
    assert_eq!(served(&fixture.step(Time(0), pull(20, 1))), [20]);
    let config = Config::of_voters([(ReplicaId(1), NodeId(10)), (ReplicaId(3), NodeId(30))]);
    fixture.emit(Effect::Membership { config: config.into(), at: Slot(4), committed: false });
    fixture.host.drain(&mut Vec::new());
    assert_eq!(served(&fixture.step(Time(0), pull(20, 2))), [20]);
    fixture.step(Time(0), says(9, 90));
    assert_eq!(served(&fixture.step(Time(0), pull(90, 1))), [90], "it was heard");
}

#[test]
fn one_node_that_is_not_known_is_served_at_a_time_and_not_anew_at_will() {
    let mut fixture = Fixture::new();
    assert_eq!(served(&fixture.step(Time(0), pull(98, 1))), [98], "perhaps it is about to be a member");
    for node in 100..200 {
        assert_eq!(served(&fixture.step(Time(1), pull(node, 1))), []);
    }
    for fetch in 2..100 {
        assert_eq!(served(&fixture.step(Time(1), pull(98, fetch))), [], "each beginning costs something");
    }
    assert_eq!(served(&fixture.step(Time(1), pull(98, 1))), [98], "what was begun goes on");
    let mut now = Time(1);
    now = now.after(Duration::from_secs(1));
    assert_eq!(served(&fixture.step(now, pull(98, 2))), [98]);
    assert_eq!(served(&fixture.step(now, pull(20, 1))), [20], "members are not kept waiting by it");
    now = now.after(Duration::from_secs(20));
    assert_eq!(served(&fixture.step(now, pull(99, 1))), [99], "its place is free");
    assert_eq!(served(&fixture.step(now, pull(98, 2))), []);
}
