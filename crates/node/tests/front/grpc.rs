//! The services that are served: answers, and the code and text of each refusal.

use conclave_api::etcdserverpb::cluster_client::ClusterClient;
use conclave_api::etcdserverpb::maintenance_client::MaintenanceClient;
use conclave_api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, HashRequest, MemberListRequest,
    PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest, request_op,
};
use conclave_api::grpc::health::v1::HealthCheckRequest;
use conclave_api::grpc::health::v1::health_client::HealthClient;
use conclave_node::backend::{BarrierError, ProposeError};
use expect_test::expect;
use tonic::Request;
use tonic::metadata::MetadataValue;

use crate::backend::{Fault, lines, start, told};

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() }
}

fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put_op(key: &str) -> RequestOp {
    op(request_op::Request::RequestPut(put(key, "v")))
}

fn then(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

#[tokio::test]
async fn answers_carry_a_full_header() {
    let running = start(|_| {});
    let mut kv = running.kv();
    let header = kv.put(put("k", "v")).await.unwrap().into_inner().header.unwrap();
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (0xc, 0xa, 2, 3));
    let response = kv.range(get("k")).await.unwrap().into_inner();
    assert_eq!(response.kvs[0].value, "v");
    let header = response.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (0xc, 0xa, 2, 3));
    let response =
        kv.txn(then(vec![put_op("k"), op(request_op::Request::RequestRange(get("k")))])).await.unwrap();
    assert_eq!(response.into_inner().header.unwrap().revision, 3);
    let deletion = DeleteRangeRequest { key: "k".into(), ..DeleteRangeRequest::default() };
    assert_eq!(kv.delete_range(deletion).await.unwrap().into_inner().deleted, 1);
    let compaction = CompactionRequest { revision: 4, physical: true };
    assert_eq!(kv.compact(compaction).await.unwrap().into_inner().header.unwrap().member_id, 0xa);
    running.front.shutdown().await;
}

