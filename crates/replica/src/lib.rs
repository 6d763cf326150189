//! Many consensus groups in one process.

mod machine;

pub use machine::{Job, Replies, SnapshotSink, SnapshotSource, StateMachine};
