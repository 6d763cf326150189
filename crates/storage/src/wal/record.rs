//! How log operations look inside a frame: a tag byte, then numbers as little-endian base-128 varints and byte strings
//! with their length in front. The version in the segment's header covers this encoding.
//!
//! Records hold *outcomes*: a reset says whether the suffix was kept, since a replay may no longer hold the entry by which
//! that was decided. Nothing read here sizes an allocation.

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Config, Entry, GroupId, Kind, LogOp, NodeId, ProposalId, ReplicaId, Slot, SnapshotMeta,
};

const PADDING: u8 = 0;
const META: u8 = 1;
const PUT: u8 = 2;
const TRUNCATE_FROM: u8 = 3;
const CUT_BELOW: u8 = 4;
const RESET: u8 = 5;
const STATE: u8 = 6;
const FLOOR: u8 = 7;

const VARINT_BYTES_MAX: usize = 10;
/// A put's fields but for its payload: tag, kind, node and seven varints at their longest.
const PUT_BYTES_MAX: usize = 10 + 7 * VARINT_BYTES_MAX;
/// A configuration's fixed part and each of its members, as [`Config::encode`] writes them.
const CONFIG_BYTES: usize = 10;
const MEMBER_BYTES: usize = 17;

/// One record of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Meta(&'a [u8]),
    Put(Put<'a>),
    TruncateFrom(Slot),
    CutBelow(Slot),
    Reset {
        meta: SnapshotMeta,
        kept: bool,
    },
    /// What a group's log is apart from its entries: all that earlier segments said of it.
    State {
        meta: &'a [u8],
        first: Slot,
        reset: Option<SnapshotMeta>,
    },
    /// Segments with lower numbers are no longer needed.
    Floor(u32),
}

/// An entry, borrowed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Put<'a> {
    pub(super) slot: Slot,
    pub(super) ballot: Ballot,
    pub(super) kind: Kind,
    pub(super) id: ProposalId,
    pub(super) payload: &'a [u8],
}

/// At most so many bytes an operation takes in a frame.
pub(super) fn size_bytes_max(op: &LogOp) -> usize {
    match op {
        LogOp::Meta(meta) => 1 + VARINT_BYTES_MAX + meta.len(),
        LogOp::Put(entries) => entries.iter().map(|entry| PUT_BYTES_MAX + entry.payload.len()).sum(),
        LogOp::TruncateFrom(_) | LogOp::CutBelow(_) => 1 + VARINT_BYTES_MAX,
        LogOp::Reset(meta) => 2 + snapshot_bytes_max(meta),
    }
}

/// At most so many bytes a [`Record::State`] takes in a frame.
pub(super) fn state_bytes_max(meta: &[u8], reset: Option<&SnapshotMeta>) -> usize {
    2 + 2 * VARINT_BYTES_MAX + meta.len() + reset.map_or(0, snapshot_bytes_max)
}

