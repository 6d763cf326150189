//! A receiver that tests wait on, and packets to send to it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Class, Entries, Entry, Epoch, GroupId, Kind, Message, NodeId, Outcome, Proposal, ProposalId,
    ReplicaId, Slot,
};
use conclave_transport::{Inbound, Lane, Packet, SnapshotPrefix};
use parking_lot::{Condvar, Mutex};

/// How long a test waits before it calls a packet lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Inbox {
    received: Mutex<Vec<(NodeId, Packet)>>,
    arrived: Condvar,
}

impl Inbound for Inbox {
    fn receive(&self, from: NodeId, packets: Vec<Packet>) {
        assert!(!packets.is_empty() && packets.iter().all(|packet| packet.lane() == packets[0].lane()));
        self.received.lock().extend(packets.into_iter().map(|packet| (from, packet)));
        self.arrived.notify_all();
    }
}

impl Inbox {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Waits until the packets received satisfy a condition, and takes them all.
    pub(crate) fn take_when(&self, done: impl Fn(&[(NodeId, Packet)]) -> bool) -> Vec<(NodeId, Packet)> {
        let deadline = Instant::now() + PATIENCE;
        let mut received = self.received.lock();
        while !done(&received) {
            if self.arrived.wait_until(&mut received, deadline).timed_out() && !done(&received) {
                panic!("only {} packets came: {:.300}", received.len(), format!("{received:?}"));
            }
        }
        std::mem::take(&mut *received)
    }

    pub(crate) fn take(&self, count: usize) -> Vec<(NodeId, Packet)> {
        self.take_when(|received| received.len() >= count)
    }

    pub(crate) fn len(&self) -> usize {
        self.received.lock().len()
    }
}

/// Waits for something that has no other sign.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn request(id: u64) -> Packet {
    Packet::Request { id, body: Bytes::from_static(b"body") }
}

pub(crate) fn piece(piece: u64, len: usize) -> Packet {
    let body = Bytes::from(vec![piece as u8; len]);
    let after = SnapshotPrefix { pieces: piece, ..SnapshotPrefix::default() };
    Packet::SnapshotPiece { group: GroupId(1), fetch: 1, after, body, last: false }
}

pub(crate) fn append(slots: std::ops::Range<u64>, payload: &Bytes) -> Packet {
    let entries = slots.map(|slot| Entry {
        slot: Slot(slot),
        ballot: Ballot::term(3),
        kind: Kind::Command,
        id: ProposalId { node: NodeId(0xdead_beef_0000_0001), sequence: 1 << 40 | slot },
        payload: payload.clone(),
    });
    let (from, to, head) = (ReplicaId(1), ReplicaId(2), Bytes::from_static(b"append head"));
    let message = Message { from, to, class: Class::Append, head: head.into(), entries: entries.collect() };
    Packet::Consensus { group: GroupId(1), message }
}

/// One packet of each shape and lane.
pub(crate) fn every_kind() -> Vec<Packet> {
    let group = GroupId(5);
    let entry = |slot, kind, payload: &'static [u8]| Entry {
        slot: Slot(slot),
        ballot: Ballot { config: 2, round: 7, replica: ReplicaId(3) },
        kind,
        id: ProposalId { node: NodeId(0xa1), sequence: 300 },
        payload: Bytes::from_static(payload),
    };
    let entries = vec![
        entry(41, Kind::Command, b"put"),
        entry(42, Kind::Noop, b""),
        entry(43, Kind::Config, b"\x01config"),
    ];
    let id = |sequence| ProposalId { node: NodeId(0xb2), sequence };
    let consensus = |class, entries| Packet::Consensus {
        group,
        message: Message {
            from: ReplicaId(1),
            to: ReplicaId(2),
            class,
            head: Bytes::from_static(b"head").into(),
            entries,
        },
    };
    let unnamed = SnapshotPrefix { pieces: 3, ..SnapshotPrefix::default() };
    let three = SnapshotPrefix { slot: 43, pieces: 3, digest: 0xd1 << 64 | 0xd0 };
    vec![
        consensus(Class::Append, entries.into()),
        consensus(Class::Beat, Entries::default()),
        consensus(Class::Control, Entries::default()),
        consensus(Class::Bulk, Entries::default()),
        Packet::Alive { epoch: Epoch(9) },
        Packet::Forward {
            group,
            batch: vec![
                Proposal { id: id(1), payload: Bytes::from_static(b"one") },
                Proposal { id: id(2), payload: Bytes::from_static(b"two") },
            ],
        },
        Packet::Refused { group, ids: vec![id(1), id(2)], outcome: Outcome::Unknown, busy: true },
        Packet::Refused { group, ids: Vec::new(), outcome: Outcome::Dropped, busy: false },
        Packet::Request { id: 77, body: Bytes::from_static(b"question") },
        Packet::Response { id: 77, body: Bytes::new() },
        Packet::SnapshotPull { group, fetch: 8, at_least: 42, piece: 3, have: SnapshotPrefix::default() },
        Packet::SnapshotPiece {
            group,
            fetch: 8,
            after: unnamed,
            body: Bytes::from_static(b"state"),
            last: true,
        },
        Packet::SnapshotPull { group, fetch: 8, at_least: 42, piece: 4, have: three },
        Packet::SnapshotPiece {
            group,
            fetch: 8,
            after: three,
            body: Bytes::from_static(b"state"),
            last: true,
        },
    ]
}

pub(crate) fn on_lane(packets: Vec<(NodeId, Packet)>, lane: Lane) -> Vec<Packet> {
    packets.into_iter().map(|(_, packet)| packet).filter(|packet| packet.lane() == lane).collect()
}
