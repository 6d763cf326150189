//! The generations that the last checkpoint does not contain, in the order in which they were applied.
//!
//! A generation's *position* counts all that were ever applied here. Each entry knows the position of the same key's generation before
//! it, so the map's newest generation leads to every older one in memory without an index of its own. A position that is no longer here
//! means: in the engine.
//!
//! ```text
//!   positions →   retiring            frozen                 active
//!                 in the engine,      being written by       since the
//!                 being let go        a checkpoint's job     last freeze
//! ```
//!
//! Entries retire a few at a time, so that no reader waits for a whole checkpoint to be taken apart.

use std::{collections::VecDeque, sync::Arc, vec};

use crate::layout::Numbers;

/// The position of what is not in memory.
pub(crate) const NOWHERE: u64 = u64::MAX;

/// One generation. Its payload, key and value in one allocation, is shared with the map.
#[derive(Clone, Debug)]
pub(crate) struct HeadEntry {
    pub(crate) payload: Arc<[u8]>,
    pub(crate) key_bytes: u32,
    /// The number of the operation within its transaction.
    pub(crate) index: u32,
    pub(crate) numbers: Numbers,
    /// The position of the generation before it, or [`NOWHERE`].
    pub(crate) previous: u64,
}

impl HeadEntry {
    pub(crate) fn key(&self) -> &[u8] {
        &self.payload[..self.key_bytes as usize]
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.payload[self.key_bytes as usize..]
    }

    fn size_bytes(&self) -> usize {
        // The entry itself, and the counters and rounding of its payload.
        size_of::<Self>() + self.payload.len() + 32
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// Those of complete checkpoints, oldest first.
    retiring: VecDeque<vec::IntoIter<HeadEntry>>,
    /// The position of the first entry that has not retired.
    retired_to: u64,
    frozen: Option<Arc<Vec<HeadEntry>>>,
    frozen_bytes: usize,
    active: Vec<HeadEntry>,
    active_bytes: usize,
    /// The position of the first active entry.
    active_at: u64,
}

impl Head {
    /// Adds a generation and returns its position.
    pub(crate) fn push(&mut self, entry: HeadEntry) -> u64 {
        let position = self.active_at + self.active.len() as u64;
        self.active_bytes += entry.size_bytes();
        self.active.push(entry);
        position
    }

    /// The generation at a position, unless the engine has it.
    pub(crate) fn get(&self, position: u64) -> Option<&HeadEntry> {
        if position == NOWHERE {
            return None;
        }
        if let Some(at) = position.checked_sub(self.active_at) {
            return self.active.get(at as usize);
        }
        let frozen = self.frozen.as_ref()?;
        let at = position.checked_sub(self.active_at - frozen.len() as u64)?;
        frozen.get(at as usize)
    }

    /// Bytes that no checkpoint contains.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.active_bytes + self.frozen_bytes
    }

    /// Whether a checkpoint is under way.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Sets aside all generations for a checkpoint. Nothing may be frozen.
    pub(crate) fn freeze(&mut self) -> Arc<Vec<HeadEntry>> {
        assert!(self.frozen.is_none(), "two checkpoints at once");
        let capacity = self.active.len();
        let entries = Arc::new(std::mem::replace(&mut self.active, Vec::with_capacity(capacity / 2)));
        self.active_at += entries.len() as u64;
        self.frozen_bytes = std::mem::take(&mut self.active_bytes);
        self.frozen = Some(entries.clone());
        entries
    }

    /// The checkpoint is complete: what was frozen may be let go, bit by bit.
    pub(crate) fn thaw(&mut self) {
        if let Some(frozen) = self.frozen.take() {
            self.frozen_bytes = 0;
            let entries = Arc::try_unwrap(frozen).unwrap_or_else(|shared| shared.to_vec());
            self.retiring.push_back(entries.into_iter());
        }
    }

    /// Lets go of the oldest entry that the engine has, and says where it was.
    pub(crate) fn retire(&mut self) -> Option<(u64, HeadEntry)> {
        loop {
            let oldest = self.retiring.front_mut()?;
            if let Some(entry) = oldest.next() {
                let position = self.retired_to;
                self.retired_to += 1;
                return Some((position, entry));
            }
            self.retiring.pop_front();
        }
    }

    /// Whether what was at a position has retired.
    pub(crate) fn has_retired(&self, position: u64) -> bool {
        position < self.retired_to
    }

    /// The position after the last entry.
    pub(crate) fn end(&self) -> u64 {
        self.active_at + self.active.len() as u64
    }

    /// The revision of the oldest entry that the engine may not have.
    pub(crate) fn first_pending(&self) -> Option<i64> {
        self.pending().next().map(|entry| entry.numbers.modified)
    }

    /// The position of the first of those entries that is of `revision` or a later one. They are in the order of their revisions.
    pub(crate) fn position_of(&self, revision: i64) -> u64 {
        let frozen = self.frozen.as_ref().map_or(&[][..], |frozen| frozen.as_slice());
        let of_frozen = frozen.partition_point(|entry| entry.numbers.modified < revision);
        let of_active = if of_frozen < frozen.len() {
            0
        } else {
            self.active.partition_point(|entry| entry.numbers.modified < revision)
        };
        self.active_at - (frozen.len() - of_frozen) as u64 + of_active as u64
    }

    /// The entries that the engine may not have, oldest first.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &HeadEntry> {
        self.frozen.iter().flat_map(|frozen| frozen.iter()).chain(&self.active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: i64, previous: u64) -> HeadEntry {
        let numbers = Numbers { modified: revision, ..Numbers::default() };
        HeadEntry { payload: Arc::from(&b"k"[..]), key_bytes: 1, index: 0, numbers, previous }
    }

    #[test]
    fn positions_lead_to_their_entries_through_every_stage() {
        let mut head = Head::default();
        let at = |head: &Head, position| head.get(position).map(|entry| entry.numbers.modified);
        let first = head.push(entry(1, NOWHERE));
        let second = head.push(entry(2, first));
        let frozen = head.freeze();
        let third = head.push(entry(3, second));
        for (position, revision) in [(first, 1), (second, 2), (third, 3)] {
            assert_eq!(at(&head, position), Some(revision));
        }
        assert!(head.pending_bytes() > 0 && head.is_frozen());
        drop(frozen);
        head.thaw();
        // What the engine has is looked up there, even before it has retired.
        assert_eq!((at(&head, first), at(&head, second), at(&head, third)), (None, None, Some(3)));
        assert_eq!(head.retire().map(|(position, _)| position), Some(first));
        assert!(head.has_retired(first) && !head.has_retired(second));
        drop(head.freeze());
        head.thaw();
        for position in [second, third] {
            assert_eq!(head.retire().map(|(position, _)| position), Some(position));
        }
        assert_eq!((at(&head, third), head.retire().is_none()), (None, true));
        assert_eq!((at(&head, NOWHERE), at(&head, 99)), (None, None));
    }
}
