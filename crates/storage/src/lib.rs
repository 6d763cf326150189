//! Durable storage for consensus groups: a write-ahead log that all groups of a process share, and an ordered state engine.

mod disk;
mod log_store;
mod machine;
mod state_store;

pub use disk::{Disk, DiskFile};
pub use log_store::{HOST_GROUP, LogError, LogStore};
pub use machine::{Job, Replies, SnapshotSink, SnapshotSource, StateMachine};
pub use state_store::{Checkpoint, Pair, Scan, StateBuilder, StateError, StateStore, StateView};
