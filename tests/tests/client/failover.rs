//! Endpoints that fail.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use conclave_client::{Client, Config, Error, RequestIds};
use futures::future::try_join_all;

use crate::servers::Servers;

/// Puts one key again and again until told to stop: how many puts were acknowledged.
async fn put_for(client: Client, key: &'static str, span: Duration) -> Result<i64> {
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < span {
        client.put(key, "x").await?;
        count += 1;
    }
    Ok(count)
}

/// Each put makes the next version, so the version says how often a put was applied. With names honoured it is the number of those acknowledged,
/// however often an answer was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_put_is_applied_once_while_servers_are_killed() -> Result<()> {
    let mut servers = Servers::three()?;
    if !servers.is_conclave {
        println!("left out: this server knows no names of requests");
        return Ok(());
    }
    let config = Config { request_timeout: Duration::from_secs(30), ..servers.config() };
    let client = Client::new(config)?;
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let putting = keys.map(|key| tokio::spawn(put_for(client.clone(), key, Duration::from_secs(8))));
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        servers.bounce(round)?;
    }
    for (key, count) in keys.into_iter().zip(try_join_all(putting).await?) {
        let (count, kv) = (count?, client.get(key).await?);
        ensure!(kv.as_ref().is_some_and(|kv| kv.version == count), "{count} puts of {key}, found {kv:?}");
        ensure!(count > 50, "only {count} puts: the test shows nothing");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_on_while_a_server_stands_still() -> Result<()> {
    let servers = Servers::three()?;
    let config = Config { attempt_timeout: Duration::from_millis(500), ..servers.config() };
    let clients = try_join_all((0..6).map(|_| async { Client::new(config.clone()) })).await?;
    clients[0].put("a", "1").await?;
    for client in &clients {
        client.get("a").await?;
    }
    servers.cluster.servers()[0].pause()?;
    let began = Instant::now();
    for client in &clients {
        ensure!(client.get("a").await?.is_some(), "it was acknowledged");
    }
    let took = began.elapsed();
    servers.cluster.servers()[0].resume()?;
    ensure!(took < Duration::from_secs(15), "took {took:?}");
    Ok(())
}

/// Where names are not honoured, a request whose outcome is unknown is not sent again, and its sender is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_names_an_unknown_outcome_is_told() -> Result<()> {
    let servers = Servers::one()?;
    let config = Config { request_ids: RequestIds::Ignored, ..servers.config() };
    let client = Client::new(config)?.with_timeout(Duration::from_secs(2));
    client.put("a", "1").await?;
    servers.cluster.servers()[0].pause()?;
    let outcome = client.put("a", "2").await;
    servers.cluster.servers()[0].resume()?;
    ensure!(matches!(outcome, Err(Error::OutcomeUnknown { .. })), "{outcome:?}");
    Ok(())
}
