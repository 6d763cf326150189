//! Leases and locks while leaders die and stop: no lease ends early, none stays for good, and no lock has two owners.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use conclave_api::{
    etcdserverpb::{
        Compare, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        compare::{CompareTarget, TargetUnion},
        kv_client::KvClient,
        lease_client::LeaseClient,
        request_op::Request,
    },
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use conclave_tests::trial::{ELECTION, Setup, Trial};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use super::pause;

/// Leases that are kept alive, and the time that each lives without that.
const KEPT: i64 = 12;
const TTL: Duration = Duration::from_secs(3);

fn channels(trial: &Trial) -> Result<Vec<Channel>> {
    let connect = |endpoint: String| {
        let endpoint = Endpoint::from_shared(endpoint)?.connect_timeout(ELECTION).timeout(3 * ELECTION);
        Ok(endpoint.connect_lazy())
    };
    trial.endpoints().into_iter().map(connect).collect()
}

fn key(lease: i64) -> String {
    format!("lease/{lease:04}")
}

/// Tries one member after the other until one does it.
async fn insist<T>(
    channels: &[Channel],
    does: impl AsyncFn(Channel) -> Result<T, tonic::Status>,
) -> Result<T> {
    let until = Instant::now() + 20 * ELECTION;
    for channel in channels.iter().cycle() {
        match does(channel.clone()).await {
            Ok(done) => return Ok(done),
            Err(status) => ensure!(Instant::now() < until, "nobody does it: {status}"),
        }
        pause(0.05).await;
    }
    unreachable!("there are members")
}

/// A lease and a key under it. Repeated, it finds what it did before.
async fn begin_lease(channels: &[Channel], id: i64) -> Result<Instant> {
    let ttl = i64::try_from(TTL.as_secs())?;
    insist(channels, async |channel| {
        let asked = Instant::now();
        let granted = LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { id, ttl }).await;
        if let Err(status) = granted
            && status.message() != "etcdserver: lease already exists"
        {
            return Err(status);
        }
        let put = PutRequest { key: key(id).into(), lease: id, ..PutRequest::default() };
        KvClient::new(channel).put(put).await?;
        Ok(asked)
    })
    .await
}

/// Until when each lease was promised to live: its time after the *sending* of the last renewal that was answered.
#[derive(Clone, Debug, Default)]
struct Promises(Arc<Mutex<BTreeMap<i64, Instant>>>);

impl Promises {
    fn promise(&self, id: i64, asked: Instant) {
        self.0.lock().insert(id, asked + TTL);
    }
}

/// Renews a lease through all members in turn, until it is told to stop.
fn keep(
    channels: Vec<Channel>,
    id: i64,
    promises: Promises,
    stop: Arc<AtomicBool>,
) -> JoinHandle<Result<()>> {
    tokio::spawn(async move {
        for channel in channels.iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let asked = Instant::now();
            let once = futures::stream::iter([LeaseKeepAliveRequest { id }]);
            let renewal = async {
                let mut answers =
                    LeaseClient::new(channel.clone()).lease_keep_alive(once).await?.into_inner();
                answers.message().await
            };
            if let Ok(Ok(Some(answer))) = tokio::time::timeout(ELECTION, renewal).await {
                if answer.ttl == 0 {
                    // Its client was kept from renewing for too long, as by an election: that is no fault, if no promise was broken.
                    return Ok(());
                }
                promises.promise(id, asked);
            }
            pause(0.3).await;
        }
        unreachable!("there are members")
    })
}

/// Reads all leased keys again and again. One that is missing before its promise is over has ended early.
fn watch(channels: Vec<Channel>, promises: Promises, stop: Arc<AtomicBool>) -> JoinHandle<Result<u64>> {
    tokio::spawn(async move {
        let mut looks = 0;
        for channel in channels.iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                return Ok(looks);
            }
            let promised = promises.0.lock().clone();
            let all =
                RangeRequest { key: "lease/".into(), range_end: "lease0".into(), ..RangeRequest::default() };
            if let Ok(seen) = KvClient::new(channel.clone()).range(all).await {
                // It was missing at some moment before this one.
                let seen_by = Instant::now();
                looks += 1;
                for (id, until) in promised {
                    let is_there = seen.get_ref().kvs.iter().any(|kv| kv.key == key(id));
                    ensure!(
                        is_there || seen_by >= until,
                        "lease {id} ended {:?} early",
                        until.duration_since(seen_by)
                    );
                }
            }
            pause(0.05).await;
        }
        unreachable!("there are members")
    })
}

