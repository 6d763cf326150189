//! A segmented write-ahead log that all groups of a process share.
//!
//! Many groups, one disk: if each had its own log, each would pay its own `fdatasync`. Here a batch of all groups' operations is one
//! write and one sync. The log is plain code over [`Disk`], so it runs unchanged on a simulated one.
//!
//! # Vocabulary
//! * *segment*: a preallocated file, numbered from 1 without gaps. The *active* one is written; the next stands *prepared*.
//! * *frame*: one element of a batch, atomic; numbered by its *LSN* over the whole log (`frame`).
//! * *record*: one operation inside a frame (`record`).
//! * *live* entry: put, and neither overwritten, truncated nor cut. The *floor* is the oldest segment still needed.
//! * *damage*: synced bytes do not read as written. *Tail*: what was never synced; a power cut may leave any part of it.
//!
//! # Invariants
//! 1. Nothing is written into a segment before its header and its name are durable (`segment`).
//! 2. Nothing is written into a segment before all of the one before it is synced: so a tail lies in one segment.
//! 3. A segment begins with every group's record: what earlier segments say of a group apart from its entries is never needed.
//! 4. A segment is let go only once a *synced* frame says that the floor is above it, and in order: no gap is ever legitimate.
//! 5. At boot an invalid frame with LSN p is damage if the header of any later frame says `durable_upto >= p`: an error. Else it is the
//!    tail: frames behind it are zeroed and synced before the first append, or they could pass once their LSNs are used again.
//!    Damage inside the last synced batch cannot be told from a tear; [`WalStats::tail_bytes_cut`] counts it (`recovery`).
//! 6. What boot hands out is durable: frames not known to be synced are written again and synced, since a crash of the process
//!    alone leaves them in the page cache, and a failed sync leaves them there marked clean.
//! 7. After a failed write or sync nothing is accepted, for good.
//!
//! # Space
//! A group that writes nothing for long must not keep old segments alive. Its record is copied at each rotation; its entries are
//! copied, at most a quarter of a segment a rotation, once more than [`WalOptions::pinned_segments_max`] segments are in use of which
//! less than half is live (`rotation`).

mod append;
mod frame;
mod index;
mod read;
mod record;
mod recovery;
mod rotation;
mod segment;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{GroupId, LogOp, LogSlice, LogState, Slot, SlotRange};
use parking_lot::{Condvar, Mutex, MutexGuard};

use self::{
    frame::Stamp,
    index::{GroupLog, Usage},
    segment::Segment,
};
use crate::{Disk, DiskFile, LogError, LogStore};

/// How a [`Wal`] is to work.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// The id a new log is given, unique to it (draw it at random); an existing log keeps its own. It is in every checksum, so that
    /// no file of another log passes as one of this.
    pub log_id: u64,
    /// Size of a segment. Default 32 MiB, between 2 KiB and 1 GiB. A batch's element must fit in half of one.
    pub segment_bytes: u64,
    /// How many segments may be in use before entries of laggards are copied forward. Default 4, at least 1.
    pub pinned_segments_max: usize,
    /// Who makes the next segment ready.
    pub preparation: Preparation,
    /// Told of each sync.
    pub observer: Option<Arc<dyn WalObserver>>,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            log_id: 0,
            segment_bytes: 32 << 20,
            pinned_segments_max: 4,
            preparation: Preparation::Background,
            observer: None,
        }
    }
}

/// Who makes the next segment ready and lets old ones go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// A thread of the log, ahead of need: a rotation costs one sync.
    Background,
    /// Whoever appends and syncs, at the moment of need: slower at a rotation, and deterministic.
    Inline,
}

/// Hears of each sync, for metrics. Called on the syncing thread: be short.
pub trait WalObserver: Send + Sync + fmt::Debug {
    /// An `fdatasync` of the log succeeded after `took`.
    fn synced(&self, took: Duration);
}

