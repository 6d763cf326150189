//! As much of protobuf's encoding as a head needs that is written by hand, because it is written and read for every message.

use crate::codec::FrameError;

/// How a field's value is laid out.
pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// What stands before the value of a field.
pub(crate) const fn key(field: u64, layout: u8) -> u64 {
    field << 3 | layout as u64
}

/// How long a number is.
pub(crate) fn len(number: u64) -> usize {
    // Seven bits a byte, and a byte for zero.
    ((70 - (number | 1).leading_zeros()) / 7) as usize
}

pub(crate) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A field below 16, which is left out where it is zero.
pub(crate) fn put_field(out: &mut Vec<u8>, field: u8, number: u64) {
    if number != 0 {
        out.push(field << 3 | VARINT);
        put(out, number);
    }
}

/// What is left to read of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The key of the next field, if there is one.
    pub(crate) fn key(&mut self) -> Result<Option<u64>, FrameError> {
        if self.rest.is_empty() { Ok(None) } else { self.number().map(Some) }
    }

    /// Whether the field that is expected next comes; then its value is what is left.
    fn is_next(&mut self, key: u64) -> bool {
        match self.rest {
            [byte, rest @ ..] if u64::from(*byte) == key => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// The number that is expected next; zero, which is not written, if another field comes.
    pub(crate) fn number_of(&mut self, key: u64) -> Result<u64, FrameError> {
        if self.is_next(key) { self.number() } else { Ok(0) }
    }

    /// The same of a number of eight bytes.
    pub(crate) fn fixed64_of(&mut self, key: u64) -> Result<u64, FrameError> {
        if self.is_next(key) { self.fixed64() } else { Ok(0) }
    }

    /// The bytes that are expected next; none if another field comes.
    pub(crate) fn bytes_of(&mut self, key: u64) -> Result<&'a [u8], FrameError> {
        if self.is_next(key) { self.bytes() } else { Ok(&[]) }
    }

    pub(crate) fn number(&mut self) -> Result<u64, FrameError> {
        if let Some((byte, rest)) = self.rest.split_first()
            && *byte < 0x80
        {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        let mut number = 0;
        for (place, byte) in self.rest.iter().take(10).enumerate() {
            number |= u64::from(byte & 0x7f) << (7 * place);
            if *byte < 0x80 {
                if place == 9 && *byte > 1 {
                    break;
                }
                self.rest = &self.rest[place + 1..];
                return Ok(number);
            }
        }
        Err(FrameError::Malformed("a number in the head does not end"))
    }

    pub(crate) fn fixed64(&mut self) -> Result<u64, FrameError> {
        let (bytes, rest) = self.rest.split_first_chunk::<8>().ok_or(ENDS_EARLY)?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], FrameError> {
        let len = usize::try_from(self.number()?).map_err(|_| ENDS_EARLY)?;
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(ENDS_EARLY)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Passes over the value of a field that only later versions know.
    pub(crate) fn skip(&mut self, key: u64) -> Result<(), FrameError> {
        match key as u8 & 7 {
            VARINT => self.number().map(drop),
            FIXED64 => self.fixed64().map(drop),
            BYTES => self.bytes().map(drop),
            FIXED32 => {
                self.rest = self.rest.get(4..).ok_or(ENDS_EARLY)?;
                Ok(())
            }
            _ => Err(FrameError::Malformed("a field of the head has no known layout")),
        }
    }
}

const ENDS_EARLY: FrameError = FrameError::Malformed("the head ends early");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_protobuf_writes_them() {
        for number in (0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit]).chain([u64::MAX]) {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            put(&mut ours, number);
            prost::encode_length_delimiter(number as usize, &mut theirs).unwrap();
            assert_eq!((&ours, ours.len()), (&theirs, len(number)));
            let mut reader = Reader { rest: &ours };
            assert_eq!((reader.number(), reader.rest.len()), (Ok(number), 0));
            assert!(Reader { rest: &ours[..ours.len() - 1] }.number().is_err(), "{number} cut short");
        }
        assert!(Reader { rest: &[0xff; 11] }.number().is_err());
        assert!(
            Reader { rest: &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2] }.number().is_err()
        );
    }

    #[test]
    fn fields_of_every_layout_are_passed_over() {
        let fields: [&[u8]; 4] =
            [&[0x78, 0x85, 1], &[0x79, 1, 2, 3, 4, 5, 6, 7, 8], &[0x7a, 2, 7, 7], &[0x7d, 1, 2, 3, 4]];
        for field in fields {
            let mut reader = Reader { rest: field };
            let key = reader.key().unwrap().unwrap();
            assert_eq!((key >> 3, reader.skip(key)), (15, Ok(())));
            assert_eq!(reader.key(), Ok(None));
            let mut short = Reader { rest: &field[..field.len() - 1] };
            assert!(short.key().unwrap().is_some_and(|key| short.skip(key).is_err()));
        }
        assert!(Reader { rest: &[0x7b] }.skip(3).is_err(), "groups are not read");
    }
}
