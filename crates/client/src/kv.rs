//! Keys, what stands under them, and the requests that read and change them.

use std::fmt;

use bytes::Bytes;
use conclave_api::{
    etcdserverpb::{
        DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
        ResponseHeader, range_request,
    },
    mvccpb,
};

use crate::error::Error;

/// A revision of the whole store: the first is 1, and each transaction that changes something makes the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl Revision {
    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// As etcd's tools show it: hexadecimal.
impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// One key's generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// What stands under it; empty if only keys were asked for, or if it was deleted.
    pub value: Bytes,
    /// When the key came into being.
    pub create_revision: Revision,
    /// When it was put last.
    pub mod_revision: Revision,
    /// How often it was put since it came into being.
    pub version: i64,
    /// The lease with which it goes.
    pub lease: Option<LeaseId>,
}

impl From<mvccpb::KeyValue> for KeyValue {
    fn from(kv: mvccpb::KeyValue) -> Self {
        Self {
            key: kv.key,
            value: kv.value,
            create_revision: Revision(kv.create_revision),
            mod_revision: Revision(kv.mod_revision),
            version: kv.version,
            lease: (kv.lease != 0).then_some(LeaseId(kv.lease)),
        }
    }
}

/// One key, or a range of keys.
///
/// Whatever can be bytes is a key: `"a"`, a `String`, a `Vec<u8>`, [`Bytes`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keys {
    pub(crate) from: Bytes,
    /// Empty for one key, as on the wire.
    pub(crate) to: Bytes,
}

/// As the end of a range: every key from its beginning on.
const NO_END: Bytes = Bytes::from_static(&[0]);

impl Keys {
    /// One key.
    pub fn one(key: impl Into<Bytes>) -> Self {
        Self { from: key.into(), to: Bytes::new() }
    }

    /// All keys that begin so.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let prefix = prefix.into();
        if prefix.is_empty() {
            return Self::all();
        }
        let to = end_of_prefix(&prefix);
        Self { from: prefix, to }
    }

    /// From the first key, included, to the second, not included. The end must not be empty.
    pub fn between(from: impl Into<Bytes>, to: impl Into<Bytes>) -> Self {
        Self { from: from.into(), to: to.into() }
    }

    /// From this key on.
    pub fn starting_at(from: impl Into<Bytes>) -> Self {
        Self { from: from.into(), to: NO_END }
    }

    /// All keys.
    #[must_use]
    pub fn all() -> Self {
        Self { from: NO_END, to: NO_END }
    }
}

/// The first key after all that begin with `prefix`.
fn end_of_prefix(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte < u8::MAX) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        }
        None => NO_END,
    }
}

macro_rules! keys_from {
    ($($bytes:ty),*) => {$(
        impl From<$bytes> for Keys {
            fn from(key: $bytes) -> Self {
                Self::one(key)
            }
        }
    )*};
}
keys_from!(Bytes, String, Vec<u8>, &'static str, &'static [u8]);

/// By what answers are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The key.
    Key,
    /// The version.
    Version,
    /// The revision at which it came into being.
    Created,
    /// The revision at which it was put last.
    Modified,
    /// The value.
    Value,
}

/// A read.
///
/// ```
/// use conclave_client::{By, Get, Keys};
///
/// let latest = Get::new(Keys::prefix("orders/")).sorted(By::Modified).backwards().limit(10);
/// # let _ = latest;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Get(RangeRequest);

impl Get {
    /// Of a key or of several.
    pub fn new(keys: impl Into<Keys>) -> Self {
        let Keys { from, to } = keys.into();
        Self(RangeRequest { key: from, range_end: to, ..RangeRequest::default() })
    }

    /// At most so many; 0 is no limit.
    #[must_use]
    pub fn limit(mut self, keys: u32) -> Self {
        self.0.limit = keys.into();
        self
    }

    /// As of a revision that is not compacted; otherwise the newest.
    #[must_use]
    pub fn at(mut self, revision: Revision) -> Self {
        self.0.revision = revision.0;
        self
    }

    /// Whatever the asked member has, at once, however old. Otherwise the read sees every write acknowledged before it began.
    #[must_use]
    pub fn stale(mut self) -> Self {
        self.0.serializable = true;
        self
    }

