//! A disk in memory.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{Entry, LogOp, LogSlice, Slot, SlotRange, SnapshotMeta};

/// What a log and its last checkpoint hold.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) meta: Bytes,
    pub(super) entries: BTreeMap<Slot, Entry>,
    pub(super) first: Slot,
    pub(super) state: SnapshotMeta,
}

impl Disk {
    /// Empty, below a state of slot 0.
    pub(super) fn new(state: SnapshotMeta) -> Self {
        Self { meta: Bytes::new(), entries: BTreeMap::new(), first: Slot(1), state }
    }

    pub(super) fn apply(&mut self, op: &LogOp) {
        match op {
            LogOp::Meta(meta) => self.meta = meta.clone(),
            LogOp::Put(entries) => {
                self.entries.extend(entries.iter().map(|entry| (entry.slot, entry.clone())))
            }
            LogOp::TruncateFrom(slot) => drop(self.entries.split_off(slot)),
            LogOp::CutBelow(slot) => {
                self.entries = self.entries.split_off(slot);
                self.first = self.first.max(*slot);
            }
            LogOp::Reset(meta) => {
                let fits = self.entries.get(&meta.slot).is_some_and(|entry| entry.ballot == meta.ballot);
                let suffix = self.entries.split_off(&meta.slot.next());
                self.entries = if fits { suffix } else { BTreeMap::new() };
                self.first = meta.slot.next();
                self.state = SnapshotMeta::clone(meta);
            }
        }
    }

    pub(super) fn read(&self, range: SlotRange, bytes_max: u32) -> LogSlice {
        if range.from < self.first {
            return LogSlice::Compacted;
        }
        let mut bytes = 0;
        let fits = |entry: &Entry| {
            bytes += entry.size_bytes();
            bytes <= bytes_max as usize || bytes == entry.size_bytes()
        };
        let run = self.entries.range(range.from..range.to).map(|(_, entry)| entry.clone());
        LogSlice::Entries(run.take_while(fits).collect())
    }
}
