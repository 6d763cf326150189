//! Snapshots: fetched piece by piece, served to whoever may need one.

use std::time::Duration;

use bytes::Bytes;
use conclave_consensus::{Config, Effect, Mark, NodeId, ReplicaId, Slot, SnapshotMeta, Time};
use conclave_replica::{HostEffect, HostInput};
use conclave_transport::{Packet, SnapshotPrefix};

use crate::fixture::{Fixture, GROUP, says};

const SECOND: Duration = Duration::from_secs(1);

/// Where pieces are asked for: node, fetch, piece, and how many pieces are said to be here.
fn pulls(effects: &[HostEffect]) -> Vec<(u64, u64, u64, u64)> {
    let pull = |effect: &HostEffect| match effect {
        HostEffect::Send { to, packet: Packet::SnapshotPull { fetch, piece, have, .. } } => {
            Some((to.0, *fetch, *piece, have.pieces))
        }
        _ => None,
    };
    effects.iter().filter_map(pull).collect()
}

/// Who is asked for which piece.
fn asked(effects: &[HostEffect]) -> Vec<(u64, u64)> {
    pulls(effects).into_iter().map(|(to, _, piece, _)| (to, piece)).collect()
}

fn stores(effects: &[HostEffect]) -> Vec<u64> {
    let piece = |effect: &HostEffect| match effect {
        HostEffect::StorePiece { piece, .. } => Some(piece.after.pieces),
        _ => None,
    };
    effects.iter().filter_map(piece).collect()
}

fn forgets(effects: &[HostEffect]) -> Vec<u64> {
    let fetch = |effect: &HostEffect| match effect {
        HostEffect::ForgetFetch { fetch, .. } => Some(*fetch),
        _ => None,
    };
    effects.iter().filter_map(fetch).collect()
}

/// What is here once so many pieces are.
fn prefix(pieces: u64) -> SnapshotPrefix {
    SnapshotPrefix { slot: if pieces > 0 { 9 } else { 0 }, pieces, digest: u128::from(pieces) }
}

/// A fetch, told of what happens to it.
struct Fetching {
    fixture: Fixture,
    fetch: u64,
    now: Time,
}

impl Fetching {
    /// From replicas on nodes 20 and 30, or just these.
    fn from(replicas: &[u64]) -> Self {
        let mut fixture = Fixture::new();
        let first = offer(&mut fixture, 9, replicas);
        let [(_, fetch, 0, 0)] = pulls(&first)[..] else { panic!("expected one pull, got {first:?}") };
        Self { fixture, fetch, now: Time(0) }
    }

    fn arrives(&mut self, from: u64, piece: u64, body: Bytes, last: bool) -> Vec<HostEffect> {
        self.packet(from, prefix(piece), body, last)
    }

    fn packet(&mut self, from: u64, after: SnapshotPrefix, body: Bytes, last: bool) -> Vec<HostEffect> {
        let packet = Packet::SnapshotPiece { group: GROUP, fetch: self.fetch, after, body, last };
        self.fixture.step(self.now, HostInput::Packets { from: NodeId(from), packets: vec![packet] })
    }

    fn small(&mut self, from: u64, piece: u64) -> Vec<HostEffect> {
        self.arrives(from, piece, Bytes::from_static(b"piece"), false)
    }

    fn refuses(&mut self, from: u64, having: u64) -> Vec<HostEffect> {
        self.arrives(from, having, Bytes::new(), true)
    }

    fn stored(&mut self, pieces: u64) -> Vec<HostEffect> {
        let stored = HostInput::PieceStored { group: GROUP, fetch: self.fetch, have: prefix(pieces) };
        self.fixture.step(self.now, stored)
    }

    /// Three pieces arrive and are stored.
    fn three_of(&mut self, from: u64) {
        for piece in 0..3 {
            assert_eq!(stores(&self.small(from, piece)), [piece]);
            self.stored(piece + 1);
        }
    }

