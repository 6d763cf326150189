//! If two logs hold an entry with the same slot and term, they are identical up to there (Raft, figure 3; thesis, section 3.5).
//!
//! Checked by induction: for each (slot, term) ever written anywhere, the entry's content and the term of the entry before it
//! must always be the same. The logs are *mirrors*, kept from the operations that the cores ask for.

use std::collections::BTreeMap;

use conclave_consensus::{Ballot, Entry, LogOp, NodeId, Slot, SnapshotMeta};

use super::Violation;
use crate::trace::hash_bytes;

/// What a mirror keeps of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorEntry {
    /// Its term.
    pub ballot: Ballot,
    /// A hash of kind, proposer and payload.
    pub hash: u64,
}

impl MirrorEntry {
    /// What a mirror keeps of `entry`.
    #[must_use]
    pub fn of(entry: &Entry) -> Self {
        let hash = hash_bytes(&entry.payload)
            ^ entry.id.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ entry.id.node.0.rotate_left(17)
            ^ u64::from(entry.kind.code()) << 56;
        Self { ballot: entry.ballot, hash }
    }
}

/// What a log holds, as far as the operations on it tell.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    /// Everything below it is in the state.
    first: Slot,
    /// The ballot of the entry right before `first`, where it is known.
    before: Option<Ballot>,
    entries: BTreeMap<Slot, MirrorEntry>,
}

/// Mirrors of all logs, and every entry ever written.
#[derive(Debug, Default)]
pub struct LogMatching {
    mirrors: BTreeMap<NodeId, Mirror>,
    written: BTreeMap<(Slot, Ballot), (MirrorEntry, Option<Ballot>)>,
}

impl LogMatching {
    /// A node's log is changed.
    ///
    /// # Errors
    /// If an entry differs from one of the same slot and term elsewhere, or follows another one than there.
    pub fn change(&mut self, node: NodeId, op: &LogOp) -> Result<(), Violation> {
        match op {
            LogOp::Put(entries) => entries.iter().try_for_each(|entry| self.put(node, entry)),
            other => {
                self.mirrors.entry(node).or_default().change(other);
                Ok(())
            }
        }
    }

    fn put(&mut self, node: NodeId, entry: &Entry) -> Result<(), Violation> {
        let mirror = self.mirrors.entry(node).or_default();
        let kept = MirrorEntry::of(entry);
        let before = mirror.entries.get(&entry.slot.before()).map(|e| e.ballot);
        let before = if entry.slot == mirror.first { mirror.before } else { before };
        mirror.entries.insert(entry.slot, kept);
        let known = self.written.entry((entry.slot, entry.ballot)).or_insert((kept, before));
        known.1 = known.1.or(before);
        let same_before = before.is_none_or(|ballot| known.1 == Some(ballot));
        if known.0 == kept && same_before {
            return Ok(());
        }
        Err(Violation::new(
            "log matching",
            format!(
                "node {node} writes slot {} of term {} as {kept:?} after {before:?}; elsewhere it is {known:?}",
                entry.slot, entry.ballot.round
            ),
        ))
    }

    /// A node lost what was not synced or booted again: its log is now this. `first` is its lowest slot, `before` the ballot right before, if known.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub fn reboot(
        &mut self,
        node: NodeId,
        first: Slot,
        before: Option<Ballot>,
        entries: &[Entry],
    ) -> Result<(), Violation> {
        self.mirrors.insert(node, Mirror { first, before, entries: BTreeMap::new() });
        entries.iter().try_for_each(|entry| self.put(node, entry))
    }

    /// What a node's log holds at a slot; `None` if it was cut or never written.
    #[must_use]
    pub fn at(&self, node: NodeId, slot: Slot) -> Option<MirrorEntry> {
        self.mirrors.get(&node)?.entries.get(&slot).copied()
    }

    /// The lowest slot that a node's log holds or will hold next.
    #[must_use]
    pub fn first(&self, node: NodeId) -> Slot {
        self.mirrors.get(&node).map_or(Slot(1), |mirror| mirror.first)
    }
}

impl Mirror {
    /// Nothing, after a state that ends right before `first`.
    pub(super) fn beginning_at(first: Slot) -> Self {
        Self { first, ..Self::default() }
    }

    pub(super) fn first(&self) -> Slot {
        self.first
    }

    pub(super) fn at(&self, slot: Slot) -> Option<MirrorEntry> {
        self.entries.get(&slot).copied()
    }

