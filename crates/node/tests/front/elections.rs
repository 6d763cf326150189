//! Elections over real gRPC.

use conclave_api::etcdserverpb::lease_client::LeaseClient;
use conclave_api::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest};
use conclave_api::v3electionpb::election_client::ElectionClient;
use conclave_api::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use expect_test::expect;
use tonic::transport::Channel;

use crate::backend::{Running, lines, start, told};

fn elections(running: &Running) -> ElectionClient<Channel> {
    ElectionClient::new(running.channel())
}

async fn grant(running: &Running, id: i64) {
    LeaseClient::new(running.channel()).lease_grant(LeaseGrantRequest { id, ttl: 60 }).await.unwrap();
}

fn campaign(lease: i64, value: &'static str) -> CampaignRequest {
    CampaignRequest { name: "n".into(), lease, value: value.into() }
}

fn name() -> LeaderRequest {
    LeaderRequest { name: "n".into() }
}

fn count(running: &Running) -> i64 {
    use conclave_node::Backend as _;
    let all = RangeRequest { key: "n/".into(), range_end: "n0".into(), ..RangeRequest::default() };
    running.fake.reader().range(&all).unwrap().count
}

/// Returns once the queue is that long.
async fn queue_of(running: &Running, length: i64) {
    let waiting = async {
        while count(running) != length {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await.expect("it comes about");
}

#[tokio::test]
async fn leaders_follow_each_other_and_observers_see_them_in_order() {
    let running = start(|_| {});
    for id in 1..=2 {
        grant(&running, id).await;
    }
    let mut client = elections(&running);
    let mut seen = elections(&running).observe(name()).await.unwrap().into_inner();
    let won = client.campaign(campaign(1, "one")).await.unwrap();
    let token = won.metadata().get("conclave-fencing-token").unwrap().to_str().unwrap().to_owned();
    let won = won.into_inner();
    let first = won.leader.unwrap();
    assert_eq!(first, LeaderKey { name: "n".into(), key: "n/1".into(), rev: 2, lease: 1 });
    assert_eq!((won.header.unwrap().member_id, token.as_str()), (0xa, "2"));
    let mut next = async || {
        let told = seen.message().await.unwrap().unwrap();
        let kv = told.kv.unwrap();
        (kv.key, kv.value, told.header.unwrap().member_id)
    };
    assert_eq!(next().await, ("n/1".into(), "one".into(), 0xa));
    let proclaim = ProclaimRequest { leader: Some(first.clone()), value: "uno".into() };
    let proclaimed = client.proclaim(proclaim).await.unwrap().into_inner();
    assert_eq!((proclaimed.header.unwrap().revision, next().await.1), (3, "uno".into()));
    let leader = client.leader(name()).await.unwrap().into_inner();
    let kv = leader.kv.unwrap();
    assert_eq!((kv.value.as_ref(), kv.lease, leader.header.unwrap().revision), (&b"uno"[..], 1, 3));
    let second = tokio::spawn(async move { client.campaign(campaign(2, "two")).await });
    queue_of(&running, 2).await;
    elections(&running).resign(ResignRequest { leader: Some(first.clone()) }).await.unwrap();
    let second = second.await.unwrap().unwrap().into_inner().leader.unwrap();
    assert_eq!((second.rev, next().await.1), (4, "two".into()));
    // Who resigned resigns nobody else, and proclaims nothing.
    elections(&running).resign(ResignRequest { leader: Some(first.clone()) }).await.unwrap();
    let proclaim = ProclaimRequest { leader: Some(first), value: "late".into() };
    expect!["Unknown: election: not leader"].assert_eq(&told(elections(&running).proclaim(proclaim).await));
    assert_eq!(count(&running), 1);
    let stop = tokio::spawn(running.front.shutdown());
    assert!(seen.message().await.unwrap().is_none());
    drop(seen);
    stop.await.unwrap();
}

#[tokio::test]
async fn a_lease_that_ends_while_its_owner_waits_is_an_error() {
    let running = start(|_| {});
    grant(&running, 1).await;
    grant(&running, 2).await;
    elections(&running).campaign(campaign(1, "one")).await.unwrap();
    let mut client = elections(&running);
    let second = tokio::spawn(async move { client.campaign(campaign(2, "two")).await });
    queue_of(&running, 2).await;
    LeaseClient::new(running.channel()).lease_revoke(LeaseRevokeRequest { id: 2 }).await.unwrap();
    expect!["Unknown: election: session is expired"].assert_eq(&told(second.await.unwrap()));
    let mut client = elections(&running);
    grant(&running, 3).await;
    let third = tokio::spawn(async move { client.campaign(campaign(3, "three")).await });
    queue_of(&running, 2).await;
    third.abort();
    queue_of(&running, 1).await;
    running.front.shutdown().await;
}

#[tokio::test]
async fn who_campaigns_again_proclaims_anew() {
    let running = start(|_| {});
    grant(&running, 1).await;
    let first = elections(&running).campaign(campaign(1, "one")).await.unwrap().into_inner().leader.unwrap();
    let again = elections(&running).campaign(campaign(1, "uno")).await.unwrap().into_inner().leader.unwrap();
    assert_eq!(first, again);
    let kv = elections(&running).leader(name()).await.unwrap().into_inner().kv.unwrap();
    assert_eq!((kv.value.as_ref(), kv.version, kv.lease), (&b"uno"[..], 2, 1));
    // Without a lease the key keeps its own.
    let leader = LeaderKey { lease: 0, ..first };
    elections(&running).proclaim(ProclaimRequest { leader: Some(leader), value: "un".into() }).await.unwrap();
    assert_eq!(elections(&running).leader(name()).await.unwrap().into_inner().kv.unwrap().lease, 1);
    let mine = elections(&running).campaign(CampaignRequest { name: "m".into(), ..campaign(0, "x") }).await;
    assert!(mine.unwrap().into_inner().leader.unwrap().lease > 0, "a session of the server's");
    running.front.shutdown().await;
}

#[tokio::test]
async fn what_is_asked_without_sense_is_answered_as_etcd_answers() {
    let running = start(|_| {});
    let mut client = elections(&running);
    let nobody = || LeaderKey { name: "n".into(), key: "n/1".into(), rev: 2, lease: 1 };
    let told_of = [
        told(client.leader(name()).await),
        told(client.campaign(campaign(77, "x")).await),
        told(client.proclaim(ProclaimRequest::default()).await),
        told(client.proclaim(ProclaimRequest { leader: Some(nobody()), value: "x".into() }).await),
        told(
            client.proclaim(ProclaimRequest { leader: Some(LeaderKey::default()), value: "x".into() }).await,
        ),
        told(client.resign(ResignRequest::default()).await),
        told(client.resign(ResignRequest { leader: Some(LeaderKey::default()) }).await),
        told(client.resign(ResignRequest { leader: Some(nobody()) }).await),
    ];
    expect![[r#"
        Unknown: election: no leader
        NotFound: etcdserver: requested lease not found
        Unknown: "leader" field must be provided
        Unknown: election: not leader
        InvalidArgument: etcdserver: key is not provided
        Unknown: "leader" field must be provided
        InvalidArgument: etcdserver: key is not provided
        ok
    "#]]
    .assert_eq(&lines(told_of));
    running.front.shutdown().await;
}
