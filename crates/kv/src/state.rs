//! What readers and the apply thread share: the map of newest generations, the head, and the store's numbers.

use std::{
    ops::{Bound, ControlFlow},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use conclave_api::conclave::kv::v1::CheckpointRecord;
use conclave_storage::{Pair, StateError, StateStore, StateView};
use parking_lot::RwLock;
use prost::Message;

use crate::{
    awaited::KeyObserver,
    changes::Observers,
    head::{Head, HeadEntry, NOWHERE},
    interval::Interval,
    keymap::KeyMap,
    layout::{self, FORMAT, FORMAT_WITH_HISTORY, INDEX, Numbers},
    leases::Leases,
    registry::Registry,
};

/// The revision of a store in which nothing was ever written.
const FIRST_REVISION: i64 = 1;
/// How many keys eviction looks at in one go.
const EVICT_KEYS_MAX: usize = 4096;
/// What "never compacted" is, so that even revision 0 can be compacted once, as in etcd.
const NEVER_COMPACTED: i64 = -1;

/// The newest generation of a key. A deletion stays until the engine has it.
#[derive(Debug)]
pub(crate) struct Newest {
    pub(crate) numbers: Numbers,
    /// Where the head has it, or had it.
    pub(crate) position: u64,
    /// Key and value, if the value is in memory.
    payload: Option<Arc<[u8]>>,
}

impl Newest {
    /// What its value counts for among the values kept although the engine has them.
    fn cached_bytes(&self, head: &Head) -> usize {
        match &self.payload {
            Some(payload) if head.has_retired(self.position) => cost_bytes(payload),
            _ => 0,
        }
    }
}

/// What a payload takes: itself, and its counters and rounding.
fn cost_bytes(payload: &Arc<[u8]>) -> usize {
    payload.len() + 24
}

/// A generation as a reader sees it.
pub(crate) enum Seen<'a> {
    /// This one; without a value if the engine has it.
    Generation(&'a Numbers, Option<&'a [u8]>),
    /// The key does not exist at that revision.
    Absent,
    /// Only the engine knows.
    InEngine,
}

/// Everything under the lock.
#[derive(Debug)]
pub(crate) struct State {
    keys: KeyMap<Newest>,
    pub(crate) head: Head,
    /// Bytes of values in the map whose generations have retired from the head, and how many there may be together with the head.
    cached_bytes: usize,
    cached_bytes_max: usize,
    /// The key from which eviction goes on.
    evict_from: Box<[u8]>,
    /// The highest revision applied.
    pub(crate) top: i64,
    /// The revision below which nothing more can happen.
    pub(crate) readable: i64,
    /// The oldest revision that can be read.
    pub(crate) compacted: i64,
    /// The highest revision of a deletion that only the engine remembers: reads below it must look there for keys that the map does
    /// not know.
    pub(crate) forgotten: i64,
    /// The revision of the last deletion.
    pub(crate) last_deletion: i64,
    /// The revision from which the engine's history names what changed; what the head has, it has in any case.
    pub(crate) history_from: i64,
    /// How many keys exist.
    pub(crate) live_keys: u64,
    /// The nodes that the group knows.
    pub(crate) registry: Registry,
    /// The leases granted, and what is attached to them.
    pub(crate) leases: Leases,
    pub(crate) awaited: Awaited,
    /// Counts the snapshots installed: a read that spans one must begin again.
    pub(crate) incarnation: u64,
    /// Reused to join key and value.
    joint: Vec<u8>,
}

/// Changed keys that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    pub(crate) observer: Option<Arc<dyn KeyObserver>>,
    changed: Vec<Box<[u8]>>,
}

impl Awaited {
    fn note(&mut self, key: &[u8]) {
        if self.observer.as_ref().is_some_and(|observer| observer.awaits(key)) {
            self.changed.push(key.into());
        }
    }

    /// The keys noted since this was last asked.
    pub(crate) fn take(&mut self) -> Vec<Box<[u8]>> {
        std::mem::take(&mut self.changed)
    }
}

