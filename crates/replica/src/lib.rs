//! Many consensus groups in one process.

pub use conclave_storage::{Job, Replies, SnapshotSink, SnapshotSource, StateMachine};
