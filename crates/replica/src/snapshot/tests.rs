use std::sync::Arc;

use bytes::Bytes;
use conclave_consensus::{GroupId, NodeId, Slot, SnapshotMeta};
use conclave_storage::{SnapshotSink, SnapshotSource, StateError};
use conclave_transport::SnapshotPrefix;
use parking_lot::Mutex;

use super::*;
use crate::HostInput;

const GROUP: GroupId = GroupId(1);
const TO: NodeId = NodeId(7);

/// A snapshot whose pieces are these, and counts how many were read.
#[derive(Clone, Debug)]
struct Pieces {
    slot: u64,
    pieces: Vec<Bytes>,
    read: Arc<Mutex<usize>>,
    at: usize,
}

impl Pieces {
    fn new(slot: u64, pieces: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let pieces = pieces.into_iter().map(Bytes::from).collect();
        Self { slot, pieces, read: Arc::default(), at: 0 }
    }

    fn whole(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    fn open(&self) -> Option<Box<dyn SnapshotSource>> {
        Some(Box::new(self.clone()))
    }
}

impl SnapshotSource for Pieces {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { slot: Slot(self.slot), ..SnapshotMeta::default() }
    }

    fn next(&mut self, _: usize) -> Result<Option<Bytes>, StateError> {
        *self.read.lock() += 1;
        self.at += 1;
        Ok(self.pieces.get(self.at - 1).cloned())
    }
}

/// What reached the disk, and what was thrown away.
#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    open: usize,
    /// From so many bytes on it is full.
    room: Option<usize>,
}

#[derive(Debug)]
struct Sink(Arc<Mutex<Disk>>);

impl SnapshotSink for Sink {
    fn piece(&mut self, bytes: Bytes) -> Result<(), StateError> {
        let mut disk = self.0.lock();
        disk.bytes.extend_from_slice(&bytes);
        if disk.room.is_some_and(|room| disk.bytes.len() > room) { Err(StateError::Full) } else { Ok(()) }
    }

    fn finish(self: Box<Self>) -> Result<SnapshotMeta, StateError> {
        Ok(SnapshotMeta { slot: Slot(9), ..SnapshotMeta::default() })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
    }
}

/// One who fetches, and its disk.
#[derive(Default)]
struct Receiver {
    receiver: SnapshotReceiver,
    disk: Arc<Mutex<Disk>>,
    have: SnapshotPrefix,
}

impl Receiver {
    fn take(&mut self, served: Served) -> HostInput {
        let Served::Piece { after, body, last } = served else { panic!("expected a piece, got {served:?}") };
        let piece = ArrivedPiece { fetch: 1, generation: 5, after, body, last };
        let disk = Arc::clone(&self.disk);
        let input = self.receiver.store(GROUP, piece, &mut |_| {
            let mut begun = disk.lock();
            begun.bytes.clear();
            begun.open += 1;
            Ok(Box::new(Sink(Arc::clone(&disk))))
        });
        if let HostInput::PieceStored { have, .. } = &input {
            self.have = *have;
        }
        input
    }

    fn asks(&self, piece: u64) -> PieceRequest {
        PieceRequest { fetch: 1, at_least: Slot(1), piece, have: self.have }
    }

    /// Fetches so many pieces, one after the other.
    fn fetch(&mut self, server: &mut SnapshotServer, source: &Pieces, pieces: u64) {
        for piece in self.have.pieces..self.have.pieces + pieces {
            let served = server.serve(TO, self.asks(piece), &mut || source.open()).unwrap();
            self.take(served);
        }
    }
}

fn small(slot: u64, salt: u8, pieces: u8) -> Pieces {
    Pieces::new(slot, (0..pieces).map(|n| vec![salt, n]))
}

fn serve(server: &mut SnapshotServer, source: &Pieces, request: PieceRequest) -> Served {
    server.serve(TO, request, &mut || source.open()).unwrap()
}

#[test]
fn pieces_under_way_may_be_asked_for_again_and_no_more_than_that_is_kept() {
    let source = Pieces::new(9, (0..20).map(|n| vec![n; 1 << 20]));
    let (mut server, mut receiver) = (SnapshotServer::default(), Receiver::default());
    let first: Vec<_> = (0..4).map(|piece| serve(&mut server, &source, receiver.asks(piece))).collect();
    for (piece, first) in (0..).zip(&first) {
        assert!(matches!(first, Served::Piece { after, .. } if after.pieces == piece));
        assert_eq!(&serve(&mut server, &source, receiver.asks(piece)), first, "asked again");
    }
    assert_eq!(serve(&mut server, &source, receiver.asks(4)), Served::Nothing, "4 MiB are under way");
    let old = receiver.asks(0);
    receiver.take(first[0].clone());
    assert!(matches!(serve(&mut server, &source, receiver.asks(4)), Served::Piece { .. }));
    assert_eq!(serve(&mut server, &source, old), Served::Nothing, "a question that was overtaken");
    assert_eq!(*source.read.lock(), 6, "five given, one read ahead");
}

#[test]
fn another_life_of_the_source_goes_on_after_the_beginning_that_it_has_too() {
    let source = small(9, 1, 30);
    let mut receiver = Receiver::default();
    receiver.fetch(&mut SnapshotServer::default(), &source, 11);
    // The source has booted; so might another have this very checkpoint.
    let mut server = SnapshotServer::default();
    receiver.fetch(&mut server, &source, 18);
    let served = serve(&mut server, &source, receiver.asks(29));
    assert!(matches!(receiver.take(served), HostInput::SnapshotStored { .. }));
    assert_eq!(receiver.disk.lock().bytes, source.whole());
}