impl State {
    /// Rebuilds the state of the last checkpoint: one scan of the index, which has a pair for each key that exists and no more.
    pub(crate) fn load(
        view: &dyn StateView,
        value_cache_bytes: usize,
        incarnation: u64,
    ) -> Result<Self, StateError> {
        let record = match view.checkpoint() {
            Some(checkpoint) => read_record(&checkpoint.record)?,
            None => CheckpointRecord {
                format: FORMAT,
                top_revision: FIRST_REVISION,
                readable_revision: FIRST_REVISION,
                compact_revision: NEVER_COMPACTED,
                compact_target: NEVER_COMPACTED,
                ..CheckpointRecord::default()
            },
        };
        let mut leases = Leases::load(view)?;
        let mut failure = None;
        let is_index = |pair: &Result<Pair, StateError>| {
            pair.as_ref().map_or(true, |(key, _)| key.first() == Some(&INDEX))
        };
        let pairs = view.scan(Bound::Included(&[INDEX]));
        let keys: KeyMap<Newest> = pairs
            .take_while(is_index)
            .map_while(|pair| {
                let newest = pair.and_then(|(key, value)| {
                    let (numbers, _) = layout::read_index(&value)?;
                    let key = layout::user_key(&key)?.into_boxed_slice();
                    if numbers.lease != 0 && !leases.contains(numbers.lease) {
                        return Err(layout::damaged("a key names a lease that there is not"));
                    }
                    leases.attach(&key, 0, numbers.lease);
                    Ok((key, Newest { numbers, position: NOWHERE, payload: None }))
                });
                newest.map_err(|error| failure = Some(error)).ok()
            })
            .collect();
        if let Some(error) = failure {
            return Err(error);
        }
        #[cfg(feature = "mutants")]
        let record = if conclave_consensus::Mutant::RevisionFromKeys.is_on() {
            let mut top = FIRST_REVISION;
            keys.range((Bound::Unbounded, Bound::Unbounded))
                .for_each(|(_, newest)| top = top.max(newest.numbers.modified));
            CheckpointRecord { top_revision: top, readable_revision: top, ..record }
        } else {
            record
        };
        Ok(Self {
            live_keys: keys.len() as u64,
            registry: Registry::load(record.nodes)?,
            leases,
            awaited: Awaited::default(),
            keys,
            head: Head::default(),
            cached_bytes: 0,
            cached_bytes_max: value_cache_bytes,
            evict_from: Box::default(),
            top: record.top_revision,
            readable: record.readable_revision,
            compacted: record.compact_revision,
            forgotten: record.last_deletion_revision,
            last_deletion: record.last_deletion_revision,
            history_from: if record.format < FORMAT_WITH_HISTORY {
                record.top_revision + 1
            } else {
                record.history_revision
            },
            incarnation,
            joint: Vec::new(),
        })
    }

