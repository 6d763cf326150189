//! The history in the order of its revisions, a page at a time: what watches are served from.
//!
//! A page takes the newest changes from the head, in memory, and older ones from the engine's [`history`]. It holds whole revisions. What it
//! lacks at first (values that only the engine has, and what keys were before) is fetched for those changes alone that somebody wants.
//!
//! Changes in memory can be read whatever was compacted since, so that nobody who keeps up loses one to a compaction.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use conclave_api::mvccpb::KeyValue;
use conclave_storage::{StateError, StateStore};
use parking_lot::{RwLock, RwLockReadGuard};

use crate::{
    head::{Head, HeadEntry},
    history,
    layout::{self, Numbers, damaged},
    pages::{key_value, newest_at},
    reader::Reader,
    state::{Shared, State},
    watch::{Needs, Now},
};

/// So many changes are copied under one hold of the lock.
const SLICE_CHANGES: usize = 1024;
/// What a change costs in memory beside key and value.
const CHANGE_COST_BYTES: usize = 128;

/// Is told, on the apply thread, that the newest revision has grown, once readers see it. It must not wait.
pub trait RevisionObserver: Send + Sync + fmt::Debug {
    /// Several revisions may be told at once.
    fn advanced(&self);
}

/// Who is told.
#[derive(Debug, Default)]
pub(crate) struct Observers(RwLock<Vec<Weak<dyn RevisionObserver>>>);

impl Observers {
    pub(crate) fn tell(&self) {
        self.0.read().iter().filter_map(Weak::upgrade).for_each(|observer| observer.advanced());
    }
}

/// Why the history cannot be read from a revision on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HistoryError {
    /// What was asked for is gone; this is the oldest revision left.
    #[error("the history begins at revision {0}")]
    Compacted(i64),
    /// The engine's.
    #[error(transparent)]
    Engine(#[from] StateError),
}

/// What a key was before a change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Before {
    /// Only the engine knows.
    Unread,
    /// It did not exist, or what it was is compacted.
    Nothing,
    Generation(KeyValue),
}

/// One change of one key.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) revision: i64,
    pub(crate) is_deletion: bool,
    payload: Payload,
    pub(crate) before: Before,
    /// The event as it is sent, without and with what was before; made for the first who wants it.
    pub(crate) encoded: [Option<Bytes>; 2],
}

#[derive(Clone, Debug)]
enum Payload {
    /// Key and value in one, and where the value begins.
    Memory(Arc<[u8]>, usize, Numbers),
    /// The value is in the engine.
    Named(Bytes),
    Read(KeyValue),
}

impl Change {
    fn new(revision: i64, is_deletion: bool, payload: Payload, before: Before) -> Self {
        Self { revision, is_deletion, payload, before, encoded: [None, None] }
    }

    pub(crate) fn key(&self) -> &[u8] {
        match &self.payload {
            Payload::Memory(joint, value_at, _) => &joint[..*value_at],
            Payload::Named(key) => key,
            Payload::Read(kv) => &kv.key,
        }
    }

    /// Whether the change is known in full, but for what was before.
    pub(crate) fn is_read(&self) -> bool {
        self.is_deletion || !matches!(self.payload, Payload::Named(_))
    }

    /// The key as an event tells it; of a deletion it is key and revision.
    pub(crate) fn kv(&self) -> KeyValue {
        match &self.payload {
            Payload::Read(kv) => kv.clone(),
            Payload::Memory(joint, value_at, numbers) if !self.is_deletion => {
                let joint = Bytes::from_owner(Arc::clone(joint));
                key_value(joint.slice(..*value_at), numbers, joint.slice(*value_at..))
            }
            Payload::Memory(..) | Payload::Named(_) => KeyValue {
                key: Bytes::copy_from_slice(self.key()),
                mod_revision: self.revision,
                ..KeyValue::default()
            },
        }
    }

    fn size_bytes(&self) -> usize {
        let before = match &self.before {
            Before::Generation(kv) => kv.value.len(),
            Before::Unread | Before::Nothing => 0,
        };
        let payload = match &self.payload {
            Payload::Memory(joint, ..) => joint.len(),
            Payload::Named(key) => key.len(),
            Payload::Read(kv) => kv.key.len() + kv.value.len(),
        };
        payload + before + CHANGE_COST_BYTES
    }
}

/// A part of the history: all changes from one revision through another, in order.
#[derive(Clone, Debug)]
pub struct Changes {
    pub(crate) from: i64,
    pub(crate) through: i64,
    pub(crate) changes: Vec<Change>,
    is_from_engine: bool,
}

/// What a change has to be completed with, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) at: usize,
    pub(crate) before: bool,
}

impl Changes {
    fn nothing(from: i64, through: i64) -> Self {
        Self { from, through, changes: Vec::new(), is_from_engine: false }
    }

