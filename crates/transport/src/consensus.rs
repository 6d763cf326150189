//! A core's message as the head of a frame: what is said for every command, and so written and read by hand. The layout is that of
//! `wire::ConsensusHead`, which the tests hold it to.
//!
//! From version 2 of the protocol on the entries are *runs*: entries at successive slots under one ballot, of one kind and from one
//! proposer share what they have in common, and what is left of an entry is the length of its payload and, where ids do not
//! follow one on the other, the gap between them: a byte or two instead of two dozen. Version 1 says each in full.

use std::ops::Range;

use bytes::Bytes;
use conclave_consensus::{Ballot, Class, Entry, GroupId, Kind, Message, NodeId, ProposalId, ReplicaId, Slot};
use prost::Message as _;

use crate::{
    Packet,
    codec::FrameError,
    varint::{self, Reader, put, put_field},
    wire::{EntryHead, RunHead},
};

/// The version from which on entries are said as runs.
const RUNS_SINCE: u32 = 2;

/// After a head with many entries memory is kept for so many.
const KEPT: usize = 1024;

/// Writes the head as that version of the protocol has it.
pub(crate) fn write(version: u32, group: GroupId, message: &Message, out: &mut Vec<u8>) {
    put_field(out, 1, group.0);
    put_field(out, 2, message.from.0);
    put_field(out, 3, message.to.0);
    put_field(out, 4, class_code(message.class));
    if !message.head.is_empty() {
        put_bytes_key(out, 5, message.head.len());
        out.extend_from_slice(&message.head);
    }
    if message.entries.is_empty() {
    } else if version >= RUNS_SINCE {
        write_runs(&message.entries, out);
    } else {
        write_each(&message.entries, out);
    }
}

fn put_bytes_key(out: &mut Vec<u8>, field: u8, len: usize) {
    out.push(field << 3 | varint::BYTES);
    put(out, len as u64);
}

fn write_each(entries: &[Entry], out: &mut Vec<u8>) {
    for entry in entries {
        let head = EntryHead {
            slot: entry.slot.0,
            ballot_round: entry.ballot.round,
            kind: u32::from(entry.kind.code()),
            id_node: entry.id.node.0,
            id_sequence: entry.id.sequence,
            payload_len: payload_len(&entry.payload),
            ballot_config: entry.ballot.config,
            ballot_replica: entry.ballot.replica.0,
        };
        put_bytes_key(out, 6, head.encoded_len());
        head.encode_raw(out);
    }
}

fn write_runs(entries: &[Entry], out: &mut Vec<u8>) {
    let (mut lens_bytes, mut gaps_bytes, mut no_gaps) = (0, 0, true);
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let mut count = 0;
        let mut before = first;
        for entry in rest {
            if count > 0 && !follows(before, entry) {
                break;
            }
            let gap = gap(before, entry);
            no_gaps &= gap == 0;
            gaps_bytes += varint::len(gap);
            lens_bytes += varint::len(u64::from(payload_len(&entry.payload)));
            count += 1;
            before = entry;
        }
        write_run(first, count, out);
        rest = &rest[count..];
    }
    put_bytes_key(out, 8, lens_bytes);
    for entry in entries {
        put(out, u64::from(payload_len(&entry.payload)));
    }
    if no_gaps {
        return;
    }
    put_bytes_key(out, 9, gaps_bytes);
    let mut before = &entries[0];
    for entry in entries {
        let begins = !follows(before, entry);
        put(out, if begins { 0 } else { gap(before, entry) });
        before = entry;
    }
}

fn write_run(first: &Entry, count: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&[7 << 3 | varint::BYTES, 0]);
    let start = out.len();
    put_field(out, 1, first.slot.0);
    put_field(out, 2, count as u64);
    put_field(out, 3, first.ballot.round);
    put_field(out, 4, u64::from(first.kind.code()));
    if first.id.node != NodeId(0) {
        out.push(5 << 3 | varint::FIXED64);
        out.extend_from_slice(&first.id.node.0.to_le_bytes());
    }
    put_field(out, 6, first.id.sequence);
    put_field(out, 7, first.ballot.config);
    put_field(out, 8, first.ballot.replica.0);
    // At most 72 bytes, so that a length of one byte is enough.
    out[start - 1] = (out.len() - start) as u8;
}

