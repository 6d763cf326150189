//! Checks that need no state, made before a request is proposed and again when it is applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use bytes::Bytes;
use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        range_request::{SortOrder, SortTarget},
        request_op::Request,
    },
};
use prost::Message;

use crate::command::KvError;

/// The longest key that can be written, in bytes: escaped, with its revision, it still fits the engine.
pub const KEY_BYTES_MAX: usize = 32_000;

/// What a request may be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most comparisons, and the most operations in either branch, of a transaction; what it has uses up what transactions nested in
    /// it may have. Default 128.
    pub txn_ops_max: usize,
    /// The largest encoded request in bytes. Default 1.5 MiB.
    pub request_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { txn_ops_max: 128, request_bytes_max: 3 << 19 }
    }
}

impl Limits {
    /// The largest message a server should take off the wire, in bytes: a request and etcd's allowance around it. What is above
    /// is cut off by gRPC, what is between is told "request is too large".
    #[must_use]
    pub fn message_bytes_max(&self) -> usize {
        self.request_bytes_max.saturating_add(512 << 10)
    }

    /// No limits but those of the store itself: what a replica checks when it applies, whatever its own configuration says.
    pub(crate) const NONE: Self = Self { txn_ops_max: usize::MAX, request_bytes_max: usize::MAX };

    fn size(&self, request: &impl Message) -> Result<(), KvError> {
        if self.request_bytes_max < usize::MAX && request.encoded_len() > self.request_bytes_max {
            return refuse(EtcdError::RequestTooLarge);
        }
        Ok(())
    }
}

fn refuse(error: EtcdError) -> Result<(), KvError> {
    Err(KvError::Etcd(error))
}