    pub(super) fn put_all(&mut self, entries: &[Entry]) {
        self.entries.extend(entries.iter().map(|entry| (entry.slot, MirrorEntry::of(entry))));
    }

    pub(super) fn change_all(&mut self, ops: &[LogOp]) {
        ops.iter().for_each(|op| self.change(op));
    }

    fn change(&mut self, op: &LogOp) {
        match op {
            LogOp::Meta(_) => {}
            LogOp::Put(entries) => self.put_all(entries),
            LogOp::TruncateFrom(slot) => {
                self.entries.split_off(slot);
            }
            LogOp::CutBelow(slot) => self.cut(*slot),
            LogOp::Reset(meta) => self.reset(meta),
        }
    }

    /// The first slot from `first` on at which two logs differ.
    pub(super) fn differs_above(&self, first: Slot, other: &Self) -> Option<Slot> {
        let (mut mine, mut theirs) = (self.entries.range(first..), other.entries.range(first..));
        loop {
            match (mine.next(), theirs.next()) {
                (None, None) => return None,
                (Some(one), Some(two)) if one == two => {}
                (one, two) => return one.into_iter().chain(two).map(|(slot, _)| *slot).min(),
            }
        }
    }

    fn cut(&mut self, slot: Slot) {
        if slot > self.first {
            self.before = self.entries.get(&slot.before()).map(|entry| entry.ballot).or(self.before);
            self.entries = self.entries.split_off(&slot);
            self.first = slot;
        }
    }

    fn reset(&mut self, meta: &SnapshotMeta) {
        let keeps = self.entries.get(&meta.slot).is_some_and(|entry| entry.ballot == meta.ballot);
        if keeps {
            self.entries = self.entries.split_off(&meta.slot.next());
        } else {
            self.entries.clear();
        }
        (self.first, self.before) = (meta.slot.next(), Some(meta.ballot));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{Kind, ProposalId};

    use super::*;

    fn entry(slot: u64, term: u64, payload: &'static str) -> Entry {
        Entry {
            slot: Slot(slot),
            ballot: Ballot::term(term),
            kind: Kind::Command,
            id: ProposalId::NONE,
            payload: Bytes::from_static(payload.as_bytes()),
        }
    }

    fn put(check: &mut LogMatching, node: u64, e: Entry) -> Result<(), Violation> {
        check.change(NodeId(node), &LogOp::Put(e.into()))
    }

    #[test]
    fn fires_on_other_content_at_the_same_slot_and_term() {
        let mut check = LogMatching::default();
        put(&mut check, 1, entry(1, 1, "a")).unwrap();
        put(&mut check, 2, entry(1, 1, "a")).unwrap();
        assert_eq!(put(&mut check, 3, entry(1, 1, "b")).unwrap_err().invariant, "log matching");
    }

    #[test]
    fn fires_on_another_predecessor() {
        let mut check = LogMatching::default();
        put(&mut check, 1, entry(1, 1, "a")).unwrap();
        put(&mut check, 1, entry(2, 3, "b")).unwrap();
        put(&mut check, 2, entry(1, 2, "c")).unwrap();
        assert!(put(&mut check, 2, entry(2, 3, "b")).is_err());
    }

    #[test]
    fn a_conflict_that_is_truncated_is_no_violation() {
        let mut check = LogMatching::default();
        put(&mut check, 1, entry(1, 1, "a")).unwrap();
        put(&mut check, 2, entry(1, 2, "b")).unwrap();
        check.change(NodeId(1), &LogOp::TruncateFrom(Slot(1))).unwrap();
        put(&mut check, 1, entry(1, 2, "b")).unwrap();
        assert_eq!(check.at(NodeId(1), Slot(1)), check.at(NodeId(2), Slot(1)));
    }

    #[test]
    fn a_reset_keeps_the_suffix_only_behind_the_same_entry() {
        let mut check = LogMatching::default();
        for node in [1, 2] {
            put(&mut check, node, entry(1, 1, "a")).unwrap();
            put(&mut check, node, entry(2, 1, "b")).unwrap();
        }
        let meta =
            |term| SnapshotMeta { slot: Slot(1), ballot: Ballot::term(term), ..SnapshotMeta::default() };
        check.change(NodeId(1), &LogOp::Reset(Box::new(meta(1)))).unwrap();
        check.change(NodeId(2), &LogOp::Reset(Box::new(meta(2)))).unwrap();
        assert!(check.at(NodeId(1), Slot(2)).is_some() && check.at(NodeId(2), Slot(2)).is_none());
        assert_eq!(check.first(NodeId(2)), Slot(2));
    }
}
