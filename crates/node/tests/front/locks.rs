//! Locks over real gRPC: their queue, their ends, and what is left behind.

use std::time::Duration;

use conclave_api::etcdserverpb::lease_client::LeaseClient;
use conclave_api::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
};
use conclave_api::v3lockpb::lock_client::LockClient;
use conclave_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use conclave_node::backend::{BarrierError, ProposeError};
use expect_test::expect;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::backend::{Fault, Running, lines, start, told};

fn locks(running: &Running) -> LockClient<Channel> {
    LockClient::new(running.channel())
}

async fn grant(running: &Running, id: i64) {
    LeaseClient::new(running.channel()).lease_grant(LeaseGrantRequest { id, ttl: 60 }).await.unwrap();
}

async fn revoke(running: &Running, id: i64) {
    LeaseClient::new(running.channel()).lease_revoke(LeaseRevokeRequest { id }).await.unwrap();
}

fn lock(name: &'static [u8], lease: i64) -> LockRequest {
    LockRequest { name: name.into(), lease }
}

type Locking = JoinHandle<Result<Response<LockResponse>, Status>>;

/// Begins to lock, and returns once the call stands in the queue.
async fn begin(running: &Running, name: &'static [u8], lease: i64) -> Locking {
    let before = keys(running).len();
    let mut client = locks(running);
    let call = tokio::spawn(async move { client.lock(lock(name, lease)).await });
    eventually(running, |keys| keys.len() > before).await;
    call
}

/// The keys of the store, by creation revision.
fn keys(running: &Running) -> Vec<String> {
    use conclave_node::Backend as _;
    let all = RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        sort_target: 2,
        sort_order: 1,
        ..RangeRequest::default()
    };
    let kvs = running.fake.reader().range(&all).unwrap().kvs;
    kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

