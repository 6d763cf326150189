//! Going on to the next segment, and what becomes of old ones.
//!
//! A rotation syncs the segment it leaves, takes the prepared one, and writes every group's record and the floor into it. Segments below
//! a durable floor are let go in order: one is kept under another name to be used again (its blocks are allocated and
//! written, so later syncs move data only), the others are removed.

use std::{io, sync::Arc};

use conclave_consensus::{GroupId, Slot};
use parking_lot::MutexGuard;

use super::{
    Preparation, Shared, State,
    append::FLOOR_FRAME_BYTES,
    frame,
    index::Place,
    read, record,
    segment::{self, Segment},
};
use crate::LogError;

/// Of a segment, the share (one part in so many) that copies of laggards' entries may take.
const COPIED_SHARE: u64 = 4;

/// What the worker can do without the lock.
#[derive(Debug)]
enum Job {
    Prepare,
    Retire(Arc<Segment>),
}

impl Shared {
    /// Leaves the active segment. The buffer is empty before, and holds the new segment's first frames after.
    pub(super) fn rotate(
        &self,
        state: &mut MutexGuard<'_, State>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), LogError> {
        assert!(buffer.is_empty(), "frames of one segment must not reach another");
        self.sync_active(state)?;
        let next = self.take_prepared(state)?;
        assert_eq!(next.number, state.active().number + 1, "segments are numbered without gaps");
        state.segments.push_back(next);
        state.usage.begin_segment();
        state.offset = segment::HEADER_BYTES as u64;
        state.stats.rotations += 1;
        self.encode_states(state, buffer)?;
        self.copy_laggards(state, buffer)?;
        self.encode_floor(state, buffer);
        self.changed.notify_all();
        Ok(())
    }

    /// The next segment. If the worker has not made it yet, waits for it or makes it here.
    fn take_prepared(&self, state: &mut MutexGuard<'_, State>) -> Result<Arc<Segment>, LogError> {
        loop {
            if let Some(next) = state.prepared.pop_front() {
                return Ok(next);
            }
            if state.busy {
                self.changed.wait(state);
            } else {
                state.preparing_failed = false;
                self.run(state, Job::Prepare)?;
            }
        }
    }

    fn encode_states(&self, state: &mut State, buffer: &mut Vec<u8>) -> Result<(), LogError> {
        let groups: Vec<GroupId> = state.groups.keys().copied().collect();
        for group in groups {
            let Some(log) = state.groups.get(&group) else { continue };
            let size_bytes_max =
                frame::OVERHEAD_BYTES_MAX + record::state_bytes_max(&log.meta, log.reset.as_ref());
            if (buffer.len() + size_bytes_max) as u64 > state.active().size_bytes / 4 {
                return Err(LogError::Misuse("the groups' records exceed a quarter of a segment"));
            }
            let start = frame::begin(buffer, group);
            record::encode_state(buffer, &log.meta, log.first, log.reset.as_ref());
            self.finish_frame(state, buffer, start);
        }
        Ok(())
    }

    /// Copies entries out of the oldest segments, if these hold little else than what is dead.
    fn copy_laggards(&self, state: &mut State, buffer: &mut Vec<u8>) -> Result<(), LogError> {
        // All but the new one, which is still empty.
        let used_bytes: u64 = state.segments.iter().rev().skip(1).map(|segment| segment.size_bytes).sum();
        let mut left_bytes =
            (state.active().size_bytes / COPIED_SHARE).saturating_sub(FLOOR_FRAME_BYTES as u64);
        loop {
            let oldest = state.usage.oldest_needed();
            let in_use = (state.active().number - oldest) as usize + 1;
            if in_use <= self.options.pinned_segments_max || state.usage.live_bytes() > used_bytes / 2 {
                return Ok(());
            }
            let pinning: Vec<(GroupId, Vec<(Slot, Place)>)> = state
                .groups
                .iter()
                .map(|(group, log)| {
                    (*group, log.places().filter(|(_, place)| place.segment == oldest).collect())
                })
                .filter(|(_, places): &(_, Vec<_>)| !places.is_empty())
                .collect();
            for (group, places) in pinning {
                for (slot, place) in places {
                    let cost_bytes = (place.len as usize + frame::OVERHEAD_BYTES_MAX) as u64;
                    if cost_bytes > left_bytes {
                        return Ok(());
                    }
                    left_bytes -= cost_bytes;
                    self.copy_entry(state, buffer, group, slot, place)?;
                }
            }
        }
    }

