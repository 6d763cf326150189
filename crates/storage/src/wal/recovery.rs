//! Boot: reads all segments in order, tells a torn tail from damage, and makes what it found durable.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use conclave_consensus::GroupId;
#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;

use super::{
    State, WalOptions, WalStats,
    frame::{self, Header, Stamp},
    index::{GroupLog, Place, Usage},
    record::{Reader, Record},
    segment::{self, Named, Segment},
};
use crate::{Disk, LogError};

/// Where the log ends as far as it was read, and the LSN of the frame that is missing there.
#[derive(Clone, Copy, Debug)]
struct End {
    segment: usize,
    offset: usize,
    lsn: u64,
}

/// Bytes that hold remains of frames that were never synced.
#[derive(Clone, Copy, Debug)]
struct Remains {
    segment: usize,
    from: usize,
    to: usize,
}

/// Reads the log on `disk`; an empty disk gets a new one. Returns the log's id with its state.
pub(super) fn recover(disk: &dyn Disk, options: &WalOptions) -> Result<(u64, State), LogError> {
    let (numbers, scrap) = survey(disk)?;
    let mut segments = Vec::with_capacity(numbers.len());
    let mut log_id = None;
    for number in numbers {
        let (id, segment) = segment::open(disk, number)?;
        if *log_id.get_or_insert(id) != id {
            return Err(LogError::Foreign {
                file: segment.name(),
                why: format!("it belongs to log {id:016x}, the segments before it to another"),
            });
        }
        segments.push(Arc::new(segment));
    }
    let io = |operation| move |error| LogError::from_io(operation, error);
    let log_id = log_id.unwrap_or(options.log_id);
    let replay = if segments.is_empty() {
        for name in &scrap {
            disk.remove(name).map_err(io("removal of scrap"))?;
        }
        let stamp = Stamp { log_id, segment: 1 };
        let first = segment::create(disk, stamp, options.segment_bytes, None).map_err(io("creation"))?;
        segments.push(Arc::new(first));
        let mut replay = Replay::new(log_id, 1);
        replay.usage.begin_segment();
        replay.end = Some(End { segment: 0, offset: segment::HEADER_BYTES, lsn: 1 });
        replay
    } else {
        let mut replay = Replay::new(log_id, segments[0].number);
        replay.run(&segments)?;
        for name in &scrap {
            disk.remove(name).map_err(io("removal of scrap"))?;
        }
        // Names that a crash of the process alone left unsynced count from now on.
        disk.sync_names().map_err(io("sync of names"))?;
        replay
    };
    replay.settle(segments).map(|state| (log_id, state))
}

/// The segments' numbers, without gaps, and the files that may go.
fn survey(disk: &dyn Disk) -> Result<(Vec<u32>, Vec<String>), LogError> {
    let (mut numbers, mut scrap) = (Vec::new(), Vec::new());
    for name in disk.list().map_err(|error| LogError::from_io("list", error))? {
        match segment::classify(&name) {
            Named::Segment(number) => numbers.push(number),
            Named::Scrap => scrap.push(name),
            Named::Foreign => {
                return Err(LogError::Foreign { file: name, why: "no segment has such a name".to_owned() });
            }
        }
    }
    numbers.sort_unstable();
    match numbers.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        Some(pair) => Err(missing(pair[0] + 1)),
        None => Ok((numbers, scrap)),
    }
}

fn missing(number: u32) -> LogError {
    LogError::Damaged {
        segment: segment::segment_name(number),
        offset: 0,
        why: "the file is missing".to_owned(),
    }
}

/// Whether a frame's number is the one that is missing.
fn is_next(found: u64, missing: u64) -> bool {
    #[cfg(feature = "mutants")]
    if Mutant::StaleFramesPass.is_on() {
        return true;
    }
    found == missing
}

/// What is known of the log while it is read.
#[derive(Debug)]
struct Replay {
    log_id: u64,
    groups: std::collections::BTreeMap<GroupId, GroupLog>,
    usage: Usage,
    floor: u32,
    end: Option<End>,
    remains: Vec<Remains>,
    /// The highest `durable_upto` seen.
    durable_upto: u64,
    /// LSN, segment and offset of frames above `durable_upto`, in order.
    unproven: VecDeque<(u64, usize, usize)>,
}