    /// The first revision that it may hold changes of.
    #[must_use]
    pub fn from(&self) -> i64 {
        self.from
    }

    /// The last revision that it holds all changes of.
    #[must_use]
    pub fn through(&self) -> i64 {
        self.through
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// A slice copied from the head.
enum Slice {
    /// There may be more, from this position on.
    More(u64),
    Done,
    /// The head has let go of what comes next.
    Gone,
}

impl Reader {
    /// Has somebody told of every growth of the newest revision, for as long as it lives.
    pub fn observe(&self, observer: &Arc<dyn RevisionObserver>) {
        let mut observers = self.shared.observers.0.write();
        observers.retain(|known| known.strong_count() > 0);
        observers.push(Arc::downgrade(observer));
    }

    /// The history from a revision on, in whole revisions: as many as take about `bytes_max` of memory, at least one if there is one. May ask the engine.
    ///
    /// # Errors
    /// `Compacted` unless all of it is in memory; the engine's.
    pub fn changes(&self, from: i64, bytes_max: usize) -> Result<Changes, HistoryError> {
        let from = from.max(0);
        loop {
            let (readable, in_engine);
            {
                let state = self.shared.state.read();
                readable = state.readable;
                in_engine = state.head.first_pending().unwrap_or(i64::MAX).min(readable + 1);
            }
            if from > readable {
                return Ok(Changes::nothing(from, from - 1));
            }
            if from < in_engine {
                return self.shared.changes_in_engine(from, in_engine, bytes_max);
            }
            if let Some(changes) = self.shared.changes_in_memory(from, bytes_max) {
                return Ok(changes);
            }
            // A checkpoint took it from memory meanwhile, or a snapshot replaced the state.
        }
    }

    /// What there is to watch.
    #[must_use]
    pub fn now(&self) -> Now {
        let state = self.shared.state.read();
        Now { revision: state.readable, oldest: oldest(&state) }
    }

    /// Completes a page with what the engine knows.
    ///
    /// # Errors
    /// `Compacted` if any of it is gone; the engine's.
    pub fn complete(&self, page: &mut Changes, Needs(needs): &Needs) -> Result<(), HistoryError> {
        let store = &*self.shared.store;
        let mut reads = 0;
        for Need { at, before } in needs {
            let Some(change) = page.changes.get_mut(*at) else { continue };
            if !change.is_read() {
                reads += 1;
                change.payload = Payload::Read(self.shared.generation(store, change)?);
            }
            if *before && change.before == Before::Unread {
                reads += 1;
                change.before = self.shared.before(store, change)?;
            }
        }
        self.shared.count_engine_reads(reads);
        if page.is_from_engine {
            still_there(&self.shared.state.read(), page.from)?;
        }
        Ok(())
    }
}

impl Shared {
    fn changes_in_memory(&self, from: i64, bytes_max: usize) -> Option<Changes> {
        let mut page = Changes::nothing(from, from - 1);
        let mut size_bytes = 0;
        let mut state = self.state.read();
        let incarnation = state.incarnation;
        if state.head.first_pending().is_none_or(|first| first > from) {
            return None;
        }
        let mut position = state.head.position_of(from);
        loop {
            match copy(&state, position, bytes_max, &mut size_bytes, &mut page) {
                Slice::More(next) => position = next,
                Slice::Done => return Some(page),
                Slice::Gone => return None,
            }
            RwLockReadGuard::bump(&mut state);
            if state.incarnation != incarnation {
                return None;
            }
        }
    }

    fn changes_in_engine(&self, from: i64, to: i64, bytes_max: usize) -> Result<Changes, HistoryError> {
        still_there(&self.state.read(), from)?;
        let (names, through) = history::names(&*self.store, from, to, bytes_max)?;
        still_there(&self.state.read(), from)?;
        let changes = names.into_iter().map(|name| {
            Change::new(name.revision, name.is_deletion, Payload::Named(name.key), Before::Unread)
        });
        Ok(Changes { from, through, changes: changes.collect(), is_from_engine: true })
    }

    /// The generation that a put made, from the engine.
    fn generation(&self, store: &dyn StateStore, change: &Change) -> Result<KeyValue, HistoryError> {
        let key = change.key();
        if let Some(stored) = store.get(&layout::generation_key(key, change.revision))? {
            let (numbers, _, value_at) = layout::read_generation(&stored, change.revision)?;
            if !numbers.is_deletion() {
                return Ok(key_value(Bytes::copy_from_slice(key), &numbers, stored.slice(value_at..)));
            }
        }
        still_there(&self.state.read(), change.revision)?;
        Err(damaged("a generation that the history names is missing").into())
    }

    /// What a key was before a change, from the engine; nothing if that is compacted.
    fn before(&self, store: &dyn StateStore, change: &Change) -> Result<Before, HistoryError> {
        let is_creation =
            matches!(&change.payload, Payload::Read(kv) if kv.create_revision == kv.mod_revision);
        if is_creation || self.state.read().compacted >= change.revision {
            return Ok(Before::Nothing);
        }
        let key = change.key();
        match newest_at(store, key, change.revision - 1)? {
            Some((numbers, value)) => {
                Ok(Before::Generation(key_value(Bytes::copy_from_slice(key), &numbers, value)))
            }
            None if self.state.read().compacted >= change.revision => Ok(Before::Nothing),
            None => Err(damaged("what a key was before a change is missing").into()),
        }
    }
}

fn oldest(state: &State) -> i64 {
    state.compacted.max(state.history_from)
}

/// Whether the engine's history still begins at a revision or before.
fn still_there(state: &State, from: i64) -> Result<(), HistoryError> {
    let oldest = oldest(state);
    if from < oldest { Err(HistoryError::Compacted(oldest)) } else { Ok(()) }
}

/// Copies changes of the head into a page, from a position on.
fn copy(state: &State, from: u64, bytes_max: usize, size_bytes: &mut usize, page: &mut Changes) -> Slice {
    let end = state.head.end();
    let mut at = from;
    while at < end {
        let Some(entry) = state.head.get(at) else { return Slice::Gone };
        let revision = entry.numbers.modified;
        if revision > state.readable {
            break;
        }
        if revision > page.through {
            // All of the revision before is there.
            page.through = revision - 1;
            let is_next = page.changes.last().is_some_and(|last| last.revision < revision);
            if is_next && *size_bytes >= bytes_max {
                return Slice::Done;
            }
        }
        if at - from >= SLICE_CHANGES as u64 {
            return Slice::More(at);
        }
        let change = of_entry(&state.head, entry);
        *size_bytes += change.size_bytes();
        page.changes.push(change);
        at += 1;
    }
    page.through = state.readable;
    Slice::Done
}

fn of_entry(head: &Head, entry: &HeadEntry) -> Change {
    let numbers = entry.numbers;
    let mut before = Before::Unread;
    let mut position = entry.previous;
    while let Some(previous) = head.get(position) {
        // One that the same revision wrote is not what was before it.
        if previous.numbers.modified < numbers.modified {
            before = before_of(previous);
            break;
        }
        position = previous.previous;
    }
    if numbers.created == numbers.modified {
        before = Before::Nothing;
    }
    let payload = Payload::Memory(Arc::clone(&entry.payload), entry.key_bytes as usize, numbers);
    Change::new(numbers.modified, numbers.is_deletion(), payload, before)
}

fn before_of(entry: &HeadEntry) -> Before {
    if entry.numbers.is_deletion() {
        return Before::Nothing;
    }
    let joint = Bytes::from_owner(Arc::clone(&entry.payload));
    let value_at = entry.key_bytes as usize;
    Before::Generation(key_value(joint.slice(..value_at), &entry.numbers, joint.slice(value_at..)))
}

#[cfg(test)]
mod tests {
    use conclave_api::etcdserverpb::PutRequest;
    use conclave_consensus::{Ballot, Entry, GroupId, Kind, ProposalId, Slot, SnapshotMeta};
    use conclave_storage::{MemoryEngine, StateEngine, StateMachine};

    use crate::{
        command::{self, Revision},
        machine::{Machine, Options},
    };

    fn put(machine: &mut Machine, key: &'static str) {
        let put = PutRequest { key: key.into(), ..PutRequest::default() };
        let entry = Entry {
            slot: machine.applied().next(),
            ballot: Ballot::term(1),
            kind: Kind::Command,
            id: ProposalId::default(),
            payload: command::put(Revision::Next, &put),
        };
        machine.apply(&[entry], &|_| true, &mut Vec::new());
    }

    #[test]
    fn what_a_checkpoint_took_from_memory_is_not_skipped() {
        let store = MemoryEngine::new().store(GroupId(1), 0).unwrap();
        let (mut machine, reader) = Machine::open(store, Options::default()).unwrap();
        put(&mut machine, "a");
        put(&mut machine, "b");
        let in_memory = |from| {
            let changes = reader.shared.changes_in_memory(from, 1000)?;
            Some((changes.len(), changes.through()))
        };
        assert_eq!((in_memory(2), in_memory(3)), (Some((2, 3)), Some((1, 3))));
        let meta = SnapshotMeta { slot: Slot(2), ..SnapshotMeta::default() };
        machine.checkpoint(meta).unwrap().run().unwrap();
        assert_eq!(in_memory(2), Some((2, 3)), "the head has it until it is told");
        machine.checkpointed();
        put(&mut machine, "c");
        assert_eq!((in_memory(2), in_memory(4)), (None, Some((1, 4))));
        let whole = reader.changes(2, 1000).unwrap();
        assert_eq!((whole.len(), whole.through()), (2, 3));
    }
}
