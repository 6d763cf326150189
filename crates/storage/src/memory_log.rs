//! The log's twin in memory: the same answers without a disk. For tests, and as the model against which the real one is judged.

use std::collections::BTreeMap;

use conclave_consensus::{Entry, GroupId, LogOp, LogSlice, LogState, Slot, SlotRange, SnapshotMeta};
use parking_lot::Mutex;

use crate::{LogError, LogStore};

/// A log that lives as long as the value. `sync` does nothing.
#[derive(Debug, Default)]
pub struct MemoryLog {
    groups: Mutex<BTreeMap<GroupId, Group>>,
}

#[derive(Debug)]
struct Group {
    meta: bytes::Bytes,
    reset: Option<SnapshotMeta>,
    first: Slot,
    entries: BTreeMap<Slot, Entry>,
}

impl Default for Group {
    fn default() -> Self {
        Self { meta: bytes::Bytes::new(), reset: None, first: Slot(1), entries: BTreeMap::new() }
    }
}

impl Group {
    fn state(&self) -> LogState {
        let last = self.entries.last_key_value().map_or(self.first.before(), |(slot, _)| *slot);
        LogState { meta: self.meta.clone(), reset: self.reset.clone(), first: self.first, last }
    }

    fn apply(&mut self, op: &LogOp) {
        match op {
            LogOp::Meta(meta) => self.meta = bytes::Bytes::copy_from_slice(meta),
            LogOp::Put(entries) => {
                let kept = entries.iter().filter(|entry| entry.slot >= self.first);
                self.entries.extend(kept.map(|entry| (entry.slot, entry.clone())));
            }
            LogOp::TruncateFrom(slot) => {
                self.entries.split_off(slot);
            }
            LogOp::CutBelow(slot) => self.cut_below(*slot),
            LogOp::Reset(meta) => {
                let name = (meta.slot, meta.ballot);
                let holds = self.entries.get(&meta.slot).is_some_and(|entry| entry.ballot == meta.ballot);
                let starts_there = self.first == meta.slot.next()
                    && self.reset.as_ref().is_some_and(|reset| (reset.slot, reset.ballot) == name);
                if holds || starts_there {
                    self.cut_below(meta.slot.next());
                } else {
                    self.entries.clear();
                    self.first = meta.slot.next();
                }
                self.reset = Some(SnapshotMeta::clone(meta));
            }
        }
    }

    fn cut_below(&mut self, slot: Slot) {
        if slot > self.first {
            self.first = slot;
            self.entries = self.entries.split_off(&slot);
        }
    }
}

impl MemoryLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl LogStore for MemoryLog {
    fn groups(&self) -> Vec<GroupId> {
        self.groups.lock().keys().copied().collect()
    }

    fn state(&self, group: GroupId) -> LogState {
        self.groups.lock().get(&group).map_or_else(|| Group::default().state(), Group::state)
    }

    fn append(&self, batch: &[(GroupId, Vec<LogOp>)]) -> Result<(), LogError> {
        let mut groups = self.groups.lock();
        for (group, ops) in batch.iter().filter(|(_, ops)| !ops.is_empty()) {
            let group = groups.entry(*group).or_default();
            ops.iter().for_each(|op| group.apply(op));
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), LogError> {
        Ok(())
    }

    fn read(&self, group: GroupId, range: SlotRange, bytes_max: usize) -> Result<LogSlice, LogError> {
        let groups = self.groups.lock();
        let group = groups.get(&group).ok_or(LogError::Misuse("a read of a group without a log"))?;
        if range.from >= range.to {
            return Err(LogError::Misuse("a read of no slots"));
        }
        if range.from < group.first {
            return Ok(LogSlice::Compacted);
        }
        let (mut entries, mut next, mut taken_bytes) = (Vec::new(), range.from, 0usize);
        for (slot, entry) in group.entries.range(range.from..range.to) {
            taken_bytes = taken_bytes.saturating_add(entry.size_bytes());
            if *slot != next || (taken_bytes > bytes_max && !entries.is_empty()) {
                break;
            }
            entries.push(entry.clone());
            next = next.next();
        }
        if entries.is_empty() {
            Err(LogError::Misuse("a read of a slot that was never written"))
        } else {
            Ok(LogSlice::Entries(entries))
        }
    }

    fn size_bytes(&self) -> u64 {
        let groups = self.groups.lock();
        groups.values().flat_map(|group| group.entries.values()).map(|entry| entry.size_bytes() as u64).sum()
    }
}
