//! Connections that misbehave, ports that are taken, and stopping.

use std::time::Duration;

use conclave_api::etcdserverpb::{PutRequest, RangeRequest};
use conclave_node::Config;
use conclave_node::config::url::Url;
use conclave_node::front::Listeners;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{Fault, start, told};

#[tokio::test]
async fn garbage_closes_its_own_connection_only() {
    let running = start(|_| {});
    let address = running.front.client_addr();
    let http2_then_garbage = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 64]].concat();
    for garbage in [
        b"\x00\x01\x02\xff\xfe garbage\r\n\r\n".as_slice(),
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET",
        &http2_then_garbage,
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // Closed, be it with a reset.
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
    }
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    assert_eq!(told(running.kv().put(put).await), "ok");
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let running = start(|_| {});
    let port = running.front.client_addr().port();
    let config = Config { listen_client_urls: vec![Url::new("127.0.0.1", port)], ..Config::default() };
    let error = Listeners::bind(&config).unwrap_err().to_string();
    let expected =
        format!("cannot listen on http://127.0.0.1:{port} (--listen-client-urls): Address already in use");
    assert!(error.starts_with(&expected), "{error}");
    running.front.shutdown().await;
}

#[tokio::test]
async fn a_stop_lets_requests_end() {
    let running = start(|_| {});
    let mut kv = running.kv();
    let get = RangeRequest { key: "k".into(), ..RangeRequest::default() };
    kv.range(get.clone()).await.unwrap();
    // Retried until there is a leader, so it is under way when the stop begins.
    running.fake.fail(Fault::Barrier(conclave_node::backend::BarrierError::NoLeader));
    let under_way = tokio::spawn(async move { kv.range(get).await });
    while running.fake.has_faults() {
        tokio::task::yield_now().await;
    }
    running.front.shutdown().await;
    assert_eq!(told(under_way.await.unwrap()), "ok");
}