    /// Time goes by, in steps of 100 ms.
    fn pass(&mut self, time: Duration) -> Vec<HostEffect> {
        let mut effects = Vec::new();
        let until = self.now.after(time);
        while self.now < until {
            self.now = self.now.after(SECOND / 10);
            effects.extend(self.fixture.step(self.now, HostInput::Tick));
        }
        effects
    }

    fn failures(&self) -> usize {
        self.fixture.steps().iter().filter(|step| *step == "SnapshotFailed").count()
    }

    fn resumed(&self) -> u64 {
        self.fixture.host.counters().fetches_resumed
    }
}

fn offer(fixture: &mut Fixture, at_least: u64, replicas: &[u64]) -> Vec<HostEffect> {
    let from = replicas.iter().copied().map(ReplicaId).collect();
    fixture.emit(Effect::FetchSnapshot { at_least: Slot(at_least), from });
    let mut effects = Vec::new();
    fixture.host.drain(&mut effects);
    effects
}

#[test]
fn a_snapshot_is_fetched_piece_by_piece_into_a_new_generation() {
    let mut it = Fetching::from(&[2, 3]);
    // From another node, of another fetch, or not asked for: nobody's.
    assert!(it.small(90, 0).is_empty());
    assert!(it.small(20, 1).is_empty());
    it.fetch += 1;
    assert!(it.small(20, 0).is_empty());
    it.fetch -= 1;
    let effects = it.small(20, 0);
    assert!(
        matches!(&effects[0], HostEffect::StorePiece { piece, .. } if piece.generation == 5 && !piece.last)
    );
    it.stored(1);
    // Lost on the way: asked for again.
    let late = it.fixture.host.next_deadline().unwrap();
    let again = pulls(&it.fixture.step(late, HostInput::Tick));
    assert_eq!(again[0], (20, it.fetch, 1, 1));
    it.now = late;
    let effects = it.arrives(20, 1, Bytes::from_static(b"end"), true);
    assert!(matches!(&effects[..], [HostEffect::StorePiece { piece, .. }] if piece.last), "{effects:?}");
    let meta = SnapshotMeta { slot: Slot(9), generation: 5, ..SnapshotMeta::default() };
    it.fixture.step(late, HostInput::SnapshotStored { group: GROUP, fetch: it.fetch, meta });
    assert_eq!(it.fixture.steps().last().map(String::as_str), Some("snapshot at 9"));
    assert_eq!(it.fixture.host.next_deadline(), None);
}

#[test]
fn several_pieces_are_under_way_once_a_source_gives_them() {
    let mut it = Fetching::from(&[2]);
    let effects = it.small(20, 0);
    assert_eq!(
        asked(&effects),
        (1..8).map(|piece| (20, piece)).collect::<Vec<_>>(),
        "eight at most, stored or not"
    );
    assert_eq!(asked(&it.stored(1)), [(20, 8)]);
    // In whatever order they come, and however often, they are stored in theirs.
    assert_eq!(stores(&it.small(20, 3)), []);
    assert_eq!(stores(&it.small(20, 2)), []);
    assert_eq!(stores(&it.small(20, 2)), []);
    assert_eq!(stores(&it.small(20, 1)), [1, 2, 3]);
    assert_eq!(stores(&it.small(20, 1)), []);
    assert_eq!(asked(&it.stored(2)), [(20, 9)]);
    // Nothing is asked for beyond the last.
    assert_eq!(stores(&it.arrives(20, 4, Bytes::from_static(b"end"), true)), [4]);
    assert_eq!(asked(&it.stored(3)), []);
}

#[test]
fn what_is_under_way_is_bounded_by_bytes_too() {
    let mut it = Fetching::from(&[2]);
    let mib = |n: usize| Bytes::from(vec![0; n << 20]);
    assert_eq!(asked(&it.arrives(20, 0, mib(1), false)), [(20, 1), (20, 2), (20, 3)], "4 MiB");
    it.stored(1);
    assert_eq!(asked(&it.arrives(20, 1, mib(3), false)), [], "as long as that, one will do");
    for pieces in 2..=4 {
        assert_eq!(asked(&it.stored(pieces)), []);
        it.arrives(20, pieces, mib(1), false);
    }
    assert_eq!(asked(&it.stored(5)), [(20, 5)]);
}

