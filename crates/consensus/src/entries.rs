//! Entries that travel together and are shared.
//!
//! What a leader proposes at once goes to its log, its disk, each follower and its state machine. All of them hold the same run of
//! entries: handing it on counts one reference, however many entries there are, and no payload is touched.

use std::{
    fmt,
    ops::{Deref, Range},
    sync::Arc,
};

use crate::Entry;

/// A run of entries, in order. Reads as a slice; never changed once made, though a holder may see a part of it alone. Cloning shares
/// it, and whoever holds a part keeps the memory of the whole.
#[derive(Clone, Default)]
pub struct Entries {
    /// `None`: empty, without memory.
    all: Option<Arc<[Entry]>>,
    seen: Range<usize>,
}

impl Entries {
    /// The entries at those places, shared with these.
    ///
    /// # Panics
    /// If there are no such places.
    #[must_use]
    pub fn slice(&self, places: Range<usize>) -> Self {
        assert!(places.start <= places.end && places.end <= self.len(), "a part lies within the whole");
        let start = self.seen.start;
        Self { all: self.all.clone(), seen: start + places.start..start + places.end }
    }

    /// Takes off the first `count` entries and gives them back.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn split_to(&mut self, count: usize) -> Self {
        if count == self.len() {
            return std::mem::take(self);
        }
        let front = self.slice(0..count);
        self.advance(count);
        front
    }

    /// Sees the first `count` entries no more.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "as many as there are");
        self.seen.start += count;
    }

    /// Sees the first `len` entries alone; all, if there are no more.
    pub fn truncate(&mut self, len: usize) {
        self.seen.end = self.seen.end.min(self.seen.start + len);
    }
}

impl Deref for Entries {
    type Target = [Entry];

    fn deref(&self) -> &[Entry] {
        self.all.as_ref().map_or(&[], |all| &all[self.seen.clone()])
    }
}

impl FromIterator<Entry> for Entries {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let all: Arc<[Entry]> = entries.into_iter().collect();
        Self { seen: 0..all.len(), all: (!all.is_empty()).then_some(all) }
    }
}

impl From<Vec<Entry>> for Entries {
    fn from(entries: Vec<Entry>) -> Self {
        if entries.is_empty() { Self::default() } else { entries.into_iter().collect() }
    }
}

impl From<Entry> for Entries {
    fn from(entry: Entry) -> Self {
        Self { all: Some(Arc::new([entry])), seen: 0..1 }
    }
}

impl<'a> IntoIterator for &'a Entries {
    type Item = &'a Entry;
    type IntoIter = std::slice::Iter<'a, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Entries {}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Ballot, Kind, ProposalId, Slot};

    fn entry(slot: u64) -> Entry {
        let (slot, ballot, id) = (Slot(slot), Ballot::term(1), ProposalId::NONE);
        Entry { slot, ballot, kind: Kind::Command, id, payload: Bytes::from(vec![7; 16]) }
    }

    fn entries(slots: Range<u64>) -> Entries {
        slots.map(entry).collect()
    }

    fn slots(entries: &Entries) -> Vec<u64> {
        entries.iter().map(|entry| entry.slot.0).collect()
    }

    #[test]
    fn parts_are_seen_alone_and_lie_in_the_whole() {
        let whole = entries(1..6);
        let part = whole.slice(1..4);
        assert_eq!(slots(&part), [2, 3, 4]);
        assert_eq!(slots(&part.slice(1..3)), [3, 4]);
        assert!(std::ptr::eq(&whole[1], &part[0]), "shared, not copied");
        let mut rest = part;
        let front = rest.split_to(1);
        assert_eq!((slots(&front), slots(&rest)), (vec![2], vec![3, 4]));
        rest.truncate(9);
        assert_eq!(slots(&rest), [3, 4]);
        rest.truncate(1);
        assert_eq!(slots(&rest), [3]);
        assert_eq!((slots(&rest.split_to(1)), slots(&rest)), (vec![3], vec![]));
        assert_eq!(slots(&whole), [1, 2, 3, 4, 5], "no holder changes what another sees");
    }

    #[test]
    fn equality_is_that_of_the_entries_seen() {
        assert_eq!(entries(1..6).slice(1..3), entries(2..4));
        assert_ne!(entries(1..3), entries(2..4));
        assert_eq!(Entries::from(entry(4)), Entries::from(vec![entry(4)]));
        let mut none = entries(1..2);
        none.advance(1);
        assert_eq!((none, Entries::from(Vec::new())), (Entries::default(), Entries::default()));
    }

    #[test]
    #[should_panic(expected = "a part lies within the whole")]
    fn a_part_beyond_what_is_seen_is_refused() {
        let _ = entries(1..6).slice(0..3).slice(0..4);
    }
}
