//! A watch: what is there, and everything that happens from then on, without a gap.
//!
//! `cargo run -p conclave-client --example watch [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::error::Error;

use conclave_client::{Client, Config, Delete, EventKind, Get, Keys, Watch, WatchError};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    let services = Keys::prefix("services/");
    client.remove(Delete::new(services.clone())).await?;
    client.put("services/db", "10.0.0.1").await?;

    // What is there, and a watch of what comes after just that.
    let there = client.read(Get::new(services.clone())).await?;
    println!("{} services at revision {}", there.kvs.len(), there.revision);
    let mut watcher = client.watch(Watch::new(services).after(there.revision));

    client.put("services/web", "10.0.0.2").await?;
    client.delete("services/db").await?;

    let mut seen = Vec::new();
    while seen.len() < 2 {
        match watcher.next().await {
            Ok(batch) => seen.extend(batch.events),
            // Events were missed: read what is there, and watch from there.
            Err(WatchError::Compacted { revision }) => {
                println!("the history before {revision} is gone");
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    for event in &seen {
        println!("{:?} of {:?} at revision {}", event.kind, event.key(), event.kv.mod_revision);
    }
    assert_eq!(seen.last().map(|event| event.kind), Some(EventKind::Delete));
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