impl Replay {
    fn new(log_id: u64, oldest: u32) -> Self {
        Self {
            log_id,
            groups: std::collections::BTreeMap::new(),
            usage: Usage::starting_at(oldest),
            floor: 1,
            end: None,
            remains: Vec::new(),
            durable_upto: 0,
            unproven: VecDeque::new(),
        }
    }

    fn run(&mut self, segments: &[Arc<Segment>]) -> Result<(), LogError> {
        let mut bytes = Vec::new();
        for (at, segment) in segments.iter().enumerate() {
            // The size was checked against the header, and bounds what a length in the segment can ask for.
            bytes.resize(usize::try_from(segment.size_bytes).unwrap_or(usize::MAX), 0);
            segment.file.read_at(0, &mut bytes).map_err(|error| LogError::from_io("read", error))?;
            self.segment(segments, at, &bytes)?;
        }
        match segments.first() {
            Some(oldest) if oldest.number > self.floor => Err(missing(self.floor)),
            _ => Ok(()),
        }
    }

    fn segment(&mut self, segments: &[Arc<Segment>], at: usize, bytes: &[u8]) -> Result<(), LogError> {
        let stamp = Stamp { log_id: self.log_id, segment: segments[at].number };
        let mut offset = segment::HEADER_BYTES;
        let first = frame::at(bytes, offset, stamp).map(|(header, _)| header.lsn);
        let mut lsn = match (self.end, first) {
            // The segment before ended where it was left: its next frame is the first one here.
            (Some(end), Some(first)) if is_next(first, end.lsn) => {
                self.remains.clear();
                end.lsn
            }
            (Some(end), _) => return self.judge(segments, at, bytes, offset, end),
            (None, _) if segments[at].number == 1 => 1,
            (None, Some(first)) => first,
            (None, None) => {
                let why = "its first frame is invalid, and no segment stands before it".to_owned();
                return Err(LogError::Damaged { segment: segments[at].name(), offset: offset as u64, why });
            }
        };
        self.usage.begin_segment();
        while let Some((header, payload)) = frame::at(bytes, offset, stamp)
            && is_next(header.lsn, lsn)
        {
            let damaged = |why: &str| LogError::Damaged {
                segment: segments[at].name(),
                offset: offset as u64,
                why: why.to_owned(),
            };
            let base = offset + frame::HEADER_BYTES;
            self.frame(stamp.segment, base, payload).map_err(damaged)?;
            self.proven(&header);
            self.unproven.push_back((lsn, at, offset));
            offset += header.frame_bytes();
            lsn += 1;
        }
        let end = End { segment: at, offset, lsn };
        self.end = Some(end);
        self.judge(segments, at, bytes, offset, end)
    }

    fn proven(&mut self, header: &Header) {
        self.durable_upto = self.durable_upto.max(header.durable_upto);
        while self.unproven.front().is_some_and(|(lsn, ..)| *lsn <= self.durable_upto) {
            self.unproven.pop_front();
        }
    }

    /// Looks behind the end for frames that prove it wrong; what proves nothing is remembered, to be zeroed.
    fn judge(
        &mut self,
        segments: &[Arc<Segment>],
        at: usize,
        bytes: &[u8],
        from: usize,
        end: End,
    ) -> Result<(), LogError> {
        let stamp = Stamp { log_id: self.log_id, segment: segments[at].number };
        let mut remains: Option<Remains> = None;
        for (offset, header) in frame::search(bytes, from, stamp, end.lsn) {
            let damage = header.durable_upto >= end.lsn;
            #[cfg(feature = "mutants")]
            let damage = (damage || Mutant::TornTailIsDamage.is_on()) && !Mutant::DamageIsTornTail.is_on();
            if damage {
                // A segment is written from its beginning. If the next one's is invalid, that one is damaged, whatever became of this end.
                let begins = at == end.segment + 1 && frame::at(bytes, from, stamp).is_some();
                let (segment, damaged_at) = if at == end.segment || begins {
                    (end.segment, end.offset)
                } else {
                    (end.segment + 1, segment::HEADER_BYTES)
                };
                return Err(LogError::Damaged {
                    segment: segments[segment].name(),
                    offset: damaged_at as u64,
                    why: format!(
                        "frame {} is invalid, but frame {} in segment {} says that it was synced",
                        end.lsn,
                        header.lsn,
                        segments[at].name()
                    ),
                });
            }
            let to = (offset + header.frame_bytes()).min(bytes.len());
            let whole = remains.get_or_insert(Remains { segment: at, from, to });
            whole.to = whole.to.max(to);
        }
        self.remains.extend(remains);
        Ok(())
    }

