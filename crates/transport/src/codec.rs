//! Packets as bytes.
//!
//! ```text
//! frame  = crc:u32 length:u32 head_len:u32 kind:u8 zero:[u8; 3] head:[u8; head_len] payloads:[u8; length - head_len]
//! ```
//! Numbers are little-endian. `crc` is CRC-32 (IEEE) over everything after it; `length` counts what follows the 16 bytes of
//! the header. `head` is a protobuf message of the kind; the payloads of its entries, proposals or body follow it end
//! to end. A frame of an unknown kind is passed over and counted, for a newer peer may know more kinds; anything else
//! that cannot be read ends the connection, since nothing after it can be trusted. A writer speaks the version of the protocol that was
//! agreed on when the connection was made; a reader understands every version.
//!
//! Encoding copies a payload shorter than [`INLINE_BYTES_MAX`] once, beside its head, and a longer one never: the
//! [`Encoder`] is a [`Buf`] of many chunks for a vectored write. Decoding copies the payloads of a frame at once where they are as short
//! together, so that a few bytes keep no buffer alive, and the buffer can be read into again; else they share it.

use std::{collections::VecDeque, io::IoSlice, ops::Range};

use bytes::{Buf, Bytes, BytesMut};
use conclave_consensus::{Epoch, GroupId, NodeId, Outcome, Proposal, ProposalId};
use prost::Message as _;

use crate::{
    Packet, SnapshotPrefix, VERSION_MAX,
    consensus::{self, HeadReader, payload_len},
    elements,
    wire::{AliveHead, CallHead, ForwardHead, PieceHead, ProposalHead, PullHead, RefusedHead},
};

/// Bytes before a frame's head.
pub const HEADER_BYTES: usize = 16;
/// The longest head: bounds what decoding one can allocate.
pub const HEAD_BYTES_MAX: usize = 4 << 20;
/// What an entry, proposal or id counts for at least in the length of a frame, however few bytes it takes: about as much as it takes in memory. It
/// is less than what engines reckon with, so that what they keep within a frame's length is within its number of elements.
pub const ELEMENT_BYTES_MIN: usize = 64;
/// Payloads up to this length are copied beside their head, longer ones are written from where they lie; and a frame's payloads up to this
/// length together are copied out of the buffer they came in, longer ones share it.
pub const INLINE_BYTES_MAX: usize = 4 << 10;

pub(crate) const CONSENSUS: u8 = 1;
const ALIVE: u8 = 2;
pub(crate) const FORWARD: u8 = 3;
pub(crate) const REFUSED: u8 = 4;
const REQUEST: u8 = 5;
const RESPONSE: u8 = 6;
const SNAPSHOT_PULL: u8 = 7;
const SNAPSHOT_PIECE: u8 = 8;

/// The packet is longer than a frame may be; nothing was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "packet of {length} bytes with a head of {head_len} is longer than a frame may be ({max}, {HEAD_BYTES_MAX})"
)]
pub struct TooLong {
    /// What would follow the header, each element counted as [`ELEMENT_BYTES_MIN`] at least.
    pub length: usize,
    /// How much of it is head.
    pub head_len: usize,
    /// The bound on `length`.
    pub max: usize,
}

