//! Durable storage for consensus groups: a write-ahead log that all groups of a process share, and an ordered state engine.

pub mod conformance;
mod disk;
mod log_store;
mod machine;
mod state_lsm;
mod state_memory;
mod state_record;
mod state_store;

pub use disk::{Disk, DiskFile};
pub use log_store::{HOST_GROUP, LogError, LogStore};
pub use machine::{Job, Replies, SnapshotSink, SnapshotSource, StateMachine};
pub use state_lsm::{LsmEngine, LsmOptions};
pub use state_memory::{MemoryEngine, MemoryState};
pub use state_store::{
    Checkpoint, Pair, STATE_KEY_BYTES_MAX, Scan, StateBuilder, StateEngine, StateError, StateStore, StateView,
};
