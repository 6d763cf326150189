//! Log entries, and the operations by which a core changes its durable log.

use bytes::Bytes;

use crate::{Ballot, Config, Entries, ProposalId, Slot};

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A command of the state machine.
    Command,
    /// Nothing: a new leader's first entry, or a gap that was filled.
    Noop,
    /// A membership change; the payload is an encoded [`Config`].
    Config,
}

impl Kind {
    /// The byte that stands for it on disk and on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Command => 0,
            Self::Noop => 1,
            Self::Config => 2,
        }
    }

    /// The kind that `code` stands for, if any.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Command, Self::Noop, Self::Config].into_iter().find(|kind| kind.code() == code)
    }
}

/// One entry of a group's log. Cloning shares the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub slot: Slot,
    /// The ballot in which it was proposed here (Raft: its term, the same on all replicas; Paxos: the accept ballot,
    /// which may differ between them and must not influence a state machine).
    pub ballot: Ballot,
    /// What it is for.
    pub kind: Kind,
    /// Who waits for it.
    pub id: ProposalId,
    /// The command, opaque to consensus, reference-counted: encoded once for the log and all peers.
    pub payload: Bytes,
}

impl Entry {
    /// What the entry costs in bounds of bytes: payload and a fixed share for its frame.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.payload.len() + 64
    }
}

/// A command that waits to be given a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// How its proposer will know it again.
    pub id: ProposalId,
    /// The command.
    pub payload: Bytes,
}

/// Names a state: everything up to `slot` applied, under `config`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnapshotMeta {
    /// The last slot the state contains.
    pub slot: Slot,
    /// The ballot of the entry at `slot`.
    pub ballot: Ballot,
    /// The membership in force at `slot`.
    pub config: Config,
    /// The local state generation that holds it; a node-local name, zero for the first.
    pub generation: u64,
}

/// The slots `from..to`, `to` excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    /// The first slot.
    pub from: Slot,
    /// The slot after the last.
    pub to: Slot,
}

/// One change to a group's durable log. The ops of one effect are applied in order and atomically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOp {
    /// Replaces the core's small durable record (term, vote, promises).
    Meta(Bytes),
    /// Writes entries. Slots may be written out of order and overwritten (Paxos).
    Put(Entries),
    /// Forgets every entry at or above the slot (Raft's conflict rule).
    TruncateFrom(Slot),
    /// Everything below the slot may go: a durable state contains it.
    CutBelow(Slot),
    /// A snapshot was installed: the log starts after `meta.slot`. The suffix is kept where the log holds `meta.slot` with
    /// `meta.ballot`, else everything goes. Boxed: it is rare, and an operation is otherwise as small as an entry.
    Reset(Box<SnapshotMeta>),
}

/// A group's log as found at boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last [`LogOp::Meta`], empty if there was none.
    pub meta: Bytes,
    /// The last [`LogOp::Reset`], if there was one.
    pub reset: Option<SnapshotMeta>,
    /// The lowest slot that [`LogOp::CutBelow`] or `Reset` left; entries start here or later. Slot 1 in a new log.
    pub first: Slot,
    /// The last slot written and not truncated; `first - 1` if there is none.
    pub last: Slot,
}
