//! One generation: a tree, what of it is pinned, and the two things that change it.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lsm_tree::{
    AbstractTree, AnyIngestion, AnyTree, Config, DescriptorTable, Guard as _, SeqNo, SequenceNumberCounter,
    Slice,
    compaction::Leveled,
    config::{BlockSizePolicy, PinningPolicy},
};
use parking_lot::{Mutex, MutexGuard};

use super::{OpenGroup, Shared, from_io, from_tree};
use crate::{
    Checkpoint, STATE_KEY_BYTES_MAX, Scan, StateError,
    state_memory::{Order, is_empty_range},
    state_record,
};

/// The key of the checkpoint record; sorts before every user key.
const RECORD_KEY: [u8; 1] = [0];
/// What precedes a user key.
const USER_PREFIX: u8 = 1;

/// Runs at the top of the tree from which they are merged into the level below. Each costs a point read a filter lookup and a scan
/// a merge input; fewer would rewrite the lower level more often.
const RUNS_MERGED_AT: u8 = 8;
/// Runs at the top at which an ingestion waits for merging: what bounds reads and disk when checkpoints come faster than
/// one thread merges.
const RUNS_MAX: usize = 24;
/// Size of a table, after which the next is begun.
const TABLE_BYTES: u64 = 64 * 1024 * 1024;
const BLOCK_BYTES: u32 = 4096;
/// Open files a generation keeps.
const FILES_OPEN_MAX: usize = 128;

/// A tree in its directory.
pub(super) struct Generation {
    number: u64,
    path: PathBuf,
    tree: AnyTree,
    visible: SequenceNumberCounter,
    strategy: Arc<Leveled>,
    /// Held by whoever changes the tree.
    changing: Mutex<()>,
    instant: Mutex<Instant>,
    /// Set by a failure after which disk and memory may differ.
    failed: OnceLock<StateError>,
    /// Whether the compactor has been asked and has not begun.
    pub(super) queued: AtomicBool,
    // Last, and in this order: the tree closes its files, then the directory goes if it is to go, then the lock.
    remains: Remains,
    _group: Arc<OpenGroup>,
}

/// The last completed checkpoint, from when on it can be read, and the instants that views still read.
struct Instant {
    now: SeqNo,
    checkpoint: Option<Checkpoint>,
    pinned: BTreeMap<SeqNo, usize>,
}

/// Deletes the directory of a generation that was replaced.
struct Remains {
    path: PathBuf,
    doomed: AtomicBool,
}

impl Generation {
    /// Opens a generation, creating an empty one if there is none.
    pub(super) fn open(
        shared: &Shared,
        group: &Arc<OpenGroup>,
        number: u64,
    ) -> Result<Arc<Self>, StateError> {
        let path = group.directory.generation(group.id, number);
        group.directory.create_group(group.id)?;
        check_manifest(&path)?;
        remove_temporary_files(&path).map_err(from_io)?;
        let (next, visible) = (SequenceNumberCounter::default(), SequenceNumberCounter::default());
        let tree = Config::new(&path, next.clone(), visible.clone())
            .use_cache(shared.cache.clone())
            .use_descriptor_table(Some(Arc::new(DescriptorTable::new(FILES_OPEN_MAX))))
            .data_block_size_policy(BlockSizePolicy::all(BLOCK_BYTES))
            .index_block_pinning_policy(PinningPolicy::new([true, true, false]))
            .filter_block_pinning_policy(PinningPolicy::new([true, false]))
            .open()
            .map_err(from_tree)?;
        group.directory.sync_group(group.id)?;
        // The tree does not store its counter: it goes on after the newest item.
        let first = tree.get_highest_persisted_seqno().map_or(0, |highest| highest + 1);
        next.fetch_max(first);
        visible.fetch_max(first);
        let checkpoint = match tree.get(RECORD_KEY, SeqNo::MAX).map_err(from_tree)? {
            Some(record) => Some(state_record::decode(&record)?),
            None => None,
        };
        Ok(Arc::new(Self {
            number,
            tree,
            visible,
            strategy: Arc::new(
                Leveled::default().with_l0_threshold(RUNS_MERGED_AT).with_table_target_size(TABLE_BYTES),
            ),
            changing: Mutex::default(),
            instant: Mutex::new(Instant { now: first, checkpoint, pinned: BTreeMap::new() }),
            failed: OnceLock::new(),
            queued: AtomicBool::new(false),
            remains: Remains { path: path.clone(), doomed: AtomicBool::new(false) },
            path,
            _group: group.clone(),
        }))
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        self.instant.lock().checkpoint.clone()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.tree.disk_space()
    }

