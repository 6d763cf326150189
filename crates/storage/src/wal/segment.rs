//! A segment: one preallocated file, its header, and the names a log's files may have.
//!
//! A segment is made under a temporary name: zeros and header written and synced, renamed, the name synced. Only then is anything
//! written into it, so a file with a segment's name always has its whole length and a valid header; if not, it is damage.

use std::{io, sync::Arc};

use super::frame::Stamp;
use crate::{Disk, DiskFile, LogError};

/// Bytes before the first frame.
pub(super) const HEADER_BYTES: usize = 64;
/// The smallest segment: header, every group's record and a few entries must find room.
pub(super) const SEGMENT_BYTES_MIN: u64 = 2048;
/// The largest: offsets are 32 bits.
pub(super) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

const MAGIC: [u8; 8] = *b"CNCLVWAL";
const VERSION: u32 = 1;

/// One file of the log.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) size_bytes: u64,
}

impl Segment {
    pub(super) fn name(&self) -> String {
        segment_name(self.number)
    }
}

pub(super) fn segment_name(number: u32) -> String {
    format!("{number:08x}.wal")
}

/// The name of a segment in the making.
pub(super) fn temporary_name(number: u32) -> String {
    format!("{number:08x}.new")
}

/// The name of a segment that was let go and waits to be used again.
pub(super) fn spare_name(number: u32) -> String {
    format!("{number:08x}.free")
}

/// What a file's name says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Segment(u32),
    /// In the making, or let go: nothing in it is of worth.
    Scrap,
    Foreign,
}

pub(super) fn classify(name: &str) -> Named {
    let Some((stem, kind)) = name.split_once('.') else { return Named::Foreign };
    let hex = stem.len() == 8 && stem.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match (hex.then(|| u32::from_str_radix(stem, 16)), kind) {
        (Some(Ok(number)), "wal") if number > 0 => Named::Segment(number),
        (Some(Ok(_)), "new" | "free") => Named::Scrap,
        _ => Named::Foreign,
    }
}

fn encode_header(stamp: Stamp, size_bytes: u64) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&stamp.segment.to_le_bytes());
    out[16..24].copy_from_slice(&stamp.log_id.to_le_bytes());
    out[24..32].copy_from_slice(&size_bytes.to_le_bytes());
    let crc = crc32fast::hash(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Makes a segment durable under its name, from a spare file or from nothing. Undoes what it can if that fails.
pub(super) fn create(
    disk: &dyn Disk,
    stamp: Stamp,
    size_bytes: u64,
    spare: Option<(String, Arc<dyn DiskFile>)>,
) -> io::Result<Segment> {
    let (temporary, file) = match spare {
        Some((name, file)) => (name, file),
        None => {
            let name = temporary_name(stamp.segment);
            match disk.create(&name, size_bytes) {
                Ok(file) => (name, file),
                Err(error) => {
                    // A half-made file on a full disk would keep others from writing.
                    let _ = disk.remove(&name);
                    return Err(error);
                }
            }
        }
    };
    file.write_at(0, &encode_header(stamp, size_bytes))?;
    file.sync()?;
    disk.rename(&temporary, &segment_name(stamp.segment))?;
    #[cfg(feature = "mutants")]
    if conclave_consensus::Mutant::NewNameNotSynced.is_on() {
        return Ok(Segment { number: stamp.segment, file, size_bytes });
    }
    disk.sync_names()?;
    Ok(Segment { number: stamp.segment, file, size_bytes })
}

/// Opens a segment by its number and proves that it is one; returns its log's id with it.
pub(super) fn open(disk: &dyn Disk, number: u32) -> Result<(u64, Segment), LogError> {
    let name = segment_name(number);
    let io = |operation| move |error: io::Error| LogError::from_io(operation, error);
    let foreign = |why: &str| LogError::Foreign { file: segment_name(number), why: why.to_owned() };
    let damaged = |offset, why: String| LogError::Damaged { segment: segment_name(number), offset, why };
    let file = disk.open(&name).map_err(io("open"))?;
    let size_bytes = file.size_bytes().map_err(io("open"))?;
    if size_bytes < HEADER_BYTES as u64 {
        return Err(damaged(size_bytes, format!("truncated to {size_bytes} bytes, inside its header")));
    }
    let mut header = [0; HEADER_BYTES];
    file.read_at(0, &mut header).map_err(io("read"))?;
    let number_at =
        |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long_at = |at: usize| u64::from(number_at(at)) | u64::from(number_at(at + 4)) << 32;
    if header[..8] != MAGIC {
        return Err(foreign("it does not begin as one"));
    }
    if crc32fast::hash(&header[..60]) != number_at(60) {
        return Err(damaged(0, "the header's checksum does not hold".to_owned()));
    }
    if number_at(8) != VERSION {
        return Err(foreign(&format!(
            "it has version {}, and this program reads version {VERSION}",
            number_at(8)
        )));
    }
    if number_at(12) != number {
        return Err(foreign(&format!("by its header it is segment {:08x}", number_at(12))));
    }
    if long_at(24) != size_bytes {
        let why = format!("it has {size_bytes} bytes, by its header {}", long_at(24));
        return Err(damaged(size_bytes.min(long_at(24)), why));
    }
    Ok((long_at(16), Segment { number, file, size_bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        assert_eq!(classify(&segment_name(0x1f)), Named::Segment(0x1f));
        assert_eq!(classify(&temporary_name(2)), Named::Scrap);
        assert_eq!(classify(&spare_name(2)), Named::Scrap);
        for name in [
            "",
            "1.wal",
            "00000000.wal",
            "0000000G.wal",
            "0000000A.wal",
            "00000001.wal.bak",
            "db",
            "+0000001.wal",
        ] {
            assert_eq!(classify(name), Named::Foreign, "{name}");
        }
    }
}
