//! Keys, transactions and software transactions.

use std::sync::Arc;

use anyhow::Result;
use conclave_client::{
    By, Compare, Delete, Error, EtcdError, Get, Is, Isolation, Keys, OpAnswer, Put, Revision, Stm, StmError,
    Txn,
};
use futures::future::try_join_all;
use tokio::sync::Barrier;

use crate::servers::Servers;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_put_read_and_deleted() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    assert_eq!(client.get("a").await?, None);
    let first = client.put("a", "1").await?;
    let second = client.write(Put::new("a", "2").previous()).await?;
    assert_eq!(second.revision, first.next());
    assert_eq!(second.previous.map(|kv| kv.value), Some("1".into()));
    let kv = client.get("a").await?.expect("it is there");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (first, first.next(), 2, None));
    let then = client.read(Get::new("a").at(first)).await?;
    assert_eq!(then.kvs[0].value, "1");

    client.put("b", "3").await?;
    let found = client.read(Get::new(Keys::all()).sorted(By::Modified).backwards().limit(1)).await?;
    assert_eq!((found.kvs[0].key.as_ref(), found.more, found.count), (&b"b"[..], true, 2));
    assert_eq!(client.read(Get::new(Keys::between("a", "b")).count_only()).await?.count, 1);
    let removed = client.remove(Delete::new(Keys::starting_at("a")).previous()).await?;
    assert_eq!((removed.count, removed.previous.len()), (2, 2));
    assert!(!client.delete("a").await?);

    client.compact(removed.revision).await?;
    let gone = client.read(Get::new("a").at(first)).await.expect_err("it is compacted");
    assert!(gone.is(EtcdError::Compacted), "{gone}");
    let future = client.read(Get::new("a").at(Revision(1 << 40))).await.expect_err("nobody knows");
    assert!(future.is(EtcdError::FutureRev), "{future}");
    assert!(client.put("", "x").await.expect_err("no key").is(EtcdError::EmptyKey));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_do_one_thing_or_the_other() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let txn = Txn::new()
        .when(Compare::absent("a"))
        .then(Put::new("a", "1"))
        .then(Txn::new().when(Compare::exists("a")).then(Put::new("b", "x")).otherwise(Get::new("a")))
        .otherwise(Delete::new("a"));
    let answer = client.txn(txn.clone()).await?;
    assert!(answer.succeeded);
    // The condition within is judged on the state before, the step within sees the step before it.
    let OpAnswer::Txn(within) = &answer.answers[1] else { panic!("{answer:?}") };
    assert!(!within.succeeded);
    assert_eq!(within.found(0)?.kvs[0].value, "1");
    let answer = client.txn(txn).await?;
    assert!(!answer.succeeded);
    assert!(matches!(&answer.answers[..], [OpAnswer::Delete(deleted)] if deleted.count == 1));

    let twice = Txn::new().then(Put::new("a", "1")).then(Delete::new("a"));
    assert!(client.txn(twice).await.expect_err("a key twice").is(EtcdError::DuplicateKey));
    client.put("a", "5").await?;
    let value = |is, value: &'static str| Txn::new().when(Compare::value("a", is, value));
    assert!(client.txn(value(Is::Less, "6")).await?.succeeded);
    assert!(client.txn(value(Is::Greater, "4")).await?.succeeded);
    assert!(!client.txn(value(Is::NotEqual, "5")).await?.succeeded);
    assert!(client.txn(Txn::new().when(Compare::version("a", Is::Equal, 1))).await?.succeeded);
    assert!(client.txn(Txn::new().when(Compare::lease(Keys::prefix("a"), Is::Equal, None))).await?.succeeded);
    Ok(())
}

/// What the tests' counters hold.
fn number(value: Option<bytes::Bytes>) -> u32 {
    value.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_software_transaction_counts_once() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    let counting = (0..8).map(|_| {
        let client = client.clone();
        // Spawned: the future can move to another thread.
        tokio::spawn(async move {
            for _ in 0..10 {
                let count = async |tx: &mut Stm| {
                    let next = number(tx.get("count").await?) + 1;
                    tx.put("count", next.to_string());
                    Ok(())
                };
                client.stm().run(count).await?;
            }
            Ok::<(), StmError>(())
        })
    });
    for done in try_join_all(counting).await? {
        done?;
    }
    assert_eq!(number(client.get("count").await?.map(|kv| kv.value)), 80);
    Ok(())
}

/// Two that read both keys and each take from another, so that only together they take too much. Both read before either writes.
async fn both_go_off_duty(isolation: Isolation) -> Result<u32> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    client.put("on-duty/ann", "1").await?;
    client.put("on-duty/bob", "1").await?;
    let both_have_read = Arc::new(Barrier::new(2));
    let leaving = ["on-duty/ann", "on-duty/bob"].map(|who| {
        let (client, both_have_read) = (client.clone(), Arc::clone(&both_have_read));
        async move {
            let mut is_first_run = true;
            let leave = async |tx: &mut Stm| {
                let on_duty = number(tx.get("on-duty/ann").await?) + number(tx.get("on-duty/bob").await?);
                if std::mem::take(&mut is_first_run) {
                    both_have_read.wait().await;
                }
                if on_duty == 2 {
                    tx.put(who, "0");
                }
                Ok(())
            };
            client.stm().isolation(isolation).run(leave).await
        }
    });
    try_join_all(leaving).await?;
    let left = [client.get("on-duty/ann").await?, client.get("on-duty/bob").await?];
    Ok(left.into_iter().map(|kv| number(kv.map(|kv| kv.value))).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anomaly_write_skew_under_snapshot_isolation() -> Result<()> {
    assert_eq!(both_go_off_duty(Isolation::Snapshot).await?, 0, "this is what snapshot isolation allows");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_skew_if_serializable() -> Result<()> {
    assert_eq!(both_go_off_duty(Isolation::Serializable).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_software_transaction_reads_one_snapshot_and_may_give_up() -> Result<()> {
    let servers = Servers::one()?;
    let client = servers.client()?;
    client.put("a", "1").await?;
    client.put("b", "1").await?;
    let mut runs = 0;
    let sum = async |tx: &mut Stm| {
        runs += 1;
        let a = number(tx.get("a").await?);
        // Somebody changes both in between; what is read goes together all the same.
        client.put("a", "2").await?;
        client.put("b", "2").await?;
        Ok((a, number(tx.get("b").await?)))
    };
    assert_eq!(client.stm().run(sum).await?, (1, 1));
    assert_eq!(runs, 1, "what only reads is not run again");
    let given_up = async |tx: &mut Stm| {
        tx.put("a", "9");
        Err::<(), _>(StmError::GivenUp("enough".to_owned()))
    };
    let error = client.stm().run(given_up).await.expect_err("it gave up");
    assert_eq!(error.to_string(), "given up: enough");
    assert_eq!(number(client.get("a").await?.map(|kv| kv.value)), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_server_ends_in_time() -> Result<()> {
    let nobody = xtask::server::Ports::free(1)?[0].client;
    let client = conclave_client::Client::connect([format!("127.0.0.1:{nobody}")])?;
    let client = client.with_timeout(std::time::Duration::from_millis(300));
    let began = std::time::Instant::now();
    for outcome in [client.get("a").await.map(drop), client.put("a", "1").await.map(drop)] {
        let error = outcome.expect_err("nobody is there");
        assert!(matches!(error, Error::Unavailable { .. }), "nothing took place, and it says so: {error:?}");
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(3));
    Ok(())
}
