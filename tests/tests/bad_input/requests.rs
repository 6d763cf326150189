//! Requests that make no sense, asked at every member: each is told etcd's code and text, and has no effect.

use anyhow::{Result, ensure};
use conclave_api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    request_op::Request,
};
use conclave_tests::{
    load::{Client, connect},
    trial::{Setup, Trial},
};
use prost::Message;
use tonic::{Response, Status};

/// The largest request, as encoded; above it, gRPC itself takes half a mebibyte more.
const REQUEST_BYTES_MAX: usize = 3 << 19;
const OPS_MAX: usize = 128;

const EMPTY_KEY: &str = "InvalidArgument: etcdserver: key is not provided";
const TOO_LARGE: &str = "InvalidArgument: etcdserver: request is too large";
const TOO_MANY: &str = "InvalidArgument: etcdserver: too many operations in txn request";
const DUPLICATE: &str = "InvalidArgument: etcdserver: duplicate key given in txn request";
const FUTURE: &str = "OutOfRange: etcdserver: mvcc: required revision is a future revision";
const COMPACTED: &str = "OutOfRange: etcdserver: mvcc: required revision has been compacted";

fn told<T>(outcome: Result<Response<T>, Status>) -> String {
    match outcome {
        Ok(_) => "accepted".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// What a stream of a range tells, in its head or in its end.
async fn told_in_stream(kv: &mut Client, request: RangeRequest) -> String {
    match kv.range_stream(request).await {
        Ok(parts) => {
            let mut parts = parts.into_inner();
            loop {
                match parts.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return "accepted".to_owned(),
                    Err(status) => return told::<()>(Err(status)),
                }
            }
        }
        Err(status) => told::<()>(Err(status)),
    }
}

fn put(key: impl Into<String>, value: impl Into<String>) -> PutRequest {
    PutRequest { key: key.into().into(), value: value.into().into(), ..PutRequest::default() }
}

/// A put whose encoding has exactly so many bytes.
fn put_of(size_bytes: usize) -> PutRequest {
    let sized = |value_bytes: usize| put("large", "x".repeat(value_bytes));
    let surplus = sized(size_bytes).encoded_len() - size_bytes;
    sized(size_bytes - surplus)
}

fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

fn get_at(revision: i64) -> RangeRequest {
    RangeRequest { revision, ..get("k") }
}

fn delete(key: &str, range_end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_owned().into(), range_end: range_end.to_owned().into(), prev_kv: false }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put_op(key: impl Into<String>) -> RequestOp {
    op(Request::RequestPut(put(key, "v")))
}

fn nested(success: Vec<RequestOp>) -> RequestOp {
    op(Request::RequestTxn(then(success)))
}

fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

fn compact(revision: i64) -> CompactionRequest {
    CompactionRequest { revision, physical: false }
}

fn many(count: usize) -> Vec<RequestOp> {
    (0..count).map(|number| put_op(format!("many-{number}"))).collect()
}

/// What a member told, beside what etcd tells.
type Told = Vec<(String, &'static str)>;

async fn requests_without_sense(kv: &mut Client) -> Told {
    let sorted = RangeRequest { sort_order: 9, ..get("k") };
    let with_value = PutRequest { ignore_value: true, ..put("k", "v") };
    let with_lease = PutRequest { ignore_lease: true, lease: 1, ..put("k", "v") };
    let without_value = PutRequest { ignore_value: true, ..put("absent", "") };
    let unleased = PutRequest { lease: 5, ..put("k", "v") };
    let compare_nothing = TxnRequest { compare: vec![Compare::default()], ..then(vec![]) };
    vec![
        (told(kv.put(put("", "v")).await), EMPTY_KEY),
        (told(kv.range(get("")).await), EMPTY_KEY),
        (told_in_stream(kv, get("")).await, EMPTY_KEY),
        (told(kv.delete_range(delete("", "")).await), EMPTY_KEY),
        (told(kv.txn(then(vec![put_op("a"), put_op("")])).await), EMPTY_KEY),
        (told(kv.txn(compare_nothing).await), EMPTY_KEY),
        (told(kv.range(sorted).await), "InvalidArgument: etcdserver: invalid sort option"),
        (told(kv.put(with_value).await), "InvalidArgument: etcdserver: value is provided"),
        (told(kv.put(with_lease).await), "InvalidArgument: etcdserver: lease is provided"),
        (told(kv.put(without_value).await), "InvalidArgument: etcdserver: key not found"),
        (told(kv.put(unleased).await), "NotFound: etcdserver: requested lease not found"),
    ]
}

async fn requests_too_large(kv: &mut Client) -> Told {
    let large = op(Request::RequestPut(put_of(REQUEST_BYTES_MAX)));
    vec![
        (told(kv.put(put_of(REQUEST_BYTES_MAX + 1)).await), TOO_LARGE),
        (told(kv.txn(then(vec![put_op("a"), large])).await), TOO_LARGE),
        (
            told(kv.put(put_of(REQUEST_BYTES_MAX + (1 << 20))).await),
            "ResourceExhausted: grpc: received message larger than max (2097152 bytes)",
        ),
    ]
}

async fn too_many_operations(kv: &mut Client) -> Told {
    let compare = Compare { key: "k".into(), ..Compare::default() };
    let compares = TxnRequest { compare: vec![compare; OPS_MAX + 1], ..then(vec![]) };
    let failure = TxnRequest { failure: many(OPS_MAX + 1), ..then(vec![]) };
    vec![
        (told(kv.txn(then(many(OPS_MAX + 1))).await), TOO_MANY),
        (told(kv.txn(failure).await), TOO_MANY),
        (told(kv.txn(compares).await), TOO_MANY),
        (told(kv.txn(then(vec![nested(many(OPS_MAX))])).await), TOO_MANY),
    ]
}

async fn duplicate_keys(kv: &mut Client) -> Told {
    let deletion = || op(Request::RequestDeleteRange(delete("a", "c")));
    vec![
        (told(kv.txn(then(vec![put_op("a"), put_op("a")])).await), DUPLICATE),
        (told(kv.txn(then(vec![put_op("b"), deletion()])).await), DUPLICATE),
        (told(kv.txn(then(vec![nested(vec![put_op("a")]), put_op("a")])).await), DUPLICATE),
        (told(kv.txn(then(vec![nested(vec![deletion()]), put_op("b")])).await), DUPLICATE),
    ]
}

async fn revisions_out_of_range(kv: &mut Client, last: i64, compacted: i64) -> Told {
    let write_and_read_at = |revision| then(vec![put_op("a"), op(Request::RequestRange(get_at(revision)))]);
    let serializable = |revision| RangeRequest { serializable: true, ..get_at(revision) };
    vec![
        (told(kv.range(get_at(last + 1)).await), FUTURE),
        (told(kv.range(get_at(i64::MAX)).await), FUTURE),
        (told_in_stream(kv, get_at(last + 1)).await, FUTURE),
        (told(kv.compact(compact(last + 1)).await), FUTURE),
        (told(kv.txn(write_and_read_at(last + 2)).await), FUTURE),
        (told(kv.range(get_at(compacted)).await), "accepted"),
        (told(kv.range(get_at(compacted - 1)).await), COMPACTED),
        (told(kv.range(serializable(compacted - 1)).await), COMPACTED),
        (told_in_stream(kv, get_at(compacted - 1)).await, COMPACTED),
        (told(kv.compact(compact(compacted)).await), COMPACTED),
        (told(kv.compact(compact(compacted - 1)).await), COMPACTED),
        (told(kv.txn(write_and_read_at(compacted - 1)).await), COMPACTED),
    ]
}

async fn streams_beyond_their_limits(kv: &mut Client) -> Told {
    let sorted = "Unimplemented: RangeStream does not support custom sort orders";
    let filtered = "Unimplemented: RangeStream does not support revision filters";
    let by = |sort_order, sort_target| RangeRequest { sort_order, sort_target, ..get("k") };
    vec![
        (told_in_stream(kv, by(1, 0)).await, "accepted"),
        (told_in_stream(kv, by(2, 0)).await, sorted),
        (told_in_stream(kv, by(1, 4)).await, sorted),
        (told_in_stream(kv, RangeRequest { min_mod_revision: 1, ..get("k") }).await, filtered),
        (told_in_stream(kv, RangeRequest { max_create_revision: 9, ..get("k") }).await, filtered),
    ]
}

async fn revision(kv: &mut Client) -> Result<i64> {
    let response = kv.range(get("k")).await?.into_inner();
    Ok(response.header.map_or(0, |header| header.revision))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_refuses_as_etcd_does_and_nothing_changes() -> Result<()> {
    let mut trial = Trial::start(&Setup::default()).await?;
    trial.leader().await?;
    let mut kv = connect(&trial.endpoints()[0])?;
    for value in ["1", "2", "3", "4"] {
        kv.put(put("k", value)).await?;
    }
    // What is just within the bounds goes through every member, the followers forward it.
    for endpoint in trial.endpoints() {
        let mut kv = connect(&endpoint)?;
        let at_the_bounds = [
            ("largest request", told(kv.put(put_of(REQUEST_BYTES_MAX)).await)),
            ("most operations", told(kv.txn(then(many(OPS_MAX))).await)),
            ("most nested operations", told(kv.txn(then(vec![nested(many(OPS_MAX - 1))])).await)),
        ];
        for (what, told) in at_the_bounds {
            ensure!(told == "accepted", "the {what} at {endpoint}: {told}");
        }
    }
    let compacted = 4;
    kv.compact(compact(compacted)).await?;
    let last = revision(&mut kv).await?;
    for endpoint in trial.endpoints() {
        let mut kv = connect(&endpoint)?;
        ensure!(revision(&mut kv).await? == last, "a member that lags in a linearizable read");
        let mut all = requests_without_sense(&mut kv).await;
        all.extend(requests_too_large(&mut kv).await);
        all.extend(too_many_operations(&mut kv).await);
        all.extend(duplicate_keys(&mut kv).await);
        all.extend(revisions_out_of_range(&mut kv, last, compacted).await);
        all.extend(streams_beyond_their_limits(&mut kv).await);
        for (number, (told, expected)) in all.iter().enumerate() {
            ensure!(told == expected, "request {number} at {endpoint}: {told}, not {expected}");
        }
        ensure!(revision(&mut kv).await? == last, "a refused request had an effect");
    }
    let hashes = trial.hashes(last).await?;
    ensure!(hashes.iter().all(|(_, hash)| *hash == hashes[0].1), "the members differ: {hashes:?}");
    let value = kv.range(get("k")).await?.into_inner().kvs.remove(0).value;
    ensure!(value == "4", "k has another value: {value:?}");
    trial.cluster.check_alive()
}