#[tokio::test]
async fn every_refusal_has_etcds_code_and_text() {
    let running = start(|config| config.max_txn_ops = 2);
    let mut kv = running.kv();
    let mut told_of = Vec::new();
    told_of.push(told(kv.put(put("", "v")).await));
    told_of.push(told(kv.range(get("")).await));
    told_of.push(told(kv.delete_range(DeleteRangeRequest::default()).await));
    told_of.push(told(kv.put(PutRequest { ignore_value: true, ..put("k", "v") }).await));
    told_of.push(told(kv.put(PutRequest { ignore_lease: true, lease: 1, ..put("k", "v") }).await));
    told_of.push(told(kv.put(PutRequest { ignore_value: true, ..put("absent", "") }).await));
    told_of.push(told(kv.put(PutRequest { lease: 5, ..put("k", "v") }).await));
    told_of.push(told(kv.range(RangeRequest { sort_order: 9, ..get("k") }).await));
    told_of.push(told(kv.txn(then(vec![put_op("a"), put_op("b"), put_op("c")])).await));
    told_of.push(told(kv.txn(then(vec![put_op("a"), put_op("a")])).await));
    told_of.push(told(kv.txn(then(vec![RequestOp::default()])).await));
    told_of.push(told(kv.txn(TxnRequest { compare: vec![Compare::default()], ..then(vec![]) }).await));
    told_of.push(told(kv.range(RangeRequest { revision: 99, ..get("k") }).await));
    told_of.push(told(kv.compact(CompactionRequest { revision: 99, physical: false }).await));
    kv.put(put("k", "1")).await.unwrap();
    kv.put(put("k", "2")).await.unwrap();
    kv.compact(CompactionRequest { revision: 3, physical: false }).await.unwrap();
    told_of.push(told(kv.range(RangeRequest { revision: 2, ..get("k") }).await));
    told_of.push(told(kv.compact(CompactionRequest { revision: 2, physical: false }).await));
    told_of.push(told(kv.put(put("k", &"x".repeat(1_572_865))).await));
    told_of.push(told(kv.put(put("k", &"x".repeat(3 << 20))).await));
    let sorted = RangeRequest { sort_order: 2, sort_target: 3, ..get("k") };
    told_of.push(told(kv.range_stream(sorted).await));
    // Nothing of it had an effect, and the connection goes on.
    assert_eq!(kv.range(get("k")).await.unwrap().into_inner().header.unwrap().revision, 3);
    expect![[r#"
        InvalidArgument: etcdserver: key is not provided
        InvalidArgument: etcdserver: key is not provided
        InvalidArgument: etcdserver: key is not provided
        InvalidArgument: etcdserver: value is provided
        InvalidArgument: etcdserver: lease is provided
        InvalidArgument: etcdserver: key not found
        NotFound: etcdserver: requested lease not found
        InvalidArgument: etcdserver: invalid sort option
        InvalidArgument: etcdserver: too many operations in txn request
        InvalidArgument: etcdserver: duplicate key given in txn request
        InvalidArgument: etcdserver: key not found
        InvalidArgument: etcdserver: key is not provided
        OutOfRange: etcdserver: mvcc: required revision is a future revision
        OutOfRange: etcdserver: mvcc: required revision is a future revision
        OutOfRange: etcdserver: mvcc: required revision has been compacted
        OutOfRange: etcdserver: mvcc: required revision has been compacted
        InvalidArgument: etcdserver: request is too large
        ResourceExhausted: grpc: received message larger than max (2097152 bytes)
        Unimplemented: RangeStream does not support custom sort orders
    "#]]
    .assert_eq(&lines(told_of));
    running.front.shutdown().await;
}

#[tokio::test]
async fn what_certainly_had_no_effect_is_tried_again() {
    let running = start(|_| {});
    let mut kv = running.kv();
    running.fake.fail(Fault::Propose(ProposeError::NoLeader));
    running.fake.fail(Fault::Propose(ProposeError::Dropped));
    assert_eq!(kv.put(put("k", "v")).await.unwrap().into_inner().header.unwrap().revision, 2);
    running.fake.fail(Fault::Barrier(BarrierError::LeaderChanged));
    running.fake.fail(Fault::Barrier(BarrierError::NoLeader));
    assert_eq!(kv.range(get("k")).await.unwrap().into_inner().count, 1);
    running.front.shutdown().await;
}

#[tokio::test]
async fn what_may_have_had_an_effect_is_told_so() {
    let running = start(|_| {});
    let mut kv = running.kv();
    let mut told_of = Vec::new();
    for error in [ProposeError::Unknown, ProposeError::Overloaded, ProposeError::Stopped] {
        running.fake.fail(Fault::Propose(error));
        told_of.push(told(kv.put(put("k", "v")).await));
    }
    for error in [BarrierError::Overloaded, BarrierError::Stopped] {
        running.fake.fail(Fault::Barrier(error));
        told_of.push(told(kv.range(get("k")).await));
    }
    expect![[r#"
        Unavailable: etcdserver: request timed out, possibly due to previous leader failure
        ResourceExhausted: etcdserver: too many requests
        Unavailable: etcdserver: server stopped
        ResourceExhausted: etcdserver: too many requests
        Unavailable: etcdserver: server stopped
    "#]]
    .assert_eq(&lines(told_of));
    running.front.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_wait_for_ever() {
    let running = start(|_| {});
    let mut kv = running.kv();
    running.fake.fail(Fault::Hang);
    let mut told_of = vec![told(kv.put(put("k", "v")).await)];
    running.fake.fail(Fault::Hang);
    told_of.push(told(kv.range(get("k")).await));
    running.fake.raft.lock().unwrap().leader = None;
    running.fake.fail(Fault::Hang);
    told_of.push(told(kv.put(put("k", "v")).await));
    expect![[r#"
        Unavailable: etcdserver: request timed out
        Unavailable: etcdserver: request timed out
        Unavailable: etcdserver: request timed out, possibly due to connection lost
    "#]]
    .assert_eq(&lines(told_of));
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_serializable_read_needs_nobody() {
    let running = start(|_| {});
    let mut kv = running.kv();
    running.fake.fail(Fault::Hang);
    let response = kv.range(RangeRequest { serializable: true, ..get("k") }).await.unwrap();
    assert_eq!(response.into_inner().count, 0);
    running.front.shutdown().await;
}

#[tokio::test]
async fn learners_and_leaderless_members_refuse() {
    let running = start(|_| {});
    let mut kv = running.kv();
    let demanding = || {
        let mut request = Request::new(RangeRequest { serializable: true, ..get("k") });
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        request
    };
    let mut told_of = vec![told(kv.range(demanding()).await)];
    running.fake.raft.lock().unwrap().leader = None;
    told_of.push(told(kv.range(demanding()).await));
    running.fake.raft.lock().unwrap().is_learner = true;
    told_of.push(told(kv.put(put("k", "v")).await));
    told_of.push(told(kv.range(get("k")).await));
    told_of.push(told(kv.range(RangeRequest { serializable: true, ..get("k") }).await));
    told_of.push(told(ClusterClient::new(running.channel()).member_list(MemberListRequest::default()).await));
    told_of.push(told(MaintenanceClient::new(running.channel()).status(StatusRequest::default()).await));
    expect![[r#"
        ok
        Unavailable: etcdserver: no leader
        FailedPrecondition: etcdserver: rpc not supported for learner
        FailedPrecondition: etcdserver: rpc not supported for learner
        ok
        FailedPrecondition: etcdserver: rpc not supported for learner
        ok
    "#]]
    .assert_eq(&lines(told_of));
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_stream_of_a_range_is_the_range() {
    let running = start(|_| {});
    let mut kv = running.kv();
    for i in 0..50 {
        kv.put(put(&format!("k{i:02}"), &"v".repeat(1000))).await.unwrap();
    }
    let request = RangeRequest { range_end: "l".into(), ..get("k") };
    let whole = kv.range(request.clone()).await.unwrap().into_inner();
    let mut stream = kv.range_stream(request).await.unwrap().into_inner();
    let (mut kvs, mut last) = (Vec::new(), None);
    while let Some(part) = stream.message().await.unwrap() {
        assert!(
            last.replace(part.range_response.clone().unwrap()).is_none_or(|earlier| earlier.header.is_none())
        );
        kvs.extend(part.range_response.unwrap().kvs);
    }
    let last = last.unwrap();
    assert_eq!((kvs, last.count, last.header), (whole.kvs, whole.count, whole.header));
    running.front.shutdown().await;
}

#[tokio::test]
async fn members_status_and_hashes() {
    let running = start(|_| {});
    running.kv().put(put("k", "v")).await.unwrap();
    let mut cluster = ClusterClient::new(running.channel());
    let list = cluster.member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    assert_eq!((list.members[0].name.as_str(), list.header.unwrap().revision), ("m1", 2));
    let mut maintenance = MaintenanceClient::new(running.channel());
    let status = maintenance.status(StatusRequest::default()).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.storage_version.as_str()), ("3.7.1", "3.7.0"));
    assert_eq!(
        (status.leader, status.raft_term, status.raft_index, status.raft_applied_index),
        (0xa, 3, 9, 8)
    );
    assert_eq!((status.db_size, status.db_size_in_use, status.errors.len()), (4096, 1024, 0));
    let hash = maintenance.hash(HashRequest::default()).await.unwrap().into_inner();
    assert_eq!(hash.header.unwrap().member_id, 0xa);
    let hash = maintenance.hash_kv(HashKvRequest { revision: 2 }).await.unwrap().into_inner();
    assert_eq!((hash.hash_revision, hash.header.unwrap().cluster_id), (2, 0xc));
    expect!["OutOfRange: etcdserver: mvcc: required revision is a future revision"]
        .assert_eq(&told(maintenance.hash_kv(HashKvRequest { revision: 9 }).await));
    running.fake.raft.lock().unwrap().leader = None;
    let status = maintenance.status(StatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.errors, ["etcdserver: no leader"]);
    running.front.shutdown().await;
}

#[tokio::test]
async fn grpcs_own_health_protocol() {
    let running = start(|_| {});
    let mut health = HealthClient::new(running.channel());
    assert_eq!(health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status, 1);
    let other = HealthCheckRequest { service: "nobody".to_owned() };
    expect!["NotFound: unknown service"].assert_eq(&told(health.check(other.clone()).await));
    let mut unknown = health.watch(other).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status, 3);
    drop(unknown);
    let mut updates = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(updates.message().await.unwrap().unwrap().status, 1);
    // A stop is told, ends the stream, and so need not wait for its watchers.
    let stop = tokio::spawn(running.front.shutdown());
    assert_eq!(updates.message().await.unwrap().unwrap().status, 2);
    assert!(updates.message().await.unwrap().is_none());
    drop((updates, health));
    stop.await.unwrap();
}