    fn frame(&mut self, segment: u32, base: usize, payload: &[u8]) -> Result<(), &'static str> {
        let mut reader = Reader::new(payload);
        let group = reader.group().ok_or("a frame without a group")?;
        let usage = &mut self.usage;
        loop {
            let start = reader.position();
            let Some(record) = reader.next()? else { return Ok(()) };
            if let Record::Floor(floor) = record {
                // What was live when it was written is at most live here: older segments may be gone, and they go in order.
                if floor > usage.oldest_needed() {
                    return Err("a floor above entries that are live");
                }
                self.floor = self.floor.max(floor);
                continue;
            }
            let log = self.groups.entry(group).or_default();
            match record {
                Record::Meta(meta) => log.meta = Bytes::copy_from_slice(meta),
                Record::Put(put) => {
                    let bytes = &payload[start..reader.position()];
                    let fits = |number: usize| u32::try_from(number).map_err(|_| "a record beyond 32 bits");
                    let place = Place {
                        segment,
                        offset: fits(base + start)?,
                        len: fits(bytes.len())?,
                        crc: crc32fast::hash(bytes),
                    };
                    log.put(put.slot, place, usage);
                }
                Record::TruncateFrom(slot) => log.truncate_from(slot, usage),
                Record::CutBelow(slot) => log.cut_below(slot, usage),
                Record::Reset { meta, kept } => log.reset(meta, kept, usage),
                Record::State { meta, first, reset } => {
                    log.meta = Bytes::copy_from_slice(meta);
                    log.cut_below(first, usage);
                    log.first = first;
                    log.reset = reset;
                }
                Record::Floor(_) => {}
            }
        }
    }

    /// Cuts the tail, makes the rest durable and builds the running log's state.
    fn settle(self, mut segments: Vec<Arc<Segment>>) -> Result<State, LogError> {
        let io = |operation| move |error| LogError::from_io(operation, error);
        let end = self.end.ok_or(LogError::Misuse("a log without a segment"))?;
        let mut tail_bytes_cut = 0;
        for remains in &self.remains {
            let file = &segments[remains.segment].file;
            let zeros = vec![0; remains.to - remains.from];
            file.write_at(remains.from as u64, &zeros).map_err(io("cut of the tail"))?;
            file.sync().map_err(io("cut of the tail"))?;
            tail_bytes_cut += zeros.len() as u64;
        }
        if tail_bytes_cut > 0 {
            tracing::warn!(
                segment = segments[end.segment].name(),
                offset = end.offset,
                bytes = tail_bytes_cut,
                "cut a torn tail off the log: expected after a power cut only"
            );
        }
        let active = Arc::clone(&segments[end.segment]);
        if let Some((_, at, from)) = self.unproven.front().copied() {
            assert_eq!(at, end.segment, "whatever is unproven lies in the last segment that was written");
            let mut bytes = vec![0; end.offset - from];
            active.file.read_at(from as u64, &mut bytes).map_err(io("read"))?;
            active.file.write_at(from as u64, &bytes).map_err(io("write"))?;
        }
        active.file.sync().map_err(io("sync"))?;
        let prepared = segments.split_off(end.segment + 1);
        Ok(State {
            groups: self.groups,
            usage: self.usage,
            segments: segments.into(),
            offset: end.offset as u64,
            next_lsn: end.lsn,
            durable_upto: end.lsn - 1,
            floor: self.floor,
            floor_lsn: 0,
            prepared: prepared.into(),
            retired: VecDeque::new(),
            spare: None,
            busy: false,
            preparing_failed: false,
            stop: false,
            failure: None,
            stats: WalStats { tail_bytes_cut, ..WalStats::default() },
            #[cfg(feature = "mutants")]
            late: Vec::new(),
        })
    }
}