async fn keys_left(channels: &[Channel]) -> Result<usize> {
    let all = || RangeRequest { key: "lease/".into(), range_end: "lease0".into(), ..RangeRequest::default() };
    insist(channels, async |channel| Ok(KvClient::new(channel).range(all()).await?.into_inner().kvs.len()))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_outlive_their_leaders_and_end_once_nobody_renews_them() -> Result<()> {
    let mut trial = Trial::start(&Setup::default()).await?;
    let channels = channels(&trial)?;
    let (promises, stop, stop_watching) = (Promises::default(), Arc::default(), Arc::default());
    for id in 1..=KEPT {
        let asked = begin_lease(&channels, id).await?;
        promises.promise(id, asked);
    }
    let keepers: Vec<_> =
        (1..=KEPT).map(|id| keep(channels.clone(), id, promises.clone(), Arc::clone(&stop))).collect();
    let watching = watch(channels.clone(), promises.clone(), Arc::clone(&stop_watching));
    pause(2.0).await;
    let leader = trial.leader().await?;
    trial.cluster.servers_mut()[leader].kill()?;
    pause(4.0).await;
    trial.restart_ended()?;
    pause(2.0).await;
    // A leader that is stopped finds all leases run out when it goes on: they are another's by then.
    let leader = trial.leader().await?;
    trial.cluster.servers()[leader].pause()?;
    pause(6.0).await;
    trial.cluster.servers()[leader].resume()?;
    pause(2.0).await;
    let left = keys_left(&channels).await?;
    ensure!(left == usize::try_from(KEPT)?, "{left} of {KEPT} leases are left although they were renewed");
    stop.store(true, Ordering::Relaxed);
    for keeper in keepers {
        keeper.await??;
    }
    let promised = promises.0.lock().values().max().copied().context("leases were kept")?;
    while keys_left(&channels).await? > 0 {
        ensure!(promised.elapsed() < 3 * ELECTION, "leases that nobody renews do not end");
        pause(0.01).await;
    }
    println!("no lease was left {:?} after the last promise was over", promised.elapsed());
    stop_watching.store(true, Ordering::Relaxed);
    let looks = watching.await??;
    println!("{looks} looks found no lease ended early");
    ensure!(looks > 100, "too few looks to show anything");
    Ok(())
}

/// What a client did while it owned the lock: the token, and the revision of the write that demanded it.
type Owned = (i64, i64);

/// Locks, writes what only the owner may, and unlocks, until it is told to stop.
async fn contend(channels: Vec<Channel>, client: i64, stop: Arc<AtomicBool>) -> Result<Vec<Owned>> {
    let mut owned = Vec::new();
    let mut round = 0;
    for at in (0..channels.len()).cycle().skip(usize::try_from(client)?) {
        if stop.load(Ordering::Relaxed) {
            return Ok(owned);
        }
        round += 1;
        let id = client * 1_000_000 + round;
        let channel = channels[at].clone();
        let lease = LeaseGrantRequest { id, ttl: i64::try_from(TTL.as_secs())? };
        if LeaseClient::new(channel.clone()).lease_grant(lease).await.is_err() {
            pause(0.1).await;
            continue;
        }
        let lock = LockRequest { name: "lock".into(), lease: id };
        let Ok(answer) = LockClient::new(channel.clone()).lock(lock).await else { continue };
        let token = answer.metadata().get("conclave-fencing-token").context("an answer without a token")?;
        let token: i64 = token.to_str()?.parse()?;
        let key = answer.into_inner().key;
        let put = PutRequest { key: "guarded".into(), value: id.to_string().into(), ..PutRequest::default() };
        let guarded = TxnRequest {
            compare: vec![Compare {
                target: CompareTarget::Create.into(),
                key: key.clone(),
                target_union: Some(TargetUnion::CreateRevision(token)),
                ..Compare::default()
            }],
            success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
            failure: Vec::new(),
        };
        if let Ok(written) = KvClient::new(channel.clone()).txn(guarded).await
            && written.get_ref().succeeded
        {
            owned.push((token, written.get_ref().header.as_ref().map_or(0, |header| header.revision)));
        }
        // What is not given back ends with its lease.
        let _ = LockClient::new(channel).unlock(UnlockRequest { key }).await;
    }
    unreachable!("there are members")
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_have_one_owner_after_the_other_while_members_die() -> Result<()> {
    let mut trial = Trial::start(&Setup::default()).await?;
    let channels = channels(&trial)?;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> =
        (1..=8).map(|client| tokio::spawn(contend(channels.clone(), client, Arc::clone(&stop)))).collect();
    for victim in 0..3 {
        pause(2.0).await;
        trial.cluster.servers_mut()[victim].kill()?;
        pause(2.0).await;
        trial.restart_ended()?;
    }
    pause(3.0).await;
    stop.store(true, Ordering::Relaxed);
    let mut owned = Vec::new();
    for client in clients {
        owned.extend(client.await??);
    }
    // In the order of what the owners wrote, which is that of the store.
    owned.sort_by_key(|(_, revision)| *revision);
    println!("{} times somebody wrote as the owner", owned.len());
    ensure!(owned.len() > 50, "too few to show anything");
    for pair in owned.windows(2) {
        ensure!(
            pair[0].0 < pair[1].0,
            "the owners of {} and {} wrote in the wrong order",
            pair[0].0,
            pair[1].0
        );
        ensure!(pair[0].1 > pair[0].0, "a token is from before the write that it allowed");
    }
    // Nobody is left in the queue once all leases are over.
    let until = Instant::now() + TTL + 5 * ELECTION;
    let queue = || RangeRequest { key: "lock/".into(), range_end: "lock0".into(), ..RangeRequest::default() };
    while insist(&channels, async |channel| {
        Ok(KvClient::new(channel).range(queue()).await?.into_inner().count)
    })
    .await?
        > 0
    {
        ensure!(Instant::now() < until, "somebody stays in the queue");
        pause(0.1).await;
    }
    Ok(())
}
