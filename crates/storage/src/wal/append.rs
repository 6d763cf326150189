//! Appending: operations become records in one reused buffer, which becomes one write.
//!
//! The index changes while records are encoded, under the lock that readers take, and the lock is held until the bytes are written:
//! a reader never finds a place that has no bytes yet.

use conclave_consensus::{GroupId, LogOp, Slot, SnapshotMeta};
use parking_lot::MutexGuard;

use super::{Shared, State, frame, index::Place, record};
use crate::{HOST_GROUP, LogError};

/// A buffer that one large batch made larger than this is given back.
const BUFFER_BYTES_KEPT: usize = 4 << 20;
/// An element must fit in half a segment less this, beside the header, the groups' records, the copies and the floor.
const ELEMENT_MARGIN_BYTES: u64 = 128;
/// So many segments in a row may be too small for an element.
const ROTATIONS_MAX: u32 = 4;
/// A frame that holds a floor and nothing else.
pub(super) const FLOOR_FRAME_BYTES: usize = frame::OVERHEAD_BYTES_MAX + 8;

/// At most so many bytes an element takes.
fn element_bytes_max(ops: &[LogOp]) -> usize {
    frame::OVERHEAD_BYTES_MAX + ops.iter().map(record::size_bytes_max).sum::<usize>()
}

impl Shared {
    pub(super) fn append(&self, batch: &[(GroupId, Vec<LogOp>)]) -> Result<(), LogError> {
        let mut buffer = self.buffer.lock();
        let mut state = self.state.lock();
        state.check()?;
        let result = self.append_locked(&mut state, &mut buffer, batch);
        buffer.clear();
        if buffer.capacity() > BUFFER_BYTES_KEPT {
            buffer.shrink_to(BUFFER_BYTES_KEPT);
        }
        #[cfg(feature = "mutants")]
        if matches!(result, Err(LogError::Full)) && conclave_consensus::Mutant::FullDiskIgnored.is_on() {
            return Ok(());
        }
        result.map_err(|error| state.fail(error))
    }

    fn append_locked(
        &self,
        state: &mut MutexGuard<'_, State>,
        buffer: &mut Vec<u8>,
        batch: &[(GroupId, Vec<LogOp>)],
    ) -> Result<(), LogError> {
        #[cfg(feature = "mutants")]
        for (group, meta) in std::mem::take(&mut state.late) {
            let start = frame::begin(buffer, group);
            record::encode_meta(buffer, &meta);
            self.finish_frame(state, buffer, start);
        }
        for (group, ops) in batch {
            let size_bytes_max = element_bytes_max(ops);
            if size_bytes_max as u64 > self.options.segment_bytes / 2 - ELEMENT_MARGIN_BYTES {
                return Err(LogError::Misuse("an element larger than half a segment"));
            }
            let mut rotations = 0;
            while !state.has_room(buffer, size_bytes_max) {
                // Segments left by a boot with another size may be too small, of which at most two were prepared.
                if rotations == ROTATIONS_MAX {
                    return Err(LogError::Misuse("the groups' records leave no room in a segment"));
                }
                state.flush(buffer)?;
                self.rotate(state, buffer)?;
                rotations += 1;
            }
            self.encode_element(state, buffer, *group, ops)?;
        }
        if state.usage.oldest_needed() > state.floor && state.has_room(buffer, FLOOR_FRAME_BYTES) {
            self.encode_floor(state, buffer);
        }
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::ReclaimedBeforeFloor.is_on() {
            state.flush(buffer)?;
            return self.retire(state);
        }
        state.flush(buffer)
    }

    fn encode_element(
        &self,
        state: &mut State,
        buffer: &mut Vec<u8>,
        group: GroupId,
        ops: &[LogOp],
    ) -> Result<(), LogError> {
        let start = frame::begin(buffer, group);
        let empty = buffer.len();
        for op in ops {
            state.encode_op(buffer, group, op)?;
        }
        if buffer.len() == empty {
            buffer.truncate(start);
        } else {
            self.finish_frame(state, buffer, start);
        }
        Ok(())
    }

    /// Seals the frame that began at `start` and gives it its number.
    pub(super) fn finish_frame(&self, state: &mut State, buffer: &mut Vec<u8>, start: usize) {
        let stamp = self.stamp(state.active().number);
        frame::finish(buffer, start, stamp, state.next_lsn, state.durable_upto);
        state.next_lsn += 1;
        state.stats.frames += 1;
    }