#[test]
fn a_source_that_cannot_serve_gives_way_to_the_next_and_then_the_fetch_fails() {
    let mut it = Fetching::from(&[2, 3]);
    assert_eq!(asked(&it.refuses(20, 0)), [(30, 0)]);
    it.refuses(30, 0);
    assert_eq!(it.fixture.steps().last().map(String::as_str), Some("SnapshotFailed"));
    assert_eq!(it.fixture.host.next_deadline(), None);
}

#[test]
fn a_silent_source_is_asked_a_few_times() {
    let mut it = Fetching::from(&[2]);
    let asked = asked(&it.pass(SECOND * 4));
    assert!((2..=4).contains(&asked.len()), "{asked:?}, each after twice as long");
    it.pass(SECOND * 60);
    assert_eq!(it.failures(), 1);
}

#[test]
fn a_silent_source_gives_way_to_one_that_offers_meanwhile() {
    let mut it = Fetching::from(&[2]);
    it.pass(SECOND);
    assert_eq!(asked(&offer(&mut it.fixture, 9, &[3])), [], "the first may only be slow");
    let effects = it.pass(SECOND + SECOND / 5);
    assert_eq!(asked(&effects).last(), Some(&(30, 0)), "{effects:?}");
    assert_eq!((it.failures(), it.resumed()), (0, 0));
    // If the first answers after all before the second does, it will do.
    assert_eq!(stores(&it.small(20, 0)), [0]);
    assert_eq!(stores(&it.small(30, 1)), [], "from one source at a time");
    assert_eq!(stores(&it.small(20, 1)), [1]);
}

/// A leader that comes after another has what is needed; the one before, and what that one knew of, may be gone.
#[test]
fn whoever_offered_last_is_asked_first_and_who_is_silent_last() {
    let mut it = Fetching::from(&[2, 3]);
    it.three_of(20);
    it.fixture.step(it.now, says(9, 90));
    assert_eq!(asked(&offer(&mut it.fixture, 9, &[9])), []);
    let effects = it.pass(SECOND * 2 + SECOND / 5);
    assert_eq!(asked(&effects).last(), Some(&(90, 3)), "20 is silent");
    assert_eq!(asked(&it.refuses(90, 3)), [(30, 3)]);
    let effects = it.refuses(30, 3);
    assert_eq!(pulls(&effects), [(90, it.fetch + 1, 0, 0)], "anew");
    it.fetch += 1;
    assert_eq!(asked(&it.refuses(90, 0)), [(30, 0)]);
    assert_eq!(asked(&it.refuses(30, 0)), [(20, 0)]);
}

#[test]
fn another_source_goes_on_with_what_is_here() {
    let mut it = Fetching::from(&[2, 3]);
    it.three_of(20);
    let effects = it.pass(SECOND * 2 + SECOND / 5);
    assert_eq!(pulls(&effects).last(), Some(&(30, it.fetch, 3, 3)), "it must have the same three pieces");
    assert_eq!(it.resumed(), 0);
    let effects = it.small(30, 3);
    assert_eq!((stores(&effects), it.resumed()), (vec![3], 1));
    assert_eq!(asked(&effects).first(), Some(&(30, 4)), "from now on several at a time");
}

#[test]
fn the_same_source_goes_on_after_it_was_away() {
    let mut it = Fetching::from(&[2]);
    it.three_of(20);
    let effects = it.pass(SECOND * 20);
    assert_eq!(pulls(&effects).last(), Some(&(20, it.fetch, 3, 3)));
    assert_eq!((stores(&it.small(20, 3)), it.resumed(), it.failures()), (vec![3], 1, 0));
}

