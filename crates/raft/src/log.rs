//! The tail of the log in memory.
//!
//! Everything from [`Log::first`] on is in the durable log (or on its way there); of that, a window at the end is kept here. Older
//! entries come back through `ReadLog`, asynchronously, so that no step ever waits for a disk. What is not committed is always
//! here: it may have to be compared or truncated.
//!
//! Entries are kept as the [runs](Entries) in which they came, and handed on as such: what is asked for at one time mostly came at one
//! time.

use std::collections::VecDeque;

use conclave_consensus::{Ballot, Entries, Entry, Slot, SnapshotMeta};

#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// The lowest slot that the durable log holds.
    first: Slot,
    /// The slot before the first entry in memory, and its ballot.
    base: Slot,
    base_ballot: Ballot,
    /// The last entry's slot, and its ballot; those of the base if there is none.
    last: Slot,
    last_ballot: Ballot,
    runs: VecDeque<Run>,
    /// Of the entries in memory. Memory is given back by runs, so there may be up to a run more.
    bytes: usize,
}

/// Entries at successive slots, at least one.
#[derive(Clone, Debug)]
struct Run {
    first: Slot,
    entries: Entries,
}

/// Where an entry stands: in which run, and where in it.
type Place = (usize, usize);

impl Log {
    pub(crate) fn new(first: Slot, state: &SnapshotMeta) -> Self {
        let (slot, ballot) = (state.slot, state.ballot);
        Self {
            first,
            base: slot,
            base_ballot: ballot,
            last: slot,
            last_ballot: ballot,
            runs: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(crate) fn first(&self) -> Slot {
        self.first
    }

    /// The lowest slot in memory; one past the last if there is none.
    pub(crate) fn cached_from(&self) -> Slot {
        self.base.next()
    }

    /// The lowest slot on which this log can follow: what a follower must hold, or a snapshot contain. Its ballot must be known too, and
    /// of a slot that was cut it may not be, unless `state`, the newest snapshot, ends there.
    pub(crate) fn floor(&self, state: Slot) -> Slot {
        let cut = self.first.before();
        let known = cut == state || self.ballot_at(cut).is_some();
        if known { cut } else { self.first }
    }

    pub(crate) fn last(&self) -> Slot {
        self.last
    }

    pub(crate) fn last_ballot(&self) -> Ballot {
        self.last_ballot
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn place(&self, slot: Slot) -> Option<Place> {
        if slot <= self.base || slot > self.last {
            return None;
        }
        let newest = self.runs.len() - 1;
        let first = self.runs[newest].first.0;
        if let Some(place) = slot.0.checked_sub(first) {
            return Some((newest, usize::try_from(place).ok()?)); // The newest run is asked for most.
        }
        // No run is empty, so the one sought is no further before the newest than the slot is.
        let distance = usize::try_from(first - slot.0).ok()?;
        let (mut low, mut high) = (newest.saturating_sub(distance), newest - 1);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if self.runs[middle].first <= slot { low = middle } else { high = middle - 1 }
        }
        Some((low, usize::try_from(slot.0 - self.runs[low].first.0).ok()?))
    }

    /// The entries from a place on, to the end.
    fn from(&self, (run, place): Place) -> impl Iterator<Item = &Entry> {
        let later = self.runs.range(run + 1..).flat_map(|run| &run.entries);
        self.runs[run].entries[place..].iter().chain(later)
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry> {
        let (run, place) = self.place(slot)?;
        self.runs[run].entries.get(place)
    }

    /// The ballot at a slot, where it is known without reading the log.
    pub(crate) fn ballot_at(&self, slot: Slot) -> Option<Ballot> {
        match slot {
            slot if slot == self.last => Some(self.last_ballot),
            slot if slot == self.base => Some(self.base_ballot),
            Slot(0) => Some(Ballot::default()),
            slot => self.get(slot).map(|entry| entry.ballot),
        }
    }

    /// The highest slot at or below `slot` whose ballot is at most `ballot`, as far as memory reaches. Ballots never fall along a log.
    pub(crate) fn last_at_most(&self, slot: Slot, ballot: Ballot) -> Option<Slot> {
        let top = slot.min(self.last);
        let runs = self.runs.partition_point(|run| run.entries[0].ballot <= ballot);
        let fitting = runs.checked_sub(1).map_or(self.base, |run| {
            let Run { first, entries } = &self.runs[run];
            Slot(first.0 - 1 + entries.partition_point(|entry| entry.ballot <= ballot) as u64)
        });
        let found = fitting.min(top);
        (found > self.base || (found == self.base && self.base_ballot <= ballot)).then_some(found)
    }

    /// Adds the entries after the last.
    pub(crate) fn append(&mut self, entries: Entries) {
        let Some(first) = entries.first().map(|entry| entry.slot) else { return };
        for entry in &entries {
            assert_eq!(entry.slot, self.last.next(), "a log has no gaps");
            assert!(entry.ballot >= self.last_ballot, "ballots never fall along a log");
            (self.last, self.last_ballot) = (entry.slot, entry.ballot);
            self.bytes += entry.size_bytes();
        }
        self.runs.push_back(Run { first, entries });
    }

    /// Takes off every entry from `slot` on, in slot order.
    pub(crate) fn truncate_from(&mut self, slot: Slot) -> Vec<Entry> {
        assert!(slot > self.base, "only entries in memory are truncated");
        let (Some(place), Some(ballot)) = (self.place(slot), self.ballot_at(slot.before())) else {
            return Vec::new();
        };
        let removed: Vec<Entry> = self.from(place).cloned().collect();
        (self.last, self.last_ballot) = (slot.before(), ballot);
        self.bytes -= removed.iter().map(Entry::size_bytes).sum::<usize>();
        let (run, kept) = place;
        self.runs.truncate(run + 1);
        self.runs[run].entries.truncate(kept);
        self.runs.pop_back_if(|run| run.entries.is_empty());
        removed
    }

    /// Entries from `from` to `to`, both included, at most `bytes_max` bytes but at least one. Those asked for are in memory.
    pub(crate) fn run(&self, from: Slot, to: Slot, bytes_max: usize) -> Entries {
        let (Some(place), true) = (self.place(from), from <= to) else { return Entries::default() };
        let mut bytes = 0;
        let mut within = |entry: &&Entry| {
            let is_first = bytes == 0;
            bytes += entry.size_bytes();
            entry.slot <= to && (is_first || bytes <= bytes_max)
        };
        let (run, start) = place;
        let came = &self.runs[run].entries;
        let mut count = came[start..].iter().take_while(&mut within).count();
        if start + count == came.len() && run + 1 < self.runs.len() {
            count += self.from((run + 1, 0)).take_while(within).count();
        }
        if count <= came.len() - start {
            came.slice(start..start + count)
        } else {
            self.from(place).take(count).cloned().collect()
        }
    }

    /// What the entries from `from` to `to`, both included and in memory, cost.
    pub(crate) fn size_bytes(&self, from: Slot, to: Slot) -> usize {
        let Some((run, mut start)) = self.place(from) else { return 0 };
        let mut bytes = 0;
        for run in self.runs.range(run..) {
            for entry in &run.entries[start..] {
                if entry.slot > to {
                    return bytes;
                }
                bytes += entry.size_bytes();
            }
            start = 0;
        }
        bytes
    }

    /// The first entry in memory.
    pub(crate) fn front(&self) -> Option<&Entry> {
        self.runs.front().and_then(|run| run.entries.first())
    }

    /// Forgets the first entry in memory; the durable log keeps it.
    pub(crate) fn release_front(&mut self) {
        let Some(front) = self.runs.front_mut() else { return };
        let Some(entry) = front.entries.first() else { return };
        self.bytes -= entry.size_bytes();
        (self.base, self.base_ballot) = (entry.slot, entry.ballot);
        front.first = self.base.next();
        front.entries.advance(1);
        self.runs.pop_front_if(|run| run.entries.is_empty());
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
        let forgotten = self.runs.iter().flat_map(|run| &run.entries).cloned().collect();
        *self = Self::new(self.first, meta);
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{Kind, ProposalId};
    use proptest::prelude::*;

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
            log.append(entry(slot, *term).into());
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

    /// What a log is to be: entries one after the other.
    #[derive(Default)]
    struct Plain {
        base: (u64, u64),
        entries: Vec<Entry>,
    }

    impl Plain {
        fn ballot_at(&self, slot: u64) -> Option<Ballot> {
            match slot.checked_sub(self.base.0 + 1) {
                Some(place) => self.entries.get(place as usize).map(|entry| entry.ballot),
                None if slot == self.base.0 => Some(Ballot::term(self.base.1)),
                None => (slot == 0).then(Ballot::default),
            }
        }

        fn last(&self) -> u64 {
            self.base.0 + self.entries.len() as u64
        }

        fn last_at_most(&self, slot: u64, term: u64) -> Option<Slot> {
            let fits = |slot: &u64| self.ballot_at(*slot).is_some_and(|ballot| ballot <= Ballot::term(term));
            (self.base.0..=slot.min(self.last())).rev().find(fits).map(Slot)
        }
    }

    proptest! {
        #[test]
        fn runs_are_told_from_single_entries_by_nobody(
            steps in prop::collection::vec((0..4_u8, 0..9_u64, 0..3_u64), 1..40),
        ) {
            let (mut log, mut plain) = (Log::new(Slot(1), &SnapshotMeta::default()), Plain::default());
            for (step, number, raise) in steps {
                let last = plain.last();
                match step {
                    0 | 1 => {
                        let term = log.last_ballot().round + raise;
                        let run: Vec<Entry> = (last + 1..=last + number)
                            .map(|slot| entry(slot, term + u64::from(slot > last + raise)))
                            .collect();
                        plain.entries.extend(run.iter().cloned());
                        log.append(run.into());
                    }
                    2 => {
                        let slot = plain.base.0 + 1 + number * raise;
                        let keep = plain.entries.len().min((slot - plain.base.0 - 1) as usize);
                        assert_eq!(log.truncate_from(Slot(slot)), plain.entries.split_off(keep));
                    }
                    _ => {
                        for gone in plain.entries.drain(..plain.entries.len().min(number as usize)) {
                            plain.base = (gone.slot.0, gone.ballot.round);
                            log.release_front();
                        }
                    }
                }
                assert_eq!((log.last(), log.cached_from()), (Slot(plain.last()), Slot(plain.base.0 + 1)));
                assert_eq!(Some(log.last_ballot()), plain.ballot_at(plain.last()));
                assert_eq!(log.bytes(), plain.entries.iter().map(Entry::size_bytes).sum::<usize>());
                assert_eq!(log.front(), plain.entries.first());
                for slot in 0..=plain.last() + 1 {
                    assert_eq!(log.ballot_at(Slot(slot)), plain.ballot_at(slot), "slot {slot}");
                    let found = log.last_at_most(Slot(slot), Ballot::term(number));
                    assert_eq!(found, plain.last_at_most(slot, number), "slot {slot}");
                }
                let runs = plain.entries.iter().enumerate().map(|(place, entry)| (place, entry.slot));
                for ((from, first), width) in runs.zip([1, 2, 7, 30].into_iter().cycle()) {
                    let to = plain.entries.len().min(from + width);
                    let upto = Slot(first.0 + width as u64 - 1);
                    assert_eq!(log.run(first, upto, usize::MAX)[..], plain.entries[from..to]);
                    let few = to.min(from + 3);
                    let bytes = 3 * entry(1, 1).size_bytes();
                    assert_eq!(log.run(first, upto, bytes)[..], plain.entries[from..few]);
                    let sum = plain.entries[from..to].iter().map(Entry::size_bytes).sum::<usize>();
                    assert_eq!(log.size_bytes(first, upto), sum);
                }
            }
        }
    }
}