/// Checks a range request.
///
/// # Errors
/// `EmptyKey`, `InvalidSortOption`.
pub fn validate_range(request: &RangeRequest) -> Result<(), KvError> {
    if request.key.is_empty() {
        return refuse(EtcdError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err()
    {
        return refuse(EtcdError::InvalidSortOption);
    }
    Ok(())
}

/// Checks a range request whose answer is to come in chunks.
///
/// # Errors
/// Those of [`validate_range`]; `Unimplemented` for sorts and revision filters.
pub fn validate_range_stream(request: &RangeRequest) -> Result<(), KvError> {
    validate_range(request)?;
    if !is_default_order(request) {
        return Err(KvError::Unimplemented("RangeStream does not support custom sort orders"));
    }
    if has_revision_filters(request) {
        return Err(KvError::Unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

/// Whether the keys come in their own order. A sort target without an order counts as such until the keys are sorted: an
/// oddity of etcd's that decides which keys a limit leaves.
pub(crate) fn is_default_order(request: &RangeRequest) -> bool {
    request.sort_order() == SortOrder::None
        || (request.sort_target() == SortTarget::Key && request.sort_order() == SortOrder::Ascend)
}

pub(crate) fn has_revision_filters(request: &RangeRequest) -> bool {
    let RangeRequest { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision, .. } =
        request;
    [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision]
        .iter()
        .any(|bound| **bound != 0)
}

/// Checks a put.
///
/// # Errors
/// `EmptyKey`, `ValueProvided`, `LeaseProvided`, `RequestTooLarge`.
pub fn validate_put(request: &PutRequest, limits: &Limits) -> Result<(), KvError> {
    if request.key.is_empty() {
        return refuse(EtcdError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return refuse(EtcdError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return refuse(EtcdError::LeaseProvided);
    }
    if request.key.len() > KEY_BYTES_MAX || request.value.len() > u32::MAX as usize {
        return refuse(EtcdError::RequestTooLarge);
    }
    limits.size(request)
}

/// Checks a deletion.
///
/// # Errors
/// `EmptyKey`, `RequestTooLarge`.
pub fn validate_delete_range(request: &DeleteRangeRequest, limits: &Limits) -> Result<(), KvError> {
    if request.key.is_empty() {
        return refuse(EtcdError::EmptyKey);
    }
    limits.size(request)
}

/// Checks a compaction. Which revisions can be compacted is known when it is applied.
///
/// # Errors
/// None today.
pub fn validate_compaction(_request: &CompactionRequest, _limits: &Limits) -> Result<(), KvError> {
    Ok(())
}

/// Checks a transaction, nested ones included.
///
/// # Errors
/// `TooManyOps`, `EmptyKey`, `KeyNotFound` for an operation that is none, `DuplicateKey`, `RequestTooLarge`, and those of its operations.
pub fn validate_txn(request: &TxnRequest, limits: &Limits) -> Result<(), KvError> {
    operations(request, limits.txn_ops_max)?;
    for branch in [&request.success, &request.failure] {
        if branch.len() > 1 || branch.iter().any(|op| matches!(op.request, Some(Request::RequestTxn(_)))) {
            writes(branch)?;
        }
    }
    limits.size(request)
}

fn operations(request: &TxnRequest, ops_max: usize) -> Result<(), KvError> {
    let TxnRequest { compare, success, failure } = request;
    let ops = compare.len().max(success.len()).max(failure.len());
    let Some(left) = ops_max.checked_sub(ops) else {
        return refuse(EtcdError::TooManyOps);
    };
    if compare.iter().any(|compare| compare.key.is_empty()) {
        return refuse(EtcdError::EmptyKey);
    }
    for op in success.iter().chain(failure) {
        match &op.request {
            Some(Request::RequestRange(range)) => validate_range(range)?,
            Some(Request::RequestPut(put)) => validate_put(put, &Limits::NONE)?,
            Some(Request::RequestDeleteRange(delete)) => validate_delete_range(delete, &Limits::NONE)?,
            Some(Request::RequestTxn(txn)) => operations(txn, left)?,
            None => return refuse(EtcdError::KeyNotFound),
        }
    }
    Ok(())
}

/// What the operations of a branch may write.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletions: Deletions<'a>,
}

/// Ranges of keys, merged where they touch: first key to end, `None` for no end.
#[derive(Default)]
struct Deletions<'a>(BTreeMap<&'a [u8], Option<Edge<'a>>>);

/// The end of a range: before a key, or right after one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Edge<'a>(&'a [u8], bool);

impl<'a> Deletions<'a> {
    fn add(&mut self, from: &'a [u8], mut to: Option<Edge<'a>>) {
        let mut first = from;
        // Everything that begins at or before the new end, and ends at or after the new beginning, becomes one with it.
        while let Some((begins, ends)) = self.last_from(to.map_or(first, |to| to.0.max(first))) {
            if ends.is_some_and(|ends| ends < Edge(first, false))
                || to.is_some_and(|to| Edge(begins, false) > to)
            {
                break;
            }
            self.0.remove(begins);
            first = first.min(begins);
            to = match (to, ends) {
                (Some(to), Some(ends)) => Some(to.max(ends)),
                _ => None,
            };
        }
        if to.is_none() {
            self.0.split_off(first);
        }
        self.0.insert(first, to);
    }

    fn contain(&self, key: &[u8]) -> bool {
        self.last_from(key).is_some_and(|(_, ends)| ends.is_none_or(|ends| ends > Edge(key, false)))
    }

    /// The last range that begins at or before a key.
    fn last_from(&self, key: &[u8]) -> Option<(&'a [u8], Option<Edge<'a>>)> {
        let mut ranges = self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(key)));
        ranges.next_back().map(|(begins, ends)| (*begins, *ends))
    }
}

/// Fails if two operations of a branch could write one key, but for deletions that overlap, and for the two branches of one nested
/// transaction, of which one runs.
fn writes(ops: &[RequestOp]) -> Result<Writes<'_>, KvError> {
    let mut all = Writes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            let from: &[u8] = &delete.key;
            match delete.range_end.as_ref() {
                [] => all.deletions.add(from, Some(Edge(from, true))),
                [0] => all.deletions.add(from, None),
                to if to > from => all.deletions.add(from, Some(Edge(to, false))),
                _ => {}
            }
        }
    }
    let duplicate = || KvError::Etcd(EtcdError::DuplicateKey);
    for op in ops {
        if let Some(Request::RequestTxn(txn)) = &op.request {
            let (success, failure) = (writes(&txn.success)?, writes(&txn.failure)?);
            let mut puts = success.puts;
            puts.extend(failure.puts);
            if puts.iter().any(|key| all.puts.contains(*key) || all.deletions.contain(key)) {
                return Err(duplicate());
            }
            all.puts.extend(puts);
            for (from, to) in success.deletions.0.into_iter().chain(failure.deletions.0) {
                all.deletions.add(from, to);
            }
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request
            && (all.deletions.contain(&put.key) || !all.puts.insert(&put.key))
        {
            return Err(duplicate());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> RequestOp {
        let put = PutRequest { key: key.into(), ..PutRequest::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    fn delete(key: &'static str, range_end: &'static str) -> RequestOp {
        let delete = DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false };
        RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp { request: Some(Request::RequestTxn(TxnRequest { compare: Vec::new(), success, failure })) }
    }

    fn verdict(success: Vec<RequestOp>) -> Option<EtcdError> {
        let txn = TxnRequest { success, ..TxnRequest::default() };
        validate_txn(&txn, &Limits::default()).err().and_then(|error| error.etcd())
    }

    const DUPLICATE: Option<EtcdError> = Some(EtcdError::DuplicateKey);

    #[test]
    fn two_writes_to_one_key_are_refused() {
        assert_eq!(verdict(vec![put("a"), put("b")]), None);
        assert_eq!(verdict(vec![put("a"), put("a")]), DUPLICATE);
        assert_eq!(verdict(vec![put("b"), delete("a", "c")]), DUPLICATE);
        assert_eq!(verdict(vec![delete("a", "c"), put("c")]), None);
        assert_eq!(verdict(vec![delete("a", ""), put("a\0")]), None);
        assert_eq!(verdict(vec![delete("a", ""), put("a")]), DUPLICATE);
        assert_eq!(verdict(vec![delete("a", "\0"), put("z")]), DUPLICATE);
        assert_eq!(verdict(vec![delete("a", "c"), delete("b", "d")]), None);
        assert_eq!(verdict(vec![delete("c", "a"), put("b")]), None);
    }

    #[test]
    fn branches_of_one_nested_transaction_exclude_each_other() {
        assert_eq!(verdict(vec![nested(vec![put("a")], vec![put("a")])]), None);
        assert_eq!(verdict(vec![nested(vec![put("a"), put("a")], vec![])]), DUPLICATE);
        assert_eq!(verdict(vec![nested(vec![put("a")], vec![]), nested(vec![], vec![put("a")])]), DUPLICATE);
        assert_eq!(verdict(vec![nested(vec![put("a")], vec![]), put("a")]), DUPLICATE);
        assert_eq!(verdict(vec![nested(vec![], vec![delete("a", "c")]), put("b")]), DUPLICATE);
        assert_eq!(verdict(vec![nested(vec![], vec![put("b")]), delete("a", "c")]), DUPLICATE);
    }

    #[test]
    fn merged_ranges_contain_what_their_parts_did() {
        let ranges: [(&str, &str); 6] =
            [("c", "e"), ("a", "b"), ("b", ""), ("e", "g"), ("x", "z"), ("f", "y")];
        for skip in 0..ranges.len() {
            let mut merged = Deletions::default();
            let chosen: Vec<_> =
                ranges.iter().enumerate().filter(|(at, _)| *at != skip).map(|(_, range)| range).collect();
            for (from, to) in &chosen {
                let to = if to.is_empty() { Edge(from.as_bytes(), true) } else { Edge(to.as_bytes(), false) };
                merged.add(from.as_bytes(), Some(to));
            }
            for key in ["a", "a5", "b", "b\0", "bb", "c", "d", "e", "f", "g", "m", "x", "y", "z"] {
                let inside = chosen
                    .iter()
                    .any(|(from, to)| if to.is_empty() { key == *from } else { (*from..*to).contains(&key) });
                assert_eq!(merged.contain(key.as_bytes()), inside, "{key} without {skip}");
            }
            merged.add(b"d", None);
            assert!(merged.contain(b"zz") && merged.contain(b"d"));
        }
    }

    #[test]
    fn too_many_operations_count_what_is_nested() {
        let many = |count| (0..count).map(|_| delete("a", "")).collect::<Vec<_>>();
        assert_eq!(verdict(many(128)), None);
        assert_eq!(verdict(many(129)), Some(EtcdError::TooManyOps));
        assert_eq!(verdict(vec![nested(many(127), vec![])]), None);
        assert_eq!(verdict(vec![nested(many(128), vec![])]), Some(EtcdError::TooManyOps));
    }

    #[test]
    fn requests_without_sense_are_refused() {
        let limits = Limits::default();
        let error = |put: PutRequest| validate_put(&put, &limits).err().and_then(|error| error.etcd());
        let put = PutRequest { key: "k".into(), ..PutRequest::default() };
        assert_eq!(error(put.clone()), None);
        assert_eq!(error(PutRequest::default()), Some(EtcdError::EmptyKey));
        assert_eq!(
            error(PutRequest { value: "v".into(), ignore_value: true, ..put.clone() }),
            Some(EtcdError::ValueProvided)
        );
        assert_eq!(
            error(PutRequest { lease: 1, ignore_lease: true, ..put.clone() }),
            Some(EtcdError::LeaseProvided)
        );
        assert_eq!(
            error(PutRequest { value: vec![0; 3 << 19].into(), ..put.clone() }),
            Some(EtcdError::RequestTooLarge)
        );
        assert_eq!(
            error(PutRequest { key: vec![0; KEY_BYTES_MAX + 1].into(), ..put }),
            Some(EtcdError::RequestTooLarge)
        );
        assert_eq!(verdict(vec![RequestOp { request: None }]), Some(EtcdError::KeyNotFound));
        let range = RangeRequest { key: "k".into(), sort_order: 9, ..RangeRequest::default() };
        assert_eq!(
            validate_range(&range).err().and_then(|error| error.etcd()),
            Some(EtcdError::InvalidSortOption)
        );
        let range = RangeRequest { key: "k".into(), min_mod_revision: 1, ..RangeRequest::default() };
        assert!(matches!(validate_range_stream(&range), Err(KvError::Unimplemented(_))));
    }
}
