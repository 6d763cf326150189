//! A lease: a registration that lasts for as long as the program does.
//!
//! `cargo run -p conclave-client --example lease [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::{error::Error, time::Duration};

use conclave_client::{Client, Config, Put};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    let lease = client.lease(Duration::from_secs(3)).await?;
    client.write(Put::new("workers/7", "10.0.0.7").with_lease(lease.id())).await?;
    println!("registered with lease {} of {:?}", lease.id(), lease.ttl());

    // It renews itself, so it lasts longer than it was granted for.
    let lost = tokio::time::timeout(lease.ttl() + Duration::from_secs(2), lease.lost()).await;
    assert!(lost.is_err(), "it is still held");
    assert!(client.get("workers/7").await?.is_some());

    lease.revoke().await?;
    assert_eq!(client.get("workers/7").await?, None);
    println!("and gone with its lease");
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
