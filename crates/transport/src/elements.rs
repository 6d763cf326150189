//! How many entries, proposals or ids a head names, counted before one of them is read: they take a byte or two there and dozens in memory.

use crate::{
    codec::{CONSENSUS, FORWARD, FrameError, REFUSED},
    varint::{BYTES, Reader, VARINT},
};

/// How the elements of a field lie in a head.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// A message each.
    Messages,
    /// A number each, packed or not.
    Numbers,
}

/// The fields of a kind's head that have elements.
fn fields_of(kind: u8) -> &'static [(u64, Layout)] {
    match kind {
        CONSENSUS => {
            &[(6, Layout::Messages), (7, Layout::Messages), (8, Layout::Numbers), (9, Layout::Numbers)]
        }
        FORWARD | REFUSED => &[(2, Layout::Messages)],
        _ => &[],
    }
}

/// Refuses a head of which a field has more than `max` elements.
pub(crate) fn check(kind: u8, head: &[u8], max: usize) -> Result<(), FrameError> {
    // An element takes a byte at least.
    if head.len() <= max {
        return Ok(());
    }
    for (field, layout) in fields_of(kind) {
        let mut count = 0;
        let mut reader = Reader { rest: head };
        while let Some(key) = reader.key()? {
            count += match (key >> 3 == *field, key as u8 & 7) {
                (true, BYTES) if *layout == Layout::Numbers => {
                    reader.bytes()?.iter().filter(|byte| **byte < 0x80).count()
                }
                (true, BYTES | VARINT) => {
                    reader.skip(key)?;
                    1
                }
                _ => {
                    reader.skip(key)?;
                    0
                }
            };
            if count > max {
                return Err(FrameError::TooMany { max });
            }
        }
    }
    Ok(())
}
