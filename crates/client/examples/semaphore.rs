//! A semaphore: at most three at a time.
//!
//! `cargo run -p conclave-client --example semaphore [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::{
    error::Error,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use conclave_client::{Client, Config, Semaphore};
use futures::future::try_join_all;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    let downloads = Semaphore::new(&client, "downloads", 3).ttl(Duration::from_secs(5));
    let (running, most) = (AtomicU32::new(0), AtomicU32::new(0));
    let all = (0..10).map(|_| async {
        let permit = downloads.acquire().await?;
        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
        running.fetch_sub(1, Ordering::SeqCst);
        permit.unlock().await?;
        Ok::<(), Box<dyn Error>>(())
    });
    try_join_all(all).await?;
    println!("ten were done, at most {} at a time", most.load(Ordering::SeqCst));
    assert_eq!(most.load(Ordering::SeqCst), 3);
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
