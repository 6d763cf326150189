//! What a transport counts.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use conclave_consensus::NodeId;

/// A count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts of one lane with one peer.
#[derive(Debug, Default)]
pub(crate) struct LaneCounters {
    pub sent_bytes: Counter,
    pub sent_packets: Counter,
    pub writes: Counter,
    pub received_bytes: Counter,
    pub received_packets: Counter,
    pub reads: Counter,
    pub dropped_full: Counter,
    pub dropped_stale: Counter,
    pub dropped_too_long: Counter,
    pub replaced: Counter,
    pub connects: Counter,
    pub failures: Counter,
}

impl LaneCounters {
    pub(crate) fn stats(&self) -> LaneStats {
        LaneStats {
            sent_bytes: self.sent_bytes.value(),
            sent_packets: self.sent_packets.value(),
            writes: self.writes.value(),
            received_bytes: self.received_bytes.value(),
            received_packets: self.received_packets.value(),
            reads: self.reads.value(),
            dropped_full: self.dropped_full.value(),
            dropped_stale: self.dropped_stale.value(),
            dropped_too_long: self.dropped_too_long.value(),
            replaced: self.replaced.value(),
            connects: self.connects.value(),
            failures: self.failures.value(),
            ..LaneStats::default()
        }
    }
}

/// One lane with one peer, both directions. Counts are since the peer was added; bytes are bytes on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Since when our connection to the peer stands; `None` while it does not.
    pub connected_since: Option<SystemTime>,
    /// Why our connection last failed or could not be made.
    pub last_failure: Option<Failure>,
    /// Packets that wait to be written.
    pub queued_packets: usize,
    /// Their bytes, by [`Packet::size_bytes`](crate::Packet::size_bytes).
    pub queued_bytes: usize,
    /// Bytes handed to the operating system.
    pub sent_bytes: u64,
    /// Packets handed to the operating system.
    pub sent_packets: u64,
    /// Batches in which they were written.
    pub writes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Batches in which they were received.
    pub reads: u64,
    /// Packets dropped because the queue was full.
    pub dropped_full: u64,
    /// Packets dropped because the peer could not be reached while they waited, or its connection broke under them.
    pub dropped_stale: u64,
    /// Packets dropped because they are longer than a frame may be.
    pub dropped_too_long: u64,
    /// Beats replaced by newer ones.
    pub replaced: u64,
    /// Connections made to the peer.
    pub connects: u64,
    /// Connections to the peer that broke or could not be made.
    pub failures: u64,
}

impl LaneStats {
    /// Packets given to `send` that never reached the operating system, for whatever reason but a newer beat.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped_full + self.dropped_stale + self.dropped_too_long
    }
}

/// A failure of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: SystemTime,
    /// One line for people.
    pub why: String,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// Which.
    pub node: NodeId,
    /// Where it is dialed, each `host:port`, with commas between them; empty in memory.
    pub address: String,
    /// The lane of everything small or urgent.
    pub consensus: LaneStats,
    /// The lane of snapshots.
    pub bulk: LaneStats,
}

/// A transport as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Each peer, by node id.
    pub peers: Vec<PeerStats>,
    /// Connections accepted and open.
    pub inbound_connections: usize,
    /// Connections refused in the handshake: another cluster, another target, no common version, a removed node.
    pub inbound_refused: u64,
    /// Connections closed because what came was not ours: garbage, a broken frame, silence.
    pub inbound_foreign: u64,
    /// Connections closed unheard because too many were open.
    pub inbound_turned_away: u64,
    /// Frames of kinds that this version does not know.
    pub unknown_frames: u64,
    /// Packets for nodes that are no peers.
    pub dropped_unknown_peer: u64,
}
