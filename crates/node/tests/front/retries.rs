//! Requests that carry an id: repeated, they are answered as the first time.

use conclave_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};
use conclave_node::backend::ProposeError;
use expect_test::expect;
use tonic::{Request, metadata::AsciiMetadataValue};

use crate::backend::{Fault, lines, start, told};

const CLIENT: &str = "0123456789abcdef0123456789abcdef";

fn named<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().append("conclave-request-id", AsciiMetadataValue::try_from(id).unwrap());
    request
}

fn put(value: &str) -> PutRequest {
    PutRequest { key: "k".into(), value: value.to_owned().into(), prev_kv: true, ..PutRequest::default() }
}

fn get() -> RangeRequest {
    RangeRequest { key: "k".into(), ..RangeRequest::default() }
}

fn deletion() -> DeleteRangeRequest {
    DeleteRangeRequest { key: "k".into(), ..DeleteRangeRequest::default() }
}

fn txn(value: &str) -> TxnRequest {
    let ops = [request_op::Request::RequestRange(get()), request_op::Request::RequestPut(put(value))];
    let success = ops.map(|request| RequestOp { request: Some(request) }).to_vec();
    TxnRequest { success, ..TxnRequest::default() }
}

#[tokio::test]
async fn a_repeated_request_is_answered_as_the_first_time() {
    let running = start(|_| {});
    let mut kv = running.kv();
    let id = |sequence: u64| format!("{CLIENT}-{sequence}");
    let first = kv.put(named(&id(1), put("1"))).await.unwrap().into_inner();
    assert_eq!(kv.put(named(&id(1), put("2"))).await.unwrap().into_inner(), first);
    let first = kv.txn(named(&id(2), txn("3"))).await.unwrap().into_inner();
    // What has no effect here is tried again by the member itself, under the same name.
    running.fake.fail(Fault::Propose(ProposeError::Dropped));
    assert_eq!(kv.txn(named(&id(2), txn("4"))).await.unwrap().into_inner(), first);
    let first = kv.delete_range(named(&id(3), deletion())).await.unwrap().into_inner();
    kv.put(put("5")).await.unwrap();
    assert_eq!(kv.delete_range(named(&id(3), deletion())).await.unwrap().into_inner(), first);
    let compaction = CompactionRequest { revision: 4, physical: false };
    let first = kv.compact(named(&id(4), compaction)).await.unwrap().into_inner();
    kv.put(put("6")).await.unwrap();
    assert_eq!(kv.compact(named(&id(4), compaction)).await.unwrap().into_inner(), first);
    let response = kv.range(named("no id, but a read has no use for one", get())).await.unwrap().into_inner();
    assert_eq!((&response.kvs[0].value[..], response.header.unwrap().revision), (&b"6"[..], 6));
    running.front.shutdown().await;
}

#[tokio::test]
async fn ids_that_are_refused() {
    let running = start(|_| {});
    let mut kv = running.kv();
    let mut told_of = Vec::new();
    for id in ["", "7", &format!("{CLIENT}0-7"), &format!("{CLIENT}-18446744073709551616")] {
        told_of.push(told(kv.put(named(id, put("1"))).await));
    }
    let mut twice = named(&format!("{CLIENT}-1"), deletion());
    twice.metadata_mut().append("conclave-request-id", AsciiMetadataValue::from_static("7"));
    told_of.push(told(kv.delete_range(twice).await));
    assert_eq!(kv.range(get()).await.unwrap().into_inner().header.unwrap().revision, 1);
    for sequence in 100..165 {
        kv.put(named(&format!("{CLIENT}-{sequence}"), put("1"))).await.unwrap();
    }
    told_of.push(told(kv.put(named(&format!("{CLIENT}-100"), put("2"))).await));
    told_of.push(told(kv.txn(named(&format!("{CLIENT}-101"), txn("2"))).await));
    kv.put(put(&"x".repeat(5000))).await.unwrap();
    kv.put(named(&format!("{CLIENT}-165"), put("2"))).await.unwrap();
    told_of.push(told(kv.put(named(&format!("{CLIENT}-165"), put("2"))).await));
    expect![[r#"
        InvalidArgument: conclave-request-id: a request id is 32 hexadecimal digits, a hyphen and a decimal number below 2^64
        InvalidArgument: conclave-request-id: a request id is 32 hexadecimal digits, a hyphen and a decimal number below 2^64
        InvalidArgument: conclave-request-id: a request id is 32 hexadecimal digits, a hyphen and a decimal number below 2^64
        InvalidArgument: conclave-request-id: a request id is 32 hexadecimal digits, a hyphen and a decimal number below 2^64
        InvalidArgument: conclave-request-id: given more than once
        FailedPrecondition: etcdserver: request is older than the outcomes kept for this client
        InvalidArgument: 0123456789abcdef0123456789abcdef-101 names a request of another kind
        AlreadyExists: etcdserver: request was applied at revision 68, but its answer was too large to keep
    "#]].assert_eq(&lines(told_of));
    assert_eq!(kv.range(get()).await.unwrap().into_inner().header.unwrap().revision, 68);
    running.front.shutdown().await;
}