    /// Writes a key. Returns nothing: what was before is for [`see`](Self::see) to say, first.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8], lease: i64, revision: i64, index: u32) {
        self.joint.clear();
        self.joint.extend_from_slice(key);
        self.joint.extend_from_slice(value);
        let payload: Arc<[u8]> = Arc::from(self.joint.as_slice());
        if self.joint.capacity() > 64 << 10 {
            self.joint = Vec::new();
        }
        let created = Numbers { created: revision, modified: revision, version: 1, lease };
        self.awaited.note(key);
        let entry = |numbers, previous| HeadEntry {
            payload: payload.clone(),
            key_bytes: key.len() as u32,
            index,
            numbers,
            previous,
        };
        if let Some(newest) = self.keys.get_mut(key) {
            self.leases.attach(key, newest.numbers.lease, lease);
            let numbers = if newest.numbers.is_deletion() {
                self.live_keys += 1;
                created
            } else {
                let Numbers { created, version, .. } = newest.numbers;
                Numbers { created, modified: revision, version: version + 1, lease }
            };
            self.cached_bytes -= newest.cached_bytes(&self.head);
            let position = self.head.push(entry(numbers, newest.position));
            *newest = Newest { numbers, position, payload: Some(payload) };
        } else {
            self.leases.attach(key, 0, lease);
            self.live_keys += 1;
            let position = self.head.push(entry(created, NOWHERE));
            self.keys.insert(key, Newest { numbers: created, position, payload: Some(payload) });
        }
    }

    /// Deletes a key if it exists.
    pub(crate) fn delete(&mut self, key: &[u8], revision: i64, index: u32) -> bool {
        let Some(newest) = self.keys.get_mut(key).filter(|newest| !newest.numbers.is_deletion()) else {
            return false;
        };
        self.cached_bytes -= newest.cached_bytes(&self.head);
        self.leases.detach(key, newest.numbers.lease);
        self.awaited.note(key);
        delete(&mut self.head, key, newest, revision, index);
        self.live_keys -= 1;
        self.last_deletion = self.last_deletion.max(revision);
        true
    }

    /// Deletes the keys of a range, at most `keys_max`; how many, and where to go on if there may be more. Each takes the next
    /// operation index.
    pub(crate) fn delete_some(
        &mut self,
        interval: &Interval,
        revision: i64,
        index: &mut u32,
        keys_max: usize,
    ) -> (i64, Option<Box<[u8]>>) {
        let Some(bounds) = interval.bounds() else { return (0, None) };
        let (mut deleted, mut looked_at) = (0, 0);
        let mut resume = None;
        self.keys.visit_mut(bounds, |key, newest| {
            if looked_at == keys_max {
                resume = Some(key.into());
                return ControlFlow::Break(());
            }
            looked_at += 1;
            if !newest.numbers.is_deletion() {
                self.cached_bytes -= newest.cached_bytes(&self.head);
                self.leases.detach(key, newest.numbers.lease);
                self.awaited.note(key);
                delete(&mut self.head, key, newest, revision, *index);
                *index += 1;
                deleted += 1;
            }
            ControlFlow::Continue(())
        });
        if deleted > 0 {
            self.live_keys -= deleted as u64;
            self.last_deletion = self.last_deletion.max(revision);
        }
        (deleted, resume)
    }

    /// Makes a command's changes readable.
    pub(crate) fn publish(&mut self, revision: i64) {
        assert!(revision > self.top, "revisions of a group only grow");
        self.top = revision;
        self.readable = revision;
    }

    /// The keys of a range that are in the map, deleted ones included.
    pub(crate) fn range(&self, interval: &Interval) -> impl Iterator<Item = (&[u8], &Newest)> {
        interval.bounds().into_iter().flat_map(|bounds| self.keys.range(bounds))
    }

    /// One key of the map.
    pub(crate) fn newest(&self, key: &[u8]) -> Option<&Newest> {
        self.keys.get(key)
    }

    /// What a key is at a revision.
    pub(crate) fn see<'a>(&'a self, key: &[u8], newest: &'a Newest, revision: i64) -> Seen<'a> {
        if newest.numbers.modified <= revision {
            let value = newest.payload.as_ref().map(|payload| &payload[key.len()..]);
            return seen(&newest.numbers, value);
        }
        let mut position = newest.position;
        while let Some(entry) = self.head.get(position) {
            if entry.numbers.modified <= revision {
                return seen(&entry.numbers, Some(entry.value()));
            }
            position = entry.previous;
        }
        Seen::InEngine
    }

    /// Lets go of at most `entries_max` generations that the engine has, and says whether there may be more.
    pub(crate) fn retire(&mut self, entries_max: usize) -> bool {
        for _ in 0..entries_max {
            let Some((position, entry)) = self.head.retire() else { return false };
            if entry.numbers.is_deletion() {
                if self.keys.get(entry.key()).is_some_and(|newest| newest.position == position) {
                    self.keys.remove(entry.key());
                    self.forgotten = self.forgotten.max(entry.numbers.modified);
                }
            } else if Arc::strong_count(&entry.payload) > 1 {
                // The map has it too: it is still the newest.
                self.cached_bytes += cost_bytes(&entry.payload);
            }
        }
        true
    }

    /// How many bytes of values may be kept beside the head's.
    fn room_bytes(&self) -> usize {
        self.cached_bytes_max.saturating_sub(self.head.pending_bytes())
    }

    /// Goes round the map in key order and drops values, but those that the head has, until what is left fits, or enough was looked at.
    ///
    /// That is a random choice among the values that were not written lately. An order by age would cost a search of the map for each.
    pub(crate) fn evict(&mut self) {
        let room_bytes = self.room_bytes();
        // A few values in a large map are not worth the search for them.
        if self.cached_bytes <= room_bytes.max(self.cached_bytes_max / 32) {
            return;
        }
        let mut stopped_at = None;
        let mut looked_at = 0;
        self.keys.visit_mut((Bound::Included(&self.evict_from), Bound::Unbounded), |key, newest| {
            if looked_at == EVICT_KEYS_MAX || self.cached_bytes <= room_bytes {
                stopped_at = Some(key.into());
                return ControlFlow::Break(());
            }
            looked_at += 1;
            let cached_bytes = newest.cached_bytes(&self.head);
            if cached_bytes > 0 {
                self.cached_bytes -= cached_bytes;
                newest.payload = None;
            }
            ControlFlow::Continue(())
        });
        self.evict_from = stopped_at.unwrap_or_default();
    }

    pub(crate) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    pub(crate) fn record(&self) -> CheckpointRecord {
        CheckpointRecord {
            format: FORMAT,
            top_revision: self.top,
            readable_revision: self.readable,
            compact_revision: self.compacted,
            last_deletion_revision: self.last_deletion,
            history_revision: self.history_from,
            nodes: self.registry.nodes(),
            ..CheckpointRecord::default()
        }
    }
}

fn delete(head: &mut Head, key: &[u8], newest: &mut Newest, revision: i64, index: u32) {
    let numbers = Numbers { modified: revision, ..Numbers::default() };
    let payload: Arc<[u8]> = Arc::from(key);
    let entry = HeadEntry { payload, key_bytes: key.len() as u32, index, numbers, previous: newest.position };
    *newest = Newest { numbers, position: head.push(entry), payload: None };
}

fn seen<'a>(numbers: &'a Numbers, value: Option<&'a [u8]>) -> Seen<'a> {
    if numbers.is_deletion() { Seen::Absent } else { Seen::Generation(numbers, value) }
}

/// Reads a checkpoint's record.
pub(crate) fn read_record(record: &[u8]) -> Result<CheckpointRecord, StateError> {
    let record = CheckpointRecord::decode(record).map_err(|_| layout::damaged("the checkpoint's record"))?;
    if layout::is_known(record.format) {
        Ok(record)
    } else {
        Err(layout::damaged("the checkpoint is of a layout that this version does not know"))
    }
}

/// What readers and the apply thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    pub(crate) store: Arc<dyn StateStore>,
    /// Values and older generations that reads had to fetch from the engine, for metrics.
    pub(crate) engine_reads: AtomicU64,
    /// Who is told when the newest revision has grown.
    pub(crate) observers: Observers,
}

impl Shared {
    pub(crate) fn count_engine_reads(&self, reads: usize) {
        self.engine_reads.fetch_add(reads as u64, Ordering::Relaxed);
    }
}