/// Whether `entry` belongs to the run that ends with `before`.
fn follows(before: &Entry, entry: &Entry) -> bool {
    before.slot.0.wrapping_add(1) == entry.slot.0
        && before.slot < entry.slot
        && before.ballot == entry.ballot
        && before.kind == entry.kind
        && before.id.node == entry.id.node
        && before.id.sequence < entry.id.sequence
}

/// How many sequences lie between two entries of a run; zero where a run begins.
fn gap(before: &Entry, entry: &Entry) -> u64 {
    (entry.id.sequence - before.id.sequence).saturating_sub(1)
}

/// Reads heads, and keeps its memory.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    runs: Vec<RunHead>,
    lens: Vec<u64>,
    gaps: Vec<u64>,
}

impl HeadReader {
    /// The packet whose head and payloads are these parts of `bytes`.
    pub(crate) fn read(
        &mut self,
        bytes: &Bytes,
        head: Range<usize>,
        payloads: Range<usize>,
    ) -> Result<Packet, FrameError> {
        let mut payloads = Payloads { bytes, rest: payloads };
        let (mut group, mut from, mut to, mut class) = (0, 0, 0, 0);
        let (mut own, mut entries) = (Bytes::new(), Vec::new());
        self.runs.clear();
        self.lens.clear();
        self.gaps.clear();
        let mut reader = Reader { rest: &bytes[head] };
        while let Some(key) = reader.key()? {
            match key {
                (1, varint::VARINT) => group = reader.number()?,
                (2, varint::VARINT) => from = reader.number()?,
                (3, varint::VARINT) => to = reader.number()?,
                (4, varint::VARINT) => class = reader.number()?,
                (5, varint::BYTES) => own = bytes.slice_ref(reader.bytes()?),
                (6, varint::BYTES) => entries.push(entry(reader.bytes()?, &mut payloads)?),
                (7, varint::BYTES) => self.runs.push(run(Reader { rest: reader.bytes()? })?),
                (8, varint::VARINT) => self.lens.push(reader.number()?),
                (8, varint::BYTES) => numbers(reader.bytes()?, &mut self.lens)?,
                (9, varint::VARINT) => self.gaps.push(reader.number()?),
                (9, varint::BYTES) => numbers(reader.bytes()?, &mut self.gaps)?,
                (1..=9, _) => return Err(FrameError::Malformed("a field of the head has another layout")),
                (_, layout) => reader.skip(layout)?,
            }
        }
        self.take_runs(&mut entries, &mut payloads)?;
        payloads.end()?;
        let class = class_of(class).ok_or(FrameError::Malformed("unknown class of message"))?;
        let (from, to) = (ReplicaId(from), ReplicaId(to));
        let message = Message { from, to, class, head: own, entries };
        Ok(Packet::Consensus { group: GroupId(group), message })
    }

    fn take_runs(&mut self, entries: &mut Vec<Entry>, payloads: &mut Payloads<'_>) -> Result<(), FrameError> {
        let count = self.lens.len();
        if self.runs.iter().map(|run| u64::from(run.count)).sum::<u64>() != count as u64 {
            return Err(FrameError::Malformed("runs and payloads differ in number"));
        }
        if !self.gaps.is_empty() && self.gaps.len() != count {
            return Err(FrameError::Malformed("gaps and payloads differ in number"));
        }
        entries.reserve_exact(count);
        let (mut lens, mut gaps) = (&self.lens[..], &self.gaps[..]);
        for run in &self.runs {
            let count = run.count as usize;
            let (run_lens, run_gaps);
            (run_lens, lens) = lens.split_at(count);
            (run_gaps, gaps) = gaps.split_at(count.min(gaps.len()));
            take_run(run, run_lens, run_gaps, payloads, entries)?;
        }
        self.runs.shrink_to(KEPT);
        self.lens.shrink_to(KEPT);
        self.gaps.shrink_to(KEPT);
        Ok(())
    }
}

/// Payloads end to end, not yet taken.
struct Payloads<'a> {
    bytes: &'a Bytes,
    rest: Range<usize>,
}

