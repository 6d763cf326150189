//! Bounded, ordered, batched conversation between nodes.

mod packet;

use std::fmt;

use conclave_consensus::NodeId;

pub use packet::{Lane, Packet};

/// Sends packets to other nodes. Best effort: what is lost is lost silently, as on any network; what arrives of one lane
/// arrives in order and whole.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Queues packets for a node, in order, and never waits. Where the bound of the queue is met the packets that do not fit
    /// are dropped and counted.
    fn send(&self, to: NodeId, packets: &mut Vec<Packet>);
}

/// Receives what other nodes sent. Called from the transport's own tasks; must not block for long.
pub trait Inbound: Send + Sync + fmt::Debug {
    /// Takes packets that arrived from a node together, in order.
    fn receive(&self, from: NodeId, packets: Vec<Packet>);
}
