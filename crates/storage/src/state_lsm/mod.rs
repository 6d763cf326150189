//! The state engine on disk: log-structured merge trees that change only by atomic, synced ingestion of sorted runs.
//!
//! # Vocabulary
//! A *run* is what one checkpoint changed, sorted. A *table* is an immutable sorted file. The *manifest* names the tables
//! that make up the tree; replacing it is the commit point of an ingestion and of a merge.
//! A *generation* is one tree, in one directory: the present one of a group, or one that a snapshot is being built into.
//!
//! # Layout
//! ```text
//! <directory>/CONCLAVE-STATE             what this directory is, and its format version
//! <directory>/LOCK                       held while the engine or anything opened from it lives
//! <directory>/group-<g>/generation-<n>/  a tree: `current`, `v<i>` (manifests), `tables/<id>`
//! ```
//! In a tree, key `00` holds the checkpoint record and key `01 k` holds the user's key `k`.
//!
//! # Invariants
//! 1. A tree is written by ingestion only. Its tables are synced, then the manifest and the directory, then the pointer to the
//!    manifest is renamed over the old one and the directory is synced again; so a crash leaves either checkpoint.
//!    There is no journal: the consensus log is the only one, and opening a tree replays nothing.
//! 2. The checkpoint record is in the run it describes: data and record cannot part.
//! 3. A generation without a checkpoint record was never finished, unless it is generation zero.
//! 4. Ingestions and merges of a tree exclude each other. So the tables that a failed one leaves are exactly those numbered since
//!    it began, and are deleted at once; those that a crash leaves are deleted when the tree is next opened.
//! 5. A view pins an instant. Merges keep the tables of every pinned instant.
//!
//! # Caveats
//! * While a manifest is replaced (five small syncs), reads of that tree wait.
//! * The record sorts before all keys, so the run of every checkpoint overlaps the lowest table: runs of ever-growing keys are merged
//!   where they could have been moved.
//! * A block that does not match its checksum is found when it is read, not when the tree is opened; the manifest is checked at opening.

mod builder;
mod compactor;
mod directory;
mod generation;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Weak},
};

use conclave_consensus::GroupId;
use lsm_tree::Cache;
use parking_lot::Mutex;

use self::{compactor::Compactor, directory::Directory, generation::Generation, store::LsmState};
use crate::{StateEngine, StateError, StateStore};

/// How an [`LsmEngine`] uses memory.
#[derive(Clone, Debug)]
pub struct LsmOptions {
    /// Bytes of blocks kept in memory, for all groups together. Default 32 MiB. Index and filter blocks of the large, lower levels
    /// live in it too, about 2 % of the data: below that, point reads go to the disk twice.
    pub cache_bytes: u64,
}

impl Default for LsmOptions {
    fn default() -> Self {
        Self { cache_bytes: 32 * 1024 * 1024 }
    }
}

/// The state of all groups of a process, in one directory.
pub struct LsmEngine {
    shared: Arc<Shared>,
}

/// What the engine and its stores share.
struct Shared {
    directory: Arc<Directory>,
    cache: Arc<Cache>,
    compactor: Compactor,
    open: Mutex<BTreeMap<GroupId, Weak<OpenGroup>>>,
}

/// Held by a store and by every generation of its group: while one lives, the group cannot be opened again, nor the directory.
struct OpenGroup {
    id: GroupId,
    directory: Arc<Directory>,
}

impl LsmEngine {
    /// Opens a state directory, creating it if there is none or it is empty. Starts one thread, which merges.
    ///
    /// # Errors
    /// [`StateError::Foreign`] for a directory that holds something else or a format of another version, [`StateError::Locked`] if
    /// another process (or an earlier opening in this one) has it, and whatever the operating system says.
    pub fn open(directory: impl AsRef<Path>, options: &LsmOptions) -> Result<Self, StateError> {
        let shared = Shared {
            directory: Arc::new(Directory::open(directory.as_ref())?),
            cache: Arc::new(Cache::with_capacity_bytes(options.cache_bytes)),
            compactor: Compactor::start()?,
            open: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl StateEngine for LsmEngine {
    fn store(&self, group: GroupId, generation: u64) -> Result<Arc<dyn StateStore>, StateError> {
        let mut open = self.shared.open.lock();
        if open.get(&group).is_some_and(|group| group.strong_count() > 0) {
            return Err(StateError::InUse(generation));
        }
        let directory = self.shared.directory.clone();
        directory.retain_generation(group, generation)?;
        let handle = Arc::new(OpenGroup { id: group, directory });
        let present = Generation::open(&self.shared, &handle, generation)?;
        if generation > 0 && present.checkpoint().is_none() {
            return Err(StateError::NoGeneration(generation));
        }
        self.shared.compactor.request(&present);
        open.insert(group, Arc::downgrade(&handle));
        Ok(Arc::new(LsmState::new(self.shared.clone(), handle, present)))
    }
}

impl fmt::Debug for LsmEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LsmEngine").field("directory", &self.shared.directory.path()).finish_non_exhaustive()
    }
}

/// Sorts a failure of the operating system into what an operator can do about it.
fn from_io(error: std::io::Error) -> StateError {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StateError::Full,
        ErrorKind::UnexpectedEof => StateError::Damaged(error.to_string()),
        _ => StateError::Engine(Arc::new(error)),
    }
}

/// Sorts a failure of the tree: what is not the operating system's is damage.
fn from_tree(error: lsm_tree::Error) -> StateError {
    match error {
        lsm_tree::Error::Io(error) => from_io(error),
        other => StateError::Damaged(other.to_string()),
    }
}