impl Payloads<'_> {
    fn take(&mut self, len: u64) -> Result<Bytes, FrameError> {
        let start = self.rest.start;
        if len > self.rest.len() as u64 {
            return Err(FrameError::Malformed("payloads end early"));
        }
        self.rest.start += len as usize;
        Ok(self.bytes.slice(start..self.rest.start))
    }

    fn end(&self) -> Result<(), FrameError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(FrameError::Malformed("bytes behind the last payload"))
        }
    }
}

fn numbers(bytes: &[u8], out: &mut Vec<u64>) -> Result<(), FrameError> {
    let mut reader = Reader { rest: bytes };
    while !reader.rest.is_empty() {
        out.push(reader.number()?);
    }
    Ok(())
}

fn entry(head: &[u8], payloads: &mut Payloads<'_>) -> Result<Entry, FrameError> {
    let head = EntryHead::decode(head)?;
    Ok(Entry {
        slot: Slot(head.slot),
        ballot: Ballot {
            config: head.ballot_config,
            round: head.ballot_round,
            replica: ReplicaId(head.ballot_replica),
        },
        kind: kind_of(head.kind)?,
        id: ProposalId { node: NodeId(head.id_node), sequence: head.id_sequence },
        payload: payloads.take(u64::from(head.payload_len))?,
    })
}

fn run(mut reader: Reader<'_>) -> Result<RunHead, FrameError> {
    let mut run = RunHead::default();
    while let Some(key) = reader.key()? {
        match key {
            (1, varint::VARINT) => run.slot = reader.number()?,
            (2, varint::VARINT) => run.count = reader.number()? as u32,
            (3, varint::VARINT) => run.ballot_round = reader.number()?,
            (4, varint::VARINT) => run.kind = reader.number()? as u32,
            (5, varint::FIXED64) => run.id_node = reader.fixed64()?,
            (6, varint::VARINT) => run.id_sequence = reader.number()?,
            (7, varint::VARINT) => run.ballot_config = reader.number()?,
            (8, varint::VARINT) => run.ballot_replica = reader.number()?,
            (1..=8, _) => return Err(FrameError::Malformed("a field of a run has another layout")),
            (_, layout) => reader.skip(layout)?,
        }
    }
    Ok(run)
}

fn take_run(
    run: &RunHead,
    lens: &[u64],
    gaps: &[u64],
    payloads: &mut Payloads<'_>,
    entries: &mut Vec<Entry>,
) -> Result<(), FrameError> {
    const PAST: FrameError = FrameError::Malformed("a run leaves the number space");
    let kind = kind_of(run.kind)?;
    let replica = ReplicaId(run.ballot_replica);
    let ballot = Ballot { config: run.ballot_config, round: run.ballot_round, replica };
    let (mut slot, mut sequence) = (run.slot, run.id_sequence);
    for (place, len) in lens.iter().enumerate() {
        if place > 0 {
            slot = slot.checked_add(1).ok_or(PAST)?;
            sequence = sequence.checked_add(1).ok_or(PAST)?;
        }
        if let Some(gap) = gaps.get(place) {
            sequence = sequence.checked_add(*gap).ok_or(PAST)?;
        }
        entries.push(Entry {
            slot: Slot(slot),
            ballot,
            kind,
            id: ProposalId { node: NodeId(run.id_node), sequence },
            payload: payloads.take(*len)?,
        });
    }
    Ok(())
}

fn kind_of(code: u32) -> Result<Kind, FrameError> {
    u8::try_from(code).ok().and_then(Kind::from_code).ok_or(FrameError::Malformed("unknown kind of entry"))
}

/// Saturates: a payload of 4 GiB fails the bound on frames in the same call.
pub(crate) fn payload_len(payload: &Bytes) -> u32 {
    u32::try_from(payload.len()).unwrap_or(u32::MAX)
}

fn class_code(class: Class) -> u64 {
    match class {
        Class::Beat => 0,
        Class::Control => 1,
        Class::Append => 2,
        Class::Bulk => 3,
    }
}