/// Counts since the log was opened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Frames written.
    pub frames: u64,
    /// Bytes written, headers and padding included.
    pub bytes: u64,
    /// Syncs that reached the disk; those with nothing to do are not counted.
    pub syncs: u64,
    /// Segments begun.
    pub rotations: u64,
    /// Segments let go, to be used again or removed.
    pub segments_freed: u64,
    /// Segments made from freed ones.
    pub segments_recycled: u64,
    /// Entries copied forward so that a laggard does not pin the log.
    pub entries_copied: u64,
    /// Bytes of tail cut at boot: zero after a clean stop. Unless power was lost, look at the disk.
    pub tail_bytes_cut: u64,
}

/// The log of all groups of a process. See the module's text for its file format and its rules.
pub struct Wal {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

/// What the log's users and its worker share.
///
/// Locks are taken in the order `buffer`, `state`; the state's is never held over a sync or the making of a segment.
#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    options: WalOptions,
    log_id: u64,
    /// Held over a whole append: appends are one after the other.
    buffer: Mutex<Vec<u8>>,
    state: Mutex<State>,
    /// Signalled when there is work for the worker and when a job of it is done.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    groups: BTreeMap<GroupId, GroupLog>,
    usage: Usage,
    /// In order, without gaps; the last is active.
    segments: VecDeque<Arc<Segment>>,
    /// Where the next write into the active segment goes.
    offset: u64,
    /// The LSN of the next frame.
    next_lsn: u64,
    /// Every frame up to this LSN is synced.
    durable_upto: u64,
    /// The floor as last written, and the LSN of the frame that says so.
    floor: u32,
    floor_lsn: u64,
    /// The segments after the active one, durable and empty.
    prepared: VecDeque<Arc<Segment>>,
    /// Let go, but still under their names.
    retired: VecDeque<Arc<Segment>>,
    /// Let go and renamed: material for new segments.
    spare: Option<(String, Arc<Segment>)>,
    /// A job is under way without the lock.
    busy: bool,
    /// Preparing failed: not tried again ahead of need.
    preparing_failed: bool,
    stop: bool,
    failure: Option<Failure>,
    stats: WalStats,
    /// Records that a mutant holds back.
    #[cfg(feature = "mutants")]
    late: Vec<(GroupId, bytes::Bytes)>,
}

/// Why the log is closed: a failure that nobody was told of yet, or one that somebody was.
#[derive(Debug)]
enum Failure {
    Untold(LogError),
    Told,
}

impl State {
    fn active(&self) -> &Arc<Segment> {
        self.segments.back().expect("a log always has an active segment")
    }

    fn check(&mut self) -> Result<(), LogError> {
        match self.failure.replace(Failure::Told) {
            None => {
                self.failure = None;
                Ok(())
            }
            Some(Failure::Untold(error)) => Err(error),
            Some(Failure::Told) => Err(LogError::Failed),
        }
    }

    /// Closes the log for good and hands the error on.
    fn fail(&mut self, error: LogError) -> LogError {
        self.failure = Some(Failure::Told);
        error
    }
}

