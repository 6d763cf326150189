//! A frame: 32 bytes of header, then one element of a batch, padded to eight bytes.
//!
//! ```text
//!  0        4          8     12        16    24             32
//!  | header | payload  | len | zero    | lsn | durable_upto | group, records, padding …
//!  | CRC    | CRC      |     |         |     |              |
//! ```
//!
//! The header's CRC covers the log's id, the segment's number and the rest of the header, the payload's CRC in it: so a frame of
//! another log, of another segment or of an earlier life of a recycled one never passes, and a length is believed only once it
//! is proven. `lsn` counts frames from 1, without gaps. `durable_upto` is the highest number known to be synced when the
//! frame was written: what tells damage from a torn tail.

use conclave_consensus::GroupId;

use super::record;

/// Bytes of a frame before its payload.
pub(super) const HEADER_BYTES: usize = 32;
/// Frames begin at multiples of this, so that a search for them need not look at every byte.
pub(super) const ALIGN_BYTES: usize = 8;
/// What a frame adds to its records at most: header, group, padding.
pub(super) const OVERHEAD_BYTES_MAX: usize = HEADER_BYTES + 10 + ALIGN_BYTES;

/// What every frame of a segment is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) log_id: u64,
    pub(super) segment: u32,
}

/// A header whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    payload_crc: u32,
    len: u32,
    pub(super) lsn: u64,
    pub(super) durable_upto: u64,
}

impl Header {
    /// The frame's length, header included.
    pub(super) fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.len as usize
    }

    fn encode(&self, stamp: Stamp) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[4..8].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[16..24].copy_from_slice(&self.lsn.to_le_bytes());
        out[24..32].copy_from_slice(&self.durable_upto.to_le_bytes());
        let crc = header_crc(&out, stamp);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header at the start of `bytes`, if one of `stamp` stands there whole.
    pub(super) fn decode(bytes: &[u8], stamp: Stamp) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        let crc = u32_at(bytes, 0);
        (crc == header_crc(bytes, stamp)).then(|| Self {
            payload_crc: u32_at(bytes, 4),
            len: u32_at(bytes, 8),
            lsn: u64_at(bytes, 16),
            durable_upto: u64_at(bytes, 24),
        })
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn header_crc(header: &[u8; HEADER_BYTES], stamp: Stamp) -> u32 {
    let mut bytes = [0; 12 + HEADER_BYTES - 4];
    bytes[..8].copy_from_slice(&stamp.log_id.to_le_bytes());
    bytes[8..12].copy_from_slice(&stamp.segment.to_le_bytes());
    #[cfg(feature = "mutants")]
    if conclave_consensus::Mutant::StaleFramesPass.is_on() {
        bytes[8..12].fill(0);
    }
    bytes[12..].copy_from_slice(&header[4..]);
    crc32fast::hash(&bytes)
}

/// Begins a frame of `group` at the end of `out` and returns where; records follow, then [`finish`].
pub(super) fn begin(out: &mut Vec<u8>, group: GroupId) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    record::encode_group(out, group);
    start
}

/// Pads and seals the frame that began at `start`.
pub(super) fn finish(out: &mut Vec<u8>, start: usize, stamp: Stamp, lsn: u64, durable_upto: u64) {
    let len = (out.len() - start).next_multiple_of(ALIGN_BYTES);
    out.resize(start + len, 0);
    let payload = &out[start + HEADER_BYTES..];
    let header = Header {
        payload_crc: crc32fast::hash(payload),
        len: u32::try_from(payload.len()).expect("a frame fits a segment, whose offsets are 32 bits"),
        lsn,
        durable_upto,
    };
    out[start..start + HEADER_BYTES].copy_from_slice(&header.encode(stamp));
}

/// The valid frame at `at` of a segment's bytes, and its payload.
pub(super) fn at(segment: &[u8], at: usize, stamp: Stamp) -> Option<(Header, &[u8])> {
    let bytes = segment.get(at..)?;
    let header = Header::decode(bytes, stamp)?;
    let payload = bytes.get(HEADER_BYTES..header.frame_bytes())?;
    ((header.len as usize).is_multiple_of(ALIGN_BYTES) && crc32fast::hash(payload) == header.payload_crc)
        .then_some((header, payload))
}

/// Looks for headers of frames numbered `lsn_min` or higher anywhere from `from` on.
///
/// A header suffices: what it says of durability was true when it was written, whatever became of the payload behind it.
pub(super) fn search(
    segment: &[u8],
    from: usize,
    stamp: Stamp,
    lsn_min: u64,
) -> impl Iterator<Item = (usize, Header)> + '_ {
    (from.next_multiple_of(ALIGN_BYTES)..)
        .step_by(ALIGN_BYTES)
        .map_while(move |at| segment.get(at..at + HEADER_BYTES).map(|bytes| (at, bytes)))
        .filter_map(move |(at, bytes)| {
            let bytes: &[u8; HEADER_BYTES] = bytes.try_into().ok()?;
            // Two comparisons spare nearly every position its checksum: stale frames have lower numbers, zeros are none.
            let lsn = u64_at(bytes, 16);
            let plausible = lsn >= lsn_min && u64_at(bytes, 24) < lsn;
            if plausible { Header::decode(bytes, stamp).map(|header| (at, header)) } else { None }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { log_id: 77, segment: 3 };

    fn frame() -> Vec<u8> {
        let mut out = Vec::new();
        let start = begin(&mut out, GroupId(1));
        record::encode_meta(&mut out, b"abc");
        finish(&mut out, start, STAMP, 5, 4);
        out
    }

    #[test]
    fn a_frame_passes_only_where_it_was_written() {
        let bytes = frame();
        let (header, payload) = at(&bytes, 0, STAMP).unwrap();
        assert_eq!((header.lsn, header.durable_upto, header.frame_bytes()), (5, 4, bytes.len()));
        assert_eq!(payload.len() % ALIGN_BYTES, 0);
        assert!(at(&bytes, 0, Stamp { segment: 2, ..STAMP }).is_none(), "an earlier life of the segment");
        assert!(at(&bytes, 0, Stamp { log_id: 78, ..STAMP }).is_none(), "another log");
    }

    #[test]
    fn no_flipped_bit_passes() {
        let bytes = frame();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(at(&flipped, 0, STAMP).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_search_finds_frames_by_number() {
        let mut bytes = vec![0xa5; 64];
        bytes.extend(frame());
        assert_eq!(
            search(&bytes, 3, STAMP, 5).map(|(at, header)| (at, header.lsn)).collect::<Vec<_>>(),
            [(64, 5)]
        );
        assert_eq!(search(&bytes, 3, STAMP, 6).count(), 0);
        assert_eq!(search(&bytes, 72, STAMP, 1).count(), 0);
    }
}
