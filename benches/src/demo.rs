//! What a person wants to see first: the leader is killed under load and nothing acknowledged is lost.
//!
//! Writers put keys that never repeat. A write whose answer did not come may or may not have happened, so only
//! acknowledged writes are remembered, and each of them has to be there in the end, on every node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use conclave_api::etcdserverpb::{PutRequest, RangeRequest, RangeResponse, StatusRequest, StatusResponse};
use indicatif::{ProgressBar, ProgressStyle};
use xtask::engine::Engine;

use crate::connection::{Call, Connection, Framed};
use crate::subject::{Running, Subject};

const WRITERS: usize = 16;
const BEFORE_KILL: Duration = Duration::from_secs(5);
const AFTER_KILL: Duration = Duration::from_secs(8);
/// A call to a dead or stuck node is given up and tried at another.
const CALL_LIMIT: Duration = Duration::from_millis(500);
/// A writer that no node answers waits so long before it asks again.
const RETRY: Duration = Duration::from_millis(20);
/// How long a restarted node may take to have everything.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(15);
const PAGE_KEYS: i64 = 1000;
const PREFIX: &str = "demo/";
/// The first key behind all that begin with [`PREFIX`].
const PREFIX_END: &str = "demo0";
const TICK: Duration = Duration::from_millis(100);

