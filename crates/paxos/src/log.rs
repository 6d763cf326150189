//! The slots in memory: what was last accepted at each, gaps included.
//!
//! Everything from [`Log::first`] on that was accepted is in the durable log, or on its way there; of that, a window at the end is kept here.
//! Older entries come back through `ReadLog`, asynchronously, so that no step ever waits for a disk. What is not known chosen is always
//! here: a new leader may ask for it.
//!
//! Each entry knows in which write it went to the disk. It is durable once that write is, and one that replaced it is another entry with another
//! write: no late completion can be taken for today's.

use std::collections::VecDeque;

use conclave_consensus::{Ballot, Entry, Slot, SnapshotMeta};

#[derive(Clone, Debug)]
struct Cell {
    entry: Entry,
    /// The sequence of the write that holds it; zero if it was there at boot.
    written: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// The lowest slot that the durable log holds.
    first: Slot,
    /// The slot before the first in memory. Everything up to it is chosen.
    base: Slot,
    /// The last one is never a gap.
    cells: VecDeque<Option<Cell>>,
    bytes: usize,
}

impl Log {
    pub(crate) fn new(first: Slot, base: Slot) -> Self {
        Self { first, base, cells: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn first(&self) -> Slot {
        self.first
    }

    /// The lowest slot that may be in memory; one past the last if nothing is.
    pub(crate) fn cached_from(&self) -> Slot {
        self.base.next()
    }

    /// The highest slot at which anything was accepted.
    pub(crate) fn last(&self) -> Slot {
        Slot(self.base.0 + self.cells.len() as u64)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn cell(&self, slot: Slot) -> Option<&Cell> {
        let index = usize::try_from(slot.0.checked_sub(self.base.0 + 1)?).ok()?;
        self.cells.get(index)?.as_ref()
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry> {
        self.cell(slot).map(|cell| &cell.entry)
    }

    /// The ballot in which the entry at the slot was accepted, where it is in memory.
    pub(crate) fn ballot_at(&self, slot: Slot) -> Option<Ballot> {
        self.get(slot).map(|entry| entry.ballot)
    }

    /// Whether the entry at the slot is durable, if every write up to the sequence is.
    pub(crate) fn is_durable(&self, slot: Slot, durable: u64) -> bool {
        self.cell(slot).is_some_and(|cell| cell.written <= durable)
    }

    /// Puts an entry that goes to the disk with the write of that sequence; gives the one that stood there.
    pub(crate) fn put(&mut self, entry: Entry, written: u64) -> Option<Entry> {
        assert!(entry.slot > self.base, "what left memory is chosen");
        let index = usize::try_from(entry.slot.0 - self.base.0 - 1).expect("bounded by the accept window");
        self.bytes += entry.size_bytes();
        if index >= self.cells.len() {
            self.cells.resize_with(index, || None);
            self.cells.push_back(Some(Cell { entry, written }));
            return None;
        }
        #[cfg(feature = "mutants")]
        let written = match &self.cells[index] {
            Some(old) if conclave_consensus::Mutant::LateDurableOfOldTerm.is_on() => old.written,
            _ => written,
        };
        let before = self.cells[index].replace(Cell { entry, written })?;
        self.bytes -= before.entry.size_bytes();
        Some(before.entry)
    }

    /// Forgets the entries above `slot` for which `goes` holds, in memory alone.
    pub(crate) fn forget_above(&mut self, slot: Slot, goes: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let from = usize::try_from(slot.0.saturating_sub(self.base.0)).unwrap_or(usize::MAX);
        let mut forgotten = Vec::new();
        for cell in self.cells.iter_mut().skip(from) {
            if let Some(cell) = cell.take_if(|cell| goes(&cell.entry)) {
                self.bytes -= cell.entry.size_bytes();
                forgotten.push(cell.entry);
            }
        }
        self.trim();
        forgotten
    }

    fn trim(&mut self) {
        while self.cells.pop_back_if(|cell| cell.is_none()).is_some() {}
    }

    /// The entries that stand from `from` to `to`, both included, in slot order, gaps left out.
    pub(crate) fn entries(&self, from: Slot, to: Slot) -> impl Iterator<Item = &Entry> {
        let start = usize::try_from(from.0.saturating_sub(self.base.0 + 1)).unwrap_or(usize::MAX);
        let end = usize::try_from(to.0.saturating_sub(self.base.0)).unwrap_or(usize::MAX);
        let (start, end) = (start.min(self.cells.len()), end.min(self.cells.len()));
        self.cells.range(start..end.max(start)).flatten().map(|cell| &cell.entry)
    }

    /// The run that begins at `from`, up to `to`, a gap, or `bytes_max`, but at least one entry where there is one.
    pub(crate) fn run(&self, from: Slot, to: Slot, bytes_max: usize) -> Vec<Entry> {
        let Some(start) = from.0.checked_sub(self.base.0 + 1).and_then(|start| usize::try_from(start).ok())
        else {
            return Vec::new();
        };
        let end =
            usize::try_from(to.0.saturating_sub(self.base.0)).unwrap_or(usize::MAX).min(self.cells.len());
        if start >= end {
            return Vec::new();
        }
        let (mut bytes, mut count) = (0, 0);
        for cell in self.cells.range(start..end) {
            let Some(cell) = cell else { break };
            bytes += cell.entry.size_bytes();
            if count > 0 && bytes > bytes_max {
                break;
            }
            count += 1;
        }
        let mut run = Vec::with_capacity(count);
        for cell in self.cells.range(start..start + count) {
            let Some(cell) = cell else { break };
            run.push(cell.entry.clone());
        }
        run
    }

    /// What the entries from `from` to `to`, both included and in memory, cost.
    pub(crate) fn size_bytes(&self, from: Slot, to: Slot) -> usize {
        self.entries(from, to).map(Entry::size_bytes).sum()
    }

    /// The first slot in memory, if its entry is.
    pub(crate) fn front(&self) -> Option<&Entry> {
        self.cells.front()?.as_ref().map(|cell| &cell.entry)
    }

    /// Forgets the first slot in memory; the durable log keeps it.
    pub(crate) fn release_front(&mut self) {
        let Some(front) = self.cells.front() else { return };
        self.bytes -= front.as_ref().map_or(0, |cell| cell.entry.size_bytes());
        self.base = self.base.next();
        self.cells.pop_front();
    }

    /// The durable log no longer holds what is below `slot`.
    pub(crate) fn cut_below(&mut self, slot: Slot) {
        self.first = self.first.max(slot);
    }

    /// The log starts after the snapshot. What was accepted above stays: an acceptor's word does not depend on what it learns.
    pub(crate) fn reset(&mut self, meta: &SnapshotMeta) {
        self.first = meta.slot.next();
        while self.base < meta.slot && !self.cells.is_empty() {
            self.release_front();
        }
        self.base = self.base.max(meta.slot);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{Kind, ProposalId, ReplicaId};

    use super::*;

    fn entry(slot: u64, round: u64) -> Entry {
        let payload = Bytes::from_static(b"0123456789");
        let ballot = Ballot { config: 0, round, replica: ReplicaId(1) };
        Entry { slot: Slot(slot), ballot, kind: Kind::Command, id: ProposalId::NONE, payload }
    }

    fn log(slots: &[u64]) -> Log {
        let mut log = Log::new(Slot(1), Slot(0));
        slots.iter().for_each(|slot| assert_eq!(log.put(entry(*slot, 1), *slot), None));
        log
    }

    fn slots(run: Vec<Entry>) -> Vec<u64> {
        run.iter().map(|entry| entry.slot.0).collect()
    }

    #[test]
    fn slots_come_in_any_order_and_runs_end_at_gaps() {
        let log = log(&[5, 1, 2, 6, 3]);
        assert_eq!((log.last(), log.get(Slot(4))), (Slot(6), None));
        assert_eq!(slots(log.run(Slot(1), Slot(9), usize::MAX)), [1, 2, 3]);
        assert_eq!(slots(log.run(Slot(5), Slot(5), usize::MAX)), [5]);
        assert_eq!(slots(log.run(Slot(1), Slot(9), 1)), [1], "bounded, but never empty");
        assert!(log.run(Slot(4), Slot(9), 100).is_empty() && log.run(Slot(9), Slot(9), 100).is_empty());
        assert_eq!(slots(log.entries(Slot(2), Slot(9)).cloned().collect()), [2, 3, 5, 6]);
    }

    #[test]
    fn what_replaces_an_entry_is_durable_with_its_own_write() {
        let mut log = log(&[1, 2]);
        assert!(log.is_durable(Slot(2), 2) && !log.is_durable(Slot(2), 1) && !log.is_durable(Slot(3), 9));
        assert_eq!(log.put(entry(2, 5), 7), Some(entry(2, 1)));
        assert!(!log.is_durable(Slot(2), 6) && log.is_durable(Slot(2), 7));
        assert_eq!(log.bytes(), 2 * entry(1, 1).size_bytes());
    }

    #[test]
    fn a_snapshot_takes_the_prefix_and_leaves_what_was_accepted_above() {
        let mut log = log(&[1, 2, 5, 6]);
        log.reset(&SnapshotMeta { slot: Slot(4), ..SnapshotMeta::default() });
        assert_eq!((log.first(), log.cached_from(), log.last()), (Slot(5), Slot(5), Slot(6)));
        log.reset(&SnapshotMeta { slot: Slot(9), ..SnapshotMeta::default() });
        assert_eq!((log.cached_from(), log.last(), log.bytes()), (Slot(10), Slot(9), 0));
        log.put(entry(11, 1), 1);
        assert_eq!(log.last(), Slot(11));
    }

    #[test]
    fn what_is_void_is_forgotten_and_the_end_moves() {
        let mut log = log(&[1, 2, 3, 4]);
        log.put(entry(3, 9), 9);
        let forgotten = log.forget_above(Slot(1), |entry| entry.ballot.round == 1);
        assert_eq!(slots(forgotten), [2, 4]);
        assert_eq!((log.last(), log.get(Slot(2))), (Slot(3), None));
    }
}
