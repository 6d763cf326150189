//! Locks: exclusion, order, tokens, and that nobody is left behind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use conclave_api::v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient};
use conclave_client::{
    Client, GuardError, LockError, Loss, Mutex, Put, REENTRIES_MAX, RwLock, Semaphore, Stm, StmError, Token,
    Txn,
};
use futures::future::try_join_all;
use tokio::time::{sleep, timeout};

use crate::servers::{PATIENCE, Servers, keys_below, until_keys};

const TTL: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_in_order_and_with_growing_tokens() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let mutex = Mutex::new(&client, "m").ttl(TTL);
    let holders = Arc::new(AtomicU32::new(0));
    let order = Arc::new(std::sync::Mutex::new(Vec::<(usize, Token)>::new()));
    let first = mutex.lock().await?;
    let mut waiting = Vec::new();
    for number in 0..8 {
        let (mutex, holders, order) = (mutex.clone(), Arc::clone(&holders), Arc::clone(&order));
        waiting.push(tokio::spawn(async move {
            let guard = mutex.lock().await?;
            ensure!(holders.fetch_add(1, Ordering::SeqCst) == 0, "two hold it");
            order.lock().expect("nobody panicked").push((number, guard.token()));
            sleep(Duration::from_millis(10)).await;
            holders.fetch_sub(1, Ordering::SeqCst);
            Ok(guard.unlock().await?)
        }));
        // Each is in the queue before the next comes.
        until_keys(&client, "m/", number + 2).await?;
    }
    first.unlock().await?;
    for done in timeout(PATIENCE, try_join_all(waiting)).await?? {
        done?;
    }
    let order = order.lock().expect("nobody panicked").clone();
    assert_eq!(order.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
    ensure!(order.windows(2).all(|pair| pair[0].1 < pair[1].1), "tokens grow: {order:?}");
    ensure!(keys_below(&client, "m/").await?.is_empty(), "nobody is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_leaves_no_waiter_behind() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let mutex = Mutex::new(&client, "m").ttl(TTL);
    let guard = mutex.lock().await?;
    let timed_out = mutex.lock_within(SOON).await;
    ensure!(matches!(timed_out, Err(LockError::TimedOut(_))), "{timed_out:?}");
    ensure!(mutex.try_lock().await?.is_none(), "it is held");
    let waiter = tokio::spawn({
        let mutex = mutex.clone();
        async move { mutex.lock().await.map(drop) }
    });
    until_keys(&client, "m/", 2).await?;
    waiter.abort();
    until_keys(&client, "m/", 1).await?;
    // Dropped wherever it happens to be.
    for microseconds in [1, 200, 500, 1_000, 1_500, 2_000, 3_000, 5_000, 10_000] {
        let _ = timeout(Duration::from_micros(microseconds), mutex.lock()).await;
    }
    until_keys(&client, "m/", 1).await?;
    drop(guard);
    until_keys(&client, "m/", 0).await?;
    crate::servers::until(async || Ok(client.leases().await?.is_empty())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_lost_it_can_change_nothing() -> Result<()> {
    let servers = Servers::one()?;
    let (client, other) = (servers.client()?, servers.client()?);
    let guard = Mutex::new(&client, "m").ttl(TTL).lock().await?;
    let answer = guard.txn(Txn::new().then(Put::new("a", "1"))).await?;
    ensure!(answer.succeeded && answer.answers.len() == 1, "{answer:?}");
    let count = async |tx: &mut Stm| {
        tx.put("a", "2");
        Ok(())
    };
    client.stm().while_held(&guard).run(count).await?;
    // Somebody takes it away. The holder is not asked.
    other.revoke(guard.lease()).await?;
    let next = timeout(PATIENCE, Mutex::new(&other, "m").ttl(TTL).lock()).await??;
    ensure!(next.token() > guard.token(), "{} after {}", next.token(), guard.token());
    let late = client.stm().while_held(&guard).run(count).await;
    ensure!(matches!(late, Err(StmError::NotHeld)), "{late:?}");
    let late = guard.txn(Txn::new().then(Put::new("a", "3"))).await;
    ensure!(matches!(late, Err(GuardError::Lost(_))), "{late:?}");
    assert_eq!(client.get("a").await?.context("it is there")?.value, "2");
    // And it is told, without asking.
    ensure!(timeout(PATIENCE, guard.lost()).await? != Loss::NotRenewed, "the server said so");
    next.unlock().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_deleted_is_a_lock_that_is_lost() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let guard = Mutex::new(&client, "m").ttl(Duration::from_secs(600)).lock().await?;
    client.delete(guard.key().clone()).await?;
    assert_eq!(timeout(PATIENCE, guard.lost()).await?, Loss::KeyDeleted);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_lease_is_gone_is_told_and_never_holds_it() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let mutex = Mutex::new(&client, "m").ttl(TTL);
    let guard = mutex.lock().await?;
    let waiter = tokio::spawn({
        let mutex = mutex.clone();
        async move { mutex.lock().await }
    });
    until_keys(&client, "m/", 2).await?;
    let waiting = client.leases().await?.into_iter().find(|lease| *lease != guard.lease());
    client.revoke(waiting.context("the waiter has a lease")?).await?;
    guard.unlock().await?;
    let outcome = timeout(PATIENCE, waiter).await??;
    ensure!(matches!(outcome, Err(LockError::Lost(_))), "{outcome:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_entered_again_without_asking_and_not_for_ever() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let mutex = Mutex::new(&client, "m").ttl(TTL);
    let guard = mutex.lock().await?;
    let mut again = (0..REENTRIES_MAX).map(|_| guard.reenter()).collect::<Result<Vec<_>, _>>()?;
    ensure!(guard.reenter().is_err(), "once too often");
    again.pop().context("there are some")?.unlock().await?;
    again.push(guard.reenter()?);
    guard.unlock().await?;
    for guard in again {
        assert_eq!(keys_below(&client, "m/").await?.len(), 1, "it is still held");
        guard.unlock().await?;
    }
    ensure!(keys_below(&client, "m/").await?.is_empty(), "all have left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_together_writers_alone_and_no_reader_overtakes_a_writer() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let lock = RwLock::new(&client, "rw").ttl(TTL);
    let (one, two) = (lock.read().await?, lock.try_read().await?.context("readers go together")?);
    ensure!(lock.try_write().await?.is_none(), "two read");
    let writer = tokio::spawn({
        let lock = lock.clone();
        async move { lock.write().await }
    });
    until_keys(&client, "rw/", 3).await?;
    ensure!(lock.try_read().await?.is_none(), "a writer waits");
    let reader = tokio::spawn({
        let lock = lock.clone();
        async move { lock.read().await }
    });
    until_keys(&client, "rw/", 4).await?;
    // The later one goes first: the writer has to see that the other is still there.
    two.unlock().await?;
    sleep(SOON).await;
    ensure!(!writer.is_finished(), "one still reads");
    one.unlock().await?;
    let writer = timeout(PATIENCE, writer).await???;
    sleep(SOON).await;
    ensure!(!reader.is_finished(), "one writes");
    writer.unlock().await?;
    timeout(PATIENCE, reader).await???.unlock().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_more_than_the_permits_and_whoever_leaves_makes_room() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let semaphore = Semaphore::new(&client, "s", 3).ttl(TTL);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(semaphore.try_acquire().await?.context("there is room")?);
    }
    ensure!(semaphore.try_acquire().await?.is_none(), "there is no room");
    let waiter = tokio::spawn({
        let semaphore = semaphore.clone();
        async move { semaphore.acquire().await }
    });
    until_keys(&client, "s/", 4).await?;
    // Neither the oldest nor the youngest.
    held.remove(1).unlock().await?;
    held.push(timeout(PATIENCE, waiter).await???);
    ensure!(semaphore.try_acquire().await?.is_none(), "there is no room");
    let other = Semaphore::new(&client, "s", 4).acquire().await;
    ensure!(matches!(other, Err(LockError::Capacity { .. })), "{other:?}");
    for guard in held {
        guard.unlock().await?;
    }
    Ok(())
}

/// Clients that lock, read, write what they read plus one, and unlock; half of them from another connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_contend_and_nothing_is_lost() -> Result<()> {
    let servers = Servers::one()?;
    let clients = [servers.client()?, servers.client()?];
    let counting = (0..10).map(|number| {
        let client = clients[number % 2].clone();
        tokio::spawn(async move {
            for _ in 0..5 {
                let guard = Mutex::new(&client, "m").ttl(TTL).lock().await?;
                let count = client.get("count").await?.map_or(0, |kv| kv.value.len());
                // As many bytes as were counted.
                guard.txn(Txn::new().then(Put::new("count", vec![b'x'; count + 1]))).await?;
                guard.unlock().await?;
            }
            Ok::<(), anyhow::Error>(())
        })
    });
    for done in timeout(PATIENCE, try_join_all(counting)).await?? {
        done?;
    }
    assert_eq!(clients[0].get("count").await?.context("counted")?.value.len(), 50);
    Ok(())
}

/// The lock service and this client share keys, so they exclude each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_service_and_the_client_exclude_each_other() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let mut service = LockClient::new(servers.way(0)?);
    let mutex = Mutex::new(&client, "m").ttl(TTL);
    let theirs = service.lock(LockRequest { name: "m".into(), lease: 0 }).await?.into_inner();
    ensure!(mutex.try_lock().await?.is_none(), "the service's client holds it");
    let waiter = tokio::spawn({
        let mutex = mutex.clone();
        async move { mutex.lock().await }
    });
    until_keys(&client, "m/", 2).await?;
    service.unlock(UnlockRequest { key: theirs.key }).await?;
    let ours = timeout(PATIENCE, waiter).await???;
    let theirs = service.lock(LockRequest { name: "m".into(), lease: 0 });
    let (theirs, ours) = tokio::join!(theirs, async {
        until_keys(&client, "m/", 2).await?;
        sleep(SOON).await;
        let token = ours.token();
        ours.unlock().await?;
        Ok::<_, anyhow::Error>(token)
    });
    ensure!(!theirs?.into_inner().key.is_empty(), "then they have it");
    ensure!(ours? > Token(0), "a token");
    Ok(())
}

/// A holder whose server stands still loses the lock before another gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_lost_before_another_gets_it() -> Result<()> {
    let servers = Servers::three()?;
    let cut_off = Client::new(conclave_client::Config {
        request_timeout: Duration::from_millis(700),
        ..conclave_client::Config::of([servers.cluster.servers()[0].endpoint()])
    })?;
    let rest = Client::connect(servers.cluster.endpoints().split_off(1))?;
    let guard = Mutex::new(&cut_off, "m").ttl(TTL).lock().await?;
    let (is_lost, lost) = (Arc::new(AtomicU32::new(0)), guard.lost());
    let watching = tokio::spawn({
        let is_lost = Arc::clone(&is_lost);
        async move {
            let loss = lost.await;
            is_lost.store(1, Ordering::SeqCst);
            loss
        }
    });
    let next = tokio::spawn(async move { Mutex::new(&rest, "m").ttl(TTL).lock().await });
    until_keys(&servers.client_of(1)?, "m/", 2).await?;
    servers.cluster.servers()[0].pause()?;
    let next = timeout(PATIENCE * 2, next).await;
    let was_lost = is_lost.load(Ordering::SeqCst);
    servers.cluster.servers()[0].resume()?;
    let next = next???;
    ensure!(was_lost == 1, "another held it, and its holder did not know");
    assert_eq!(watching.await?, Loss::NotRenewed);
    ensure!(next.token() > guard.token(), "{} after {}", next.token(), guard.token());
    let late = guard.txn(Txn::new().then(Put::new("a", "late"))).await;
    ensure!(matches!(late, Err(GuardError::Lost(Loss::NotRenewed))), "{late:?}");
    Ok(())
}
