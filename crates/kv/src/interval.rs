//! Ranges of keys, by etcd's rules for `key` and `range_end`.

use std::ops::Bound;

use bytes::Bytes;

/// The bounds of a range for an ordered map.
pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    from: Bytes,
    to: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// After the first key.
    Single,
    /// Before a key.
    Before(Bytes),
    /// After the last key.
    Open,
}

impl Interval {
    /// No `range_end` is the key alone; one zero byte is from the key on; any other is up to that key, itself not included. A key of one
    /// zero byte needs no rule of its own: no key is smaller.
    pub(crate) fn new(key: &Bytes, range_end: &Bytes) -> Self {
        let to = match range_end.as_ref() {
            [] => End::Single,
            [0] => End::Open,
            _ => End::Before(range_end.clone()),
        };
        Self { from: key.clone(), to }
    }

    /// The only key, if the range was asked for by one.
    pub(crate) fn single(&self) -> Option<&Bytes> {
        (self.to == End::Single).then_some(&self.from)
    }

    /// The first key.
    pub(crate) fn from(&self) -> &Bytes {
        &self.from
    }

    /// What is left of the range from `key` on.
    pub(crate) fn rest(&self, key: Bytes) -> Self {
        let to = match &self.to {
            // What follows a single key is nothing, which this says.
            End::Single if key != self.from => End::Before(self.from.clone()),
            to => to.clone(),
        };
        Self { from: key, to }
    }

    /// What lies in the range before `key`.
    pub(crate) fn until(&self, key: &Bytes) -> Self {
        Self { from: self.from.clone(), to: End::Before(key.clone()) }
    }

    /// The bounds for an ordered map, or `None` if nothing can lie between them.
    pub(crate) fn bounds(&self) -> Option<Bounds<'_>> {
        let from = Bound::Included(self.from.as_ref());
        match &self.to {
            End::Single => Some((from, Bound::Included(self.from.as_ref()))),
            End::Before(end) if *end <= self.from => None,
            End::Before(end) => Some((from, Bound::Excluded(end.as_ref()))),
            End::Open => Some((from, Bound::Unbounded)),
        }
    }
}

/// The key that follows `key` at once: nothing lies between them.
pub(crate) fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(interval: &Interval, key: &[u8]) -> bool {
        use std::ops::RangeBounds;
        interval.bounds().is_some_and(|bounds| <Bounds<'_> as RangeBounds<[u8]>>::contains(&bounds, key))
    }

    #[test]
    fn the_conventions_of_range_end() {
        let of = |key: &'static [u8], end: &'static [u8]| Interval::new(&key.into(), &end.into());
        assert!(has(&of(b"b", b""), b"b") && !has(&of(b"b", b""), b"b\0"));
        assert!(has(&of(b"b", b"d"), b"c") && !has(&of(b"b", b"d"), b"d") && !has(&of(b"b", b"d"), b"a"));
        assert!(has(&of(b"b", b"\0"), b"\xff\xff") && !has(&of(b"b", b"\0"), b"a"));
        assert!(has(&of(b"\0", b"\0"), b"\0") && has(&of(b"\0", b"\0"), b"z"));
        assert!(of(b"d", b"b").bounds().is_none() && of(b"b", b"b").bounds().is_none());
        assert!(of(b"b", b"").rest(successor(b"b")).bounds().is_none());
    }
}
