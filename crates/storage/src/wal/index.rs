//! Where each live entry stands, and how many live entries each segment holds: the log's only memory of itself.
//!
//! An entry costs 16 bytes. Slots are kept in chunks of 64, so that a gap (Paxos accepts out of order) costs nothing and
//! a run is dense. Appending and replaying go through the same methods: they cannot disagree.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use conclave_consensus::{LogState, Slot, SnapshotMeta};

const CHUNK_SLOTS: u64 = 64;

/// Where an entry's record stands, and its checksum: a read proves that it found what was appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) crc: u32,
}

#[derive(Debug)]
struct Chunk {
    present: u64,
    places: [Place; CHUNK_SLOTS as usize],
}

impl Chunk {
    /// Takes out the places at the positions whose bit is set.
    fn remove(&mut self, bits: u64, usage: &mut Usage) {
        let mut gone = self.present & bits;
        self.present &= !bits;
        while gone != 0 {
            usage.freed(self.places[gone.trailing_zeros() as usize]);
            gone &= gone - 1;
        }
    }
}

/// Live entries by segment, from the oldest segment on.
#[derive(Debug, Default)]
pub(super) struct Usage {
    oldest: u32,
    live: VecDeque<Live>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Live {
    entries: u64,
    bytes: u64,
}

impl Usage {
    pub(super) fn starting_at(oldest: u32) -> Self {
        Self { oldest, live: VecDeque::new() }
    }

    /// A segment begins, with the number after the last.
    pub(super) fn begin_segment(&mut self) {
        self.live.push_back(Live::default());
    }

    /// The oldest segment is gone.
    pub(super) fn end_oldest(&mut self) {
        let gone = self.live.pop_front();
        assert!(gone.is_some_and(|live| live.entries == 0), "a segment with live entries was let go");
        self.oldest += 1;
    }

    /// The oldest segment that the log still needs: one that holds live entries, or the one being written.
    pub(super) fn oldest_needed(&self) -> u32 {
        let dead = self.live.iter().take_while(|live| live.entries == 0).count();
        self.oldest + u32::try_from(dead.min(self.live.len().saturating_sub(1))).expect("as many as segments")
    }

    /// Bytes of live entries, over all segments.
    pub(super) fn live_bytes(&self) -> u64 {
        self.live.iter().map(|live| live.bytes).sum()
    }

    fn used(&mut self, place: Place) {
        let live = self.of(place);
        live.entries += 1;
        live.bytes += u64::from(place.len);
    }

    fn freed(&mut self, place: Place) {
        let live = self.of(place);
        live.entries -= 1;
        live.bytes -= u64::from(place.len);
    }

    fn of(&mut self, place: Place) -> &mut Live {
        &mut self.live[(place.segment - self.oldest) as usize]
    }
}

/// One group's log.
#[derive(Debug)]
pub(super) struct GroupLog {
    pub(super) meta: Bytes,
    pub(super) reset: Option<SnapshotMeta>,
    pub(super) first: Slot,
    chunks: BTreeMap<u64, Box<Chunk>>,
}

impl Default for GroupLog {
    fn default() -> Self {
        Self { meta: Bytes::new(), reset: None, first: Slot(1), chunks: BTreeMap::new() }
    }
}

impl GroupLog {
    pub(super) fn last(&self) -> Slot {
        self.chunks.last_key_value().map_or(self.first.before(), |(key, chunk)| {
            Slot(key * CHUNK_SLOTS + u64::from(63 - chunk.present.leading_zeros()))
        })
    }

    pub(super) fn state(&self) -> LogState {
        LogState { meta: self.meta.clone(), reset: self.reset.clone(), first: self.first, last: self.last() }
    }

    pub(super) fn place(&self, slot: Slot) -> Option<Place> {
        let chunk = self.chunks.get(&(slot.0 / CHUNK_SLOTS))?;
        let at = slot.0 % CHUNK_SLOTS;
        (chunk.present >> at & 1 == 1).then(|| chunk.places[at as usize])
    }

    /// The lowest slot from `from` on that holds an entry.
    pub(super) fn next_held(&self, from: Slot) -> Option<Slot> {
        let (key, at) = (from.0 / CHUNK_SLOTS, from.0 % CHUNK_SLOTS);
        self.chunks.range(key..).find_map(|(chunk_key, chunk)| {
            let wanted = if *chunk_key == key { chunk.present >> at << at } else { chunk.present };
            (wanted != 0).then(|| Slot(chunk_key * CHUNK_SLOTS + u64::from(wanted.trailing_zeros())))
        })
    }