impl Wal {
    /// Opens the log on `disk`, or begins one there if the disk is empty. What it holds afterwards is durable.
    ///
    /// # Errors
    /// [`LogError::Damaged`] if synced bytes are not what was written, [`LogError::Foreign`] if the disk holds anything else than this
    /// log, [`LogError::Misuse`] for options out of range, [`LogError::Full`] and [`LogError::Io`]. Nothing on the disk is changed unless
    /// the log could be read.
    pub fn open(disk: Arc<dyn Disk>, options: WalOptions) -> Result<Self, LogError> {
        if !(segment::SEGMENT_BYTES_MIN..=segment::SEGMENT_BYTES_MAX).contains(&options.segment_bytes) {
            return Err(LogError::Misuse("a segment must have between 2 KiB and 1 GiB"));
        }
        if !options.segment_bytes.is_multiple_of(frame::ALIGN_BYTES as u64)
            || options.pinned_segments_max == 0
        {
            return Err(LogError::Misuse(
                "a segment's size must be a multiple of eight and at least one be allowed",
            ));
        }
        let (log_id, state) = recovery::recover(&*disk, &options)?;
        let shared = Arc::new(Shared {
            disk,
            options,
            log_id,
            buffer: Mutex::new(Vec::new()),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        shared.retire(&mut shared.state.lock())?;
        let worker = match shared.options.preparation {
            Preparation::Inline => None,
            Preparation::Background => {
                let shared = Arc::clone(&shared);
                let thread = std::thread::Builder::new().name("wal-segments".to_owned());
                let spawned = thread.spawn(move || shared.work());
                Some(spawned.map_err(|error| LogError::from_io("start of a thread", error))?)
            }
        };
        Ok(Self { shared, worker })
    }

    /// Counts since the log was opened.
    #[must_use]
    pub fn stats(&self) -> WalStats {
        self.shared.state.lock().stats
    }

    /// The log's own id.
    #[must_use]
    pub fn log_id(&self) -> u64 {
        self.shared.log_id
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal")
            .field("log_id", &self.shared.log_id)
            .field("disk", &self.shared.disk)
            .finish_non_exhaustive()
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has nothing to hand over.
            let _ = worker.join();
        }
    }
}

impl LogStore for Wal {
    fn groups(&self) -> Vec<GroupId> {
        self.shared.state.lock().groups.keys().copied().collect()
    }

    fn state(&self, group: GroupId) -> LogState {
        let state = self.shared.state.lock();
        state.groups.get(&group).map_or_else(|| GroupLog::default().state(), GroupLog::state)
    }

    fn append(&self, batch: &[(GroupId, Vec<LogOp>)]) -> Result<(), LogError> {
        self.shared.append(batch)
    }

    fn sync(&self) -> Result<(), LogError> {
        self.shared.sync()
    }

    fn read(&self, group: GroupId, range: SlotRange, bytes_max: usize) -> Result<LogSlice, LogError> {
        self.shared.read(group, range, bytes_max)
    }

    fn next_held(&self, group: GroupId, from: Slot) -> Option<Slot> {
        self.shared.state.lock().groups.get(&group)?.next_held(from)
    }

    fn size_bytes(&self) -> u64 {
        let state = self.shared.state.lock();
        let spare = state.spare.iter().map(|(_, segment)| segment);
        let named = state.segments.iter().chain(&state.prepared).chain(&state.retired);
        named.chain(spare).map(|segment| segment.size_bytes).sum()
    }
}

impl Shared {
    fn stamp(&self, segment: u32) -> Stamp {
        Stamp { log_id: self.log_id, segment }
    }

    fn sync(&self) -> Result<(), LogError> {
        let mut state = self.state.lock();
        state.check()?;
        self.sync_active(&mut state)?;
        self.retire(&mut state)
    }

    /// Syncs what was written so far. Frames of earlier segments were synced when those were left.
    fn sync_active(&self, state: &mut MutexGuard<'_, State>) -> Result<(), LogError> {
        let written_upto = state.next_lsn - 1;
        if state.durable_upto == written_upto {
            return Ok(());
        }
        let file: Arc<dyn DiskFile> = Arc::clone(&state.active().file);
        let observer = self.options.observer.as_deref();
        let result = MutexGuard::unlocked(state, || {
            let began = observer.map(|_| Instant::now());
            let result = sync_file(&*file);
            if let (Some(observer), Some(began), Ok(())) = (observer, began, &result) {
                observer.synced(began.elapsed());
            }
            result
        });
        if let Err(error) = result {
            return Err(state.fail(LogError::from_io("sync", error)));
        }
        state.durable_upto = state.durable_upto.max(written_upto);
        state.stats.syncs += 1;
        Ok(())
    }
}

fn sync_file(file: &dyn DiskFile) -> std::io::Result<()> {
    #[cfg(feature = "mutants")]
    if Mutant::LogSyncDoesNothing.is_on() {
        return Ok(());
    }
    let result = file.sync();
    #[cfg(feature = "mutants")]
    if result.is_err() && Mutant::FailedSyncRetried.is_on() {
        return file.sync();
    }
    result
}
