//! What a host is stepped with and what it wants done.

use conclave_consensus::{
    Ballot, Config, Entries, GroupId, LogOp, LogReadId, LogSlice, Mark, MembershipChange, NodeId, Proposal,
    ProposalId, ReadError, ReadId, Slot, SlotRange, SnapshotMeta,
};
use conclave_transport::{Packet, SnapshotPrefix};

use crate::{ArrivedPiece, PieceRequest, ReconfigureError};

/// What a host is stepped with.
#[derive(Debug)]
pub enum HostInput {
    /// Time has come.
    Tick,
    /// Packets that arrived together from a node.
    Packets {
        /// The sender.
        from: NodeId,
        /// In order.
        packets: Vec<Packet>,
    },
    /// Commands whose clients wait at this node.
    Propose {
        /// For which group.
        group: GroupId,
        /// In order.
        batch: Vec<Proposal>,
    },
    /// A command that is of use only if this node leads in a ballot: chosen in that one, or not at all. Never forwarded, never parked.
    ProposeIn {
        /// For which group.
        group: GroupId,
        /// In which ballot.
        ballot: Ballot,
        /// What.
        proposal: Proposal,
    },
    /// A linearizable read.
    ReadBarrier {
        /// Of which group.
        group: GroupId,
        /// Never reused within a boot.
        id: ReadId,
    },
    /// Hand a group's leadership to the replica on another node.
    Transfer {
        /// Of which group.
        group: GroupId,
        /// How the answer names it.
        id: ProposalId,
        /// The heir's node.
        to: NodeId,
    },
    /// Change a group's membership: all of the changes, or none. The entry that decides it is applied with the id, or
    /// [`HostEffect::ChangeRefused`] or [`HostEffect::Failed`] names it. Never forwarded.
    Reconfigure {
        /// Of which group.
        group: GroupId,
        /// How the answer names it.
        id: ProposalId,
        /// What to change, in order.
        changes: Vec<MembershipChange>,
    },
    /// The log synced up to a mark.
    Logged {
        /// Of which group.
        group: GroupId,
        /// As in [`HostEffect::Log`].
        mark: Mark,
    },
    /// The log was read.
    LogRead {
        /// Of which group.
        group: GroupId,
        /// As in [`HostEffect::ReadLog`].
        id: LogReadId,
        /// What was found.
        result: LogSlice,
    },
    /// Entries were applied.
    Applied {
        /// Of which group.
        group: GroupId,
        /// Up to here.
        slot: Slot,
    },
    /// A checkpoint became durable.
    Checkpointed {
        /// Of which group.
        group: GroupId,
        /// Which.
        meta: SnapshotMeta,
    },
    /// A snapshot's piece was stored, and there is room for another.
    PieceStored {
        /// Of which group.
        group: GroupId,
        /// Which fetch.
        fetch: u64,
        /// What is stored with it.
        have: SnapshotPrefix,
    },
    /// A piece does not continue what is stored, and was thrown away.
    PieceStrange {
        /// Of which group.
        group: GroupId,
        /// Which fetch.
        fetch: u64,
        /// Which piece.
        piece: u64,
    },
    /// The last piece was stored and the state sealed.
    SnapshotStored {
        /// Of which group.
        group: GroupId,
        /// Which fetch.
        fetch: u64,
        /// The state, its generation filled in.
        meta: SnapshotMeta,
    },
    /// A piece could not be stored, or was no piece: nothing is left of what was.
    SnapshotBroken {
        /// Of which group.
        group: GroupId,
        /// Which fetch.
        fetch: u64,
    },
    /// The state machine switched to an installed snapshot.
    Installed {
        /// Of which group.
        group: GroupId,
        /// As in [`HostEffect::Install`].
        mark: Mark,
    },
}