#[test]
fn where_nobody_can_go_on_it_begins_anew() {
    let mut it = Fetching::from(&[2]);
    it.three_of(20);
    let early = it.refuses(20, 2);
    assert!(early.is_empty(), "an answer to a question that was overtaken");
    let effects = it.refuses(20, 3);
    let (old, again) = (it.fetch, pulls(&effects));
    assert_eq!(again, [(20, old + 1, 0, 0)]);
    assert_eq!(forgets(&effects), [old]);
    it.fetch += 1;
    let effects = it.small(20, 0);
    assert!(matches!(&effects[0], HostEffect::StorePiece { piece, .. } if piece.generation == 6));
    let counters = it.fixture.host.counters();
    assert_eq!((counters.fetches, counters.fetches_anew, counters.fetches_resumed), (2, 1, 0));
    assert_eq!(it.failures(), 0, "the core need not know");
}

/// Eight pieces of 16 MiB, fetched again at 16 MiB a second, take eight seconds.
#[test]
fn before_much_is_thrown_away_the_silent_are_asked_again() {
    let mut it = Fetching::from(&[2, 3]);
    let body = Bytes::from(vec![0; 16 << 20]);
    for piece in 0..8 {
        it.arrives(20, piece, body.clone(), false);
        it.stored(piece + 1);
    }
    // The source is silent, and the other has another snapshot.
    let effects = it.pass(SECOND * 2 + SECOND / 2);
    assert_eq!(asked(&effects).last(), Some(&(30, 8)));
    assert_eq!(asked(&it.refuses(30, 8)), [(20, 8)], "perhaps it comes back");
    assert_eq!(forgets(&it.pass(SECOND * 7)), []);
    let effects = it.pass(SECOND * 4);
    assert_eq!(forgets(&effects), [it.fetch]);
    assert!(pulls(&effects).contains(&(30, it.fetch + 1, 0, 0)));
}

#[test]
fn little_is_thrown_away_at_once() {
    let mut it = Fetching::from(&[2, 3]);
    it.three_of(20);
    it.pass(SECOND * 2 + SECOND / 5);
    assert_eq!(pulls(&it.refuses(30, 3)), [(30, it.fetch + 1, 0, 0)]);
}

/// Forty pieces of 8 KiB take 19 ms: the silent are waited for no longer than that.
#[test]
fn for_little_the_silent_are_not_waited_for() {
    let mut it = Fetching::from(&[2, 3]);
    for piece in 0..40 {
        it.arrives(20, piece, Bytes::from(vec![0; 8 << 10]), false);
        it.stored(piece + 1);
    }
    it.pass(SECOND * 2 + SECOND / 5);
    it.refuses(30, 40);
    let effects = it.pass(SECOND / 5);
    assert!(pulls(&effects).contains(&(30, it.fetch + 1, 0, 0)), "{effects:?}");
}

/// Source 20 falls silent after eight pieces that are worth eight seconds, and 30 has another snapshot.
fn hoping() -> Fetching {
    let mut it = Fetching::from(&[2, 3]);
    let body = Bytes::from(vec![0; 16 << 20]);
    for piece in 0..8 {
        it.arrives(20, piece, body.clone(), false);
        it.stored(piece + 1);
    }
    it.pass(SECOND * 2 + SECOND / 2);
    assert_eq!(asked(&it.refuses(30, 8)), [(20, 8)]);
    it
}

#[test]
fn who_offers_again_is_waited_for_when_hope_is_over() {
    let mut it = hoping();
    it.pass(SECOND * 5);
    assert_eq!(asked(&offer(&mut it.fixture, 9, &[3])), []);
    let effects = it.pass(SECOND * 15);
    assert!(asked(&effects).contains(&(30, 8)), "{effects:?}");
    assert!(pulls(&effects).len() < 25, "{} in 15 seconds", pulls(&effects).len());
}

#[test]
fn what_is_gone_on_with_has_no_hope_left_that_could_be_over() {
    let mut it = hoping();
    // It says that it will until the transfer stands still for too long; the other offers then.
    for _ in 0..15 {
        it.pass(SECOND / 2);
        it.arrives(20, 8, Bytes::new(), false);
    }
    offer(&mut it.fixture, 9, &[3]);
    for _ in 0..50 {
        it.pass(SECOND / 2);
        it.arrives(20, 8, Bytes::new(), false);
        it.arrives(30, 8, Bytes::new(), false);
    }
    assert_eq!(it.failures(), 1);
    let first = offer(&mut it.fixture, 9, &[3]);
    assert_eq!(pulls(&first), [(30, it.fetch, 8, 8)]);
    let effects = it.pass(SECOND + SECOND / 2);
    assert!(asked(&effects).iter().all(|(from, _)| *from == 30), "{:?}", asked(&effects));
}

