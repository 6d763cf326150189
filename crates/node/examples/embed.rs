//! A node inside another program: it serves etcd's API for as long as the program likes.
//!
//! `cargo run -p conclave-node --example embed`

use conclave_api::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use conclave_node::{Config, Node, config::url::Url};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = tempfile::tempdir()?;
    let config = Config {
        data_dir: data.path().to_owned(),
        // Port 0 takes a free one.
        listen_client_urls: vec![Url::new("127.0.0.1", 0)],
        listen_peer_urls: vec![Url::new("127.0.0.1", 0)],
        ..Config::default()
    };
    let node = Node::start(config).await?;
    let endpoint = format!("http://{}", node.client_addr());
    println!("serving on {endpoint}");

    let mut kv = KvClient::new(tonic::transport::Endpoint::from_shared(endpoint)?.connect().await?);
    kv.put(PutRequest { key: "greeting".into(), value: "hello".into(), ..PutRequest::default() }).await?;
    let found =
        kv.range(RangeRequest { key: "greeting".into(), ..RangeRequest::default() }).await?.into_inner();
    println!("{}", String::from_utf8_lossy(&found.kvs[0].value));

    node.shutdown().await;
    Ok(())
}