    /// Without values.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.0.keys_only = true;
        self
    }

    /// Only how many there are.
    #[must_use]
    pub fn count_only(mut self) -> Self {
        self.0.count_only = true;
        self
    }

    /// Sorted by this, ascending.
    #[must_use]
    pub fn sorted(mut self, by: By) -> Self {
        let target = match by {
            By::Key => range_request::SortTarget::Key,
            By::Version => range_request::SortTarget::Version,
            By::Created => range_request::SortTarget::Create,
            By::Modified => range_request::SortTarget::Mod,
            By::Value => range_request::SortTarget::Value,
        };
        self.0.sort_target = target as i32;
        self.0.sort_order = range_request::SortOrder::Ascend as i32;
        self
    }

    /// Descending.
    #[must_use]
    pub fn backwards(mut self) -> Self {
        self.0.sort_order = range_request::SortOrder::Descend as i32;
        self
    }

    pub(crate) fn into_request(self) -> RangeRequest {
        self.0
    }
}

/// A write of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Put(PutRequest);

impl Put {
    /// Of this value under this key.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self(PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() })
    }

    /// The key goes with this lease.
    #[must_use]
    pub fn with_lease(mut self, lease: LeaseId) -> Self {
        self.0.lease = lease.0;
        self
    }

    /// The key keeps the lease that it has; the key must exist.
    #[must_use]
    pub fn keep_lease(mut self) -> Self {
        self.0.ignore_lease = true;
        self
    }

    /// The answer has what stood there before.
    #[must_use]
    pub fn previous(mut self) -> Self {
        self.0.prev_kv = true;
        self
    }

    pub(crate) fn into_request(self) -> PutRequest {
        self.0
    }
}

/// A deletion.
#[derive(Clone, Debug, PartialEq)]
pub struct Delete(DeleteRangeRequest);

impl Delete {
    /// Of a key or of several.
    pub fn new(keys: impl Into<Keys>) -> Self {
        let Keys { from, to } = keys.into();
        Self(DeleteRangeRequest { key: from, range_end: to, ..DeleteRangeRequest::default() })
    }

    /// The answer has what was deleted.
    #[must_use]
    pub fn previous(mut self) -> Self {
        self.0.prev_kv = true;
        self
    }

    pub(crate) fn into_request(self) -> DeleteRangeRequest {
        self.0
    }
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The store's revision when it was read.
    pub revision: Revision,
    /// The keys, in the order asked for, else ascending.
    pub kvs: Vec<KeyValue>,
    /// Whether there are more than the limit.
    pub more: bool,
    /// How many there are without the limit.
    pub count: i64,
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The revision that it made.
    pub revision: Revision,
    /// What stood there before, if that was asked for.
    pub previous: Option<KeyValue>,
}

/// What a deletion did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The store's revision after it: one more only if something was deleted.
    pub revision: Revision,
    /// How many keys were deleted.
    pub count: i64,
    /// They, if that was asked for.
    pub previous: Vec<KeyValue>,
}

pub(crate) fn revision_of(header: Option<ResponseHeader>) -> Result<Revision, Error> {
    header.map(|header| Revision(header.revision)).ok_or(Error::Malformed("an answer without a header"))
}

/// Parts of a transaction's answer have a header of their own or none: theirs is the transaction's revision.
pub(crate) fn found(answer: RangeResponse, revision: Revision) -> Found {
    let kvs = answer.kvs.into_iter().map(Into::into).collect();
    Found { revision, kvs, more: answer.more, count: answer.count }
}

pub(crate) fn written(answer: PutResponse, revision: Revision) -> Written {
    Written { revision, previous: answer.prev_kv.map(Into::into) }
}

pub(crate) fn deleted(answer: DeleteRangeResponse, revision: Revision) -> Deleted {
    Deleted {
        revision,
        count: answer.deleted,
        previous: answer.prev_kvs.into_iter().map(Into::into).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_of_its_length() {
        for (prefix, end) in [
            (&b"a"[..], &b"b"[..]),
            (b"a/", b"a0"),
            (b"a\xff", b"b"),
            (b"\xff\xff", b"\0"),
            (b"a\xff\xffz", b"a\xff\xff{"),
        ] {
            assert_eq!(Keys::prefix(prefix.to_vec()).to, end, "{prefix:?}");
        }
        assert_eq!(Keys::prefix(""), Keys::all());
    }

    #[test]
    fn what_can_be_bytes_is_a_key() {
        let keys =
            [Keys::from("k"), Keys::from("k".to_owned()), Keys::from(b"k".to_vec()), Keys::from(&b"k"[..])];
        assert!(keys.iter().all(|key| *key == Keys::one("k")));
    }
}
