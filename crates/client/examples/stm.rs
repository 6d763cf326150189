//! A software transaction: eight at once count the same counter, and each counts.
//!
//! `cargo run -p conclave-client --example stm [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::error::Error;

use conclave_client::{Client, Config, Stm};
use futures::future::try_join_all;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    client.delete("visits").await?;
    let visits = (0..8).map(|_| {
        client.stm().run(async |tx: &mut Stm| {
            let visits = tx.get("visits").await?;
            let visits = visits.as_deref().map_or("0", |text| std::str::from_utf8(text).unwrap_or("0"));
            let visits = visits.parse::<u32>().unwrap_or(0) + 1;
            tx.put("visits", visits.to_string());
            Ok(visits)
        })
    });
    let mut counted = try_join_all(visits).await?;
    counted.sort_unstable();
    println!("counted {counted:?}");
    assert_eq!(counted, [1, 2, 3, 4, 5, 6, 7, 8]);
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
