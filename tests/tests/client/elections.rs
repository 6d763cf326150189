//! Elections.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use conclave_api::v3electionpb::{
    CampaignRequest, LeaderRequest, ResignRequest, election_client::ElectionClient,
};
use conclave_client::{Election, Loss};
use tokio::time::timeout;

use crate::servers::{PATIENCE, Servers, keys_below, until_keys};

const TTL: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_proclaims_and_hands_over() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let election = Election::new(&client, "e").ttl(TTL);
    assert_eq!(election.leader().await?, None);
    let mut observer = election.observe();
    let early = timeout(Duration::from_millis(300), observer.next()).await;
    ensure!(early.is_err(), "nobody leads: {early:?}");

    let first = election.campaign("first").await?;
    assert_eq!(timeout(PATIENCE, observer.next()).await??.proclamation, "first");
    first.proclaim("first, again").await?;
    let seen = timeout(PATIENCE, observer.next()).await??;
    assert_eq!((seen.proclamation.as_ref(), seen.token), (&b"first, again"[..], first.token()));

    let candidates = ["second", "third"].map(|name| {
        let election = election.clone();
        tokio::spawn(async move { election.campaign(name).await })
    });
    until_keys(&client, "e/", 3).await?;
    let leader = election.leader().await?.context("somebody leads")?;
    assert_eq!(leader.key, first.key());
    // One of them withdraws.
    let [second, third] = candidates;
    third.abort();
    until_keys(&client, "e/", 2).await?;
    first.resign().await?;
    let second = match timeout(PATIENCE, second).await {
        Ok(second) => second??,
        Err(elapsed) => return Err(elapsed.into()),
    };
    let seen = timeout(PATIENCE, observer.next()).await??;
    assert_eq!((seen.token, &seen.key), (second.token(), second.key()));
    client.delete(second.key().clone()).await?;
    assert_eq!(timeout(PATIENCE, second.lost()).await?, Loss::KeyDeleted);
    ensure!(second.proclaim("too late").await.is_err(), "it no longer leads");
    ensure!(keys_below(&client, "e/").await?.is_empty(), "nobody leads");
    Ok(())
}

/// The election service and this client share keys and what they proclaim.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_election_service_and_the_client_compete() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let mut service = ElectionClient::new(servers.way(0)?);
    let election = Election::new(&client, "e").ttl(TTL);
    let lease = client.lease(TTL).await?;
    let request = CampaignRequest { name: "e".into(), lease: lease.id().0, value: "theirs".into() };
    let theirs = service.campaign(request).await?.into_inner().leader.context("they lead")?;
    let leader = election.leader().await?.context("somebody leads")?;
    assert_eq!((leader.proclamation.as_ref(), leader.token.0), (&b"theirs"[..], theirs.rev));
    let campaign = tokio::spawn({
        let election = election.clone();
        async move { election.campaign("ours").await }
    });
    until_keys(&client, "e/", 2).await?;
    service.resign(ResignRequest { leader: Some(theirs) }).await?;
    let office = timeout(PATIENCE, campaign).await???;
    let seen =
        service.leader(LeaderRequest { name: "e".into() }).await?.into_inner().kv.context("we lead")?;
    assert_eq!((&seen.key, seen.value.as_ref()), (office.key(), &b"ours"[..]));
    office.resign().await?;
    Ok(())
}
