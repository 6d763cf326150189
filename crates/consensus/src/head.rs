//! An engine's own part of a message.

use std::{fmt, ops::Deref};

use bytes::Bytes;

/// So many bytes lie in the message itself.
const SHORT_BYTES_MAX: usize = 38;

/// The bytes in which an engine says what it has to say. A few dozen as a rule, so that they lie in the message and cost no memory
/// of their own; longer ones are shared.
#[derive(Clone)]
pub struct Head(Repr);

#[derive(Clone)]
enum Repr {
    Short { len: u8, bytes: [u8; SHORT_BYTES_MAX] },
    Long(Bytes),
}

impl Head {
    /// The first `len` bytes of those, which are written one by one where there is room for the longest.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn written<const ROOM: usize>(bytes: &[u8; ROOM], len: usize) -> Self {
        match bytes.first_chunk() {
            // A copy of fixed length is a few moves.
            Some(bytes) if len <= SHORT_BYTES_MAX => Self(Repr::Short { len: len as u8, bytes: *bytes }),
            _ => Self::from(&bytes[..len]),
        }
    }

    /// The bytes, if they are few enough to lie in the message.
    fn short(from: &[u8]) -> Option<Self> {
        let mut bytes = [0; SHORT_BYTES_MAX];
        bytes.get_mut(..from.len())?.copy_from_slice(from);
        Some(Self(Repr::Short { len: u8::try_from(from.len()).ok()?, bytes }))
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Short { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Head {
    fn from(bytes: &[u8]) -> Self {
        Self::short(bytes).unwrap_or_else(|| Self(Repr::Long(Bytes::copy_from_slice(bytes))))
    }
}

impl From<Bytes> for Head {
    fn from(bytes: Bytes) -> Self {
        Self::short(&bytes).unwrap_or(Self(Repr::Long(bytes)))
    }
}

impl Default for Head {
    fn default() -> Self {
        Self(Repr::Short { len: 0, bytes: [0; SHORT_BYTES_MAX] })
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Head {}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes::copy_from_slice(self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_heads_hold_what_they_were_given() {
        for len in [0, 1, SHORT_BYTES_MAX, SHORT_BYTES_MAX + 1, 300] {
            let bytes: Vec<u8> = (0..len).map(|place| place as u8).collect();
            let (copied, shared) = (Head::from(&bytes[..]), Head::from(Bytes::from(bytes.clone())));
            assert_eq!((&copied[..], &copied), (&bytes[..], &shared));
        }
        let bytes: [u8; 64] = std::array::from_fn(|place| place as u8);
        for len in [0, 1, SHORT_BYTES_MAX, SHORT_BYTES_MAX + 1, 64] {
            assert_eq!(Head::written(&bytes, len)[..], bytes[..len]);
        }
        assert_eq!(Head::written(&[7; 3], 2)[..], [7; 2]);
        assert_eq!(&Head::default()[..], b"");
        assert_ne!(Head::from(&[0, 0][..]), Head::from(&[0][..]));
        assert_eq!(format!("{:?}", Head::from(&b"\x08a"[..])), r#"b"\x08a""#);
    }

    #[test]
    fn a_long_head_is_not_copied() {
        let bytes = Bytes::from(vec![7; 100]);
        assert_eq!(Head::from(bytes.clone()).as_ptr(), bytes.as_ptr());
    }
}