/// Why bytes are not frames.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// A header announces more than is allowed.
    #[error("frame of {length} bytes is longer than {max}")]
    TooLong {
        /// What it announces.
        length: usize,
        /// The bound.
        max: usize,
    },
    /// A header that no encoder writes.
    #[error("frame header is malformed")]
    Header,
    /// A head with more elements than a frame has room for.
    #[error("frame has more than {max} elements")]
    TooMany {
        /// The bound.
        max: usize,
    },
    /// The checksum does not fit.
    #[error("frame checksum does not match")]
    Checksum,
    /// The head is not the protobuf message of its kind.
    #[error("frame head is malformed: {0}")]
    Head(#[from] prost::DecodeError),
    /// The head says what cannot be.
    #[error("frame is malformed: {0}")]
    Malformed(&'static str),
}

/// Collects encoded packets for one vectored write; a [`Buf`] of what is not yet written. Keeps its memory when
/// [`clear`](Self::clear)ed.
#[derive(Debug)]
pub struct Encoder {
    /// Of the protocol.
    version: u32,
    /// Headers, heads and short payloads.
    inline: Vec<u8>,
    /// What to write, in order. Inline bytes after the last part are not yet in any.
    parts: VecDeque<Part>,
    /// Where the inline bytes begin that belong to no part yet.
    open: usize,
    remaining: usize,
    forward: ForwardHead,
}

#[derive(Debug)]
enum Part {
    Inline(Range<usize>),
    Payload(Bytes),
}

impl Encoder {
    /// Nothing encoded yet; speaks the newest version of the protocol.
    #[must_use]
    pub fn new() -> Self {
        Self::speaking(VERSION_MAX)
    }

    /// Nothing encoded yet; speaks a version of the protocol that the reader knows. A [`Decoder`] reads them all.
    #[must_use]
    pub fn speaking(version: u32) -> Self {
        Self {
            version,
            inline: Vec::new(),
            parts: VecDeque::new(),
            open: 0,
            remaining: 0,
            forward: ForwardHead::default(),
        }
    }

    /// Forgets what is encoded, and keeps a moderate amount of memory for the next time.
    pub fn clear(&mut self) {
        if self.inline.capacity() > 1 << 20 {
            self.inline = Vec::new();
        }
        self.inline.clear();
        self.parts.clear();
        (self.open, self.remaining) = (0, 0);
    }

    /// Encodes a packet behind the others.
    ///
    /// # Errors
    /// If its frame would be longer than `frame_bytes_max` after the header, or its head than [`HEAD_BYTES_MAX`]; then
    /// nothing is encoded.
    pub fn push(&mut self, packet: &Packet, frame_bytes_max: usize) -> Result<(), TooLong> {
        match packet {
            Packet::Consensus { group, message } => {
                let (version, group) = (self.version, *group);
                let head = |out: &mut Vec<u8>| consensus::write(version, group, message, out);
                let payloads = message.entries.iter().map(|entry| &entry.payload);
                self.frame_of(CONSENSUS, head, message.entries.len(), payloads, frame_bytes_max)
            }
            Packet::Alive { epoch } => self.frame(ALIVE, &AliveHead { epoch: epoch.0 }, &[], frame_bytes_max),
            Packet::Forward { group, batch } => self.push_forward(*group, batch, frame_bytes_max),
            Packet::Refused { group, ids, outcome, busy } => {
                let ids = ids.iter().map(|id| ProposalHead {
                    node: id.node.0,
                    sequence: id.sequence,
                    payload_len: 0,
                });
                let outcome = outcome_code(*outcome);
                let head = RefusedHead { group: group.0, ids: ids.collect(), outcome, busy: *busy };
                let write = |out: &mut Vec<u8>| head.encode_raw(out);
                self.frame_of(REFUSED, write, head.ids.len(), [].into_iter(), frame_bytes_max)
            }
            Packet::Request { id, body } => {
                self.frame(REQUEST, &CallHead { id: *id }, &[body], frame_bytes_max)
            }
            Packet::Response { id, body } => {
                self.frame(RESPONSE, &CallHead { id: *id }, &[body], frame_bytes_max)
            }
            Packet::SnapshotPull { group, fetch, at_least, piece, have } => {
                let (have_digest_high, have_digest_low) = halves(have.digest);
                let head = PullHead {
                    group: group.0,
                    fetch: *fetch,
                    at_least: *at_least,
                    piece: *piece,
                    have_slot: have.slot,
                    have_pieces: have.pieces,
                    have_digest_high,
                    have_digest_low,
                };
                self.frame(SNAPSHOT_PULL, &head, &[], frame_bytes_max)
            }
            Packet::SnapshotPiece { group, fetch, after, body, last } => {
                let (digest_high, digest_low) = halves(after.digest);
                let head = PieceHead {
                    group: group.0,
                    fetch: *fetch,
                    piece: after.pieces,
                    last: *last,
                    slot: after.slot,
                    digest_high,
                    digest_low,
                };
                self.frame(SNAPSHOT_PIECE, &head, &[body], frame_bytes_max)
            }
        }
    }

    fn push_forward(&mut self, group: GroupId, batch: &[Proposal], max: usize) -> Result<(), TooLong> {
        let mut head = std::mem::take(&mut self.forward);
        head.group = group.0;
        head.batch.clear();
        head.batch.extend(batch.iter().map(|proposal| ProposalHead {
            node: proposal.id.node.0,
            sequence: proposal.id.sequence,
            payload_len: payload_len(&proposal.payload),
        }));
        let payloads = batch.iter().map(|proposal| &proposal.payload);
        let result = self.frame_of(FORWARD, |out| head.encode_raw(out), batch.len(), payloads, max);
        head.batch.shrink_to(1024);
        self.forward = head;
        result
    }

    fn frame(
        &mut self,
        kind: u8,
        head: &impl prost::Message,
        payloads: &[&Bytes],
        max: usize,
    ) -> Result<(), TooLong> {
        self.frame_of(kind, |out| head.encode_raw(out), 0, payloads.iter().copied(), max)
    }

    fn frame_of<'a>(
        &mut self,
        kind: u8,
        head: impl FnOnce(&mut Vec<u8>),
        elements: usize,
        payloads: impl Iterator<Item = &'a Bytes> + Clone,
        max: usize,
    ) -> Result<(), TooLong> {
        let start = self.inline.len();
        self.inline.extend_from_slice(&[0; HEADER_BYTES]);
        head(&mut self.inline);
        let head_len = self.inline.len() - start - HEADER_BYTES;
        let length = head_len + payloads.clone().map(Bytes::len).sum::<usize>();
        let max = max.min(u32::MAX as usize);
        let counted = length.max(elements.saturating_mul(ELEMENT_BYTES_MIN));
        if counted > max || head_len > HEAD_BYTES_MAX {
            self.inline.truncate(start);
            return Err(TooLong { length: counted, head_len, max });
        }
        let header = &mut self.inline[start..start + HEADER_BYTES];
        header[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        header[8..12].copy_from_slice(&(head_len as u32).to_le_bytes());
        header[12] = kind;
        // Short payloads lie right behind the head, so that the checksum of an ordinary frame is one run.
        let mut crc = crc32fast::Hasher::new();
        let mut hashed = start + 4;
        for payload in payloads {
            if payload.len() <= INLINE_BYTES_MAX {
                self.inline.extend_from_slice(payload);
                continue;
            }
            crc.update(&self.inline[hashed..]);
            crc.update(payload);
            hashed = self.inline.len();
            self.close_part();
            self.parts.push_back(Part::Payload(payload.clone()));
        }
        crc.update(&self.inline[hashed..]);
        self.inline[start..start + 4].copy_from_slice(&crc.finalize().to_le_bytes());
        self.remaining += HEADER_BYTES + length;
        Ok(())
    }

    fn close_part(&mut self) {
        if self.open < self.inline.len() {
            self.parts.push_back(Part::Inline(self.open..self.inline.len()));
            self.open = self.inline.len();
        }
    }

    fn bytes<'a>(&'a self, part: &'a Part) -> &'a [u8] {
        match part {
            Part::Inline(range) => &self.inline[range.clone()],
            Part::Payload(payload) => payload,
        }
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Buf for Encoder {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&self.inline[self.open..], |part| self.bytes(part))
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let closed = self.parts.iter().map(|part| self.bytes(part));
        let open = Some(&self.inline[self.open..]).filter(|open| !open.is_empty());
        let mut count = 0;
        for (place, chunk) in out.iter_mut().zip(closed.chain(open)) {
            *place = IoSlice::new(chunk);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "cannot write more than was encoded");
        self.remaining -= count;
        while count > 0 {
            let Some(part) = self.parts.front_mut() else {
                self.open += count;
                return;
            };
            let len = match part {
                Part::Inline(range) => range.len(),
                Part::Payload(payload) => payload.len(),
            };
            if len <= count {
                count -= len;
                self.parts.pop_front();
                continue;
            }
            match part {
                Part::Inline(range) => range.start += count,
                Part::Payload(payload) => payload.advance(count),
            }
            return;
        }
    }
}

/// Reads packets from a stream of bytes.
#[derive(Debug)]
pub struct Decoder {
    frame_bytes_max: usize,
    unknown: u64,
    consensus: HeadReader,
    forward: ForwardHead,
}

impl Decoder {
    /// Reads frames of at most `frame_bytes_max` bytes after the header.
    #[must_use]
    pub fn new(frame_bytes_max: usize) -> Self {
        Self {
            frame_bytes_max,
            unknown: 0,
            consensus: HeadReader::default(),
            forward: ForwardHead::default(),
        }
    }

    /// How many frames of unknown kinds were passed over since it was last asked.
    pub fn take_unknown(&mut self) -> u64 {
        std::mem::take(&mut self.unknown)
    }

    /// Takes every whole frame from the front of `buffer`, adds its packet to `packets`, and says how many bytes are missing at
    /// least to make the next frame whole.
    ///
    /// # Errors
    /// Bytes that are no frames. Packets before them have been added; the rest of the stream is worthless.
    pub fn decode(&mut self, buffer: &mut BytesMut, packets: &mut Vec<Packet>) -> Result<usize, FrameError> {
        let (mut whole, mut frames, mut shared, mut broken) = (0, 0, false, None);
        let missing = loop {
            let rest = &buffer[whole..];
            let Some(header) = rest.first_chunk::<HEADER_BYTES>() else { break HEADER_BYTES - rest.len() };
            match self.frame_len(header) {
                Ok(len) if rest.len() >= len => {
                    whole += len;
                    frames += 1;
                    shared |= payloads_len(header) > INLINE_BYTES_MAX;
                }
                Ok(len) => break len - rest.len(),
                Err(error) => {
                    broken = Some(error);
                    break 0;
                }
            }
        };
        packets.reserve(frames);
        if shared {
            let run = buffer.split_to(whole).freeze();
            self.frames(&run, &run, packets)?;
        } else {
            // Nothing of these bytes is kept, so the buffer stays whole.
            self.frames(&Bytes::new(), &buffer[..whole], packets)?;
            buffer.advance(whole);
        }
        broken.map_or(Ok(missing), Err)
    }

    /// Reads whole frames; `run` shares their bytes, where they have payloads to share.
    fn frames(&mut self, run: &Bytes, mut bytes: &[u8], packets: &mut Vec<Packet>) -> Result<(), FrameError> {
        while let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
            let (frame, rest) = bytes.split_at(self.frame_len(header)?);
            self.frame(run, frame, packets)?;
            bytes = rest;
        }
        Ok(())
    }

    fn frame_len(&self, header: &[u8; HEADER_BYTES]) -> Result<usize, FrameError> {
        let mut fields = &header[4..];
        let (length, head_len) = (fields.get_u32_le() as usize, fields.get_u32_le() as usize);
        let fits = length <= self.frame_bytes_max;
        #[cfg(feature = "mutants")]
        let fits = fits || conclave_consensus::Mutant::LengthBelieved.is_on();
        if !fits {
            return Err(FrameError::TooLong { length, max: self.frame_bytes_max });
        }
        if head_len > HEAD_BYTES_MAX {
            return Err(FrameError::TooLong { length: head_len, max: HEAD_BYTES_MAX });
        }
        if head_len > length || header[13..] != [0; 3] {
            return Err(FrameError::Header);
        }
        Ok(HEADER_BYTES + length)
    }

    /// Reads a frame. Long payloads share the bytes of `run`.
    fn frame(&mut self, run: &Bytes, frame: &[u8], packets: &mut Vec<Packet>) -> Result<(), FrameError> {
        let (mut header, content) = frame.split_at(HEADER_BYTES);
        if header.get_u32_le() != crc32fast::hash(&frame[4..]) {
            return Err(FrameError::Checksum);
        }
        let _length = header.get_u32_le();
        let head_len = header.get_u32_le() as usize;
        let kind = header.get_u8();
        let (head, payloads) = content.split_at(head_len);
        elements::check(kind, head, self.frame_bytes_max / ELEMENT_BYTES_MIN)?;
        let mut payloads = if payloads.len() > INLINE_BYTES_MAX {
            run.slice_ref(payloads)
        } else {
            Bytes::copy_from_slice(payloads)
        };
        let packet = match kind {
            CONSENSUS => self.consensus.read(head, &mut payloads)?,
            ALIVE => Packet::Alive { epoch: Epoch(AliveHead::decode(head)?.epoch) },
            FORWARD => self.forward(head, &mut payloads)?,
            REFUSED => refused(head)?,
            REQUEST => {
                Packet::Request { id: CallHead::decode(head)?.id, body: std::mem::take(&mut payloads) }
            }
            RESPONSE => {
                Packet::Response { id: CallHead::decode(head)?.id, body: std::mem::take(&mut payloads) }
            }
            SNAPSHOT_PULL => {
                let head = PullHead::decode(head)?;
                let PullHead { group, fetch, at_least, piece, .. } = head;
                let have = SnapshotPrefix {
                    slot: head.have_slot,
                    pieces: head.have_pieces,
                    digest: whole(head.have_digest_high, head.have_digest_low),
                };
                Packet::SnapshotPull { group: GroupId(group), fetch, at_least, piece, have }
            }
            SNAPSHOT_PIECE => {
                let PieceHead { group, fetch, piece, last, slot, digest_high, digest_low } =
                    PieceHead::decode(head)?;
                let body = std::mem::take(&mut payloads);
                let after = SnapshotPrefix { slot, pieces: piece, digest: whole(digest_high, digest_low) };
                Packet::SnapshotPiece { group: GroupId(group), fetch, after, body, last }
            }
            _ => {
                self.unknown += 1;
                return Ok(());
            }
        };
        if !payloads.is_empty() {
            return Err(FrameError::Malformed("bytes behind the last payload"));
        }
        packets.push(packet);
        Ok(())
    }

    fn forward(&mut self, bytes: &[u8], payloads: &mut Bytes) -> Result<Packet, FrameError> {
        let head = &mut self.forward;
        head.clear();
        head.merge(bytes)?;
        let mut batch = Vec::with_capacity(head.batch.len());
        for proposal in &head.batch {
            let id = ProposalId { node: NodeId(proposal.node), sequence: proposal.sequence };
            batch.push(Proposal { id, payload: take_payload(payloads, u64::from(proposal.payload_len))? });
        }
        head.batch.shrink_to(1024);
        Ok(Packet::Forward { group: GroupId(head.group), batch })
    }
}