    /// Has the directory deleted once nobody uses the generation any more.
    pub(super) fn doom(&self) {
        self.remains.doomed.store(true, Ordering::SeqCst);
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        if key.len() > STATE_KEY_BYTES_MAX {
            return Ok(None);
        }
        let value = self.tree.get(user_key(key), SeqNo::MAX).map_err(from_tree)?;
        Ok(value.map(Bytes::from))
    }

    /// Pins the last checkpoint until [`unpin`](Self::unpin).
    pub(super) fn pin(&self) -> (SeqNo, Option<Checkpoint>) {
        let mut instant = self.instant.lock();
        let now = instant.now;
        *instant.pinned.entry(now).or_default() += 1;
        (now, instant.checkpoint.clone())
    }

    pub(super) fn unpin(&self, pinned: SeqNo) {
        let mut instant = self.instant.lock();
        if let Some(count) = instant.pinned.get_mut(&pinned) {
            *count -= 1;
            if *count == 0 {
                instant.pinned.remove(&pinned);
            }
        }
    }

    /// Scans as of a pinned instant, or as of now.
    pub(super) fn scan(
        self: &Arc<Self>,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        reverse: bool,
        at: Option<SeqNo>,
    ) -> Scan<'static> {
        if is_empty_range(from, to) {
            return Box::new(std::iter::empty());
        }
        let range = (lower_bound(from), upper_bound(to));
        let mut items = self.tree.range(range, at.unwrap_or(SeqNo::MAX), None);
        // The tables are kept by `items`, the directory by the generation; dropped in this order.
        let generation = self.clone();
        Box::new(std::iter::from_fn(move || {
            let _kept = &generation;
            let item = if reverse { items.next_back() } else { items.next() }?;
            Some(item.into_inner().map_err(from_tree).map(|(key, value)| {
                let mut key = Bytes::from(key);
                key.advance(1);
                (key, Bytes::from(value))
            }))
        }))
    }

    /// Adds a run, with the checkpoint it completes if there is one: all or nothing, durable on return.
    pub(super) fn ingest(
        &self,
        checkpoint: Option<Checkpoint>,
        run: &mut dyn Iterator<Item = (Bytes, Option<Bytes>)>,
    ) -> Result<(), StateError> {
        let changing = self.changing.lock();
        self.check_failed()?;
        while self.tree.l0_run_count() >= RUNS_MAX && self.merge_once(&changing)? {}
        let before = self.position();
        match self.write_run(checkpoint.as_ref(), run) {
            Ok(()) => {
                let mut instant = self.instant.lock();
                instant.now = self.visible.get();
                if checkpoint.is_some() {
                    instant.checkpoint = checkpoint;
                }
                Ok(())
            }
            Err(error) => Err(self.settle(before, error)),
        }
    }

    fn write_run(
        &self,
        checkpoint: Option<&Checkpoint>,
        run: &mut dyn Iterator<Item = (Bytes, Option<Bytes>)>,
    ) -> Result<(), StateError> {
        let mut ingestion: AnyIngestion<'_> = self.tree.ingestion().map_err(from_tree)?;
        if let Some(checkpoint) = checkpoint {
            ingestion.write(RECORD_KEY, state_record::encode(checkpoint)).map_err(from_tree)?;
        }
        let mut order = Order::default();
        for (key, value) in run {
            order.check(&key)?;
            match value {
                Some(value) => ingestion.write(user_key(&key), value),
                None => ingestion.write_tombstone(user_key(&key)),
            }
            .map_err(from_tree)?;
        }
        ingestion.finish().map_err(from_tree)
    }

    /// Merges once if there is something to merge, and says whether there was.
    pub(super) fn compact(&self) -> Result<bool, StateError> {
        let changing = self.changing.lock();
        self.check_failed()?;
        self.merge_once(&changing)
    }

    fn merge_once(&self, _changing: &MutexGuard<'_, ()>) -> Result<bool, StateError> {
        let before = self.position();
        let oldest = self.oldest_instant();
        self.tree
            .compact(self.strategy.clone(), oldest.saturating_sub(1))
            .map_err(|error| self.settle(before, from_tree(error)))?;
        let merged = self.position().manifest != before.manifest;
        if merged {
            self.instant.lock().now = self.visible.get();
            self.release();
        }
        Ok(merged)
    }

    /// Lets go of manifests that no instant needs, and with them of the tables that only they name.
    pub(super) fn release(&self) {
        let oldest = self.oldest_instant();
        if let Err(error) = self.tree.get_version_history_lock().maintenance(&self.path, oldest) {
            tracing::warn!(path = %self.path.display(), %error, "an old state manifest could not be removed");
        }
    }

    fn oldest_instant(&self) -> SeqNo {
        let instant = self.instant.lock();
        instant.pinned.keys().next().copied().unwrap_or(instant.now)
    }

    fn check_failed(&self) -> Result<(), StateError> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn position(&self) -> Position {
        Position { manifest: self.tree.current_version().id(), next_table: self.tree.next_table_id() }
    }

    /// After a failed change: deletes the tables it left if the tree is as before; else the failure is final.
    fn settle(&self, before: Position, error: StateError) -> StateError {
        let now = self.position();
        match current_manifest(&self.path) {
            Ok(Some((manifest, _))) if manifest == now.manifest => {}
            on_disk => {
                tracing::error!(path = %self.path.display(), ?on_disk, in_memory = now.manifest, %error,
                    "a state manifest may or may not have been replaced");
                return self.failed.get_or_init(|| error).clone();
            }
        }
        if now.manifest == before.manifest {
            for table in before.next_table..now.next_table {
                match fs::remove_file(self.path.join("tables").join(table.to_string())) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(table, %error, "a table of a failed ingestion could not be removed");
                    }
                    _ => {}
                }
            }
        }
        error
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::SeqCst)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            // The next opening deletes it.
            tracing::warn!(path = %self.path.display(), %error, "a replaced state generation could not be deleted");
        }
    }
}

