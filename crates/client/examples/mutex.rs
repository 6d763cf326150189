//! A mutex: one at a time, each with a greater token, and no waiter left behind.
//!
//! `cargo run -p conclave-client --example mutex [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::{error::Error, time::Duration};

use conclave_client::{Client, Config, LockError, Mutex, Put, Txn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    let mutex = Mutex::new(&client, "printer").ttl(Duration::from_secs(5));
    let first = mutex.lock().await?;
    println!("held with token {}", first.token());

    // Who holds it may enter again, which asks nobody.
    let again = first.reenter()?;
    again.unlock().await?;

    // Others do not get it, and whoever gives up leaves nothing behind.
    assert!(mutex.try_lock().await?.is_none());
    let refused = mutex.lock_within(Duration::from_millis(300)).await;
    assert!(matches!(refused, Err(LockError::TimedOut(_))));

    // What depends on it takes place only while it is held.
    first.txn(Txn::new().then(Put::new("pages/1", "1"))).await?;
    let token = first.token();
    first.unlock().await?;

    let second = mutex.lock().await?;
    println!("then with token {}", second.token());
    assert!(second.token() > token);
    second.unlock().await?;
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