async fn eventually(running: &Running, holds: impl Fn(Vec<String>) -> bool) {
    let waiting = async {
        while !holds(keys(running)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it comes about");
}

fn token(response: &Response<LockResponse>) -> i64 {
    response.metadata().get("conclave-fencing-token").unwrap().to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn owners_follow_each_other_in_the_order_of_arrival_with_growing_tokens() {
    let running = start(|_| {});
    for id in 1..=4 {
        grant(&running, id).await;
    }
    let first = locks(&running).lock(lock(b"name", 1)).await.unwrap();
    let mut calls = Vec::new();
    for id in 2..=4 {
        calls.push(begin(&running, b"name", id).await);
    }
    assert_eq!(keys(&running), ["name/1", "name/2", "name/3", "name/4"]);
    let (mut key, mut last) = (first.get_ref().key.clone(), token(&first));
    assert_eq!((&key[..], last), (&b"name/1"[..], 2));
    for call in calls {
        assert!(!call.is_finished());
        let unlocked = locks(&running).unlock(UnlockRequest { key }).await.unwrap().into_inner();
        assert_eq!(unlocked.header.unwrap().member_id, 0xa);
        let next = call.await.unwrap().unwrap();
        assert!(token(&next) > last && next.get_ref().header.as_ref().unwrap().revision >= token(&next));
        (key, last) = (next.into_inner().key, last + 1);
    }
    assert_eq!(&key[..], b"name/4");
    running.front.shutdown().await;
}

#[tokio::test]
async fn one_that_leaves_from_the_middle_lets_nobody_past() {
    let running = start(|_| {});
    for id in 1..=4 {
        grant(&running, id).await;
    }
    locks(&running).lock(lock(b"name", 1)).await.unwrap();
    let second = begin(&running, b"name", 2).await;
    let third = begin(&running, b"name", 3).await;
    let fourth = begin(&running, b"name", 4).await;
    revoke(&running, 3).await;
    // Its own end is all that a wait needs to hear of.
    expect!["Unknown: mutex: session is expired"].assert_eq(&told(third.await.unwrap()));
    revoke(&running, 1).await;
    second.await.unwrap().unwrap();
    assert!(!fourth.is_finished());
    assert_eq!(keys(&running), ["name/2", "name/4"]);
    revoke(&running, 2).await;
    assert_eq!(fourth.await.unwrap().unwrap().into_inner().key, "name/4");
    running.front.shutdown().await;
}

/// A lease that ends while the last question is under way owns nothing.
#[tokio::test]
async fn ownership_is_looked_at_again_after_the_wait() {
    let running = start(|_| {});
    grant(&running, 1).await;
    grant(&running, 2).await;
    locks(&running).lock(lock(b"name", 1)).await.unwrap();
    let second = begin(&running, b"name", 2).await;
    // The wait is over, and the read that follows it has to be tried again until the other lease is over too.
    (0..20).for_each(|_| running.fake.fail(Fault::Barrier(BarrierError::NoLeader)));
    running.fake.end_lease(1);
    while running.fake.faults_left() == 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.fake.end_lease(2);
    expect!["Unknown: mutex: session is expired"].assert_eq(&told(second.await.unwrap()));
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_nothing_behind() {
    let running = start(|_| {});
    for id in 1..=3 {
        grant(&running, id).await;
    }
    locks(&running).lock(lock(b"name", 1)).await.unwrap();
    let second = begin(&running, b"name", 2).await;
    let third = begin(&running, b"name", 3).await;
    second.abort();
    eventually(&running, |keys| keys == ["name/1", "name/3"]).await;
    assert!(!third.is_finished());
    let session = begin(&running, b"name", 0).await;
    session.abort();
    eventually(&running, |keys| keys == ["name/1", "name/3"]).await;
    let mut leases = LeaseClient::new(running.channel());
    let all = leases.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases;
    assert_eq!(all.len(), 3, "nor the session that was begun for it");
    // A client's own deadline is no different.
    let mut client = locks(&running);
    let limited = tokio::time::timeout(Duration::from_millis(50), client.lock(lock(b"name", 2)));
    assert!(limited.await.is_err());
    eventually(&running, |keys| keys == ["name/1", "name/3"]).await;
    running.front.shutdown().await;
}

#[tokio::test]
async fn one_lease_has_one_place() {
    let running = start(|_| {});
    grant(&running, 1).await;
    grant(&running, 2).await;
    let first = locks(&running).lock(lock(b"name", 1)).await.unwrap();
    let again = locks(&running).lock(lock(b"name", 1)).await.unwrap();
    assert_eq!((token(&first), &first.get_ref().key), (token(&again), &again.get_ref().key));
    // Two calls wait in one place; one that gives up does not take it from the other.
    let waiting = begin(&running, b"name", 2).await;
    let mut client = locks(&running);
    let limited = tokio::time::timeout(Duration::from_millis(50), client.lock(lock(b"name", 2)));
    assert!(limited.await.is_err());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(keys(&running), ["name/1", "name/2"]);
    locks(&running).unlock(UnlockRequest { key: first.into_inner().key }).await.unwrap();
    waiting.await.unwrap().unwrap();
    running.front.shutdown().await;
}

#[tokio::test]
async fn without_a_lease_the_server_begins_a_session_of_a_minute() {
    let running = start(|_| {});
    let owned = locks(&running).lock(lock(b"name", 0)).await.unwrap().into_inner();
    let waiting = begin(&running, b"name", 0).await;
    running.fake.pass(59);
    assert_eq!(keys(&running).len(), 2);
    assert_eq!(keys(&running)[0].as_bytes(), &owned.key[..]);
    running.fake.pass(1);
    // Both were begun within the same second of the clock; nobody keeps the second one alive either, as in etcd.
    expect!["Unknown: mutex: session is expired"].assert_eq(&told(waiting.await.unwrap()));
    assert!(keys(&running).is_empty());
    running.front.shutdown().await;
}

#[tokio::test]
async fn names_are_any_bytes() {
    let running = start(|_| {});
    grant(&running, -255).await;
    for name in [&b""[..], b"/", b"a/b", b"\0\xff", b"name", b"\xff\xff"] {
        let owned =
            locks(&running).lock(LockRequest { name: name.to_vec().into(), lease: -255 }).await.unwrap();
        assert_eq!(&owned.get_ref().key[..], &[name, b"/-ff"].concat());
    }
    // As in etcd a name owns what is below it.
    grant(&running, 1).await;
    let waiting = begin(&running, b"a", 1).await;
    locks(&running).unlock(UnlockRequest { key: "a/b/-ff".into() }).await.unwrap();
    waiting.await.unwrap().unwrap();
    running.front.shutdown().await;
}

#[tokio::test]
async fn what_is_asked_without_sense_is_answered_as_etcd_answers() {
    let running = start(|_| {});
    let mut client = locks(&running);
    running.kv().put(PutRequest { key: "mine".into(), ..PutRequest::default() }).await.unwrap();
    let mut told_of = vec![
        told(client.lock(lock(b"name", 77)).await),
        told(client.unlock(UnlockRequest::default()).await),
        told(client.unlock(UnlockRequest { key: "unknown".into() }).await),
        told(client.unlock(UnlockRequest { key: "mine".into() }).await),
    ];
    assert!(keys(&running).is_empty(), "to name a key is to have the right");
    grant(&running, 1).await;
    let long = LockRequest { name: vec![b'x'; 40_000].into(), lease: 1 };
    told_of.push(told(client.lock(long).await));
    running.fake.fail(Fault::Propose(ProposeError::Overloaded));
    told_of.push(told(client.lock(lock(b"name", 1)).await));
    expect![[r#"
        NotFound: etcdserver: requested lease not found
        InvalidArgument: etcdserver: key is not provided
        ok
        ok
        InvalidArgument: etcdserver: request is too large
        ResourceExhausted: etcdserver: too many requests
    "#]]
    .assert_eq(&lines(told_of));
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_stop_ends_the_waits() {
    let running = start(|_| {});
    grant(&running, 1).await;
    grant(&running, 2).await;
    locks(&running).lock(lock(b"name", 1)).await.unwrap();
    let waiting = begin(&running, b"name", 2).await;
    let stop = tokio::spawn(running.front.shutdown());
    expect!["Unavailable: etcdserver: server stopped"].assert_eq(&told(waiting.await.unwrap()));
    stop.await.unwrap();
}
