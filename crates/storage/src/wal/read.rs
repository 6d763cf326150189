//! Reading entries back: places are looked up under the lock, bytes are read without it.
//!
//! Neighbours in the log are read together. A reader holds the segments it reads, and a segment that somebody holds is
//! removed rather than used again: what it reads stays what it was, even if it is let go meanwhile.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use conclave_consensus::{Entry, GroupId, LogSlice, Slot, SlotRange};

use super::{Shared, State, index::Place, record, segment::Segment};
use crate::LogError;

/// Between two records that are read together at most so many bytes of others are read in vain.
const GAP_BYTES_MAX: u32 = 4096;
/// Reads together at most so many bytes, or one record.
const SPAN_BYTES_MAX: u32 = 1 << 20;
/// What [`Entry::size_bytes`] counts an entry beyond its payload.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Records of one segment that one read fetches.
#[derive(Debug)]
struct Span {
    segment: Arc<Segment>,
    from: u32,
    to: u32,
    records: Vec<(Slot, Place)>,
}

impl Shared {
    pub(super) fn read(
        &self,
        group: GroupId,
        range: SlotRange,
        bytes_max: usize,
    ) -> Result<LogSlice, LogError> {
        let plan = {
            let mut state = self.state.lock();
            state.check()?;
            plan(&state, group, range, bytes_max)?
        };
        let Some(spans) = plan else { return Ok(LogSlice::Compacted) };
        let mut entries = Vec::with_capacity(spans.iter().map(|span| span.records.len()).sum());
        for span in spans {
            fetch(&span, &mut entries)?;
        }
        Ok(LogSlice::Entries(entries))
    }
}

fn plan(
    state: &State,
    group: GroupId,
    range: SlotRange,
    bytes_max: usize,
) -> Result<Option<Vec<Span>>, LogError> {
    let Some(log) = state.groups.get(&group) else {
        return Err(LogError::Misuse("a read of a group without a log"));
    };
    if range.from >= range.to {
        return Err(LogError::Misuse("a read of no slots"));
    }
    if range.from < log.first {
        return Ok(None);
    }
    let mut spans: Vec<Span> = Vec::new();
    let (mut slot, mut taken_bytes) = (range.from, 0usize);
    while slot < range.to {
        let Some(place) = log.place(slot) else { break };
        taken_bytes = taken_bytes.saturating_add(place.len as usize + ENTRY_OVERHEAD_BYTES);
        if taken_bytes > bytes_max && slot > range.from {
            break;
        }
        let end = place.offset + place.len;
        match spans.last_mut() {
            Some(span)
                if span.segment.number == place.segment
                    && place.offset >= span.to
                    && place.offset - span.to <= GAP_BYTES_MAX
                    && end - span.from <= SPAN_BYTES_MAX =>
            {
                span.to = end;
                span.records.push((slot, place));
            }
            _ => spans.push(Span {
                segment: Arc::clone(segment_of(&state.segments, place)?),
                from: place.offset,
                to: end,
                records: vec![(slot, place)],
            }),
        }
        slot = slot.next();
    }
    if spans.is_empty() {
        Err(LogError::Misuse("a read of a slot that was never written"))
    } else {
        Ok(Some(spans))
    }
}

fn segment_of(segments: &VecDeque<Arc<Segment>>, place: Place) -> Result<&Arc<Segment>, LogError> {
    let oldest = segments.front().map_or(0, |segment| segment.number);
    let at = place
        .segment
        .checked_sub(oldest)
        .ok_or(LogError::Misuse("a live entry in a segment that was let go"))?;
    segments.get(at as usize).ok_or(LogError::Misuse("an entry in a segment that does not exist"))
}

fn fetch(span: &Span, entries: &mut Vec<Entry>) -> Result<(), LogError> {
    let mut bytes = vec![0; (span.to - span.from) as usize];
    let read = span.segment.file.read_at(u64::from(span.from), &mut bytes);
    read.map_err(|error| LogError::from_io("read", error))?;
    let bytes = Bytes::from(bytes);
    for (slot, place) in &span.records {
        let at = (place.offset - span.from) as usize;
        let len = place.len as usize;
        let entry = if crc32fast::hash(&bytes[at..at + len]) == place.crc {
            record::entry_in(&bytes, at, len)
        } else {
            None
        };
        match entry {
            Some(entry) if entry.slot == *slot => entries.push(entry),
            _ => {
                return Err(LogError::Damaged {
                    segment: span.segment.name(),
                    offset: u64::from(place.offset),
                    why: format!("the entry of slot {slot} does not read as it was written"),
                });
            }
        }
    }
    Ok(())
}

/// Reads one entry's record as it is on disk.
pub(super) fn read_record(
    segments: &VecDeque<Arc<Segment>>,
    slot: Slot,
    place: Place,
) -> Result<Bytes, LogError> {
    let segment = segment_of(segments, place)?;
    let mut bytes = vec![0; place.len as usize];
    segment
        .file
        .read_at(u64::from(place.offset), &mut bytes)
        .map_err(|error| LogError::from_io("read", error))?;
    if crc32fast::hash(&bytes) != place.crc {
        return Err(LogError::Damaged {
            segment: segment.name(),
            offset: u64::from(place.offset),
            why: format!("the entry of slot {slot} does not read as it was written"),
        });
    }
    Ok(Bytes::from(bytes))
}

/// Reads one entry.
pub(super) fn read_entry(
    segments: &VecDeque<Arc<Segment>>,
    slot: Slot,
    place: Place,
) -> Result<Entry, LogError> {
    let bytes = read_record(segments, slot, place)?;
    record::entry_in(&bytes, 0, bytes.len())
        .ok_or(LogError::Misuse("a record with a valid checksum does not parse"))
}
