//! Leases over real gRPC: answers, and the code and text of each refusal.

use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::lease_client::LeaseClient;
use conclave_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest,
};
use expect_test::expect;
use futures::StreamExt;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Request, Streaming, metadata::AsciiMetadataValue};

use crate::backend::{Fault, Running, lines, start, told};

fn lease(running: &Running) -> LeaseClient<Channel> {
    LeaseClient::new(running.channel())
}

fn grant(id: i64, ttl: i64) -> LeaseGrantRequest {
    LeaseGrantRequest { id, ttl }
}

fn leased(key: &str, lease: i64) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: "v".into(), lease, ..PutRequest::default() }
}

async fn count(running: &Running) -> i64 {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
    running.kv().range(all).await.unwrap().into_inner().count
}

async fn left(client: &mut LeaseClient<Channel>, id: i64) -> LeaseTimeToLiveResponse {
    client.lease_time_to_live(LeaseTimeToLiveRequest { id, keys: true }).await.unwrap().into_inner()
}

/// A stream of renewals and the way to ask for more.
async fn keep_alive(
    client: &mut LeaseClient<Channel>,
) -> (mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>) {
    let (ask, asked) = mpsc::channel(200);
    let requests = futures::stream::unfold(asked, async |mut asked| Some((asked.recv().await?, asked)));
    let answers = client.lease_keep_alive(requests.boxed()).await.unwrap().into_inner();
    (ask, answers)
}

#[tokio::test]
async fn a_lease_lives_by_renewals_and_takes_its_keys_with_it() {
    let running = start(|_| {});
    let mut client = lease(&running);
    let granted = client.lease_grant(grant(7, 10)).await.unwrap().into_inner();
    assert_eq!((granted.id, granted.ttl, granted.error.as_str()), (7, 10, ""));
    let header = granted.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id, header.revision, header.raft_term), (0xc, 0xa, 1, 3));
    for key in ["b", "a"] {
        running.kv().put(leased(key, 7)).await.unwrap();
    }
    running.fake.pass(6);
    let told = left(&mut client, 7).await;
    assert_eq!((told.id, told.ttl, told.granted_ttl), (7, 4, 10));
    assert_eq!((told.keys, told.header.unwrap().revision), (vec!["a".into(), "b".into()], 3));
    let without = client.lease_time_to_live(LeaseTimeToLiveRequest { id: 7, keys: false }).await.unwrap();
    assert!(without.into_inner().keys.is_empty());
    let (ask, mut answers) = keep_alive(&mut client).await;
    ask.send(LeaseKeepAliveRequest { id: 7 }).await.unwrap();
    let renewed = answers.message().await.unwrap().unwrap();
    assert_eq!((renewed.id, renewed.ttl, renewed.header.unwrap().revision), (7, 10, 3));
    running.fake.pass(9);
    assert_eq!((count(&running).await, left(&mut client, 7).await.ttl), (2, 1));
    running.fake.pass(1);
    assert_eq!((count(&running).await, left(&mut client, 7).await.ttl), (0, -1));
    ask.send(LeaseKeepAliveRequest { id: 7 }).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl, 0, "no such lease is no error");
    drop(ask);
    assert!(answers.message().await.unwrap().is_none());
    running.front.shutdown().await;
}

#[tokio::test]
async fn ids_and_times_are_chosen_where_none_are_given() {
    let running = start(|config| {
        config.election_timeout = std::time::Duration::from_millis(1_400);
    });
    let mut client = lease(&running);
    let chosen = client.lease_grant(grant(0, 60)).await.unwrap().into_inner();
    let another = client.lease_grant(grant(0, 60)).await.unwrap().into_inner();
    assert!(chosen.id > 0 && another.id > 0 && chosen.id != another.id);
    // One and a half election timeouts, in whole seconds.
    for ttl in [0, -9, 1, 3] {
        assert_eq!(client.lease_grant(grant(0, ttl)).await.unwrap().into_inner().ttl, 3);
    }
    assert_eq!(client.lease_grant(grant(-7, 9_000_000_000)).await.unwrap().into_inner().ttl, 9_000_000_000);
    let all = client.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner();
    assert_eq!((all.leases.len(), all.leases[0].id, all.header.unwrap().member_id), (7, -7, 0xa));
    client.lease_revoke(LeaseRevokeRequest { id: -7 }).await.unwrap();
    assert_eq!(client.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases.len(), 6);
    running.front.shutdown().await;
}

