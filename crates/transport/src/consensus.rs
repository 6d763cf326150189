//! A core's message as the head of a frame: what is said for every command, and so written and read by hand. The layout is that of
//! `wire::ConsensusHead`, which the tests hold it to.
//!
//! From version 2 of the protocol on the entries are *runs*: entries at successive slots under one ballot, of one kind and from one
//! proposer share what they have in common, and what is left of an entry is the length of its payload and, where ids do not
//! follow one on the other, the gap between them: a byte or two instead of two dozen. Version 1 says each in full.

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Class, Entries, Entry, GroupId, Head, Kind, Message, NodeId, ProposalId, ReplicaId, Slot,
};
use prost::Message as _;

use crate::{
    Packet,
    codec::{FrameError, take_payload},
    varint::{self, BYTES, FIXED64, Reader, VARINT, key, put, put_field},
    wire::{EntryHead, RunHead},
};

/// The version from which on entries are said as runs.
const RUNS_SINCE: u32 = 2;

/// After a head with many entries memory is kept for so many.
const KEPT: usize = 1024;

/// The keys of the head's fields, each its number and its layout; numbers that come one by one may also come together.
const GROUP: u64 = key(1, VARINT);
const FROM: u64 = key(2, VARINT);
const TO: u64 = key(3, VARINT);
const CLASS: u64 = key(4, VARINT);
const OWN: u64 = key(5, BYTES);
const ENTRY: u64 = key(6, BYTES);
const RUN: u64 = key(7, BYTES);
const LEN: u64 = key(8, VARINT);
const LENS: u64 = key(8, BYTES);
const GAP: u64 = key(9, VARINT);
const GAPS: u64 = key(9, BYTES);

/// The keys of a run's.
const RUN_SLOT: u64 = key(1, VARINT);
const RUN_COUNT: u64 = key(2, VARINT);
const RUN_ROUND: u64 = key(3, VARINT);
const RUN_KIND: u64 = key(4, VARINT);
const RUN_NODE: u64 = key(5, FIXED64);
const RUN_SEQUENCE: u64 = key(6, VARINT);
const RUN_CONFIG: u64 = key(7, VARINT);
const RUN_REPLICA: u64 = key(8, VARINT);

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
    out.push(field << 3 | BYTES);
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
    out.extend_from_slice(&[7 << 3 | BYTES, 0]);
    let start = out.len();
    put_field(out, 1, first.slot.0);
    put_field(out, 2, count as u64);
    put_field(out, 3, first.ballot.round);
    put_field(out, 4, u64::from(first.kind.code()));
    if first.id.node != NodeId(0) {
        out.push(5 << 3 | FIXED64);
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
    entries: Vec<Entry>,
}

impl HeadReader {
    /// The packet with this head, which takes its payloads off.
    pub(crate) fn read(&mut self, head: &[u8], payloads: &mut Bytes) -> Result<Packet, FrameError> {
        let mut reader = Reader { rest: head };
        // In the order in which they are written, and most messages have no more.
        let (mut group, mut from) = (reader.number_of(GROUP)?, reader.number_of(FROM)?);
        let (mut to, mut class) = (reader.number_of(TO)?, reader.number_of(CLASS)?);
        let mut own = Head::from(reader.bytes_of(OWN)?);
        let mut entries = Entries::default();
        if !reader.rest.is_empty() {
            self.clear();
            // What comes in another order is read here too: of a field that comes again the last counts.
            while let Some(key) = reader.key()? {
                match key {
                    GROUP => group = reader.number()?,
                    FROM => from = reader.number()?,
                    TO => to = reader.number()?,
                    CLASS => class = reader.number()?,
                    OWN => own = Head::from(reader.bytes()?),
                    ENTRY => self.entries.push(entry(reader.bytes()?, payloads)?),
                    RUN => self.runs.push(run(Reader { rest: reader.bytes()? })?),
                    LEN => self.lens.push(reader.number()?),
                    LENS => numbers(reader.bytes()?, &mut self.lens)?,
                    GAP => self.gaps.push(reader.number()?),
                    GAPS => numbers(reader.bytes()?, &mut self.gaps)?,
                    key if (1..=9).contains(&(key >> 3)) => {
                        return Err(FrameError::Malformed("a field of the head has another layout"));
                    }
                    key => reader.skip(key)?,
                }
            }
            self.take_runs(payloads)?;
            if !self.entries.is_empty() {
                entries = self.entries.drain(..).collect();
            }
        }
        let class = class_of(class).ok_or(FrameError::Malformed("unknown class of message"))?;
        let (from, to) = (ReplicaId(from), ReplicaId(to));
        let message = Message { from, to, class, head: own, entries };
        Ok(Packet::Consensus { group: GroupId(group), message })
    }

    /// Forgets what a head said, whether it was read to its end or not.
    fn clear(&mut self) {
        let Self { runs, lens, gaps, entries } = self;
        runs.clear();
        lens.clear();
        gaps.clear();
        entries.clear();
        runs.shrink_to(KEPT);
        lens.shrink_to(KEPT);
        gaps.shrink_to(KEPT);
        entries.shrink_to(KEPT);
    }

    fn take_runs(&mut self, payloads: &mut Bytes) -> Result<(), FrameError> {
        let count = self.lens.len();
        if self.runs.iter().map(|run| u64::from(run.count)).sum::<u64>() != count as u64 {
            return Err(FrameError::Malformed("runs and payloads differ in number"));
        }
        if !self.gaps.is_empty() && self.gaps.len() != count {
            return Err(FrameError::Malformed("gaps and payloads differ in number"));
        }
        self.entries.reserve(count);
        let (mut lens, mut gaps) = (&self.lens[..], &self.gaps[..]);
        for run in &self.runs {
            let count = run.count as usize;
            let (run_lens, run_gaps);
            (run_lens, lens) = lens.split_at(count);
            (run_gaps, gaps) = gaps.split_at(count.min(gaps.len()));
            take_run(run, run_lens, run_gaps, payloads, &mut self.entries)?;
        }
        Ok(())
    }
}

