//! A checksum of the history that does not depend on where its parts are kept.
//!
//! Counted is what a reader could tell apart: of each key the newest generation at or below the compaction revision unless it is a
//! deletion, and every later one up to the revision asked for. Whether the engine has removed the others yet plays no part.

use std::iter::Peekable;

use bytes::Bytes;
use conclave_api::errors::EtcdError;
use conclave_storage::{Scan, StateError, StateView};
use crc32fast::Hasher;

use crate::{
    command::KvError,
    head::HeadEntry,
    layout::{self, GENERATIONS, Numbers},
    state::Shared,
};

/// A checksum and what it is of.
pub(crate) struct Hashed {
    pub(crate) hash: u32,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) newest_revision: i64,
}

/// Hashes the history up to a revision; zero or less for the newest.
pub(crate) fn history(shared: &Shared, asked: i64) -> Result<Hashed, KvError> {
    let (mut pending, view, compacted, newest, revision);
    {
        let state = shared.state.read();
        (compacted, newest) = (state.compacted, state.readable);
        revision = if asked <= 0 { newest } else { asked };
        if asked > 0 && asked < compacted {
            return Err(EtcdError::Compacted.into());
        }
        if asked > newest {
            return Err(EtcdError::FutureRev.into());
        }
        // Both at one moment, so that nothing falls between head and engine.
        pending = state.head.pending().cloned().collect::<Vec<_>>();
        view = shared.store.view();
    }
    sort(&mut pending);
    let mut counted = Counted { hasher: Hasher::new(), compacted, revision, candidate: None };
    let mut engine = Engine::new(&*view)?;
    let mut pending = pending.iter().peekable();
    loop {
        let order = match (pending.peek(), &engine.next) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(entry), Some(stored)) => {
                (entry.key(), entry.numbers.modified).cmp(&(&stored.key, stored.numbers.modified))
            }
        };
        if order.is_ge() {
            let stored = engine.take()?;
            // A checkpoint may be complete without the head knowing: then both have it.
            if let Some(stored) = stored.filter(|_| order.is_gt()) {
                counted.add(&stored.key, &stored.numbers, &stored.value);
            }
        } else if let Some(entry) = pending.next() {
            counted.add(entry.key(), &entry.numbers, entry.value());
        }
    }
    let hash = counted.finish();
    Ok(Hashed { hash, revision, compact_revision: compacted, newest_revision: newest })
}

/// Sorts generations by key and revision, keeping of several in one revision the last.
fn sort(pending: &mut Vec<HeadEntry>) {
    // Stable, so that those of one revision stay in the order in which they were applied.
    pending.sort_by(|a, b| (a.key(), a.numbers.modified).cmp(&(b.key(), b.numbers.modified)));
    pending.reverse();
    pending.dedup_by(|a, b| a.numbers.modified == b.numbers.modified && a.key() == b.key());
    pending.reverse();
}

/// The part of the history that counts.
struct Counted {
    hasher: Hasher,
    compacted: i64,
    revision: i64,
    /// The newest generation so far of the present key at or below the compaction revision.
    candidate: Option<(Bytes, Numbers, Bytes)>,
}

impl Counted {
    fn add(&mut self, key: &[u8], numbers: &Numbers, value: &[u8]) {
        if self.candidate.as_ref().is_some_and(|(candidate, ..)| candidate != key) {
            self.settle();
        }
        if numbers.modified > self.revision {
            return;
        }
        if numbers.modified <= self.compacted {
            self.candidate = Some((Bytes::copy_from_slice(key), *numbers, Bytes::copy_from_slice(value)));
        } else {
            self.settle();
            self.count(key, numbers, value);
        }
    }

    fn settle(&mut self) {
        if let Some((key, numbers, value)) =
            self.candidate.take().filter(|(_, numbers, _)| !numbers.is_deletion())
        {
            self.count(&key, &numbers, &value);
        }
    }

    fn count(&mut self, key: &[u8], numbers: &Numbers, value: &[u8]) {
        let Numbers { created, modified, version, lease } = numbers;
        for bytes in [key, value] {
            self.hasher.update(&(bytes.len() as u64).to_le_bytes());
            self.hasher.update(bytes);
        }
        for number in [created, modified, version, lease] {
            self.hasher.update(&number.to_le_bytes());
        }
    }

    fn finish(mut self) -> u32 {
        self.settle();
        self.hasher.finalize()
    }
}

struct Stored {
    key: Vec<u8>,
    numbers: Numbers,
    value: Bytes,
}

/// The engine's generations in order.
struct Engine {
    scan: Peekable<Scan<'static>>,
    next: Option<Stored>,
}

impl Engine {
    fn new(view: &dyn StateView) -> Result<Self, StateError> {
        let scan = view.scan(std::ops::Bound::Included(&[GENERATIONS])).peekable();
        let mut engine = Self { scan, next: None };
        engine.take()?;
        Ok(engine)
    }

    /// The present generation; moves to the one after it.
    fn take(&mut self) -> Result<Option<Stored>, StateError> {
        let next = match self.scan.next().transpose()? {
            Some((key, value)) if key.first() == Some(&GENERATIONS) => {
                let (prefix, modified) = layout::split_generation_key(&key)?;
                let (numbers, _, at) = layout::read_generation(&value, modified)?;
                Some(Stored { key: layout::user_key(prefix)?, numbers, value: value.slice(at..) })
            }
            _ => None,
        };
        Ok(std::mem::replace(&mut self.next, next))
    }
}
