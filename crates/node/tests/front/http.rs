//! etcd's HTTP endpoints, over plain HTTP/1.1 on the port that serves gRPC.

use std::net::SocketAddr;

use conclave_api::etcdserverpb::PutRequest;
use conclave_node::backend::BarrierError;
use conclave_node::config::url::Url;
use expect_test::expect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{Fault, start, told};

/// Status code and body.
async fn ask(address: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    format!("{status} {}", body.trim_end())
}

#[tokio::test]
async fn a_healthy_member() {
    let running = start(|_| {});
    let address = running.front.client_addr();
    let mut shown = String::new();
    for path in [
        "/health",
        "/health?serializable=true&exclude=NOSPACE",
        "/livez",
        "/livez?verbose",
        "/livez/serializable_read",
        "/readyz",
        "/readyz?verbose&exclude=non_learner",
        "/readyz/linearizable_read?verbose",
        "/readyz/nonsense",
        "/version",
        "/v3/kv/range",
        "/",
        "/nonsense",
    ] {
        shown += &format!("{path}: {}\n", ask(address, "GET", path).await);
    }
    shown += &format!("POST /health: {}\n", ask(address, "POST", "/health").await);
    shown += &format!("HEAD /health: {}\n", ask(address, "HEAD", "/health").await);
    expect![[r#"
        /health: 200 {"health":"true","reason":""}
        /health?serializable=true&exclude=NOSPACE: 200 {"health":"true","reason":""}
        /livez: 200 ok
        /livez?verbose: 200 [+]serializable_read ok
        ok
        /livez/serializable_read: 200 ok
        /readyz: 200 ok
        /readyz?verbose&exclude=non_learner: 200 [+]data_corruption ok
        [+]serializable_read ok
        [+]linearizable_read ok
        ok
        /readyz/linearizable_read?verbose: 200 [+]linearizable_read ok
        ok
        /readyz/nonsense: 404 404 page not found
        /version: 200 {"etcdcluster":"3.7.0","etcdserver":"3.7.1","storage":"3.7.0"}
        /v3/kv/range: 501 {"code":12,"error":"the JSON gateway (/v3/kv/range) is known to etcd but not served by conclave yet","message":"the JSON gateway (/v3/kv/range) is known to etcd but not served by conclave yet"}
        /: 404 404 page not found
        /nonsense: 404 404 page not found
        POST /health: 405 Method Not Allowed
        HEAD /health: 200 
    "#]].assert_eq(&shown);
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_member_without_a_quorum() {
    let running = start(|_| {});
    let address = running.front.client_addr();
    let mut shown = String::new();
    running.fake.raft.lock().unwrap().leader = None;
    for path in ["/health", "/health?serializable=true", "/livez"] {
        shown += &format!("{path}: {}\n", ask(address, "GET", path).await);
    }
    running.fake.fail(Fault::Barrier(BarrierError::Overloaded));
    running.fake.raft.lock().unwrap().is_learner = true;
    shown += &format!("/readyz: {}\n", ask(address, "GET", "/readyz").await);
    running.fake.raft.lock().unwrap().leader = Some(1);
    running.fake.fail(Fault::Barrier(BarrierError::Stopped));
    shown += &format!("/health: {}\n", ask(address, "GET", "/health").await);
    expect![[r#"
        /health: 503 {"health":"false","reason":"RAFT NO LEADER"}
        /health?serializable=true: 200 {"health":"true","reason":""}
        /livez: 200 ok
        /readyz: 503 [+]data_corruption ok
        [+]serializable_read ok
        [-]linearizable_read failed: etcdserver: too many requests
        [-]non_learner failed: etcdserver: rpc not supported for learner
        /health: 503 {"health":"false","reason":"RANGE ERROR:etcdserver: server stopped"}
    "#]]
    .assert_eq(&shown);
    running.front.shutdown().await;
}

#[tokio::test]
async fn metrics_under_etcds_names() {
    let running = start(|_| {});
    let address = running.front.client_addr();
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    running.kv().put(put.clone()).await.unwrap();
    running.kv().put(put).await.unwrap();
    told(running.kv().put(PutRequest::default()).await);
    ask(address, "GET", "/readyz").await;
    let text = ask(address, "GET", "/metrics").await;
    for line in [
        "etcd_server_has_leader 1",
        "etcd_server_is_leader 1",
        "etcd_server_version{server_version=\"3.7.1\"} 1",
        "etcd_cluster_version{cluster_version=\"3.7\"} 1",
        "etcd_server_leader_changes_seen_total 2",
        "etcd_server_proposals_committed_total 9",
        "etcd_server_proposals_applied_total 8",
        "etcd_server_proposals_pending 0",
        "etcd_server_proposals_failed_total 0",
        "etcd_server_healthchecks_total{type=\"readyz\",name=\"non_learner\",status=\"success\"} 1",
        "etcd_disk_wal_fsync_duration_seconds_count 0",
        "etcd_disk_backend_commit_duration_seconds_count 0",
        "etcd_mvcc_db_total_size_in_bytes 4096",
        "etcd_mvcc_put_total 2",
        "etcd_debugging_mvcc_current_revision 3",
        "conclave_snapshot_fetches_total 3",
        "conclave_snapshot_fetches_resumed_total 1",
        "conclave_snapshot_fetches_failed_total 2",
        "conclave_snapshot_fetched_bytes_total 4096",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 2",
        "grpc_server_handled_total{grpc_code=\"InvalidArgument\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    let sent = text
        .lines()
        .find_map(|line| line.strip_prefix("etcd_network_client_grpc_sent_bytes_total "))
        .unwrap();
    assert_ne!(sent, "0");
    running.front.shutdown().await;
}

#[tokio::test]
async fn listeners_of_their_own() {
    // The ports are taken and given back, so that the test knows them.
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (http, metrics) = (free(), free());
    let running = start(|config| {
        config.listen_client_http_urls = vec![Url::new("127.0.0.1", http.port())];
        config.listen_metrics_urls = vec![Url::new("127.0.0.1", metrics.port())];
    });
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    assert_eq!(told(running.kv().put(put).await), "ok");
    let mut shown = ask(running.front.client_addr(), "GET", "/health").await;
    for (address, path) in [(http, "/version"), (metrics, "/health"), (metrics, "/version")] {
        shown += &format!("\n{}", ask(address, "GET", path).await);
    }
    expect![[r#"
        415 this address serves gRPC only
        200 {"etcdcluster":"3.7.0","etcdserver":"3.7.1","storage":"3.7.0"}
        200 {"health":"true","reason":""}
        404 404 page not found"#]]
    .assert_eq(&shown);
    running.front.shutdown().await;
}
