//! An election: one leads, says something, and somebody observes.
//!
//! `cargo run -p conclave-client --example election [ENDPOINT …]`, 127.0.0.1:2379 if none is given.

use std::{error::Error, time::Duration};

use conclave_client::{Client, Config, Election};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = connect()?;
    let election = Election::new(&client, "scheduler").ttl(Duration::from_secs(5));
    let mut observer = election.observe();

    let office = election.campaign("10.0.0.1").await?;
    println!("{:?} leads", observer.next().await?.proclamation);
    office.proclaim("10.0.0.1, ready").await?;
    println!("and says {:?}", observer.next().await?.proclamation);

    // Another campaigns meanwhile, and follows.
    let candidate = tokio::spawn({
        let election = election.clone();
        async move { election.campaign("10.0.0.2").await }
    });
    let first = office.token();
    office.resign().await?;
    let successor = candidate.await??;
    let leader = observer.next().await?;
    println!("then {:?} leads", leader.proclamation);
    assert_eq!(leader.token, successor.token());
    assert!(successor.token() > first);
    successor.resign().await?;
    Ok(())
}

fn connect() -> Result<Client, Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let config = if endpoints.is_empty() { Config::of(["127.0.0.1:2379"]) } else { Config::of(endpoints) };
    Ok(Client::new(config)?)
}