/// What a header that was found sound says of payloads.
fn payloads_len(header: &[u8; HEADER_BYTES]) -> usize {
    let mut fields = &header[4..];
    (fields.get_u32_le() - fields.get_u32_le()) as usize
}

fn refused(head: &[u8]) -> Result<Packet, FrameError> {
    let head = RefusedHead::decode(head)?;
    let outcome = match head.outcome {
        0 => Outcome::Dropped,
        // Whatever a newer peer distinguishes, "unknown" claims nothing.
        _ => Outcome::Unknown,
    };
    let ids = head.ids.iter().map(|id| ProposalId { node: NodeId(id.node), sequence: id.sequence });
    Ok(Packet::Refused { group: GroupId(head.group), ids: ids.collect(), outcome, busy: head.busy })
}

pub(crate) fn take_payload(payloads: &mut Bytes, len: u64) -> Result<Bytes, FrameError> {
    if len > payloads.len() as u64 {
        return Err(FrameError::Malformed("payloads end early"));
    }
    Ok(payloads.split_to(len as usize))
}

fn outcome_code(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Dropped => 0,
        Outcome::Unknown => 1,
    }
}

fn halves(digest: u128) -> (u64, u64) {
    ((digest >> 64) as u64, digest as u64)
}

fn whole(high: u64, low: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}
