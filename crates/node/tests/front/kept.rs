//! Leases on a real node, by the real clock: never early, and not much late.

use std::path::Path;
use std::time::{Duration, Instant};

use conclave_api::etcdserverpb::kv_client::KvClient;
use conclave_api::etcdserverpb::lease_client::LeaseClient;
use conclave_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest, PutRequest,
    RangeRequest,
};
use conclave_node::config::url::Url;
use conclave_node::{Config, Node};
use futures::{StreamExt, TryStreamExt};
use tonic::transport::{Channel, Endpoint};

/// How much late a lease may end on a busy machine.
const SLACK: Duration = Duration::from_secs(3);

async fn start(data_dir: &Path) -> Node {
    let config = Config {
        data_dir: data_dir.to_owned(),
        listen_client_urls: vec![Url::new("127.0.0.1", 0)],
        listen_peer_urls: vec![Url::new("127.0.0.1", 0)],
        heartbeat_interval: Duration::from_millis(50),
        election_timeout: Duration::from_millis(500),
        ..Config::default()
    };
    Node::start(config).await.unwrap()
}

fn channel(node: &Node) -> Channel {
    Endpoint::from_shared(format!("http://{}", node.client_addr())).unwrap().connect_lazy()
}

fn leased(key: String, lease: i64) -> PutRequest {
    PutRequest { key: key.into(), value: "v".into(), lease, ..PutRequest::default() }
}

async fn count(node: &Node) -> i64 {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
    KvClient::new(channel(node)).range(all).await.unwrap().into_inner().count
}

/// Waits until no key is left, and says when that was.
async fn gone(node: &Node) -> Instant {
    loop {
        if count(node).await == 0 {
            return Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_when_its_time_is_up_and_a_restart_shortens_none() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path()).await;
    let mut leases = LeaseClient::new(channel(&node));
    leases.lease_grant(LeaseGrantRequest { id: 1, ttl: 1 }).await.unwrap();
    KvClient::new(channel(&node)).put(leased("k".into(), 1)).await.unwrap();
    let mut renewed = Instant::now();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let once = futures::stream::iter([LeaseKeepAliveRequest { id: 1 }]);
        renewed = Instant::now();
        let mut answers = leases.lease_keep_alive(once).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl, 1);
    }
    let took = gone(&node).await - renewed;
    assert!((Duration::from_secs(1)..Duration::from_secs(1) + SLACK).contains(&took), "{took:?}");
    leases.lease_grant(LeaseGrantRequest { id: 2, ttl: 2 }).await.unwrap();
    KvClient::new(channel(&node)).put(leased("k".into(), 2)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    node.shutdown().await;
    // Who held the lease could not renew it meanwhile.
    let began = Instant::now();
    let node = start(data.path()).await;
    let left = LeaseClient::new(channel(&node))
        .lease_time_to_live(LeaseTimeToLiveRequest { id: 2, keys: true })
        .await
        .unwrap()
        .into_inner();
    assert!((1..=2).contains(&left.ttl) && left.granted_ttl == 2 && left.keys == ["k"], "{left:?}");
    let took = gone(&node).await - began;
    assert!((Duration::from_secs(2)..Duration::from_secs(3) + SLACK).contains(&took), "{took:?}");
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_leases_that_end_together_keep_nobody_waiting() {
    const LEASES: i64 = 5_000;
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path()).await;
    let (leases, kv) = (LeaseClient::new(channel(&node)), KvClient::new(channel(&node)));
    let began = Instant::now();
    let requests = futures::stream::iter(1..=LEASES).map(|id| {
        let (mut leases, mut kv) = (leases.clone(), kv.clone());
        async move {
            // All end within the same second, once all are granted.
            let ttl = 8 - i64::try_from(began.elapsed().as_secs()).unwrap_or(6).min(6);
            leases.lease_grant(LeaseGrantRequest { id, ttl }).await?;
            kv.put(leased(format!("{id:06}"), id)).await
        }
    });
    requests.buffer_unordered(128).try_collect::<Vec<_>>().await.unwrap();
    let mut slowest = Duration::ZERO;
    loop {
        let asked = Instant::now();
        kv.clone().put(PutRequest { key: "beside".into(), ..PutRequest::default() }).await.unwrap();
        slowest = slowest.max(asked.elapsed());
        if count(&node).await == 1 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(40), "{} keys are left", count(&node).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(slowest < Duration::from_secs(1), "a put took {slowest:?} meanwhile");
    let all = leases.clone().lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner();
    assert!(all.leases.is_empty());
    println!("{LEASES} leases were over after {:?}, the slowest put took {slowest:?}", began.elapsed());
    node.shutdown().await;
}
