//! Watches.

use std::time::Duration;

use anyhow::{Result, ensure};
use conclave_client::{Client, Config, EventKind, Keys, Put, Revision, Txn, Watch, WatchError, Watcher};
use tokio::time::timeout;

use crate::servers::{PATIENCE, Servers};

/// The next `count` events, each as its revision, kind and key.
async fn events(watcher: &mut Watcher, count: usize) -> Result<Vec<(i64, EventKind, String)>> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = timeout(PATIENCE, watcher.next()).await??;
        seen.extend(batch.events.iter().map(|event| {
            (event.kv.mod_revision.0, event.kind, String::from_utf8_lossy(event.key()).into_owned())
        }));
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_seen_from_now_on_or_from_then() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let before = client.put("a/1", "x").await?;
    let mut from_now_on = client.watch(Watch::new(Keys::prefix("a/")).previous());
    let since = timeout(PATIENCE, from_now_on.established()).await??;
    ensure!(since >= before, "established at {since}");
    client.put("a/2", "x").await?;
    client.put("b", "x").await?;
    client.delete("a/1").await?;
    let at = |number| before.0 + number;
    let expected = [(at(1), EventKind::Put, "a/2".to_owned()), (at(3), EventKind::Delete, "a/1".to_owned())];
    assert_eq!(events(&mut from_now_on, 2).await?, expected);
    let mut from_then = client.watch(Watch::new(Keys::prefix("a/")).after(Revision(before.0 - 1)));
    assert_eq!(events(&mut from_then, 3).await?[1..], expected);
    let mut deletions = client.watch(Watch::new(Keys::prefix("a/")).after(before).deletes_only());
    assert_eq!(events(&mut deletions, 1).await?, expected[1..]);

    let both = Txn::new().then(Put::new("a/3", "x")).then(Put::new("a/4", "x"));
    client.txn(both).await?;
    let batch = timeout(PATIENCE, from_now_on.next()).await??;
    assert_eq!((batch.events.len(), batch.revision.0), (2, at(4)), "all of one revision at once");
    Ok(())
}

async fn put_numbers(client: Client, count: u32) -> Result<()> {
    for number in 0..count {
        // Whether a put is applied twice is not the question here: each is seen as often as it was applied.
        while client.put(format!("n/{}", number % 7), number.to_string()).await.is_err() {}
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The history read by a watch that was never cut is that of a watch that was, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_where_it_was_cut() -> Result<()> {
    let mut servers = Servers::three()?;
    let client = servers.client()?;
    let mut watcher = client.watch(Watch::new(Keys::prefix("n/")));
    let start = timeout(PATIENCE, watcher.established()).await??;
    let watching = tokio::spawn(async move {
        let mut seen: Vec<(i64, String)> = Vec::new();
        loop {
            let batch = timeout(PATIENCE, watcher.next()).await??;
            for event in batch.events {
                if event.kv.key == "n/end" {
                    return Ok::<_, anyhow::Error>(seen);
                }
                seen.push((event.kv.mod_revision.0, String::from_utf8_lossy(&event.kv.value).into_owned()));
            }
        }
    });
    let putting = tokio::spawn(put_numbers(client.clone(), 600));
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        servers.bounce(round)?;
    }
    putting.await??;
    client.put("n/end", "").await?;
    let seen = watching.await??;
    let mut again = client.watch(Watch::new(Keys::prefix("n/")).after(start));
    let mut all = Vec::new();
    while all.len() < seen.len() {
        let batch = timeout(PATIENCE, again.next()).await??;
        all.extend(
            batch.events.iter().map(|event| {
                (event.kv.mod_revision.0, String::from_utf8_lossy(&event.kv.value).into_owned())
            }),
        );
    }
    ensure!(all.iter().take(seen.len()).eq(&seen), "a gap or a repetition");
    ensure!(seen.len() >= 600, "only {} events", seen.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_what_is_compacted_says_so_and_says_it_again() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let first = client.put("a", "1").await?;
    let last = client.put("a", "2").await?;
    client.put("a", "3").await?;
    client.compact(last).await?;
    let mut watcher = client.watch(Watch::new("a").after(Revision(first.0 - 1)));
    for _ in 0..2 {
        let error = timeout(PATIENCE, watcher.next()).await?.expect_err("it is gone");
        ensure!(matches!(error, WatchError::Compacted { revision } if revision == last), "{error}");
    }
    let mut rest = client.watch(Watch::new("a").after(first));
    assert_eq!(events(&mut rest, 2).await?.len(), 2);
    Ok(())
}

/// Compacted while the watch is cut: it must not go on as if nothing had been missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_was_overtaken_by_compaction_says_so() -> Result<()> {
    let mut servers = Servers::one()?;
    let client = servers.client()?;
    let mut watcher = client.watch(Watch::new("a"));
    timeout(PATIENCE, watcher.established()).await??;
    // Not asked for anything, it does not see its stream break.
    servers.bounce(0)?;
    let patient = Client::new(Config { request_timeout: PATIENCE, ..servers.config() })?;
    let mut last = patient.put("a", "1").await?;
    for _ in 0..3 {
        last = patient.put("a", "1").await?;
    }
    patient.compact(last).await?;
    let outcome = timeout(PATIENCE, watcher.next()).await?;
    ensure!(matches!(outcome, Err(WatchError::Compacted { .. })), "{outcome:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_larger_than_a_message_comes_whole() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let start = client.put("big/", "").await?;
    let value = vec![b'x'; 1 << 20];
    for number in 0..12 {
        client.put(format!("big/{number}"), value.clone()).await?;
    }
    // Less than all of them together, more than one.
    let config = Config { answer_bytes_max: 4 << 20, ..servers.config() };
    let mut watcher = Client::new(config)?.watch(Watch::new(Keys::prefix("big/")).after(start));
    assert_eq!(events(&mut watcher, 12).await?.len(), 12);
    Ok(())
}