    fn copy_entry(
        &self,
        state: &mut State,
        buffer: &mut Vec<u8>,
        group: GroupId,
        slot: Slot,
        place: Place,
    ) -> Result<(), LogError> {
        let bytes = read::read_record(&state.segments, slot, place)?;
        let start = frame::begin(buffer, group);
        let at = buffer.len();
        buffer.extend_from_slice(&bytes);
        let copy = state.place_of(buffer, at);
        state.groups.entry(group).or_default().put(slot, copy, &mut state.usage);
        self.finish_frame(state, buffer, start);
        state.stats.entries_copied += 1;
        Ok(())
    }

    /// Lets go of segments below a floor that is durable, and does the worker's part if there is none.
    pub(super) fn retire(&self, state: &mut MutexGuard<'_, State>) -> Result<(), LogError> {
        let durable = state.durable_upto >= state.floor_lsn;
        #[cfg(feature = "mutants")]
        let durable = durable || conclave_consensus::Mutant::ReclaimedBeforeFloor.is_on();
        if !durable {
            return Ok(());
        }
        while state.segments.front().is_some_and(|segment| segment.number < state.floor) {
            let gone = state.segments.pop_front();
            state.usage.end_oldest();
            state.retired.extend(gone);
            state.stats.segments_freed += 1;
        }
        if state.retired.is_empty() {
            return Ok(());
        }
        if self.options.preparation == Preparation::Background {
            self.changed.notify_all();
            return Ok(());
        }
        while let Some(segment) = state.retired.pop_front() {
            self.run(state, Job::Retire(segment))?;
        }
        Ok(())
    }

    /// The worker's life.
    pub(super) fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if state.stop || state.failure.is_some() {
                return;
            }
            let job = if state.busy {
                None
            } else if let Some(segment) = state.retired.pop_front() {
                Some(Job::Retire(segment))
            } else if state.prepared.is_empty() && !state.preparing_failed {
                Some(Job::Prepare)
            } else {
                None
            };
            let Some(job) = job else {
                self.changed.wait(&mut state);
                continue;
            };
            let preparing = matches!(job, Job::Prepare);
            if let Err(error) = self.run(&mut state, job) {
                if preparing {
                    // Not fatal yet: space may be found before a rotation needs it, which then tries itself.
                    tracing::warn!(%error, "the log's next segment could not be made ready");
                    state.preparing_failed = true;
                } else {
                    tracing::error!(%error, "an old segment of the log could not be let go");
                    state.failure = Some(super::Failure::Untold(error));
                }
            }
        }
    }

    /// Does a job without the lock.
    fn run(&self, state: &mut MutexGuard<'_, State>, job: Job) -> Result<(), LogError> {
        state.busy = true;
        let result = match job {
            Job::Prepare => {
                self.prepare(state).map_err(|error| LogError::from_io("preparation of a segment", error))
            }
            Job::Retire(segment) => {
                self.let_go(state, segment).map_err(|error| LogError::from_io("removal of a segment", error))
            }
        };
        state.busy = false;
        self.changed.notify_all();
        result
    }

    fn prepare(&self, state: &mut MutexGuard<'_, State>) -> io::Result<()> {
        let last = state.prepared.back().unwrap_or_else(|| state.active()).number;
        let number = last.checked_add(1).ok_or_else(|| io::Error::other("segment numbers are exhausted"))?;
        let spare = state.spare.take();
        let recycled = spare.is_some();
        let segment = MutexGuard::unlocked(state, || {
            let spare = spare.map(|(name, segment)| (name, Arc::clone(&segment.file)));
            segment::create(&*self.disk, self.stamp(number), self.options.segment_bytes, spare)
        })?;
        state.prepared.push_back(Arc::new(segment));
        state.stats.segments_recycled += u64::from(recycled);
        Ok(())
    }

    /// Takes a segment's name away. Nobody but a reader may hold it, and then it is not used again.
    fn let_go(&self, state: &mut MutexGuard<'_, State>, segment: Arc<Segment>) -> io::Result<()> {
        let reusable = state.spare.is_none()
            && segment.size_bytes == self.options.segment_bytes
            && Arc::strong_count(&segment) == 1;
        let spare = reusable.then(|| segment::spare_name(segment.number));
        MutexGuard::unlocked(state, || {
            match &spare {
                Some(spare) => self.disk.rename(&segment.name(), spare)?,
                None => self.disk.remove(&segment.name())?,
            }
            // One at a time, or a power cut could leave a gap among the names.
            self.disk.sync_names()
        })?;
        state.spare = spare.map(|name| (name, segment)).or_else(|| state.spare.take());
        Ok(())
    }
}