#[tokio::test]
async fn every_refusal_has_etcds_code_and_text() {
    let running = start(|_| {});
    let mut client = lease(&running);
    client.lease_grant(grant(7, 10)).await.unwrap();
    let mut told_of = vec![
        told(client.lease_grant(grant(7, 10)).await),
        told(client.lease_grant(grant(8, 9_000_000_001)).await),
        told(client.lease_grant(grant(8, i64::MAX)).await),
        told(client.lease_revoke(LeaseRevokeRequest { id: 8 }).await),
        told(client.lease_revoke(LeaseRevokeRequest { id: 0 }).await),
        told(running.kv().put(leased("k", 8)).await),
        told(running.kv().put(PutRequest { ignore_lease: true, ..leased("k", 7) }).await),
        told(running.kv().put(PutRequest { ignore_lease: true, ..leased("k", 0) }).await),
    ];
    running.fake.raft.lock().unwrap().is_learner = true;
    told_of.push(told(client.lease_grant(grant(9, 10)).await));
    told_of.push(told(client.lease_revoke(LeaseRevokeRequest { id: 7 }).await));
    told_of.push(told(client.lease_time_to_live(LeaseTimeToLiveRequest { id: 7, keys: false }).await));
    told_of.push(told(client.lease_leases(LeaseLeasesRequest {}).await));
    told_of.push(told(client.lease_keep_alive(futures::stream::pending()).await));
    expect![[r#"
        FailedPrecondition: etcdserver: lease already exists
        OutOfRange: etcdserver: too large lease TTL
        OutOfRange: etcdserver: too large lease TTL
        NotFound: etcdserver: requested lease not found
        NotFound: etcdserver: requested lease not found
        NotFound: etcdserver: requested lease not found
        InvalidArgument: etcdserver: lease is provided
        InvalidArgument: etcdserver: key not found
        FailedPrecondition: etcdserver: rpc not supported for learner
        FailedPrecondition: etcdserver: rpc not supported for learner
        FailedPrecondition: etcdserver: rpc not supported for learner
        FailedPrecondition: etcdserver: rpc not supported for learner
        FailedPrecondition: etcdserver: rpc not supported for learner
    "#]]
    .assert_eq(&lines(told_of));
    running.front.shutdown().await;
}

#[tokio::test]
async fn renewals_of_one_stream_are_answered_in_order_until_one_fails() {
    let running = start(|_| {});
    let mut client = lease(&running);
    for id in 1..=100 {
        client.lease_grant(grant(id, 10 + id)).await.unwrap();
    }
    let (ask, mut answers) = keep_alive(&mut client).await;
    for id in 1..=100 {
        ask.send(LeaseKeepAliveRequest { id }).await.unwrap();
    }
    for id in 1..=100 {
        let renewed = answers.message().await.unwrap().unwrap();
        assert_eq!((renewed.id, renewed.ttl), (id, 10 + id));
    }
    running.fake.fail(Fault::Renew(EtcdError::NoLeader));
    ask.send(LeaseKeepAliveRequest { id: 1 }).await.unwrap();
    expect!["Unavailable: etcdserver: no leader"].assert_eq(&told(answers.message().await));
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_streams_that_ask_nothing() {
    let running = start(|_| {});
    let mut client = lease(&running);
    let (_ask, mut answers) = keep_alive(&mut client).await;
    let began = std::time::Instant::now();
    let stop = tokio::spawn(running.front.shutdown());
    assert!(answers.message().await.unwrap().is_none());
    drop((answers, client));
    stop.await.unwrap();
    assert!(began.elapsed() < conclave_node::front::DRAIN_LIMIT);
}

#[tokio::test]
async fn a_repeated_grant_is_answered_as_the_first_time() {
    let running = start(|_| {});
    let mut client = lease(&running);
    let named = || {
        let mut request = Request::new(grant(0, 60));
        let name = AsciiMetadataValue::from_static("0123456789abcdef0123456789abcdef-1");
        request.metadata_mut().insert("conclave-request-id", name);
        request
    };
    let first = client.lease_grant(named()).await.unwrap().into_inner();
    assert_eq!(client.lease_grant(named()).await.unwrap().into_inner(), first);
    assert_eq!(client.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases.len(), 1);
    running.front.shutdown().await;
}
