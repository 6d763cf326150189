//! What a replicated state machine owes its host.

use std::fmt;

use crate::StateError;
use bytes::Bytes;
use conclave_consensus::{Entry, ProposalId, SnapshotMeta};

/// Collects what the clients of this node are told.
pub type Replies = Vec<(ProposalId, Bytes)>;

/// Applies chosen entries, in order, on every replica alike: no clock, no randomness, no map order may influence it.
///
/// Owned by the apply thread. What readers share with it is the machine's own affair.
pub trait StateMachine: Send + fmt::Debug {
    /// Applies entries, contiguous from the last call's. For each entry that `waits` says a client here waits for, adds what it is to be
    /// told. Entries that are not commands are applied too, as no-ops.
    fn apply(&mut self, entries: &[Entry], waits: &dyn Fn(ProposalId) -> bool, replies: &mut Replies);

    /// Bytes in memory that only the log makes durable: how the host knows when to take a checkpoint.
    fn pending_bytes(&self) -> usize;

    /// Freezes the state as of `meta.slot`, the last applied, and returns the work that makes it durable; `None` while an earlier one
    /// is under way. Cheap: the work itself runs on another thread while `apply` goes on.
    fn checkpoint(&mut self, meta: SnapshotMeta) -> Option<Box<dyn Job>>;

    /// Told on the apply thread once the job is done: what is durable need not be kept in memory.
    fn checkpointed(&mut self);

    /// A consistent view of the last completed checkpoint, to be streamed to another replica; `None` if there is none.
    fn snapshot(&self) -> Option<Box<dyn SnapshotSource>>;

    /// Begins to receive a snapshot into a new state generation, beside the present state.
    ///
    /// # Errors
    /// The engine's.
    fn receive(&self, generation: u64) -> Result<Box<dyn SnapshotSink>, StateError>;

    /// Switches to the generation that a [`SnapshotSink`] finished; the next entry applied is `meta.slot + 1`.
    ///
    /// # Errors
    /// The engine's.
    fn install(&mut self, meta: &SnapshotMeta) -> Result<(), StateError>;
}

/// Work that may take long, for a thread of its own.
pub trait Job: Send + fmt::Debug {
    /// Does it.
    ///
    /// # Errors
    /// The engine's; the host halts, since the log may no longer be cut.
    fn run(self: Box<Self>) -> Result<(), StateError>;
}

/// Gives a snapshot in pieces.
pub trait SnapshotSource: Send + fmt::Debug {
    /// Which state it is.
    fn meta(&self) -> SnapshotMeta;

    /// The next piece, about `bytes_max` long; `None` after the last.
    ///
    /// # Errors
    /// The engine's.
    fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StateError>;
}

/// Takes a snapshot in pieces. Dropped unfinished, it leaves nothing.
pub trait SnapshotSink: Send + fmt::Debug {
    /// Takes the next piece.
    ///
    /// # Errors
    /// Bytes that are no piece, or the engine's.
    fn piece(&mut self, bytes: Bytes) -> Result<(), StateError>;

    /// Seals it, durable on return, and says which state it is (`generation` filled in).
    ///
    /// # Errors
    /// If pieces are missing, or the engine's.
    fn finish(self: Box<Self>) -> Result<SnapshotMeta, StateError>;
}