/// Where a tree stands: its manifest, and the number of its next table.
#[derive(Clone, Copy)]
struct Position {
    manifest: u64,
    next_table: u64,
}

fn user_key(key: &[u8]) -> Slice {
    let mut prefixed = BytesMut::with_capacity(1 + key.len());
    prefixed.put_u8(USER_PREFIX);
    prefixed.put_slice(key);
    Slice::from(prefixed.freeze())
}

/// A bound longer than any key is cut: every key that follows the cut bound follows the whole one too.
fn lower_bound(from: Bound<&[u8]>) -> Bound<Slice> {
    match from {
        Bound::Unbounded => Bound::Included(user_key(&[])),
        Bound::Included(key) | Bound::Excluded(key) if key.len() > STATE_KEY_BYTES_MAX => {
            Bound::Excluded(user_key(&key[..STATE_KEY_BYTES_MAX]))
        }
        Bound::Included(key) => Bound::Included(user_key(key)),
        Bound::Excluded(key) => Bound::Excluded(user_key(key)),
    }
}

fn upper_bound(to: Bound<&[u8]>) -> Bound<Slice> {
    match to {
        Bound::Unbounded => Bound::Excluded(Slice::from([USER_PREFIX + 1])),
        Bound::Included(key) | Bound::Excluded(key) if key.len() > STATE_KEY_BYTES_MAX => {
            Bound::Included(user_key(&key[..STATE_KEY_BYTES_MAX]))
        }
        Bound::Included(key) => Bound::Included(user_key(key)),
        Bound::Excluded(key) => Bound::Excluded(user_key(key)),
    }
}

/// The manifest that a tree's pointer names, and its checksum; `None` if there is no tree yet.
fn current_manifest(path: &Path) -> io::Result<Option<(u64, u128)>> {
    let pointer = match fs::read(path.join("current")) {
        Ok(pointer) => pointer,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (Some(manifest), Some(checksum)) = (pointer.first_chunk::<8>(), pointer.get(8..24)) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let checksum = checksum.try_into().map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok(Some((u64::from_le_bytes(*manifest), u128::from_le_bytes(checksum))))
}

/// A crash can leave the file that was to replace the pointer.
fn remove_temporary_files(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".tmp") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The tree reads its manifest without looking at the checksum it wrote: a flipped bit could reorder runs.
fn check_manifest(path: &Path) -> Result<(), StateError> {
    let Some((manifest, checksum)) = current_manifest(path).map_err(from_io)? else { return Ok(()) };
    let file = path.join(format!("v{manifest}"));
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StateError::Damaged(format!("{} is missing", file.display())));
        }
        Err(error) => return Err(from_io(error)),
    };
    if xxhash_rust::xxh3::xxh3_128(&bytes) != checksum {
        return Err(StateError::Damaged(format!("{} does not match its checksum", file.display())));
    }
    Ok(())
}
