//! What nodes say to each other.

use std::fmt;

use bytes::Bytes;
use conclave_consensus::{Class, Epoch, GroupId, Message, Outcome, Proposal, ProposalId, ReplicaId};

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
        /// The piece wanted, from 0: the one after what the asker has, or one of the few after that. Asking the same again is allowed.
        piece: u64,
        /// What the asker has stored. Only a snapshot that begins with just that may go on.
        have: SnapshotPrefix,
    },
    /// A piece of a snapshot. Travels on the bulk lane.
    SnapshotPiece {
        /// Whose group.
        group: GroupId,
        /// The fetch it answers.
        fetch: u64,
        /// What comes before it, and so which piece it is.
        after: SnapshotPrefix,
        /// The state machine's encoding. Empty, it says that the sender cannot serve the fetch (`last`), or that it will in a while.
        body: Bytes,
        /// Whether it is the last.
        last: bool,
    },
}

/// The beginning of a snapshot, up to some piece. Two that are equal are of the same bytes, whoever served them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotPrefix {
    /// The last slot that the snapshot contains; zero where nothing is known of it.
    pub slot: u64,
    /// How many pieces.
    pub pieces: u64,
    /// Of their bytes, in order, each preceded by its length; zero for none.
    pub digest: u128,
}

/// Which of the two connections between a pair of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Everything small or urgent, in order.
    Consensus,
    /// Snapshots.
    Bulk,
}

impl Lane {
    /// Both, in the order of their numbers on the wire.
    pub const ALL: [Self; 2] = [Self::Consensus, Self::Bulk];
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Consensus => "consensus",
            Self::Bulk => "bulk",
        })
    }
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

    /// What it costs in bounds of bytes: its payloads and a fixed share for what surrounds them.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let body = match self {
            Self::Consensus { message, .. } => message.size_bytes(),
            Self::Forward { batch, .. } => batch.iter().map(|proposal| 64 + proposal.payload.len()).sum(),
            Self::Refused { ids, .. } => ids.len() * 24,
            Self::Request { body, .. } | Self::Response { body, .. } | Self::SnapshotPiece { body, .. } => {
                body.len()
            }
            Self::Alive { .. } | Self::SnapshotPull { .. } => 0,
        };
        32 + body
    }

    /// Whether it may use a full queue's reserve: small, and what the sender's progress hangs on.
    pub(crate) fn is_control(&self) -> bool {
        match self {
            Self::Consensus { message, .. } => matches!(message.class, Class::Beat | Class::Control),
            Self::Alive { .. } | Self::Refused { .. } => true,
            _ => false,
        }
    }

    /// Names the periodic conversation it belongs to, of which only the newest counts.
    pub(crate) fn beat(&self) -> Option<Beat> {
        match self {
            Self::Consensus { group, message } if message.class == Class::Beat => {
                Some(Beat::Replica { group: *group, from: message.from, to: message.to })
            }
            Self::Alive { .. } => Some(Beat::Node),
            _ => None,
        }
    }
}

/// Which beats replace each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Beat {
    /// The node's own.
    Node,
    /// One replica's to another.
    Replica { group: GroupId, from: ReplicaId, to: ReplicaId },
}
