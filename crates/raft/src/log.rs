//! The tail of the log in memory.
//!
//! Everything from [`Log::first`] on is in the durable log (or on its way there); of that, a window at the end is kept here. Older
//! entries come back through `ReadLog`, asynchronously, so that no step ever waits for a disk. What is not committed is always
//! here: it may have to be compared or truncated.

use std::collections::VecDeque;

use conclave_consensus::{Ballot, Entry, Slot, SnapshotMeta};

#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// The lowest slot that the durable log holds.
    first: Slot,
    /// The slot before the first entry in memory, and its ballot.
    base: Slot,
    base_ballot: Ballot,
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Log {
    pub(crate) fn new(first: Slot, state: &SnapshotMeta) -> Self {
        Self { first, base: state.slot, base_ballot: state.ballot, entries: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn first(&self) -> Slot {
        self.first
    }

    /// The lowest slot in memory; one past the last if there is none.
    pub(crate) fn cached_from(&self) -> Slot {
        self.base.next()
    }

    pub(crate) fn last(&self) -> Slot {
        Slot(self.base.0 + self.entries.len() as u64)
    }

    pub(crate) fn last_ballot(&self) -> Ballot {
        self.entries.back().map_or(self.base_ballot, |entry| entry.ballot)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn index(&self, slot: Slot) -> Option<usize> {
        let index = usize::try_from(slot.0.checked_sub(self.base.0 + 1)?).ok()?;
        (index < self.entries.len()).then_some(index)
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(self.index(slot)?)
    }

    /// The ballot at a slot, where it is known without reading the log.
    pub(crate) fn ballot_at(&self, slot: Slot) -> Option<Ballot> {
        if slot == self.base {
            return Some(self.base_ballot);
        }
        if slot == Slot(0) {
            return Some(Ballot::default());
        }
        self.get(slot).map(|entry| entry.ballot)
    }

    /// The highest slot at or below `slot` whose ballot is at most `ballot`, as far as memory reaches. Ballots never fall along a log.
    pub(crate) fn last_at_most(&self, slot: Slot, ballot: Ballot) -> Option<Slot> {
        let count = usize::try_from(slot.min(self.last()).0.checked_sub(self.base.0)?).ok()?;
        let fitting = self.entries.partition_point(|entry| entry.ballot <= ballot).min(count);
        if fitting == 0 && self.base_ballot > ballot {
            return None;
        }
        Some(Slot(self.base.0 + fitting as u64))
    }

    /// Adds the entry after the last.
    pub(crate) fn append(&mut self, entry: Entry) {
        assert_eq!(entry.slot, self.last().next(), "a log has no gaps");
        assert!(entry.ballot >= self.last_ballot(), "ballots never fall along a log");
        self.bytes += entry.size_bytes();
        self.entries.push_back(entry);
    }

    /// Takes off every entry from `slot` on, in slot order.
    pub(crate) fn truncate_from(&mut self, slot: Slot) -> Vec<Entry> {
        assert!(slot > self.base, "only entries in memory are truncated");
        let keep = usize::try_from(slot.0 - self.base.0 - 1).unwrap_or(usize::MAX);
        let removed: Vec<Entry> = self.entries.drain(keep.min(self.entries.len())..).collect();
        self.bytes -= removed.iter().map(Entry::size_bytes).sum::<usize>();
        removed
    }

    /// Entries from `from` to `to`, both included, at most `bytes_max` bytes but at least one. Those asked for are in memory.
    pub(crate) fn run(&self, from: Slot, to: Slot, bytes_max: usize) -> Vec<Entry> {
        let (Some(start), Some(end)) = (self.index(from), self.index(to.min(self.last()))) else {
            return Vec::new();
        };
        if start > end {
            return Vec::new();
        }
        let mut bytes = 0;
        let mut count = 0;
        for entry in self.entries.range(start..=end) {
            bytes += entry.size_bytes();
            if count > 0 && bytes > bytes_max {
                break;
            }
            count += 1;
        }
        self.entries.range(start..start + count).cloned().collect()
    }

    /// What the entries from `from` to `to`, both included and in memory, cost.
    pub(crate) fn size_bytes(&self, from: Slot, to: Slot) -> usize {
        let (Some(start), Some(end)) = (self.index(from), self.index(to)) else { return 0 };
        self.entries.range(start..=end).map(Entry::size_bytes).sum()
    }

    /// The first entry in memory.
    pub(crate) fn front(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// Forgets the first entry in memory; the durable log keeps it.
    pub(crate) fn release_front(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.size_bytes();
        self.base = entry.slot;
        self.base_ballot = entry.ballot;
        Some(entry)
    }

    /// The durable log no longer holds what is below `slot`.
    pub(crate) fn cut_below(&mut self, slot: Slot) {
        self.first = self.first.max(slot);
    }

    /// Starts the log after `meta.slot`. Keeps the suffix if the log holds that slot with that ballot; says whether it did.
    /// A log that does not gives back what it forgot.
    pub(crate) fn reset(&mut self, meta: &SnapshotMeta) -> Vec<Entry> {
        self.first = meta.slot.next();
        // What has left memory is committed, so a snapshot below that can only fit.
        let fits = meta.slot < self.base || self.ballot_at(meta.slot) == Some(meta.ballot);
        #[cfg(feature = "mutants")]
        let fits = fits && !conclave_consensus::Mutant::DelayedSnapshotForgets.is_on();
        if fits {
            while self.base < meta.slot {
                self.release_front();
            }
            return Vec::new();
        }
        let forgotten = std::mem::take(&mut self.entries).into();
        self.base = meta.slot;
        self.base_ballot = meta.ballot;
        self.bytes = 0;
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{Kind, ProposalId};

    use super::*;

    fn entry(slot: u64, term: u64) -> Entry {
        let payload = Bytes::from_static(b"0123456789");
        Entry {
            slot: Slot(slot),
            ballot: Ballot::term(term),
            kind: Kind::Command,
            id: ProposalId::NONE,
            payload,
        }
    }

    fn log(terms: &[u64]) -> Log {
        let mut log = Log::new(Slot(1), &SnapshotMeta::default());
        for (slot, term) in (1..).zip(terms) {
            log.append(entry(slot, *term));
        }
        log
    }

    #[test]
    fn the_last_slot_of_a_term_is_found_from_hints() {
        let log = log(&[1, 1, 3, 3, 5]);
        let at = |slot, term| log.last_at_most(Slot(slot), Ballot::term(term));
        assert_eq!(at(5, 5), Some(Slot(5)));
        assert_eq!(at(5, 4), Some(Slot(4)));
        assert_eq!(at(3, 4), Some(Slot(3)));
        assert_eq!(at(5, 2), Some(Slot(2)));
        assert_eq!(at(9, 0), Some(Slot(0)));
    }

    #[test]
    fn released_entries_leave_their_ballot_behind() {
        let mut log = log(&[1, 1, 3]);
        log.release_front();
        log.release_front();
        assert_eq!(log.ballot_at(Slot(2)), Some(Ballot::term(1)));
        assert_eq!(log.ballot_at(Slot(1)), None);
        assert_eq!((log.cached_from(), log.last()), (Slot(3), Slot(3)));
        assert_eq!(log.last_at_most(Slot(3), Ballot::term(0)), None);
        assert_eq!(log.bytes(), entry(3, 3).size_bytes());
    }

    #[test]
    fn runs_are_bounded_but_never_empty() {
        let log = log(&[1; 8]);
        assert_eq!(log.run(Slot(2), Slot(8), 1).len(), 1);
        assert_eq!(log.run(Slot(2), Slot(8), 3 * entry(1, 1).size_bytes()).len(), 3);
        assert_eq!(log.run(Slot(2), Slot(4), usize::MAX).len(), 3);
        assert!(log.run(Slot(9), Slot(9), usize::MAX).is_empty());
    }

    #[test]
    fn a_reset_keeps_the_suffix_only_where_the_snapshot_fits() {
        let meta = |slot, term| SnapshotMeta {
            slot: Slot(slot),
            ballot: Ballot::term(term),
            ..SnapshotMeta::default()
        };
        let mut fits = log(&[1, 1, 2, 2]);
        assert!(fits.reset(&meta(2, 1)).is_empty());
        assert_eq!((fits.first(), fits.last()), (Slot(3), Slot(4)));
        let mut differs = log(&[1, 1, 1, 1]);
        assert_eq!(differs.reset(&meta(2, 2)).len(), 4);
        assert_eq!((differs.last(), differs.last_ballot(), differs.bytes()), (Slot(2), Ballot::term(2), 0));
    }
}
