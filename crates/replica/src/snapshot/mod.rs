//! A snapshot between two disks: cut into pieces by who has it, put together by who needs it.
//!
//! # What makes a transfer safe to go on with
//! The pieces of a snapshot form a *chain*: each says what comes before it, as a [`SnapshotPrefix`] (the slot, how many pieces, a hash of all their
//! bytes), and is taken in only by who has just that. So a piece that was delayed, that another life of the source sent, or another
//! source, either continues the very bytes that are here or is not taken: pieces of two snapshots cannot be mixed. Whoever asks says what it has, and
//! only who can give the same beginning goes on after it: the same source with the stream still open, the same source after a boot, or
//! another with an equal checkpoint, which reads the beginning again from its own disk to prove it.
//!
//! Replicas take their checkpoints at slots of their own choosing, so another source seldom has the same one; then the
//! transfer begins anew there. Within a source, the bytes of a checkpoint are the same each time it is read.
//!
//! # Invariants
//! 1. What a sink was given is a prefix of one snapshot of one source.
//! 2. A server keeps what was asked for and is not known to be stored, within a bound; who asks beyond it asks again.
//! 3. Nothing a peer says makes a server read more than [`REPLAY_BYTES`] before others have their turn.

mod receive;
mod serve;

use conclave_consensus::Slot;
use conclave_transport::SnapshotPrefix;
use xxhash_rust::xxh3::Xxh3;

pub use receive::{ArrivedPiece, SnapshotReceiver};
pub use serve::{PieceRequest, Served, SnapshotServer};

/// How many pieces may be under way to one who fetches, however small they are.
pub(crate) const PIECES_INFLIGHT_MAX: u64 = 8;
/// How many bytes of them, or one piece if it is longer.
pub(crate) const BYTES_INFLIGHT_MAX: usize = 4 << 20;
/// How many bytes of a beginning are read again at once to prove that it is the one that the asker has.
pub(crate) const REPLAY_BYTES: usize = 8 << 20;

/// Hashes pieces one after the other.
#[derive(Clone)]
pub(crate) struct Chain {
    hasher: Xxh3,
    prefix: SnapshotPrefix,
}

impl Chain {
    pub(crate) fn new(slot: Slot) -> Self {
        Self { hasher: Xxh3::new(), prefix: SnapshotPrefix { slot: slot.0, ..SnapshotPrefix::default() } }
    }

    /// All pieces so far.
    pub(crate) fn prefix(&self) -> SnapshotPrefix {
        self.prefix
    }

    pub(crate) fn add(&mut self, body: &[u8]) {
        self.hasher.update(&(body.len() as u64).to_le_bytes());
        self.hasher.update(body);
        self.prefix.pieces += 1;
        self.prefix.digest = self.hasher.digest128();
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.prefix.fmt(f)
    }
}

#[cfg(test)]
mod tests;
