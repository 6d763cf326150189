//! What nodes say to each other.

use bytes::Bytes;
use conclave_consensus::{Epoch, GroupId, Message, Outcome, Proposal, ProposalId};

/// One unit of conversation between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// From one replica's core to another's.
    Consensus {
        /// Whose group.
        group: GroupId,
        /// What it says.
        message: Message,
    },
    /// "I live": one between two nodes, whatever the number of groups.
    Alive {
        /// In which of its lives.
        epoch: Epoch,
    },
    /// Commands whose clients wait at the sender, for the group's leader to propose.
    Forward {
        /// Whose group.
        group: GroupId,
        /// The commands, in order.
        batch: Vec<Proposal>,
    },
    /// The answer to a `Forward` that will not be proposed, or to forwarded proposals that were lost.
    Refused {
        /// Whose group.
        group: GroupId,
        /// Which proposals.
        ids: Vec<ProposalId>,
        /// How certain that is.
        outcome: Outcome,
        /// Refused because of load rather than leadership.
        busy: bool,
    },
    /// A question from one node's service to another's.
    Request {
        /// Matches the response.
        id: u64,
        /// The service's own encoding.
        body: Bytes,
    },
    /// The answer to a `Request`.
    Response {
        /// The request's.
        id: u64,
        /// The service's own encoding.
        body: Bytes,
    },
    /// Asks for a piece of the group's snapshot. Travels on the bulk lane.
    SnapshotPull {
        /// Whose group.
        group: GroupId,
        /// Names the fetch; of the asker's choosing.
        fetch: u64,
        /// It must contain this slot.
        at_least: u64,
        /// The piece wanted, from 0. Pieces are asked for in order; asking the same again is allowed.
        piece: u64,
    },
    /// A piece of a snapshot. Travels on the bulk lane.
    SnapshotPiece {
        /// Whose group.
        group: GroupId,
        /// The fetch it answers.
        fetch: u64,
        /// Which piece.
        piece: u64,
        /// The state machine's encoding; empty if the sender cannot serve the fetch.
        body: Bytes,
        /// Whether it is the last.
        last: bool,
    },
}

/// Which of the two connections between a pair of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Everything small or urgent, in order.
    Consensus,
    /// Snapshots.
    Bulk,
}

impl Packet {
    /// The connection it belongs on.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::SnapshotPull { .. } | Self::SnapshotPiece { .. } => Lane::Bulk,
            _ => Lane::Consensus,
        }
    }
}