/// What a host wants done.
#[derive(Debug)]
pub enum HostEffect {
    /// Send now.
    Send {
        /// To which node.
        to: NodeId,
        /// What.
        packet: Packet,
    },
    /// Append to the log, in order; if there is a mark, sync, then send `then` and step with `Logged`.
    Log {
        /// Whose log.
        group: GroupId,
        /// In order, atomic.
        ops: Vec<LogOp>,
        /// What the sync completes; without one nothing waits for it.
        mark: Option<Mark>,
        /// To be sent once durable, never before.
        then: Vec<(NodeId, Packet)>,
    },
    /// Read the log and step with `LogRead`.
    ReadLog {
        /// Whose log.
        group: GroupId,
        /// How the answer names it.
        id: LogReadId,
        /// What to read.
        range: SlotRange,
        /// At most so many bytes, but at least one entry.
        bytes_max: u32,
    },
    /// Apply, in order, and step with `Applied`.
    Apply {
        /// To which group.
        group: GroupId,
        /// Contiguous.
        entries: Entries,
    },
    /// Make `Reset(meta)` durable in the log, then have the state machine switch, then step with `Installed`.
    Install {
        /// Whose state.
        group: GroupId,
        /// Comes back in `Installed`.
        mark: Mark,
        /// Which state.
        meta: SnapshotMeta,
    },
    /// A client's proposal, or a change of membership that was begun, will not be answered by an applied entry.
    Failed {
        /// Which.
        id: ProposalId,
        /// Why.
        why: ProposeError,
    },
    /// A change of membership was not begun.
    ChangeRefused {
        /// Which.
        id: ProposalId,
        /// Why.
        why: ReconfigureError,
    },
    /// The read may be served here once `at` is applied.
    ReadReady {
        /// Of which group.
        group: GroupId,
        /// Which read.
        id: ReadId,
        /// From which slot on.
        at: Slot,
    },
    /// The read cannot be served.
    ReadFailed {
        /// Of which group.
        group: GroupId,
        /// Which read.
        id: ReadId,
        /// Why.
        why: ReadError,
    },
    /// Store a piece of an arriving snapshot, after those given before, and step with `PieceStored`, `SnapshotStored` (if it was the last),
    /// `PieceStrange` or `SnapshotBroken`: [`SnapshotReceiver`](crate::SnapshotReceiver) does.
    StorePiece {
        /// Whose snapshot.
        group: GroupId,
        /// The piece.
        piece: ArrivedPiece,
    },
    /// Drop what a fetch has stored: nobody goes on with it.
    ForgetFetch {
        /// Whose.
        group: GroupId,
        /// Which.
        fetch: u64,
    },
    /// Send a piece of the group's last checkpoint to a node that asks for it: [`SnapshotServer`](crate::SnapshotServer) has it.
    ServePiece {
        /// To which node.
        to: NodeId,
        /// Whose snapshot.
        group: GroupId,
        /// What it asks.
        request: PieceRequest,
    },
    /// Leadership of a group changed, as known here.
    Role {
        /// Which group.
        group: GroupId,
        /// The ballot.
        ballot: Ballot,
        /// The leader's node, if known.
        leader: Option<NodeId>,
        /// Whether this node leads and serves.
        serving: bool,
    },
    /// A group's membership changed.
    Membership {
        /// Which group.
        group: GroupId,
        /// To this.
        config: Config,
        /// Whether it is so for good: whom it has removed may be destroyed.
        committed: bool,
    },
    /// A core broke its contract or an invariant: halt the process. Nothing after this is to be trusted.
    Halt {
        /// Which group.
        group: GroupId,
        /// What broke.
        why: &'static str,
    },
}

/// Why a proposal failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Too much is in flight; certain not to have happened.
    #[error("too many requests")]
    Busy,
    /// No leader became known in time; certain not to have happened.
    #[error("no leader")]
    NoLeader,
    /// Leadership changed under it; certain not to have happened.
    #[error("leader changed")]
    LeaderChanged,
    /// Larger than an entry may be.
    #[error("request is too large")]
    TooLarge,
    /// It may have happened or may happen yet.
    #[error("outcome unknown")]
    Unknown,
    /// There is no such group here.
    #[error("no such group")]
    NoGroup,
    /// The node is shutting down; it may have happened.
    #[error("stopped")]
    Stopped,
}
