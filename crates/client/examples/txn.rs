//! A transaction: money moves only if it is there, in one step.
//!
//! `cargo run -p conclave-client --example txn [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::error::Error;

use conclave_client::{Client, Compare, Config, Get, Is, Put, Txn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    client.put("accounts/ann", "100").await?;
    client.put("accounts/bob", "20").await?;

    let ann = client.get("accounts/ann").await?.ok_or("Ann has no account")?;
    let bob = client.get("accounts/bob").await?.ok_or("Bob has no account")?;
    let transfer = Txn::new()
        // Nobody touched either account since they were read.
        .when(Compare::mod_revision("accounts/ann", Is::Equal, ann.mod_revision))
        .when(Compare::mod_revision("accounts/bob", Is::Equal, bob.mod_revision))
        .then(Put::new("accounts/ann", "70"))
        .then(Put::new("accounts/bob", "50"))
        .otherwise(Get::new("accounts/ann"))
        .otherwise(Get::new("accounts/bob"));

    let done = client.txn(transfer.clone()).await?;
    println!("moved at revision {}: {}", done.revision, done.succeeded);
    assert!(done.succeeded);

    let again = client.txn(transfer).await?;
    println!("and not twice: Ann has {:?}", again.found(0)?.kvs[0].value);
    assert!(!again.succeeded);
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
