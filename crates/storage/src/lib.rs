//! Durable storage for consensus groups: a write-ahead log that all groups of a process share, and an ordered state engine.

pub mod background;
pub mod conformance;
mod disk;
mod disk_real;
#[cfg(any(test, feature = "testing"))]
mod disk_volatile;
mod log_store;
mod machine;
mod memory_log;
mod state_lsm;
mod state_memory;
mod state_record;
mod state_store;
pub mod wal;

pub use disk::{Disk, DiskFile};
pub use disk_real::{DirectoryLock, RealDisk};
#[cfg(any(test, feature = "testing"))]
pub use disk_volatile::VolatileDisk;
pub use log_store::{HOST_GROUP, LogError, LogStore};
pub use machine::{Job, Replies, SnapshotSink, SnapshotSource, StateMachine};
pub use memory_log::MemoryLog;
pub use state_lsm::{LsmEngine, LsmOptions};
pub use state_memory::{MemoryEngine, MemoryState};
pub use state_store::{
    Checkpoint, Pair, STATE_KEY_BYTES_MAX, Scan, StateBuilder, StateEngine, StateError, StateStore, StateView,
};
pub use wal::{Preparation, Wal, WalObserver, WalOptions, WalStats};