#[test]
fn a_snapshot_that_begins_differently_does_not_go_on() {
    let source = small(9, 1, 30);
    let mut receiver = Receiver::default();
    receiver.fetch(&mut SnapshotServer::default(), &source, 11);
    let (later, other, shorter) = (small(10, 1, 30), small(9, 2, 30), small(9, 1, 5));
    for (other, reads) in [(&later, 0), (&other, 12), (&shorter, 6)] {
        let served = serve(&mut SnapshotServer::default(), other, receiver.asks(11));
        assert_eq!((served, *other.read.lock()), (Served::Gone, reads), "slot {}", other.slot);
    }
    let too_late = PieceRequest { at_least: Slot(10), ..receiver.asks(11) };
    assert_eq!(serve(&mut SnapshotServer::default(), &source, too_late), Served::Gone);
    let mut server = SnapshotServer::default();
    assert!(matches!(serve(&mut server, &source, receiver.asks(11)), Served::Piece { .. }));
}

#[test]
fn a_long_beginning_is_read_again_in_turns() {
    let source = Pieces::new(9, (0..40).map(|n| vec![n; 1 << 20]));
    let mut receiver = Receiver::default();
    receiver.fetch(&mut SnapshotServer::default(), &source, 30);
    let mut server = SnapshotServer::default();
    let mut turns = 0;
    while serve(&mut server, &source, receiver.asks(30)) == Served::Later {
        turns += 1;
    }
    assert_eq!(turns, 3, "30 MiB, 8 at a time");
    receiver.fetch(&mut server, &source, 9);
    assert_eq!(receiver.disk.lock().bytes[..], source.whole()[..39 << 20]);
}

#[test]
fn a_fetch_that_nobody_goes_on_with_is_forgotten_and_four_are_served_at_a_time() {
    let source = small(9, 1, 30);
    let mut server = SnapshotServer::default();
    let ask = |node| (NodeId(node), Receiver::default().asks(0));
    for node in 1..=6 {
        let (to, request) = ask(node);
        server.serve(to, request, &mut || source.open()).unwrap();
    }
    assert_eq!(server.askers(), [3, 4, 5, 6]);
    server.sweep();
    let (to, request) = ask(5);
    server.serve(to, request, &mut || source.open()).unwrap();
    server.sweep();
    assert_eq!(server.askers(), [5]);
}

/// Sources crash, give way to others with the same slot, and what they sent arrives late: what is stored is always of one of them.
#[test]
fn pieces_of_two_snapshots_are_never_mixed() {
    let mut draw = 1_u64;
    let mut below = |bound: u64| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (draw >> 33) % bound
    };
    let (mut finished, mut strange, mut gone) = (0, 0, 0);
    for _ in 0..300 {
        // Of one slot, and of the same beginning.
        let common = below(4) as u8;
        let beginning = (0..common).map(|n| vec![0, n]);
        let of = |salt: u8| Pieces::new(9, beginning.clone().chain((common..12).map(move |n| vec![salt, n])));
        let sources = [of(1), of(2)];
        let mut servers = [SnapshotServer::default(), SnapshotServer::default()];
        let (mut receiver, mut late, mut current) = (Receiver::default(), Vec::new(), 0);
        for _ in 0..400 {
            match below(12) {
                0 => servers[current] = SnapshotServer::default(),
                1 => current = 1 - current,
                2..7 if !late.is_empty() => {
                    let at = below(late.len() as u64) as usize;
                    let served: Served = late.swap_remove(at);
                    let input = receiver.take(served);
                    strange += u32::from(matches!(input, HostInput::PieceStrange { .. }));
                }
                _ => {
                    let piece = receiver.have.pieces + below(3);
                    match serve(&mut servers[current], &sources[current], receiver.asks(piece)) {
                        served @ Served::Piece { .. } => late.push(served),
                        Served::Gone => gone += 1,
                        Served::Later | Served::Nothing => {}
                    }
                }
            }
            let disk = receiver.disk.lock();
            let stored = &disk.bytes;
            assert!(sources.iter().any(|source| source.whole().starts_with(stored)), "{stored:?}");
            if stored.len() == 24 {
                finished += 1;
                break;
            }
        }
    }
    assert!(finished > 50 && strange > 50 && gone > 50, "{finished} {strange} {gone}");
}

#[test]
fn what_cannot_be_stored_leaves_nothing() {
    let source = small(9, 1, 30);
    let (mut server, mut receiver) = (SnapshotServer::default(), Receiver::default());
    receiver.disk.lock().room = Some(7);
    receiver.fetch(&mut server, &source, 3);
    assert_eq!(receiver.disk.lock().open, 1);
    let served = serve(&mut server, &source, receiver.asks(3));
    assert!(matches!(receiver.take(served), HostInput::SnapshotBroken { .. }));
    assert_eq!(receiver.disk.lock().open, 0, "the disk is full, and it is given back");
    let served = serve(&mut server, &source, receiver.asks(4));
    assert!(matches!(receiver.take(served), HostInput::SnapshotBroken { .. }), "what comes after it");
    assert_eq!(receiver.disk.lock().open, 0);
}

#[test]
fn what_is_forgotten_leaves_nothing() {
    let (mut server, mut receiver) = (SnapshotServer::default(), Receiver::default());
    receiver.fetch(&mut server, &small(9, 1, 30), 3);
    receiver.receiver.forget(2);
    assert_eq!(receiver.disk.lock().open, 1, "another fetch");
    receiver.receiver.forget(1);
    assert_eq!(receiver.disk.lock().open, 0);
}
