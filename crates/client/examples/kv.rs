//! Keys: put, read one and several, as they were before, and delete.
//!
//! `cargo run -p conclave-client --example kv [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::error::Error;

use conclave_client::{By, Client, Config, Delete, Get, Keys, Put};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    client.remove(Delete::new(Keys::prefix("fruit/"))).await?;

    let first = client.put("fruit/apple", "green").await?;
    client.put("fruit/cherry", "red").await?;
    let ripe = client.write(Put::new("fruit/apple", "red").previous()).await?;
    println!("it was {:?} before revision {}", ripe.previous.map(|kv| kv.value), ripe.revision);

    let then = client.read(Get::new("fruit/apple").at(first)).await?;
    println!("and as of revision {first} it still is {:?}", then.kvs[0].value);

    let latest = client.read(Get::new(Keys::prefix("fruit/")).sorted(By::Modified).backwards()).await?;
    for kv in &latest.kvs {
        println!("{:?} is {:?}, put at revision {}", kv.key, kv.value, kv.mod_revision);
    }
    assert_eq!(latest.kvs.len(), 2);
    assert!(client.delete("fruit/cherry").await?);
    assert_eq!(client.get("fruit/cherry").await?, None);
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
