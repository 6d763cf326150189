//! Faults on real processes, under load. After each: a linearizable history, no acknowledged write lost, the same HashKV on all members.
//!
//! `cargo xtask cluster` builds the node and runs them one after the other. Two tests put a bug back and demand that the checks see it.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use conclave_api::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberRemoveRequest, MoveLeaderRequest, PutRequest,
    cluster_client::ClusterClient, maintenance_client::MaintenanceClient,
};
use conclave_tests::{
    load::{Load, connect},
    solo::Solo,
    trial::{ELECTION, Setup, Trial, copy_dir},
    watcher::{self, Watcher},
};
use xtask::server::Ports;

const CLIENTS: u32 = 16;

async fn pause(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

fn start_load(trial: &Trial, seed: u64) -> Result<Load> {
    Load::start(&trial.endpoints(), CLIENTS, seed)
}

/// Frequent checkpoints and a log that is cut close behind them.
fn small_steps() -> Vec<String> {
    ["--snapshot-count=400", "--snapshot-catchup-entries=100"].map(str::to_owned).to_vec()
}

async fn kill_leader(setup: &Setup) -> Result<()> {
    let mut trial = Trial::start(setup).await?;
    let load = start_load(&trial, 1)?;
    pause(1.5).await;
    let leader = trial.leader().await?;
    trial.cluster.servers_mut()[leader].kill()?;
    let took = load.next_write(10 * ELECTION).await?;
    println!("first new write {took:?} after the leader was killed");
    ensure!(took <= 3 * ELECTION, "the first new write took {took:?}, more than three election timeouts");
    pause(1.0).await;
    trial.restart_ended()?;
    pause(1.0).await;
    trial.check(load).await
}

async fn kill_all(setup: &Setup) -> Result<()> {
    let mut trial = Trial::start(setup).await?;
    let load = start_load(&trial, 2)?;
    for _ in 0..2 {
        pause(2.0).await;
        if setup.volatile {
            put_state_back(&mut trial)?;
        }
        for server in trial.cluster.servers_mut() {
            server.kill()?;
        }
        trial.restart_ended()?;
        load.next_write(10 * ELECTION).await?;
    }
    pause(1.0).await;
    trial.check(load).await
}

/// What the state engine wrote after its last checkpoint may rest in the page cache, which `kill -9` keeps and a power cut does not. So the
/// directory is put back to what it was at the last checkpoint: nothing may depend on more. The nodes are killed by this.
fn put_state_back(trial: &mut Trial) -> Result<()> {
    for node in 0..3 {
        let state = trial.state_dir(node);
        let copy = state.with_extension("copy");
        let mut at = trial.checkpoints(node)?;
        loop {
            // A paused process completes nothing, so the copy is of one moment.
            trial.cluster.servers()[node].pause()?;
            if copy.exists() {
                fs::remove_dir_all(&copy)?;
            }
            copy_dir(&state, &copy)?;
            trial.cluster.servers()[node].resume()?;
            // If a checkpoint was completed before the pause but is not in the count we had, take it into account.
            let now = trial.checkpoints(node)?;
            if now == at {
                break;
            }
            at = now;
        }
        trial.cluster.servers_mut()[node].kill()?;
        fs::remove_dir_all(&state)?;
        fs::rename(&copy, &state)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_leader() -> Result<()> {
    kill_leader(&Setup::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_all() -> Result<()> {
    kill_all(&Setup { flags: small_steps(), ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_at_the_leader() -> Result<()> {
    kill_leader(&Setup { volatile: true, flags: small_steps(), ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_everywhere() -> Result<()> {
    kill_all(&Setup { volatile: true, flags: small_steps(), ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_laggard_needs_a_snapshot() -> Result<()> {
    let mut trial = Trial::start(&Setup { flags: small_steps(), ..Setup::default() }).await?;
    let load = start_load(&trial, 3)?;
    let leader = trial.leader().await?;
    let away = (leader + 1) % 3;
    trial.cluster.servers_mut()[away].kill()?;
    // As long as it counts as live the log is kept for it; then it is cut close behind the checkpoints.
    tokio::time::sleep(3 * ELECTION).await;
    let before = load.acknowledged();
    while load.acknowledged() < before + 3_000 {
        pause(0.1).await;
    }
    trial.restart_ended()?;
    pause(1.5).await;
    let text = trial.log_text(away);
    trial.check(load).await?;
    ensure!(
        text.contains("snapshot installed"),
        "the follower caught up without a snapshot: the trial shows nothing"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_paused_for_ten_seconds() -> Result<()> {
    let mut trial = Trial::start(&Setup::default()).await?;
    let load = start_load(&trial, 4)?;
    pause(1.0).await;
    let leader = trial.leader().await?;
    trial.cluster.servers()[leader].pause()?;
    load.next_write(10 * ELECTION).await?;
    pause(10.0).await;
    trial.cluster.servers()[leader].resume()?;
    pause(2.0).await;
    trial.check(load).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_links_cut() -> Result<()> {
    let mut trial = Trial::start(&Setup { proxied: true, ..Setup::default() }).await?;
    let load = start_load(&trial, 5)?;
    pause(1.0).await;
    let leader = trial.leader().await?;
    let mut ids = Vec::new();
    for node in 0..3 {
        ids.push(trial.member_id(node).await?);
    }
    {
        let proxies = trial.proxies.as_ref().expect("the setup asks for proxies");
        ensure!(proxies.dialed().len() == 3, "links do not lead through the proxies");
        for other in (0..3).filter(|node| *node != leader) {
            proxies.cut(ids[leader], other);
            proxies.cut(ids[other], leader);
        }
    }
    load.next_write(10 * ELECTION).await?;
    pause(3.0).await;
    ensure!(
        trial.leader().await? != leader || trial.status(leader).await?.leader != ids[leader],
        "cut off, yet it leads"
    );
    trial.proxies.as_ref().expect("the setup asks for proxies").heal();
    pause(2.0).await;
    trial.check(load).await
}

/// Says what a node has to have logged, and waits for it.
async fn logged(what: &str, log: impl Fn() -> String) -> Result<()> {
    let until = Instant::now() + 20 * ELECTION;
    while !log().contains(what) {
        ensure!(Instant::now() < until, "nobody said {what:?}");
        pause(0.05).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_joins_leads_and_is_removed() -> Result<()> {
    let mut trial = Trial::start(&Setup { flags: small_steps(), ..Setup::default() }).await?;
    let load = start_load(&trial, 6)?;
    pause(1.0).await;
    let (directory, ports) = (tempfile::tempdir()?, Ports::free(1)?[0]);
    let peer_url = Trial::peer_url(ports);
    let leader = trial.leader().await?;
    // Asked of a follower: the leader carries it out.
    let mut asked = ClusterClient::new(trial.channel((leader + 1) % 3, 10 * ELECTION)?);
    let request = MemberAddRequest { peer_ur_ls: vec![peer_url.clone()], is_learner: false };
    let added = asked.member_add(request.clone()).await?.into_inner();
    let id = added.member.as_ref().map(|member| member.id).unwrap_or_default();
    ensure!(added.members.len() == 4 && added.members.iter().all(|member| !member.is_learner), "{added:?}");
    let again = asked.member_add(request).await.unwrap_err();
    ensure!(again.message() == "etcdserver: Peer URLs already exists", "{again}");
    let members = format!("{},n4={peer_url}", trial.members());
    let mut joined = Solo::join(directory.path(), "n4", ports, &members, trial.engine)?;
    logged("a new member has caught up and votes", || (0..3).map(|node| trial.log_text(node)).collect())
        .await?;
    let mut maintenance = MaintenanceClient::new(trial.channel(leader, 10 * ELECTION)?);
    maintenance.move_leader(MoveLeaderRequest { target_id: id }).await?;
    load.next_write(10 * ELECTION).await?;
    // It leads now, and its own removal is the last that it decides.
    asked.member_remove(MemberRemoveRequest { id }).await?;
    load.next_write(10 * ELECTION).await?;
    let refusal = joined.ended(0)?;
    ensure!(refusal.line.contains("this member was removed from the cluster"), "{refusal:?}");
    let listed = asked.member_list(MemberListRequest { linearizable: true }).await?.into_inner();
    ensure!(listed.members.len() == 3, "{listed:?}");
    pause(1.0).await;
    trial.check(load).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_disk_does_not_come_back_under_its_name() -> Result<()> {
    let mut trial = Trial::start(&Setup::default()).await?;
    let load = start_load(&trial, 7)?;
    pause(1.0).await;
    let node = (trial.leader().await? + 1) % 3;
    trial.cluster.servers_mut()[node].kill()?;
    let (data, aside) = (trial.data_dir(node), trial.data_dir(node).with_extension("aside"));
    fs::rename(&data, &aside)?;
    trial.cluster.servers_mut()[node].restart()?;
    logged("came with another data directory than the one it is known by", || trial.log_text(node)).await?;
    let until = Instant::now() + 10 * ELECTION;
    while trial.cluster.servers_mut()[node].ended().is_none() {
        ensure!(Instant::now() < until, "it goes on");
        pause(0.05).await;
    }
    // With what it promised it is welcome again.
    fs::remove_dir_all(&data)?;
    fs::rename(&aside, &data)?;
    trial.restart_ended()?;
    pause(1.0).await;
    trial.check(load).await
}

/// Ends a load with its checks; then all watchers, and one that reads everything as history, must have seen the same.
async fn check_watchers(trial: &mut Trial, load: Load, watchers: Vec<Watcher>) -> Result<()> {
    trial.check(load).await?;
    let endpoints = trial.endpoints();
    let put = PutRequest { key: "the end".into(), ..PutRequest::default() };
    let header = connect(&endpoints[0])?.put(put).await?.into_inner().header;
    let revision = header.map_or(0, |header| header.revision);
    let mut seen = Vec::new();
    for watcher in watchers.into_iter().chain([Watcher::start(&endpoints, 2)?]) {
        seen.push(watcher.finish(revision, 30 * ELECTION).await?);
    }
    ensure!(seen.iter().all(|seen| seen.changes.len() as i64 == revision - 1), "a revision is missing");
    let streams: Vec<usize> = seen.iter().map(|seen| seen.streams).collect();
    println!("{revision} revisions seen alike, with {streams:?} streams");
    watcher::agree(&seen)
}

/// Watchers of each member first, of the others when that fails.
fn watchers(trial: &Trial) -> Result<Vec<Watcher>> {
    let endpoints = trial.endpoints();
    let from = |first: usize| {
        let mut endpoints = endpoints.clone();
        endpoints.rotate_left(first);
        Watcher::start(&endpoints, 2)
    };
    (0..endpoints.len()).map(from).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_go_on_when_members_are_killed() -> Result<()> {
    let mut trial = Trial::start(&Setup { flags: small_steps(), ..Setup::default() }).await?;
    let watchers = watchers(&trial)?;
    let load = start_load(&trial, 8)?;
    for _ in 0..3 {
        pause(1.5).await;
        let leader = trial.leader().await?;
        trial.cluster.servers_mut()[leader].kill()?;
        load.next_write(10 * ELECTION).await?;
        trial.restart_ended()?;
    }
    pause(1.0).await;
    check_watchers(&mut trial, load, watchers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_go_on_over_a_snapshot() -> Result<()> {
    let mut trial = Trial::start(&Setup { flags: small_steps(), ..Setup::default() }).await?;
    let load = start_load(&trial, 9)?;
    let away = (trial.leader().await? + 1) % 3;
    // One that asks this member alone, so that its stream meets the snapshot.
    let mut watchers = watchers(&trial)?;
    watchers.push(Watcher::start(&trial.endpoints()[away..=away], 2)?);
    pause(1.0).await;
    trial.cluster.servers()[away].pause()?;
    // As long as it counts as live the log is kept for it; then it is cut close behind the checkpoints.
    tokio::time::sleep(3 * ELECTION).await;
    let before = load.acknowledged();
    while load.acknowledged() < before + 3_000 {
        pause(0.1).await;
    }
    trial.cluster.servers()[away].resume()?;
    pause(2.0).await;
    let text = trial.log_text(away);
    check_watchers(&mut trial, load, watchers).await?;
    ensure!(text.contains("snapshot installed"), "it caught up without a snapshot: the trial shows nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mutant_a_sync_that_does_nothing_is_caught() -> Result<()> {
    let setup = Setup {
        volatile: true,
        mutant: Some("log-sync-does-nothing"),
        flags: small_steps(),
        ..Setup::default()
    };
    caught(kill_all(&setup).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn mutant_a_log_cut_before_state_is_persisted_is_caught() -> Result<()> {
    let setup = Setup {
        volatile: true,
        mutant: Some("log-cut-before-state-is-persisted"),
        flags: ["--snapshot-count=400", "--snapshot-catchup-entries=0"].map(str::to_owned).to_vec(),
        ..Setup::default()
    };
    caught(kill_all(&setup).await)
}

/// What the checkers say of a lost write, and what a node says that finds its log and state apart. Anything else that goes wrong (a
/// machine too slow, a port taken) catches no mutant.
const VERDICTS: [&str; 8] = [
    "linearizability",
    "dense revisions",
    "agreement",
    "what lies between is lost",
    "the log was lost",
    "a state but no log",
    "a slot that was never written",
    "is damaged at offset",
];

fn caught(outcome: Result<()>) -> Result<()> {
    let Err(why) = outcome else { anyhow::bail!("the mutant survived") };
    let why = format!("{why:#}");
    ensure!(
        VERDICTS.iter().any(|verdict| why.contains(verdict)),
        "the trial failed for another reason: {why}"
    );
    println!("caught: {why}");
    Ok(())
}
