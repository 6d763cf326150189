//! What a state machine asks of the engine that holds its state.
//!
//! The log is the only journal. A store is durable at *checkpoints* only: each is one atomic, synced ingestion of a sorted run
//! that also carries the checkpoint's record (slot, configuration, the machine's own numbers). What is above
//! the last checkpoint lives in the machine's memory and is rebuilt from the log.

use std::{fmt, ops::Bound, sync::Arc};

use bytes::Bytes;
use conclave_consensus::SnapshotMeta;

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
    /// all or nothing, durable on return.
    ///
    /// # Errors
    /// After an error the store is as before the call, or the error is final; it never is in between.
    fn ingest(
        &self,
        checkpoint: Checkpoint,
        run: &mut dyn Iterator<Item = (Bytes, Option<Bytes>)>,
    ) -> Result<(), StateError>;

    /// A consistent view of the last completed checkpoint, kept whatever is ingested meanwhile.
    fn view(&self) -> Arc<dyn StateView>;

    /// Begins a new generation beside the present one, for a snapshot that arrives. A half-built one of the same number is
    /// thrown away first.
    ///
    /// # Errors
    /// The engine's.
    fn build(&self, generation: u64) -> Result<Box<dyn StateBuilder>, StateError>;

    /// Makes a finished generation the present one and deletes all others. Called once `Reset` naming it is durable.
    ///
    /// # Errors
    /// If that generation was not finished.
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
    /// The generation named was not built.
    #[error("state generation {0} does not exist")]
    NoGeneration(u64),
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