    /// Every live entry, in slot order.
    pub(super) fn places(&self) -> impl Iterator<Item = (Slot, Place)> + '_ {
        self.chunks.iter().flat_map(|(key, chunk)| {
            (0..CHUNK_SLOTS)
                .filter(|at| chunk.present >> at & 1 == 1)
                .map(move |at| (Slot(key * CHUNK_SLOTS + at), chunk.places[at as usize]))
        })
    }

    /// Puts an entry, unless its slot was cut already.
    pub(super) fn put(&mut self, slot: Slot, place: Place, usage: &mut Usage) {
        if slot < self.first {
            return;
        }
        let chunk = self.chunks.entry(slot.0 / CHUNK_SLOTS).or_insert_with(|| {
            Box::new(Chunk { present: 0, places: [Place::default(); CHUNK_SLOTS as usize] })
        });
        let at = slot.0 % CHUNK_SLOTS;
        chunk.remove(1 << at, usage);
        chunk.present |= 1 << at;
        chunk.places[at as usize] = place;
        usage.used(place);
    }

    pub(super) fn truncate_from(&mut self, slot: Slot, usage: &mut Usage) {
        let (key, bit) = (slot.0 / CHUNK_SLOTS, slot.0 % CHUNK_SLOTS);
        while let Some(mut last) = self.chunks.last_entry() {
            if *last.key() < key {
                return;
            }
            let bits = if *last.key() == key { u64::MAX << bit } else { u64::MAX };
            last.get_mut().remove(bits, usage);
            if last.get().present != 0 {
                return;
            }
            last.remove();
        }
    }

    pub(super) fn cut_below(&mut self, slot: Slot, usage: &mut Usage) {
        if slot <= self.first {
            return;
        }
        self.first = slot;
        let (key, bit) = (slot.0 / CHUNK_SLOTS, slot.0 % CHUNK_SLOTS);
        while let Some(mut first) = self.chunks.first_entry() {
            if *first.key() > key {
                return;
            }
            let bits = if *first.key() == key { (1 << bit) - 1 } else { u64::MAX };
            first.get_mut().remove(bits, usage);
            if first.get().present != 0 {
                return;
            }
            first.remove();
        }
    }

    /// The log starts after the snapshot. Whether the suffix is kept was decided when the record was written.
    pub(super) fn reset(&mut self, meta: SnapshotMeta, kept: bool, usage: &mut Usage) {
        let first = meta.slot.next();
        if kept {
            self.cut_below(first, usage);
        } else {
            self.truncate_from(Slot(0), usage);
            self.first = first;
        }
        self.reset = Some(meta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(len: u32) -> Place {
        Place { segment: 1, offset: 0, len, crc: 0 }
    }

    #[test]
    fn the_index_agrees_with_a_plain_map() {
        let mut usage = Usage::starting_at(1);
        usage.begin_segment();
        let (mut log, mut model) = (GroupLog::default(), BTreeMap::new());
        let (mut first, mut random) = (1, 12345u64);
        for step in 0..20_000u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let slot = first + (random >> 33) % 300;
            match (random >> 20) % 40 {
                0 => {
                    log.truncate_from(Slot(slot), &mut usage);
                    model.retain(|at, _| *at < slot);
                }
                1 => {
                    log.cut_below(Slot(slot), &mut usage);
                    first = first.max(slot);
                    model.retain(|at, _| *at >= first);
                }
                _ => {
                    log.put(Slot(slot), place(step + 1), &mut usage);
                    model.insert(slot, step + 1);
                }
            }
            assert_eq!(log.last().0, model.last_key_value().map_or(first - 1, |(slot, _)| *slot));
            assert_eq!(log.place(Slot(slot)).map(|place| place.len), model.get(&slot).copied());
            assert_eq!(usage.live_bytes(), model.values().map(|len| u64::from(*len)).sum::<u64>());
        }
        assert!(log.places().map(|(slot, place)| (slot.0, place.len)).eq(model));
    }

    #[test]
    fn far_slots_cost_no_memory_between_them() {
        let mut usage = Usage::starting_at(1);
        usage.begin_segment();
        let mut log = GroupLog::default();
        log.put(Slot(1), place(1), &mut usage);
        log.put(Slot(u64::MAX - 1), place(1), &mut usage);
        assert_eq!((log.chunks.len(), log.last()), (2, Slot(u64::MAX - 1)));
    }
}
