//! A read/write lock: readers together, a writer alone.
//!
//! `cargo run -p conclave-client --example rwlock [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::{error::Error, time::Duration};

use conclave_client::{Client, Config, RwLock};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    let lock = RwLock::new(&client, "catalogue").ttl(Duration::from_secs(5));
    let (one, other) = (lock.read().await?, lock.read().await?);
    println!("two read, with tokens {} and {}", one.token(), other.token());
    assert!(lock.try_write().await?.is_none());

    // A writer waits for both, and readers that come later wait for the writer.
    let writing = tokio::spawn({
        let lock = lock.clone();
        async move { lock.write().await }
    });
    one.unlock().await?;
    other.unlock().await?;
    let writer = writing.await??;
    println!("then one writes, with token {}", writer.token());
    assert!(lock.try_read().await?.is_none());
    writer.unlock().await?;
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