fn class_of(code: u64) -> Option<Class> {
    [Class::Beat, Class::Control, Class::Append, Class::Bulk]
        .into_iter()
        .find(|class| class_code(*class) == code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ConsensusHead;

    /// What [`ConsensusHead`] says of the entries in a version.
    fn as_derived(version: u32, group: GroupId, message: &Message) -> Vec<u8> {
        let mut head = ConsensusHead {
            group: group.0,
            from: message.from.0,
            to: message.to.0,
            class: class_code(message.class) as u32,
            head: message.head.clone(),
            ..ConsensusHead::default()
        };
        for entry in &message.entries {
            let (kind, payload_len) = (u32::from(entry.kind.code()), payload_len(&entry.payload));
            let Ballot { config: ballot_config, round: ballot_round, replica } = entry.ballot;
            let (slot, id_node, id_sequence) = (entry.slot.0, entry.id.node.0, entry.id.sequence);
            let ballot_replica = replica.0;
            if version < RUNS_SINCE {
                head.entries.push(EntryHead {
                    slot,
                    ballot_round,
                    kind,
                    id_node,
                    id_sequence,
                    payload_len,
                    ballot_config,
                    ballot_replica,
                });
                continue;
            }
            let same = RunHead {
                slot,
                count: 1,
                ballot_round,
                kind,
                id_node,
                id_sequence,
                ballot_config,
                ballot_replica,
            };
            head.payload_lens.push(payload_len);
            match head.runs.last_mut() {
                Some(last)
                    if (RunHead { slot, count: 1, id_sequence, ..*last }) == same
                        && last.slot.checked_add(u64::from(last.count)) == Some(slot) =>
                {
                    last.count += 1;
                }
                _ => head.runs.push(same),
            }
        }
        head.encode_to_vec()
    }

    #[test]
    fn what_is_written_by_hand_is_what_the_messages_of_wire_say() {
        let entry = |slot, round, kind, payload: &'static [u8]| Entry {
            slot: Slot(slot),
            ballot: Ballot { config: round % 2, round, replica: ReplicaId(round % 3) },
            kind,
            id: ProposalId { node: NodeId(round % 4), sequence: slot.wrapping_add(1000) },
            payload: Bytes::from_static(payload),
        };
        let all = [
            entry(1, 1, Kind::Command, b"one"),
            entry(2, 1, Kind::Command, b""),
            entry(3, 4, Kind::Noop, b""),
            entry(5, 4, Kind::Noop, &[7; 300]),
            entry(u64::MAX - 1, u64::MAX - 1, Kind::Config, b"last"),
            entry(u64::MAX - 2, 12, Kind::Command, b"last"),
        ];
        for count in 0..=all.len() {
            for (class, head) in [(Class::Beat, &b""[..]), (Class::Bulk, &[1; 200])] {
                let head = Bytes::from_static(head);
                let (from, to) = (ReplicaId(count as u64), ReplicaId(300));
                let message = Message { from, to, class, head, entries: all[..count].to_vec() };
                for version in [1, 2] {
                    let mut written = Vec::new();
                    write(version, GroupId(7), &message, &mut written);
                    assert_eq!(written, as_derived(version, GroupId(7), &message));
                }
            }
        }
    }

    #[test]
    fn numbers_need_not_be_packed_and_unknown_fields_are_passed_over() {
        let run = [0x3a, 6, 0x08, 5, 0x10, 2, 0x78, 1];
        let lens = [0x40, 1, 0x40, 1, 0x48, 0, 0x48, 3, 0x7d, 1, 2, 3, 4];
        let bytes = Bytes::from([&run[..], &lens, b"xy"].concat());
        let (head, payloads) = (0..bytes.len() - 2, bytes.len() - 2..bytes.len());
        let packet = HeadReader::default().read(&bytes, head, payloads).unwrap();
        let Packet::Consensus { message, .. } = packet else { panic!() };
        let entries: Vec<_> = message
            .entries
            .iter()
            .map(|entry| (entry.slot.0, entry.id.sequence, &entry.payload[..]))
            .collect();
        assert_eq!(entries, [(5, 0, &b"x"[..]), (6, 4, b"y")]);
        let other = Bytes::from_static(&[0x42, 1, 0, 0x3d, 1, 2, 3, 4]);
        assert!(HeadReader::default().read(&other, 0..8, 8..8).is_err(), "a run is no number");
    }
}
