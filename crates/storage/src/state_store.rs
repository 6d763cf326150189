//! What a state machine asks of the engine that holds its state.
//!
//! The log is the only journal. A store is durable at *checkpoints* only: each is one atomic, synced ingestion of a sorted run
//! that also carries the checkpoint's record (slot, configuration, the machine's own numbers). What is above
//! the last checkpoint lives in the machine's memory and is rebuilt from the log.

use std::{fmt, ops::Bound, sync::Arc};

use bytes::Bytes;
use conclave_consensus::{GroupId, SnapshotMeta};

/// The longest key a store takes, in bytes.
pub const STATE_KEY_BYTES_MAX: usize = 65_000;

/// What a checkpoint says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log position that the state contains.
    pub meta: SnapshotMeta,
    /// The state machine's own record (revision, floor …), opaque here.
    pub record: Bytes,
}

/// A pair of a run or a scan.
pub type Pair = (Bytes, Bytes);

/// Pairs in key order, as a scan gives them.
pub type Scan<'a> = Box<dyn Iterator<Item = Result<Pair, StateError>> + Send + 'a>;

/// Holds the state of all groups of a process.
pub trait StateEngine: Send + Sync + fmt::Debug {
    /// Opens a group's present generation, the one that the group's last durable `Reset` names, or zero; every other generation of the
    /// group, finished or not, is deleted. Generation zero begins empty if it does not exist: whether it *ought* to hold
    /// a checkpoint is for the caller to know, from where its log begins.
    ///
    /// # Errors
    /// [`StateError::NoGeneration`] if a generation above zero was never finished, [`StateError::InUse`] if the group is open
    /// already, or the engine's.
    fn store(&self, group: GroupId, generation: u64) -> Result<Arc<dyn StateStore>, StateError>;
}

/// An ordered map of byte strings, one per group, that changes only by checkpoints.
pub trait StateStore: Send + Sync + fmt::Debug {
    /// The last completed checkpoint; `None` in a new store.
    fn checkpoint(&self) -> Option<Checkpoint>;

    /// The newest value of a key.
    ///
    /// # Errors
    /// The engine's.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// The pairs between two bounds as of now, ascending, or descending if `reverse`. A scan sees no later ingestion.
    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'static>;

    /// Replaces (`Some`) or removes (`None`) each key of a run in strictly ascending key order, together with the checkpoint record:
    /// all or nothing, durable on return. Blocks for as long as the disk takes, and while the engine is too far behind with
    /// merging earlier runs; reads go on.
    ///
    /// # Errors
    /// After an error the store is as before the call, or the error is final and returned by every later call; it never is in
    /// between. [`StateError::Full`] may be retried once there is space.
    fn ingest(
        &self,
        checkpoint: Checkpoint,
        run: &mut dyn Iterator<Item = (Bytes, Option<Bytes>)>,
    ) -> Result<(), StateError>;

    /// A consistent view of the last completed checkpoint, kept whatever is ingested meanwhile.
    fn view(&self) -> Arc<dyn StateView>;

    /// A view of a finished generation before it is switched to, or of the present one.
    ///
    /// # Errors
    /// [`StateError::NoGeneration`] if that generation was not finished since the store was opened.
    fn built(&self, generation: u64) -> Result<Arc<dyn StateView>, StateError>;

    /// Begins a new generation beside the present one, for a snapshot that arrives. Whatever was finished and not switched to is
    /// thrown away first, and so is an earlier one of the same number: nobody installs it any more.
    ///
    /// # Errors
    /// [`StateError::InUse`] for the present generation and for one whose builder still lives, or the engine's.
    fn build(&self, generation: u64) -> Result<Box<dyn StateBuilder>, StateError>;

    /// Makes a finished generation the present one and deletes all others, each as soon as no view or scan of it lives.
    /// Called once `Reset` naming it is durable. Does nothing if it is the present one already.
    ///
    /// # Errors
    /// [`StateError::NoGeneration`] if that generation was not finished since the store was opened.
    fn switch(&self, generation: u64) -> Result<(), StateError>;

    /// The present generation; zero at first.
    fn generation(&self) -> u64;

    /// Bytes on disk (or in memory), for metrics and quotas.
    fn size_bytes(&self) -> u64;
}

/// A frozen state.
pub trait StateView: Send + Sync + fmt::Debug {
    /// Which checkpoint this is; `None` for the empty state.
    fn checkpoint(&self) -> Option<Checkpoint>;

    /// All pairs from a bound on, ascending.
    fn scan(&self, from: Bound<&[u8]>) -> Scan<'static>;
}

/// A generation under construction. Dropped unfinished, it leaves nothing.
pub trait StateBuilder: Send + fmt::Debug {
    /// Adds pairs; keys ascend strictly over all calls.
    ///
    /// # Errors
    /// Keys out of order, or the engine's.
    fn add(&mut self, pairs: &mut dyn Iterator<Item = Pair>) -> Result<(), StateError>;

    /// Seals the generation with its checkpoint, durable on return. It is not yet switched to.
    ///
    /// # Errors
    /// The engine's.
    fn finish(self: Box<Self>, checkpoint: Checkpoint) -> Result<(), StateError>;
}

/// Why the engine cannot serve.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    /// Keys of a run did not ascend.
    #[error("keys of a sorted run out of order")]
    Unsorted,
    /// A key longer than [`STATE_KEY_BYTES_MAX`].
    #[error("a key of {0} bytes is longer than the {STATE_KEY_BYTES_MAX} that can be stored")]
    KeyTooLong(usize),
    /// The generation named was not built.
    #[error("state generation {0} does not exist")]
    NoGeneration(u64),
    /// The generation named is open, or being built, already.
    #[error("state generation {0} is in use")]
    InUse(u64),
    /// The store was closed by a crash or a newer opening (in memory only).
    #[error("state store was closed")]
    Closed,
    /// A directory that holds something else.
    #[error("{path} is not a state directory: {why}")]
    Foreign {
        /// The directory.
        path: String,
        /// What gives it away.
        why: String,
    },
    /// Another process has the directory open.
    #[error("state directory {0} is in use by another process")]
    Locked(String),
    /// What is stored does not read as what was written.
    #[error("state is damaged: {0}")]
    Damaged(String),
    /// The disk is full.
    #[error("no space left on the state's device")]
    Full,
    /// The engine failed.
    #[error("state engine failed: {0}")]
    Engine(Arc<dyn std::error::Error + Send + Sync>),
}
