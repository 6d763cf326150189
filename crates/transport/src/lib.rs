//! Bounded, ordered, batched conversation between nodes.
//!
//! Consensus cores say things to each other; hosts forward commands, ask questions and hand over snapshots. All of it is a
//! [`Packet`], and a [`Transport`] carries packets from node to node. Two exist: [`TcpTransport`] and its twin inside one
//! process, [`MemoryTransport`], whose links a test can cut and slow down. Both pass the same conformance tests.
//!
//! # Vocabulary
//! - A *lane* is one of two independent, ordered streams between a pair of nodes: [`Lane::Consensus`] for what is small or
//!   urgent, [`Lane::Bulk`] for snapshots, so that a snapshot never delays a heartbeat.
//! - A *frame* is a packet on the wire ([`codec`]); a *head* is its part that evolves, a protobuf message.
//! - A *connection* carries one lane in one direction: each node dials each of its peers twice and only writes there, and
//!   only reads on what it accepted.
//!
//! # What holds
//! 1. Of one lane, what arrives arrives whole, once and in the order in which it was sent; a packet may be lost, silently.
//! 2. [`Transport::send`] never waits. Every queue is bounded in packets and in bytes ([`QueueBounds`]), and whatever is dropped is
//!    counted, with the reason.
//! 3. Nothing is delivered from a connection that has not shown the right cluster, the right target and a common version.
//! 4. Bytes from the network, whatever they are, cost bounded memory and time and never a panic.
//! 5. Long payloads are not copied on receipt: they are slices of the receive buffer. Short ones are copied, all of a frame at once: whoever
//!    keeps one keeps its neighbours of the same frame alive, at most [`INLINE_BYTES_MAX`](codec::INLINE_BYTES_MAX) bytes, and no buffer.
//!
//! # What a full queue drops
//! A newer beat ([`Class::Beat`](conclave_consensus::Class::Beat), [`Packet::Alive`]) takes the place of the queued one of the same sender,
//! receiver and group. Beyond that the newest is dropped: first whatever carries data, and, when a reserve of a quarter
//! more is used up, votes and acknowledgements too. What waited through a failed dial is dropped, being stale.

#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod codec;
mod consensus;
mod elements;
mod handshake;
mod memory;
mod notices;
mod packet;
mod queue;
mod stats;
mod stream;
mod tcp;
mod varint;
mod wire;

use std::fmt;

use conclave_consensus::NodeId;

pub use handshake::{About, Doorkeeper, HandshakeError, OpenDoor, Refusal, VERSION_MAX, VERSION_MIN};
pub use memory::{Link, MemoryNetwork, MemoryTransport};
pub use packet::{Lane, Packet, SnapshotPrefix};
pub use queue::QueueBounds;
pub use stats::{Failure, LaneStats, PeerStats, TransportStats};
pub use stream::{Acceptor, Connector, Plain, Stream, StreamFuture};
pub use tcp::{BindError, TcpOptions, TcpTransport, enquire};

/// Which cluster a node belongs to. Nodes of different clusters never exchange a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Sends packets to other nodes. Best effort: what is lost is lost silently, as on any network; what arrives of one lane
/// arrives in order and whole.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Queues packets for a node, in order, and never waits; leaves `packets` empty. Where the bound of the queue is met the packets
    /// that do not fit are dropped and counted.
    fn send(&self, to: NodeId, packets: &mut Vec<Packet>);
}

/// Receives what other nodes sent. Called from the transport's own tasks; must not block for long.
pub trait Inbound: Send + Sync + fmt::Debug {
    /// Takes packets that arrived from a node together, in order. The packets of one call are of one lane.
    fn receive(&self, from: NodeId, packets: Vec<Packet>);
}