/// Acknowledged writes, and when the last one came.
struct Ledger {
    values: Mutex<BTreeMap<String, String>>,
    count: AtomicU64,
    first_after_kill: Mutex<Option<Instant>>,
    killed: AtomicBool,
    stop: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A writer that panicked left a map that is still whole: each insert is one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the demonstration with the program `conclave`.
///
/// # Errors
/// When a server fails by itself, or an acknowledged write is missing: then the message names the first one.
pub async fn run(program: PathBuf, engine: Engine) -> Result<()> {
    println!("Three nodes start in a temporary folder, on {}.", engine.name());
    let mut running = Subject::conclave(program, engine).start()?;
    let endpoints = running.cluster.endpoints();
    println!("They serve: {}", endpoints.join(", "));

    let ledger = Arc::new(Ledger {
        values: Mutex::default(),
        count: AtomicU64::new(0),
        first_after_kill: Mutex::new(None),
        killed: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|index| tokio::spawn(write(index, endpoints.clone(), Arc::clone(&ledger))))
        .collect();

    let bar = ProgressBar::new((BEFORE_KILL + AFTER_KILL).as_millis() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {msg}")?);
    let started = Instant::now();
    watch(&bar, &ledger, started, BEFORE_KILL, "all three nodes").await;

    let leader = leader(&endpoints).await?;
    let victim = &mut running.cluster.servers_mut()[leader];
    let name = victim.name().to_owned();
    let acknowledged_before = ledger.count.load(Ordering::SeqCst);
    let killed_at = Instant::now();
    victim.kill()?;
    ledger.killed.store(true, Ordering::SeqCst);
    bar.println(format!("kill -9 of the leader, {name}, after {acknowledged_before} acknowledged writes"));
    watch(&bar, &ledger, started, BEFORE_KILL + AFTER_KILL, "two of three nodes").await;
    ledger.stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await?;
    }
    bar.finish_and_clear();

    let resumed =
        (*locked(&ledger.first_after_kill)).context("no write was acknowledged after the leader's death")?;
    let values = locked(&ledger.values).clone();
    println!(
        "The first new write was acknowledged {:.2} s after the kill.",
        (resumed - killed_at).as_secs_f64()
    );
    println!(
        "{} writes were acknowledged, {} of them by two nodes.",
        values.len(),
        values.len() as u64 - acknowledged_before
    );

    running.cluster.servers_mut()[leader].restart()?;
    running.cluster.wait_ready(CATCH_UP_LIMIT).with_context(|| format!("{name} restarts"))?;
    println!("{name} is back. Every acknowledged write is looked up on every node.");
    verify_all(&running, &values).await?;
    running.stop()?;
    println!("Nothing acknowledged is lost.");
    Ok(())
}

/// Shows progress until `until` after `started`.
async fn watch(bar: &ProgressBar, ledger: &Ledger, started: Instant, until: Duration, who: &str) {
    let mut last = (started.elapsed(), ledger.count.load(Ordering::SeqCst));
    while started.elapsed() < until {
        tokio::time::sleep(TICK).await;
        let now = (started.elapsed(), ledger.count.load(Ordering::SeqCst));
        let rate = (now.1 - last.1) as f64 / (now.0 - last.0).as_secs_f64();
        bar.set_position(now.0.as_millis() as u64);
        bar.set_message(format!("{who}: {} writes acknowledged, {rate:.0}/s", now.1));
        last = now;
    }
}

/// The index of the node that leads.
async fn leader(endpoints: &[String]) -> Result<usize> {
    let mut members = Vec::new();
    let mut leader = 0;
    for endpoint in endpoints {
        let mut connection = Connection::open(endpoint).await?;
        let answer = connection.call(Call::Status, &Framed::new(&StatusRequest {})).await?;
        let status: StatusResponse = answer.decode()?;
        members.push(status.header.context("a status without a header")?.member_id);
        leader = status.leader;
    }
    members.iter().position(|member| *member == leader).context("no node leads")
}

/// Puts key after key at any node that answers, until told to stop.
async fn write(index: usize, endpoints: Vec<String>, ledger: Arc<Ledger>) {
    let mut node = index % endpoints.len();
    let mut connection = None;
    let mut sequence = 0u64;
    while !ledger.stop.load(Ordering::SeqCst) {
        let open = match connection.take() {
            Some(open) => open,
            None => match Connection::open(&endpoints[node]).await {
                Ok(open) => open,
                Err(_) => {
                    node = (node + 1) % endpoints.len();
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            },
        };
        sequence += 1;
        let (key, value) = (format!("{PREFIX}{index:02}/{sequence:08}"), format!("{index}-{sequence}"));
        match put(open, &key, &value, &ledger).await {
            Some(open) => {
                connection = Some(open);
                locked(&ledger.values).insert(key, value);
                ledger.count.fetch_add(1, Ordering::SeqCst);
            }
            None => {
                node = (node + 1) % endpoints.len();
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Puts and returns the connection if the write was acknowledged.
async fn put(mut open: Connection, key: &str, value: &str, ledger: &Ledger) -> Option<Connection> {
    let sent_after_kill = ledger.killed.load(Ordering::SeqCst);
    let request =
        PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    let answer = tokio::time::timeout(CALL_LIMIT, open.call(Call::Put, &Framed::new(&request))).await;
    answer.ok()?.ok()?;
    if sent_after_kill {
        locked(&ledger.first_after_kill).get_or_insert_with(Instant::now);
    }
    Some(open)
}

/// Looks everything up on every node, linearizable: a node that lags has to catch up first.
async fn verify_all(running: &Running, values: &BTreeMap<String, String>) -> Result<()> {
    for server in running.cluster.servers() {
        let found = tokio::time::timeout(CATCH_UP_LIMIT, read_all(&server.endpoint()))
            .await
            .with_context(|| format!("{} did not answer in time", server.name()))??;
        for (key, value) in values {
            ensure!(
                found.get(key) == Some(value),
                "LOST on {}: {key} = {value} was acknowledged",
                server.name()
            );
        }
        println!("  {}: all {} are there", server.name(), values.len());
    }
    Ok(())
}

async fn read_all(endpoint: &str) -> Result<BTreeMap<String, String>> {
    let mut connection = Connection::open(endpoint).await?;
    let mut found = BTreeMap::new();
    let mut next = PREFIX.to_owned();
    loop {
        let request = RangeRequest {
            key: next.clone().into(),
            range_end: PREFIX_END.into(),
            limit: PAGE_KEYS,
            ..RangeRequest::default()
        };
        let page: RangeResponse = connection.call(Call::Range, &Framed::new(&request)).await?.decode()?;
        for kv in &page.kvs {
            found.insert(String::from_utf8(kv.key.to_vec())?, String::from_utf8(kv.value.to_vec())?);
        }
        match page.kvs.last() {
            // The next page begins behind the last key.
            Some(last) if page.more => next = format!("{}\0", String::from_utf8(last.key.to_vec())?),
            _ => return Ok(found),
        }
    }
}
