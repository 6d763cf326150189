//! What clients of etcd depend on, one test a fact.

use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request,
        response_op::Response,
    },
};
use conclave_kv::{
    KvError,
    command::{self, Revision},
};

use crate::harness::{Replica, bytes, error, put, range};

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn op_put(key: &str, value: &str) -> RequestOp {
    op(Request::RequestPut(put(key, value)))
}

fn op_range(key: &str) -> RequestOp {
    op(Request::RequestRange(range(key, "")))
}

fn op_delete(key: &str) -> RequestOp {
    op(Request::RequestDeleteRange(DeleteRangeRequest { key: bytes(key), ..DeleteRangeRequest::default() }))
}

fn value_is(key: &str, value: &str) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key: bytes(key),
        target_union: Some(TargetUnion::Value(bytes(value))),
        ..Compare::default()
    }
}

fn version_is(key: &str, version: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Version.into(),
        key: bytes(key),
        target_union: Some(TargetUnion::Version(version)),
        ..Compare::default()
    }
}

fn values(response: &TxnResponse, at: usize) -> Vec<String> {
    match response.responses[at].response.as_ref().unwrap() {
        Response::ResponseRange(range) => {
            range.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_store_starts_at_revision_one_and_each_modifying_command_adds_one() {
    let mut store = Replica::new();
    assert_eq!((store.reader.revision(), store.reader.compact_revision()), (1, -1));
    assert_eq!(store.set("a", "1"), 2);
    assert_eq!(store.set("a", "1"), 3);
    assert_eq!(store.delete("none", "").header.unwrap().revision, 3);
    assert_eq!(store.delete("a", "").header.unwrap().revision, 4);
    let nothing = TxnRequest { success: vec![op_range("a"), op_delete("a")], ..TxnRequest::default() };
    assert_eq!(store.txn(&nothing).unwrap().header.unwrap().revision, 4);
    let three = TxnRequest {
        success: vec![op_put("a", "1"), op_put("b", "1"), op_put("c", "1")],
        ..TxnRequest::default()
    };
    assert_eq!(store.txn(&three).unwrap().header.unwrap().revision, 5);
    assert_eq!(store.reader.revision(), 5);
}

#[test]
fn versions_count_from_the_creation() {
    let mut store = Replica::new();
    store.set("a", "1");
    store.set("a", "2");
    let kv = store.range(range("a", "")).unwrap().kvs.pop().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    store.delete("a", "");
    store.set("a", "3");
    let kv = store.range(range("a", "")).unwrap().kvs.pop().unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[test]
fn count_ignores_limit_and_filters() {
    let mut store = Replica::new();
    for key in ["a", "b", "c", "d"] {
        store.set(key, key);
    }
    let response = store.range(RangeRequest { limit: 2, ..range("a", "\0") }).unwrap();
    assert_eq!((response.kvs.len(), response.more, response.count), (2, true, 4));
    let response = store.range(RangeRequest { min_mod_revision: 4, ..range("a", "\0") }).unwrap();
    assert_eq!((response.kvs.len(), response.more, response.count), (2, false, 4));
    let response = store.range(RangeRequest { count_only: true, ..range("b", "\0") }).unwrap();
    assert_eq!((response.kvs.len(), response.more, response.count), (0, false, 3));
    let response = store.range(RangeRequest { keys_only: true, ..range("a", "c") }).unwrap();
    assert!(response.kvs.iter().all(|kv| kv.value.is_empty()) && response.kvs.len() == 2);
}

#[test]
fn results_are_sorted_as_asked() {
    let mut store = Replica::new();
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("a", "3")] {
        store.set(key, value);
    }
    let order = |target: SortTarget, order: SortOrder, limit| {
        let request =
            RangeRequest { sort_target: target.into(), sort_order: order.into(), limit, ..range("a", "\0") };
        let kvs = store.range(request).unwrap().kvs;
        kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect::<String>()
    };
    assert_eq!(order(SortTarget::Key, SortOrder::Descend, 0), "cba");
    assert_eq!(order(SortTarget::Value, SortOrder::Ascend, 0), "bca");
    assert_eq!(order(SortTarget::Mod, SortOrder::Descend, 1), "a");
    assert_eq!(order(SortTarget::Version, SortOrder::Descend, 2), "ab");
    assert_eq!(order(SortTarget::Create, SortOrder::None, 0), "abc");
    // A target without an order is sorted after the limit has cut the keys.
    assert_eq!(order(SortTarget::Value, SortOrder::None, 1), "b");
}

#[test]
fn put_options() {
    let mut store = Replica::new();
    let ignore_value = PutRequest { ignore_value: true, ..put("a", "") };
    assert_eq!(error(store.put(ignore_value.clone())), EtcdError::KeyNotFound);
    assert_eq!(error(store.put(PutRequest { ignore_lease: true, ..put("a", "1") })), EtcdError::KeyNotFound);
    assert_eq!(error(store.put(PutRequest { lease: 7, ..put("a", "1") })), EtcdError::LeaseNotFound);
    store.set("a", "1");
    let response = store.put(PutRequest { prev_kv: true, ..ignore_value }).unwrap();
    assert_eq!(response.prev_kv.unwrap().value, "1");
    assert_eq!(store.texts("a", "", 0), ["a=1"]);
    assert_eq!(store.range(range("a", "")).unwrap().kvs[0].version, 2);
    assert_eq!(store.put(put("a", "2")).unwrap().prev_kv, None);
}

#[test]
fn old_revisions_are_read_until_they_are_compacted() {
    let mut store = Replica::new();
    store.set("a", "1");
    store.set("a", "2");
    store.delete("a", "");
    store.set("b", "1");
    assert_eq!(store.texts("a", "\0", 2), ["a=1"]);
    assert_eq!(store.texts("a", "\0", 3), ["a=2"]);
    assert_eq!(store.texts("a", "\0", 4), [""; 0]);
    assert_eq!(error(store.range(RangeRequest { revision: 6, ..range("a", "") })), EtcdError::FutureRev);
    assert_eq!(error(store.compact(6)), EtcdError::FutureRev);
    store.compact(3).unwrap();
    assert_eq!(error(store.compact(3)), EtcdError::Compacted);
    assert_eq!(error(store.range(RangeRequest { revision: 2, ..range("a", "") })), EtcdError::Compacted);
    assert_eq!(store.texts("a", "\0", 3), ["a=2"]);
}

#[test]
fn a_transaction_takes_one_branch_and_one_revision() {
    let mut store = Replica::new();
    let txn = TxnRequest {
        compare: vec![version_is("lock", 0)],
        success: vec![op_put("lock", "me"), op_range("lock")],
        failure: vec![op_range("lock")],
    };
    let first = store.txn(&txn).unwrap();
    assert!(first.succeeded && values(&first, 1) == ["me"]);
    let second = store.txn(&txn).unwrap();
    assert!(!second.succeeded && values(&second, 0) == ["me"]);
    assert_eq!(store.reader.revision(), 2);
}

#[test]
fn later_operations_see_earlier_ones() {
    let mut store = Replica::new();
    store.set("a", "old");
    let txn = TxnRequest {
        success: vec![
            op_range("a"),
            op_put("a", "new"),
            op_range("a"),
            op_delete("b"),
            op_put("c", "1"),
            op_range("c"),
        ],
        ..TxnRequest::default()
    };
    let response = store.txn(&txn).unwrap();
    assert_eq!(
        (values(&response, 0), values(&response, 2), values(&response, 5)),
        (vec!["old".to_owned()], vec!["new".to_owned()], vec!["1".to_owned()])
    );
}

#[test]
fn nested_comparisons_are_judged_on_the_state_before() {
    let mut store = Replica::new();
    store.set("a", "old");
    let nested = TxnRequest {
        compare: vec![value_is("a", "old")],
        success: vec![op_put("saw", "old")],
        failure: vec![op_put("saw", "new")],
    };
    let txn = TxnRequest {
        success: vec![op_put("a", "new"), op(Request::RequestTxn(nested))],
        ..TxnRequest::default()
    };
    store.txn(&txn).unwrap();
    assert_eq!(store.texts("a", "\0", 0), ["a=new", "saw=old"]);
}

#[test]
fn a_comparison_over_a_range_holds_for_every_key_in_it() {
    let mut store = Replica::new();
    let all_new = Compare { range_end: bytes("b"), ..version_is("a", 1) };
    let txn = |compare: Compare| TxnRequest { compare: vec![compare], ..TxnRequest::default() };
    // A key that does not exist has version 0, and no value at all.
    assert!(!store.txn(&txn(all_new.clone())).unwrap().succeeded);
    assert!(!store.txn(&txn(value_is("a", ""))).unwrap().succeeded);
    store.set("a1", "");
    store.set("a2", "");
    assert!(store.txn(&txn(all_new.clone())).unwrap().succeeded);
    assert!(store.txn(&txn(value_is("a1", ""))).unwrap().succeeded);
    store.set("a2", "again");
    assert!(!store.txn(&txn(all_new)).unwrap().succeeded);
}

#[test]
fn a_transaction_that_would_fail_changes_nothing() {
    let mut store = Replica::new();
    let missing = op(Request::RequestPut(PutRequest { ignore_value: true, ..put("missing", "") }));
    let future = op(Request::RequestRange(RangeRequest { revision: 99, ..range("a", "") }));
    for (bad, expected) in [(missing, EtcdError::KeyNotFound), (future, EtcdError::FutureRev)] {
        let txn = TxnRequest { success: vec![op_put("a", "1"), bad], ..TxnRequest::default() };
        assert_eq!(error(store.txn(&txn)), expected);
    }
    assert_eq!((store.reader.revision(), store.texts("a", "\0", 0).len()), (1, 0));
}

#[test]
fn a_deletion_answers_what_it_deleted() {
    let mut store = Replica::new();
    for key in ["a", "b", "c"] {
        store.set(key, key);
    }
    let response = store.delete("a", "c");
    assert_eq!((response.deleted, response.prev_kvs.len()), (2, 2));
    assert_eq!(store.texts("\0", "\0", 0), ["c=c"]);
}

#[test]
fn a_minted_revision_must_be_above_every_other() {
    let mut store = Replica::new();
    let at = |revision| command::put(Revision::At(revision), &put("a", "1"));
    assert!(store.command(at(10)).is_ok());
    assert_eq!((store.reader.revision(), store.reader.top_revision()), (10, 10));
    for passed in [1, 9, 10] {
        assert!(matches!(store.command(at(passed)), Err(KvError::RevisionPassed)));
    }
    assert_eq!(store.range(range("a", "")).unwrap().kvs[0].version, 1);
    assert_eq!(store.set("a", "2"), 11);
    let nothing = command::delete_range(
        Revision::At(20),
        &DeleteRangeRequest { key: bytes("none"), ..DeleteRangeRequest::default() },
    );
    assert!(store.command(nothing).is_ok());
    assert_eq!(store.reader.revision(), 11);
}

#[test]
fn a_stream_has_the_header_in_its_last_chunk_and_one_revision() {
    let mut store = Replica::new();
    for at in 0..3000 {
        store.set(&format!("key{at:05}"), "value");
    }
    let mut stream = store.reader.range_stream(&range("key", "\0")).unwrap();
    let first = stream.next().unwrap().unwrap();
    assert!(first.header.is_none() && !first.more && first.count == 0 && !first.kvs.is_empty());
    store.set("key00000", "changed");
    store.delete("key02999", "");
    let rest: Vec<_> = stream.map(Result::unwrap).collect();
    let keys = first.kvs.len() + rest.iter().map(|chunk| chunk.kvs.len()).sum::<usize>();
    assert_eq!((keys, rest.last().unwrap().count), (3000, 3000));
    assert_eq!(rest.last().unwrap().header.unwrap().revision, 3001);
    let limited = store.reader.range_stream(&RangeRequest { limit: 2500, ..range("key", "\0") }).unwrap();
    let chunks: Vec<_> = limited.map(Result::unwrap).collect();
    assert_eq!(chunks.iter().map(|chunk| chunk.kvs.len()).sum::<usize>(), 2500);
    assert!(chunks.last().unwrap().more && chunks.last().unwrap().count == 2999);
    let mut stream = store.reader.range_stream(&range("key", "\0")).unwrap();
    assert!(stream.next().unwrap().is_ok());
    store.set("x", "1");
    store.compact(store.reader.revision()).unwrap();
    assert_eq!(error(stream.next().unwrap()), EtcdError::Compacted);
    assert!(stream.next().is_none());
}