fn snapshot_bytes_max(meta: &SnapshotMeta) -> usize {
    6 * VARINT_BYTES_MAX + CONFIG_BYTES + MEMBER_BYTES * meta.config.nodes.len()
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_ballot(out: &mut Vec<u8>, ballot: Ballot) {
    put_varint(out, ballot.config);
    put_varint(out, ballot.round);
    put_varint(out, ballot.replica.0);
}

fn put_snapshot(out: &mut Vec<u8>, meta: &SnapshotMeta) {
    put_varint(out, meta.slot.0);
    put_ballot(out, meta.ballot);
    put_varint(out, meta.generation);
    put_bytes(out, &meta.config.encode());
}

pub(super) fn encode_group(out: &mut Vec<u8>, group: GroupId) {
    put_varint(out, group.0);
}

pub(super) fn encode_meta(out: &mut Vec<u8>, meta: &[u8]) {
    out.push(META);
    put_bytes(out, meta);
}

pub(super) fn encode_put(out: &mut Vec<u8>, entry: &Entry) {
    out.push(PUT);
    out.push(entry.kind.code());
    put_varint(out, entry.slot.0);
    put_ballot(out, entry.ballot);
    // Node ids are hashes: a varint of one would be longer than the number.
    out.extend_from_slice(&entry.id.node.0.to_le_bytes());
    put_varint(out, entry.id.sequence);
    put_bytes(out, &entry.payload);
}

pub(super) fn encode_truncate_from(out: &mut Vec<u8>, slot: Slot) {
    out.push(TRUNCATE_FROM);
    put_varint(out, slot.0);
}

pub(super) fn encode_cut_below(out: &mut Vec<u8>, slot: Slot) {
    out.push(CUT_BELOW);
    put_varint(out, slot.0);
}

pub(super) fn encode_reset(out: &mut Vec<u8>, meta: &SnapshotMeta, kept: bool) {
    out.push(RESET);
    out.push(u8::from(kept));
    put_snapshot(out, meta);
}

pub(super) fn encode_state(out: &mut Vec<u8>, meta: &[u8], first: Slot, reset: Option<&SnapshotMeta>) {
    out.push(STATE);
    out.push(u8::from(reset.is_some()));
    put_varint(out, first.0);
    put_bytes(out, meta);
    if let Some(reset) = reset {
        put_snapshot(out, reset);
    }
}

pub(super) fn encode_floor(out: &mut Vec<u8>, segment: u32) {
    out.push(FLOOR);
    put_varint(out, u64::from(segment));
}

/// Reads records one after the other. `None` from any method but [`next`](Self::next) is "these bytes are none".
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes were read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The group whose frame this is: what a frame begins with.
    pub(super) fn group(&mut self) -> Option<GroupId> {
        self.varint().map(GroupId)
    }

    /// The next record; `Ok(None)` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Record<'a>>, &'static str> {
        if self.at == self.bytes.len() || self.bytes[self.at] == PADDING {
            let rest = &self.bytes[self.at..];
            let clean = rest.len() < 8 && rest.iter().all(|byte| *byte == PADDING);
            return if clean { Ok(None) } else { Err("a frame goes on after its end") };
        }
        self.record().map(Some).ok_or("a record that this version cannot have written")
    }

    fn record(&mut self) -> Option<Record<'a>> {
        Some(match self.byte()? {
            META => Record::Meta(self.string()?),
            PUT => Record::Put(self.put()?),
            TRUNCATE_FROM => Record::TruncateFrom(Slot(self.varint()?)),
            CUT_BELOW => Record::CutBelow(Slot(self.varint()?)),
            RESET => {
                let kept = self.flag()?;
                Record::Reset { meta: self.snapshot()?, kept }
            }
            STATE => {
                let has_reset = self.flag()?;
                let first = Slot(self.varint()?);
                let meta = self.string()?;
                let reset = if has_reset { Some(self.snapshot()?) } else { None };
                Record::State { meta, first, reset }
            }
            FLOOR => Record::Floor(u32::try_from(self.varint()?).ok()?),
            _ => return None,
        })
    }

    fn put(&mut self) -> Option<Put<'a>> {
        Some(Put {
            kind: Kind::from_code(self.byte()?)?,
            slot: Slot(self.varint()?),
            ballot: self.ballot()?,
            id: ProposalId {
                node: NodeId(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
                sequence: self.varint()?,
            },
            payload: self.string()?,
        })
    }

    fn snapshot(&mut self) -> Option<SnapshotMeta> {
        let slot = Slot(self.varint()?);
        let ballot = self.ballot()?;
        let generation = self.varint()?;
        Some(SnapshotMeta { slot, ballot, generation, config: Config::decode(self.string()?).ok()? })
    }

    fn ballot(&mut self) -> Option<Ballot> {
        Some(Ballot { config: self.varint()?, round: self.varint()?, replica: ReplicaId(self.varint()?) })
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.varint()?;
        self.take(usize::try_from(len).ok()?)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

/// Reads the one entry that stands at `at..at + len` of `span`; its payload shares the span's memory.
pub(super) fn entry_in(span: &Bytes, at: usize, len: usize) -> Option<Entry> {
    let record = span.get(at..at.checked_add(len)?)?;
    let mut reader = Reader::new(record);
    match reader.next() {
        Ok(Some(Record::Put(put))) if reader.position() == len => Some(Entry {
            slot: put.slot,
            ballot: put.ballot,
            kind: put.kind,
            id: put.id,
            payload: span.slice_ref(put.payload),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            slot: Slot(u64::MAX),
            ballot: Ballot { config: 1, round: 1 << 40, replica: ReplicaId(3) },
            kind: Kind::Config,
            id: ProposalId { node: NodeId(u64::MAX - 1), sequence: 7 << 40 },
            payload: Bytes::from_static(b"payload"),
        }
    }

    #[test]
    fn every_record_reads_as_it_was_written() {
        let meta = SnapshotMeta {
            slot: Slot(9),
            ballot: Ballot::term(3),
            config: Config::of_voters([(ReplicaId(1), NodeId(5))]),
            generation: 4,
        };
        let mut out = Vec::new();
        encode_meta(&mut out, b"vote");
        encode_put(&mut out, &entry());
        encode_truncate_from(&mut out, Slot(5));
        encode_cut_below(&mut out, Slot(300));
        encode_reset(&mut out, &meta, true);
        encode_state(&mut out, b"m", Slot(2), Some(&meta));
        encode_state(&mut out, b"", Slot(1), None);
        encode_floor(&mut out, 7);
        let mut reader = Reader::new(&out);
        let mut records = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            records.push(record);
        }
        let entry = entry();
        let put = Put {
            slot: entry.slot,
            ballot: entry.ballot,
            kind: entry.kind,
            id: entry.id,
            payload: b"payload",
        };
        assert_eq!(
            records,
            [
                Record::Meta(b"vote"),
                Record::Put(put),
                Record::TruncateFrom(Slot(5)),
                Record::CutBelow(Slot(300)),
                Record::Reset { meta: meta.clone(), kept: true },
                Record::State { meta: b"m", first: Slot(2), reset: Some(meta) },
                Record::State { meta: b"", first: Slot(1), reset: None },
                Record::Floor(7),
            ]
        );
    }

    #[test]
    fn bounds_hold() {
        let config = Config::of_voters((1..=64).map(|id| (ReplicaId(id), NodeId(id))));
        let ballot = Ballot { config: u64::MAX, round: u64::MAX, replica: ReplicaId(u64::MAX) };
        let meta = SnapshotMeta { slot: Slot(u64::MAX), ballot, config, generation: u64::MAX };
        let mut entry = entry();
        entry.ballot = ballot;
        entry.id.sequence = u64::MAX;
        let mut out = Vec::new();
        encode_put(&mut out, &entry);
        assert!(out.len() <= size_bytes_max(&LogOp::Put(entry.into())));
        out.clear();
        encode_state(&mut out, b"meta", Slot(u64::MAX), Some(&meta));
        assert!(out.len() <= state_bytes_max(b"meta", Some(&meta)));
        out.clear();
        encode_reset(&mut out, &meta, true);
        assert!(out.len() <= size_bytes_max(&LogOp::Reset(Box::new(meta))));
    }

    #[test]
    fn no_prefix_of_a_record_is_one() {
        let mut out = Vec::new();
        encode_put(&mut out, &entry());
        for len in 1..out.len() {
            assert!(Reader::new(&out[..len]).next().is_err(), "{len} bytes");
        }
        assert!(Reader::new(&[99]).next().is_err());
        assert!(Reader::new(&[0; 8]).next().is_err(), "a frame is padded by less than eight bytes");
        // A length that no memory could hold.
        assert!(
            Reader::new(&[META, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).next().is_err()
        );
    }
}
