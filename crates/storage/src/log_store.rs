//! What a host asks of a durable log.

use std::fmt;

use conclave_consensus::{GroupId, LogOp, LogSlice, LogState, Slot, SlotRange};

/// The log of all groups of a process. Shared: one thread appends and syncs, others may read.
///
/// Group 0 ([`HOST_GROUP`]) is the host's own: its `Meta` record holds what the node must know of itself.
pub trait LogStore: Send + Sync + fmt::Debug {
    /// Every group that ever wrote, in order.
    fn groups(&self) -> Vec<GroupId>;

    /// What the log holds of a group: the state at boot, then as of the last append.
    fn state(&self, group: GroupId) -> LogState;

    /// Adds operations, in order, each element of the batch atomic. Not durable before [`sync`](Self::sync).
    ///
    /// # Errors
    /// After an error the log refuses everything: how much was written is unknown.
    fn append(&self, batch: &[(GroupId, Vec<LogOp>)]) -> Result<(), LogError>;

    /// Makes every append that returned before this call durable: one `fdatasync`, whatever the number of groups.
    ///
    /// # Errors
    /// After an error the log refuses everything, for good.
    fn sync(&self) -> Result<(), LogError>;

    /// Reads a contiguous run from `range.from` on, at most `bytes_max` bytes but at least one entry.
    ///
    /// # Errors
    /// Damage found while reading, or slots that were never written.
    fn read(&self, group: GroupId, range: SlotRange, bytes_max: usize) -> Result<LogSlice, LogError>;

    /// The lowest slot from `from` on that holds an entry: what is in between was never written.
    fn next_held(&self, group: GroupId, from: Slot) -> Option<Slot>;

    /// Bytes of disk in use, for metrics.
    fn size_bytes(&self) -> u64;
}

/// The group under which a host keeps its own record.
pub const HOST_GROUP: GroupId = GroupId(0);

/// Why the log cannot serve. None can be retried; each names what an operator must look at.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// Synced bytes no longer read as they were written.
    #[error("log segment {segment} is damaged at offset {offset}: {why}; restore this node from its peers")]
    Damaged {
        /// The file's name.
        segment: String,
        /// Where the first invalid frame begins.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// A file in the log's directory that is not this log's.
    #[error("{file} is not a segment of this log: {why}")]
    Foreign {
        /// The file's name.
        file: String,
        /// What gives it away.
        why: String,
    },
    /// The disk is full.
    #[error("no space left on the log's device")]
    Full,
    /// An operation failed.
    #[error("log {operation} failed: {source}")]
    Io {
        /// Which operation.
        operation: &'static str,
        /// What the operating system said.
        #[source]
        source: std::sync::Arc<std::io::Error>,
    },
    /// An earlier operation failed; nothing is accepted since.
    #[error("log is closed after an earlier failure")]
    Failed,
    /// The caller asked for something that cannot be: a defect in this program.
    #[error("log misused: {0}")]
    Misuse(&'static str),
}

impl LogError {
    pub(crate) fn from_io(operation: &'static str, error: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded => Self::Full,
            _ => Self::Io { operation, source: std::sync::Arc::new(error) },
        }
    }
}
