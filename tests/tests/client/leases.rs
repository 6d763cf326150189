//! Leases.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use conclave_client::{Client, Config, EtcdError, Loss, Moment, Put};
use tokio::time::timeout;

use crate::servers::{PATIENCE, Servers, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_renews_itself_and_takes_its_keys_with_it() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let lease = client.lease(Duration::from_secs(2)).await?;
    client.write(Put::new("a", "1").with_lease(lease.id())).await?;
    let early = timeout(lease.ttl() * 2, lease.lost()).await;
    ensure!(early.is_err(), "lost although it was renewed: {early:?}");
    let status = client.lease_status(lease.id(), true).await?.context("it is there")?;
    ensure!(status.granted == lease.ttl() && status.keys.contains(&b"a"[..]), "{status:?}");
    ensure!(client.leases().await?.contains(&lease.id()), "it is among all");
    let (id, lost) = (lease.id(), lease.lost());
    lease.revoke().await?;
    assert_eq!(lost.await, Loss::Released);
    assert_eq!(client.get("a").await?, None);
    assert_eq!(client.lease_status(id, false).await?, None);
    client.revoke(id).await?;
    let put = client.write(Put::new("a", "1").with_lease(id)).await.expect_err("it is gone");
    ensure!(put.is(EtcdError::LeaseNotFound), "{put}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_somebody_revokes_is_lost() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let lease = client.lease(Duration::from_secs(2)).await?;
    client.revoke(lease.id()).await?;
    assert_eq!(timeout(PATIENCE, lease.lost()).await?, Loss::Gone);
    assert_eq!(lease.loss(), Some(Loss::Gone));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_lease_is_given_back_and_one_that_is_left_expires() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let lease = client.lease(Duration::from_secs(600)).await?;
    let dropped = lease.id();
    drop(lease);
    until(async || Ok(client.lease_status(dropped, false).await?.is_none())).await?;

    let left = client.lease(Duration::from_secs(2)).await?.leave();
    ensure!(client.lease_status(left, false).await?.is_some(), "it is left, not revoked");
    until(async || Ok(client.lease_status(left, false).await?.is_none())).await?;

    // Granted to nobody: the future that waits for it is dropped while it is under way.
    for microseconds in [1, 300, 600, 1_000, 2_000, 4_000] {
        let _ = timeout(Duration::from_micros(microseconds), client.lease(Duration::from_secs(600))).await;
    }
    until(async || Ok(client.leases().await?.is_empty())).await
}

/// The holder is cut off. It must know that it lost before the servers let the lease go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_cut_off_knows_before_the_server_does() -> Result<()> {
    let servers = Servers::three()?;
    let leader_side = servers.client()?;
    // A client of one server alone, which then stands still: its holder is cut off, and the others go on.
    let config = Config {
        request_timeout: Duration::from_millis(700),
        ..Config::of([servers.cluster.servers()[0].endpoint()])
    };
    let lease = Client::new(config)?.lease(Duration::from_secs(4)).await?;
    leader_side.write(Put::new("a", "1").with_lease(lease.id())).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    servers.cluster.servers()[0].pause()?;
    let rest = Client::connect(servers.cluster.endpoints().split_off(1))?;
    let loss = timeout(PATIENCE, lease.lost()).await;
    let known = Moment::now();
    let there = rest.with_timeout(PATIENCE).get("a").await;
    servers.cluster.servers()[0].resume()?;
    assert_eq!(loss?, Loss::NotRenewed);
    ensure!(known >= lease.deadline(), "lost at {known}, before {}", lease.deadline());
    ensure!(there?.is_some(), "the server let it go before its holder knew");
    Ok(())
}