fn numbers(bytes: &[u8], out: &mut Vec<u64>) -> Result<(), FrameError> {
    let mut reader = Reader { rest: bytes };
    while !reader.rest.is_empty() {
        out.push(reader.number()?);
    }
    Ok(())
}

fn entry(head: &[u8], payloads: &mut Bytes) -> Result<Entry, FrameError> {
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
        payload: take_payload(payloads, u64::from(head.payload_len))?,
    })
}

#[inline]
fn run(mut reader: Reader<'_>) -> Result<RunHead, FrameError> {
    let mut run = RunHead {
        slot: reader.number_of(RUN_SLOT)?,
        count: reader.number_of(RUN_COUNT)? as u32,
        ballot_round: reader.number_of(RUN_ROUND)?,
        kind: reader.number_of(RUN_KIND)? as u32,
        id_node: reader.fixed64_of(RUN_NODE)?,
        id_sequence: reader.number_of(RUN_SEQUENCE)?,
        ballot_config: reader.number_of(RUN_CONFIG)?,
        ballot_replica: reader.number_of(RUN_REPLICA)?,
    };
    while let Some(key) = reader.key()? {
        match key {
            RUN_SLOT => run.slot = reader.number()?,
            RUN_COUNT => run.count = reader.number()? as u32,
            RUN_ROUND => run.ballot_round = reader.number()?,
            RUN_KIND => run.kind = reader.number()? as u32,
            RUN_NODE => run.id_node = reader.fixed64()?,
            RUN_SEQUENCE => run.id_sequence = reader.number()?,
            RUN_CONFIG => run.ballot_config = reader.number()?,
            RUN_REPLICA => run.ballot_replica = reader.number()?,
            key if (1..=8).contains(&(key >> 3)) => {
                return Err(FrameError::Malformed("a field of a run has another layout"));
            }
            key => reader.skip(key)?,
        }
    }
    Ok(run)
}

fn take_run(
    run: &RunHead,
    lens: &[u64],
    gaps: &[u64],
    payloads: &mut Bytes,
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
            payload: take_payload(payloads, *len)?,
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
            head: Bytes::copy_from_slice(&message.head),
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
                let head = Head::from(head);
                let (from, to) = (ReplicaId(count as u64), ReplicaId(300));
                let message = Message { from, to, class, head, entries: all[..count].to_vec().into() };
                for version in [1, 2] {
                    let mut written = Vec::new();
                    write(version, GroupId(7), &message, &mut written);
                    assert_eq!(written, as_derived(version, GroupId(7), &message));
                }
            }
        }
    }

    #[test]
    fn fields_may_come_in_any_order_and_the_last_of_one_counts() {
        let packet = |head: &[u8]| HeadReader::default().read(head, &mut Bytes::from_static(b"x")).unwrap();
        let run = [0x3a, 10, 0x08, 5, 0x10, 1, 0x18, 2, 0x20, 1, 0x30, 9];
        let rest = [0x08, 1, 0x10, 2, 0x18, 3, 0x20, 2, 0x2a, 1, 7, 0x42, 1, 1];
        let written = packet(&[&rest[..11], &run, &rest[11..]].concat());
        let Packet::Consensus { group: GroupId(1), message } = &written else { panic!("{written:?}") };
        assert_eq!((message.from, message.to, message.class), (ReplicaId(2), ReplicaId(3), Class::Append));
        assert_eq!((&message.head[..], message.entries[0].slot), (&[7][..], Slot(5)));
        let twice = [0x08, 9, 0x10, 9, 0x18, 9, 0x20, 0, 0x2a, 1, 9];
        let turned = [0x3a, 10, 0x30, 9, 0x20, 1, 0x18, 2, 0x10, 1, 0x08, 5];
        let backwards = [0x42, 1, 1, 0x2a, 1, 7, 0x20, 2, 0x18, 3, 0x10, 2, 0x08, 1];
        assert_eq!(packet(&[&run[..], &rest].concat()), written);
        assert_eq!(packet(&[&twice[..], &backwards, &turned].concat()), written);
    }

    #[test]
    fn numbers_need_not_be_packed_and_unknown_fields_are_passed_over() {
        let run = [0x3a, 6, 0x08, 5, 0x10, 2, 0x78, 1];
        let lens = [0x40, 1, 0x40, 1, 0x48, 0, 0x48, 3, 0x7d, 1, 2, 3, 4];
        let bytes = Bytes::from([&run[..], &lens, b"xy"].concat());
        let (head, payloads) = bytes.split_at(bytes.len() - 2);
        let packet = HeadReader::default().read(head, &mut bytes.slice_ref(payloads)).unwrap();
        let Packet::Consensus { message, .. } = packet else { panic!() };
        let entries: Vec<_> = message
            .entries
            .iter()
            .map(|entry| (entry.slot.0, entry.id.sequence, &entry.payload[..]))
            .collect();
        assert_eq!(entries, [(5, 0, &b"x"[..]), (6, 4, b"y")]);
        let read = HeadReader::default().read(&[0x42, 1, 0, 0x3d, 1, 2, 3, 4], &mut Bytes::new());
        assert!(read.is_err(), "a run is no number");
    }
}