#[test]
fn a_source_that_says_it_will_is_not_left_but_not_waited_for_for_ever() {
    let mut it = Fetching::from(&[2, 3]);
    it.three_of(20);
    let mut effects = Vec::new();
    for _ in 0..29 {
        effects.extend(it.pass(SECOND));
        effects.extend(it.arrives(20, 3, Bytes::new(), false));
    }
    assert!(pulls(&effects).iter().all(|pull| pull.0 == 20));
    assert_eq!(it.failures(), 0);
    it.pass(SECOND * 2);
    assert_eq!(it.failures(), 1);
}

#[test]
fn what_was_received_outlives_giving_up() {
    let mut it = Fetching::from(&[2]);
    it.three_of(20);
    assert_eq!(forgets(&it.pass(SECOND * 40)), []);
    assert_eq!(it.failures(), 1);
    let effects = offer(&mut it.fixture, 9, &[3]);
    assert_eq!(pulls(&effects), [(30, it.fetch, 3, 3)]);
    assert_eq!((stores(&it.small(30, 3)), it.resumed()), (vec![3], 1));
    // If nobody wants it, it goes.
    it.stored(4);
    assert_eq!(forgets(&it.pass(SECOND * 40)), []);
    assert_eq!(it.failures(), 2);
    assert_eq!(forgets(&it.pass(SECOND * 60)), [it.fetch]);
    assert_eq!(pulls(&offer(&mut it.fixture, 9, &[3])), [(30, it.fetch + 1, 0, 0)]);
}

#[test]
fn what_was_received_is_of_no_use_where_a_later_snapshot_is_needed() {
    let mut it = Fetching::from(&[2]);
    it.three_of(20);
    it.pass(SECOND * 40);
    let effects = offer(&mut it.fixture, 10, &[3]);
    assert_eq!(forgets(&effects), [it.fetch]);
    assert_eq!(pulls(&effects), [(30, it.fetch + 1, 0, 0)]);
}

#[test]
fn a_snapshot_that_is_installed_ends_what_else_is_fetched() {
    let mut it = Fetching::from(&[2]);
    it.three_of(20);
    let meta = SnapshotMeta { slot: Slot(12), generation: 5, ..SnapshotMeta::default() };
    it.fixture.emit(Effect::InstallSnapshot { mark: Mark::default(), meta: Box::new(meta) });
    let mut effects = Vec::new();
    it.fixture.host.drain(&mut effects);
    assert_eq!(forgets(&effects), [it.fetch]);
    assert!(it.small(20, 3).is_empty());
}

#[test]
fn a_piece_that_does_not_fit_is_asked_for_again_and_a_broken_one_ends_it() {
    let mut it = Fetching::from(&[2]);
    it.three_of(20);
    it.small(20, 3);
    it.small(20, 4);
    for piece in [3, 4] {
        let strange = HostInput::PieceStrange { group: GROUP, fetch: it.fetch, piece };
        assert!(it.fixture.step(it.now, strange).is_empty());
    }
    let effects = it.pass(SECOND);
    assert_eq!(pulls(&effects)[0], (20, it.fetch, 3, 3));
    assert_eq!(stores(&it.small(20, 3)), [3]);
    it.fixture.step(it.now, HostInput::SnapshotBroken { group: GROUP, fetch: it.fetch });
    assert_eq!(it.failures(), 1);
    assert_eq!(it.fixture.host.next_deadline(), None, "nothing is kept of it");
}

fn pull(node: u64, fetch: u64) -> HostInput {
    let have = SnapshotPrefix::default();
    let pull = Packet::SnapshotPull { group: GROUP, fetch, at_least: 1, piece: 0, have };
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
