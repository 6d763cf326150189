//! The slots in memory: what was last accepted at each, gaps included.
//!
//! Everything from [`Log::first`] on that was accepted is in the durable log, or on its way there; of that, a window at the end is kept here.
//! Older entries come back through `ReadLog`, asynchronously, so that no step ever waits for a disk. What is not known chosen is always
//! here: a new leader may ask for it.
//!
//! Entries are kept as the [runs](Entries) in which they came, and handed on as such: what is asked for at one time mostly came at one
//! time. Each run knows in which write it went to the disk. It is durable once that write is, and what replaces a part of it is another run with
//! another write: no late completion can be taken for today's.

use std::collections::VecDeque;

use conclave_consensus::{Ballot, Entries, Entry, Slot, SnapshotMeta};

/// Entries at successive slots, at least one.
#[derive(Clone, Debug)]
struct Run {
    first: Slot,
    entries: Entries,
    /// The sequence of the write that holds them; zero if they were there at boot.
    written: u64,
}

impl Run {
    fn last(&self) -> Slot {
        Slot(self.first.0 + self.entries.len() as u64 - 1)
    }

    /// The part in `from..=to`, if there is any.
    fn part(&self, from: Slot, to: Slot) -> Option<Self> {
        let (first, last) = (from.max(self.first), to.min(self.last()));
        if first > last {
            return None;
        }
        let place = |slot: Slot| (slot.0 - self.first.0) as usize;
        let entries = self.entries.slice(place(first)..place(last) + 1);
        Some(Self { first, entries, written: self.written })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Log {
    /// The lowest slot that the durable log holds.
    first: Slot,
    /// The slot before the first in memory. Everything up to it is chosen.
    base: Slot,
    /// In the order of their slots. Between two there may be a gap.
    runs: VecDeque<Run>,
    /// Of the entries in memory. Memory is given back by runs, so there may be up to a run more.
    bytes: usize,
}

impl Log {
    pub(crate) fn new(first: Slot, base: Slot) -> Self {
        Self { first, base, runs: VecDeque::new(), bytes: 0 }
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
        self.runs.back().map_or(self.base, Run::last)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many runs begin at or before the slot.
    fn begun_by(&self, slot: Slot) -> usize {
        // The newest are asked for most.
        match self.runs.back() {
            Some(newest) if newest.first <= slot => self.runs.len(),
            _ => self.runs.partition_point(|run| run.first <= slot),
        }
    }

    /// The run that holds the slot, and where in it.
    fn place(&self, slot: Slot) -> Option<(usize, usize)> {
        let at = self.begun_by(slot).checked_sub(1)?;
        let run = &self.runs[at];
        (slot <= run.last()).then(|| (at, (slot.0 - run.first.0) as usize))
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry> {
        let (at, place) = self.place(slot)?;
        self.runs[at].entries.get(place)
    }

    /// The ballot in which the entry at the slot was accepted, where it is in memory.
    pub(crate) fn ballot_at(&self, slot: Slot) -> Option<Ballot> {
        self.get(slot).map(|entry| entry.ballot)
    }

    /// The entries without a gap from a slot on, and the write of each.
    fn unbroken(&self, from: Slot) -> impl Iterator<Item = (&Entry, u64)> {
        let (at, place) = self.place(from).unwrap_or((self.runs.len(), 0));
        let mut expected = from;
        let joined = move |run: &&Run| {
            let joins = run.first <= expected;
            expected = run.last().next();
            joins
        };
        let entries = self
            .runs
            .range(at..)
            .take_while(joined)
            .flat_map(|run| run.entries.iter().map(move |entry| (entry, run.written)));
        entries.skip(place)
    }

    /// How far from a slot on each entry was accepted in the ballot; the slot before if that one was not.
    pub(crate) fn accepted_to(&self, from: Slot, ballot: Ballot) -> Slot {
        let count = self.unbroken(from).take_while(|(entry, _)| entry.ballot == ballot).count();
        Slot(from.0 - 1 + count as u64)
    }

    /// How far from a slot on each entry is durable, if every write up to the sequence is; the slot before if that one is not.
    pub(crate) fn durable_to(&self, from: Slot, durable: u64) -> Slot {
        let count = self.unbroken(from).take_while(|(_, written)| *written <= durable).count();
        Slot(from.0 - 1 + count as u64)
    }

    /// Puts entries that go to the disk with the write of that sequence, at successive slots; gives those that stood there.
    pub(crate) fn put(&mut self, entries: Entries, written: u64) -> Vec<Entry> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Vec::new() };
        let (first, last) = (first.slot, last.slot);
        assert!(first > self.base, "what left memory is chosen");
        self.bytes += size_of(&entries);
        if first > self.last() {
            self.runs.push_back(Run { first, entries, written });
            return Vec::new();
        }
        let mut replaced = Vec::new();
        let mut at = self.begun_by(first);
        if at > 0 && self.runs[at - 1].last() >= first {
            at -= 1;
        }
        let mut around = Vec::new();
        #[cfg(feature = "mutants")]
        let mut written_before = None;
        while let Some(run) = self.runs.get(at).filter(|run| run.first <= last) {
            replaced.extend(run.part(first, last));
            around.extend(run.part(Slot(0), first.before()));
            around.extend(run.part(last.next(), Slot(u64::MAX)));
            #[cfg(feature = "mutants")]
            {
                written_before = written_before.or(Some(run.written));
            }
            self.runs.remove(at);
        }
        #[cfg(feature = "mutants")]
        let written = match written_before {
            Some(old) if conclave_consensus::Mutant::LateDurableOfOldTerm.is_on() => old,
            _ => written,
        };
        around.push(Run { first, entries, written });
        around.sort_by_key(|run| run.first);
        for run in around.into_iter().rev() {
            self.runs.insert(at, run);
        }
        let replaced: Vec<Entry> = replaced.iter().flat_map(|run| &run.entries).cloned().collect();
        self.bytes -= size_of(&replaced);
        replaced
    }

    /// Forgets the entries above `slot` for which `goes` holds, in memory alone.
    pub(crate) fn forget_above(&mut self, slot: Slot, goes: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let mut forgotten = Vec::new();
        let mut kept = VecDeque::new();
        while let Some(run) = self.runs.pop_back_if(|run| run.last() > slot) {
            let mut stays: Vec<Run> = run.part(Slot(0), slot).into_iter().collect();
            for entry in run.entries.iter().filter(|entry| entry.slot > slot) {
                if goes(entry) {
                    forgotten.push(entry.clone());
                } else {
                    stays.extend(run.part(entry.slot, entry.slot));
                }
            }
            stays.into_iter().rev().for_each(|run| kept.push_front(run));
        }
        self.runs.append(&mut kept);
        self.bytes -= size_of(&forgotten);
        forgotten.sort_by_key(|entry| entry.slot);
        forgotten
    }

    /// The entries that stand from `from` to `to`, both included, in slot order, gaps left out.
    pub(crate) fn entries(&self, from: Slot, to: Slot) -> impl Iterator<Item = &Entry> {
        let begun = self.begun_by(from).saturating_sub(1);
        let entries = self.runs.range(begun..).flat_map(|run| &run.entries);
        entries.skip_while(move |entry| entry.slot < from).take_while(move |entry| entry.slot <= to)
    }

    /// How many entries there are from `from` on, up to `to`, a gap, or `bytes_max`, but at least one where there is one.
    fn extent(&self, from: Slot, to: Slot, bytes_max: usize) -> usize {
        let mut bytes = 0;
        let within = |(entry, _): &(&Entry, u64)| {
            let is_first = bytes == 0;
            bytes += entry.size_bytes();
            entry.slot <= to && (is_first || bytes <= bytes_max)
        };
        self.unbroken(from).take_while(within).count()
    }

    /// The run that begins at `from`, up to `to`, a gap, or `bytes_max`, but at least one entry where there is one.
    pub(crate) fn run(&self, from: Slot, to: Slot, bytes_max: usize) -> Entries {
        let Some((at, place)) = self.place(from) else { return Entries::default() };
        let count = self.extent(from, to, bytes_max);
        let came = &self.runs[at].entries;
        if count <= came.len() - place {
            came.slice(place..place + count)
        } else {
            self.unbroken(from).take(count).map(|(entry, _)| entry.clone()).collect()
        }
    }

    /// The same, each entry as `shown`.
    pub(crate) fn run_as(
        &self,
        from: Slot,
        to: Slot,
        bytes_max: usize,
        shown: impl Fn(&Entry) -> Entry,
    ) -> Entries {
        let Some((at, place)) = self.place(from) else { return Entries::default() };
        let count = self.extent(from, to, bytes_max);
        match self.runs[at].entries.get(place..place + count) {
            Some(came) => came.iter().map(shown).collect(),
            None => self.unbroken(from).take(count).map(|(entry, _)| shown(entry)).collect(),
        }
    }

    /// What the entries from `from` to `to`, both included and in memory, cost.
    pub(crate) fn size_bytes(&self, from: Slot, to: Slot) -> usize {
        self.entries(from, to).map(Entry::size_bytes).sum()
    }

    /// The first slot in memory, if its entry is.
    pub(crate) fn front(&self) -> Option<&Entry> {
        self.runs.front().filter(|run| run.first == self.base.next()).and_then(|run| run.entries.first())
    }

    /// Forgets the first slot in memory; the durable log keeps it.
    pub(crate) fn release_front(&mut self) {
        let Some(entry) = self.front() else { return };
        self.bytes -= entry.size_bytes();
        self.base = self.base.next();
        self.release_to_base();
    }

    /// Forgets what stands at or below the base, whose bytes count no more.
    fn release_to_base(&mut self) {
        let base = self.base;
        while self.runs.pop_front_if(|run| run.last() <= base).is_some() {}
        if let Some(run) = self.runs.front_mut().filter(|run| run.first <= base) {
            run.entries.advance((base.0 - run.first.0) as usize + 1);
            run.first = base.next();
        }
    }

    /// The durable log no longer holds what is below `slot`.
    pub(crate) fn cut_below(&mut self, slot: Slot) {
        self.first = self.first.max(slot);
    }

    /// The log starts after the snapshot. What was accepted above stays: an acceptor's word does not depend on what it learns.
    pub(crate) fn reset(&mut self, meta: &SnapshotMeta) {
        self.first = meta.slot.next();
        self.bytes -= self.size_bytes(self.base.next(), meta.slot);
        self.base = self.base.max(meta.slot);
        self.release_to_base();
    }
}

fn size_of(entries: &[Entry]) -> usize {
    entries.iter().map(Entry::size_bytes).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use conclave_consensus::{Kind, ProposalId, ReplicaId};
    use proptest::prelude::*;

    use super::*;

    fn entry(slot: u64, round: u64) -> Entry {
        let payload = Bytes::from_static(b"0123456789");
        let ballot = Ballot { config: 0, round, replica: ReplicaId(1) };
        Entry { slot: Slot(slot), ballot, kind: Kind::Command, id: ProposalId::NONE, payload }
    }

    fn log(slots: &[u64]) -> Log {
        let mut log = Log::new(Slot(1), Slot(0));
        slots.iter().for_each(|slot| assert_eq!(log.put(entry(*slot, 1).into(), *slot), []));
        log
    }

    fn slots(run: &[Entry]) -> Vec<u64> {
        run.iter().map(|entry| entry.slot.0).collect()
    }

    #[test]
    fn slots_come_in_any_order_and_runs_end_at_gaps() {
        let log = log(&[5, 1, 2, 6, 3]);
        assert_eq!((log.last(), log.get(Slot(4))), (Slot(6), None));
        assert_eq!(slots(&log.run(Slot(1), Slot(9), usize::MAX)), [1, 2, 3]);
        assert_eq!(slots(&log.run(Slot(5), Slot(5), usize::MAX)), [5]);
        assert_eq!(slots(&log.run(Slot(1), Slot(9), 1)), [1], "bounded, but never empty");
        assert!(log.run(Slot(4), Slot(9), 100).is_empty() && log.run(Slot(9), Slot(9), 100).is_empty());
        assert_eq!(slots(&log.entries(Slot(2), Slot(9)).cloned().collect::<Vec<_>>()), [2, 3, 5, 6]);
    }

    #[test]
    fn what_replaces_an_entry_is_durable_with_its_own_write() {
        let mut log = log(&[1, 2]);
        let durable = |log: &Log, written| log.durable_to(Slot(1), written).0;
        assert_eq!([1, 2, 9].map(|written| durable(&log, written)), [1, 2, 2]);
        assert_eq!(log.put(entry(2, 5).into(), 7), [entry(2, 1)]);
        assert_eq!([6, 7].map(|written| durable(&log, written)), [1, 2]);
        assert_eq!(log.bytes(), 2 * entry(1, 1).size_bytes());
    }

    #[test]
    fn a_snapshot_takes_the_prefix_and_leaves_what_was_accepted_above() {
        let mut log = log(&[1, 2, 5, 6]);
        log.reset(&SnapshotMeta { slot: Slot(4), ..SnapshotMeta::default() });
        assert_eq!((log.first(), log.cached_from(), log.last()), (Slot(5), Slot(5), Slot(6)));
        log.reset(&SnapshotMeta { slot: Slot(9), ..SnapshotMeta::default() });
        assert_eq!((log.cached_from(), log.last(), log.bytes()), (Slot(10), Slot(9), 0));
        log.put(entry(11, 1).into(), 1);
        assert_eq!(log.last(), Slot(11));
    }

    #[test]
    fn what_is_void_is_forgotten_and_the_end_moves() {
        let mut log = log(&[1, 2, 3, 4]);
        log.put(entry(3, 9).into(), 9);
        let forgotten = log.forget_above(Slot(1), |entry| entry.ballot.round == 1);
        assert_eq!(slots(&forgotten), [2, 4]);
        assert_eq!((log.last(), log.get(Slot(2))), (Slot(3), None));
    }

    /// What a log is to be: an entry and its write a slot.
    #[derive(Default)]
    struct Plain {
        base: u64,
        slots: BTreeMap<u64, (Entry, u64)>,
    }

    impl Plain {
        fn last(&self) -> u64 {
            self.slots.keys().next_back().copied().unwrap_or(0).max(self.base)
        }

        fn reach(&self, from: u64, fits: impl Fn(&(Entry, u64)) -> bool) -> Slot {
            Slot(
                (from..)
                    .take_while(|slot| self.slots.get(slot).is_some_and(&fits))
                    .last()
                    .unwrap_or(from - 1),
            )
        }
    }

    proptest! {
        #[test]
        fn runs_are_told_from_single_slots_by_nobody(
            steps in prop::collection::vec((0..5_u8, 1..14_u64, 1..7_u64, 1..4_u64), 1..40),
        ) {
            let (mut log, mut plain) = (Log::new(Slot(1), Slot(0)), Plain::default());
            for (written, (step, at, count, round)) in (1..).zip(steps) {
                match step {
                    0 | 1 => {
                        let first = plain.base + at;
                        let run: Vec<Entry> = (first..first + count).map(|slot| entry(slot, round)).collect();
                        let mut before = Vec::new();
                        for entry in &run {
                            before.extend(plain.slots.insert(entry.slot.0, (entry.clone(), written)));
                        }
                        let before: Vec<Entry> = before.into_iter().map(|(entry, _)| entry).collect();
                        assert_eq!(log.put(run.into(), written), before);
                    }
                    2 => {
                        let goes = |slot: u64, entry: &Entry| slot > plain.base + at && entry.ballot.round == round;
                        let gone: Vec<u64> =
                            plain.slots.iter().filter(|(slot, (entry, _))| goes(**slot, entry)).map(|(slot, _)| *slot).collect();
                        let forgotten = log.forget_above(Slot(plain.base + at), |entry| entry.ballot.round == round);
                        assert_eq!(slots(&forgotten), gone);
                        gone.iter().for_each(|slot| drop(plain.slots.remove(slot)));
                    }
                    3 => {
                        for _ in 0..count {
                            let front = plain.slots.get(&(plain.base + 1)).map(|(entry, _)| entry.clone());
                            assert_eq!(log.front(), front.as_ref());
                            if front.is_some() {
                                log.release_front();
                                plain.base += 1;
                                plain.slots.remove(&plain.base);
                            }
                        }
                    }
                    _ => {
                        log.reset(&SnapshotMeta { slot: Slot(at), ..SnapshotMeta::default() });
                        plain.base = plain.base.max(at);
                        plain.slots = plain.slots.split_off(&(plain.base + 1));
                    }
                }
                let all: Vec<Entry> = plain.slots.values().map(|(entry, _)| entry.clone()).collect();
                assert_eq!((log.last(), log.cached_from()), (Slot(plain.last()), Slot(plain.base + 1)));
                assert_eq!(log.bytes(), size_of(&all));
                assert_eq!(log.entries(Slot(0), Slot(u64::MAX)).cloned().collect::<Vec<_>>(), all);
                for slot in plain.base + 1..=plain.last() + 1 {
                    let known = plain.slots.get(&slot);
                    assert_eq!(log.get(Slot(slot)), known.map(|(entry, _)| entry));
                    let ballot = entry(slot, round).ballot;
                    assert_eq!(log.accepted_to(Slot(slot), ballot), plain.reach(slot, |(entry, _)| entry.ballot == ballot));
                    assert_eq!(log.durable_to(Slot(slot), written / 2), plain.reach(slot, |(_, at)| *at <= written / 2));
                    let (to, bytes_max) = (Slot(slot + count), 3 * entry(1, 1).size_bytes());
                    let end = plain.reach(slot, |_| true).min(to);
                    let run: Vec<Entry> = (slot..=end.0).map(|slot| plain.slots[&slot].0.clone()).collect();
                    assert_eq!(log.run(Slot(slot), to, usize::MAX)[..], run[..]);
                    assert_eq!(log.run(Slot(slot), to, bytes_max)[..], run[..run.len().min(3)]);
                    assert_eq!(log.run_as(Slot(slot), to, bytes_max, Entry::clone)[..], run[..run.len().min(3)]);
                    let between = plain.slots.range(slot..=to.0).map(|(_, (entry, _))| entry.size_bytes());
                    assert_eq!(log.size_bytes(Slot(slot), to), between.sum::<usize>());
                }
            }
        }
    }
}