    /// Writes down which segments are no longer needed.
    pub(super) fn encode_floor(&self, state: &mut State, buffer: &mut Vec<u8>) {
        state.floor = state.usage.oldest_needed();
        state.floor_lsn = state.next_lsn;
        let start = frame::begin(buffer, HOST_GROUP);
        record::encode_floor(buffer, state.floor);
        self.finish_frame(state, buffer, start);
    }
}

impl State {
    pub(super) fn has_room(&self, buffer: &[u8], size_bytes: usize) -> bool {
        self.offset + (buffer.len() + size_bytes) as u64 <= self.active().size_bytes
    }

    /// Writes the buffer and empties it.
    pub(super) fn flush(&mut self, buffer: &mut Vec<u8>) -> Result<(), LogError> {
        if buffer.is_empty() {
            return Ok(());
        }
        let written = self.active().file.write_at(self.offset, buffer);
        written.map_err(|error| LogError::from_io("write", error))?;
        self.offset += buffer.len() as u64;
        self.stats.bytes += buffer.len() as u64;
        buffer.clear();
        Ok(())
    }

    /// Where the record that begins at `start` of the buffer and is its last will stand.
    pub(super) fn place_of(&self, buffer: &[u8], start: usize) -> Place {
        let fits = "offsets in a segment are 32 bits";
        Place {
            segment: self.active().number,
            offset: u32::try_from(self.offset + start as u64).expect(fits),
            len: u32::try_from(buffer.len() - start).expect(fits),
            crc: crc32fast::hash(&buffer[start..]),
        }
    }

    fn encode_op(&mut self, buffer: &mut Vec<u8>, group: GroupId, op: &LogOp) -> Result<(), LogError> {
        match op {
            LogOp::Meta(meta) => {
                #[cfg(feature = "mutants")]
                if conclave_consensus::Mutant::MetaAfterEntries.is_on() {
                    self.late.push((group, meta.clone()));
                    self.groups.entry(group).or_default().meta = bytes::Bytes::copy_from_slice(meta);
                    return Ok(());
                }
                record::encode_meta(buffer, meta);
                // Copied, since it is kept: a slice would keep alive the whole buffer it came in.
                self.groups.entry(group).or_default().meta = bytes::Bytes::copy_from_slice(meta);
            }
            LogOp::Put(entries) => {
                for entry in entries {
                    let start = buffer.len();
                    record::encode_put(buffer, entry);
                    let place = self.place_of(buffer, start);
                    let log = self.groups.entry(group).or_default();
                    if entry.slot < log.first {
                        buffer.truncate(start);
                        continue;
                    }
                    log.put(entry.slot, place, &mut self.usage);
                }
            }
            LogOp::TruncateFrom(slot) => {
                record::encode_truncate_from(buffer, *slot);
                self.groups.entry(group).or_default().truncate_from(*slot, &mut self.usage);
            }
            LogOp::CutBelow(slot) => {
                record::encode_cut_below(buffer, *slot);
                self.groups.entry(group).or_default().cut_below(*slot, &mut self.usage);
            }
            LogOp::Reset(meta) => {
                let kept = self.keeps_suffix(buffer, group, meta)?;
                record::encode_reset(buffer, meta, kept);
                self.groups.entry(group).or_default().reset(SnapshotMeta::clone(meta), kept, &mut self.usage);
            }
        }
        Ok(())
    }

    /// Whether the entries after a snapshot continue it: the log holds its last entry in the same ballot, or already starts
    /// after this very snapshot.
    fn keeps_suffix(&self, buffer: &[u8], group: GroupId, meta: &SnapshotMeta) -> Result<bool, LogError> {
        let Some(log) = self.groups.get(&group) else { return Ok(false) };
        if let Some(reset) = &log.reset
            && (reset.slot, reset.ballot) == (meta.slot, meta.ballot)
            && log.first == meta.slot.next()
        {
            return Ok(true);
        }
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::DelayedSnapshotForgets.is_on() {
            return Ok(false);
        }
        let Some(place) = log.place(meta.slot) else { return Ok(false) };
        Ok(self.entry_at(buffer, meta.slot, place)?.ballot == meta.ballot)
    }

    fn entry_at(
        &self,
        buffer: &[u8],
        slot: Slot,
        place: Place,
    ) -> Result<conclave_consensus::Entry, LogError> {
        let in_buffer = place.segment == self.active().number && u64::from(place.offset) >= self.offset;
        if in_buffer {
            let start = (u64::from(place.offset) - self.offset) as usize;
            let bytes = bytes::Bytes::copy_from_slice(&buffer[start..start + place.len as usize]);
            return record::entry_in(&bytes, 0, bytes.len())
                .ok_or(LogError::Misuse("a record in the buffer does not parse"));
        }
        super::read::read_entry(&self.segments, slot, place)
    }
}
