//! Faults on real processes, under load. After each: a linearizable history, no acknowledged write lost, the same HashKV on all members.
//!
//! `cargo xtask cluster` builds the node and runs them one after the other. Two tests put a bug back and demand that the checks see it.

#[path = "cluster/leases.rs"]
mod leases;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use conclave_api::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberRemoveRequest, MoveLeaderRequest, PutRequest, RangeRequest,
    cluster_client::ClusterClient, maintenance_client::MaintenanceClient,
};
use conclave_tests::{
    load::{Client, Load, connect},
    solo::{Solo, Written},
    trial::{ELECTION, Setup, Trial, copy_dir, engine},
    watcher::{self, Watcher},
};
use xtask::{engine::Engine, server::Ports};

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

/// All three elect and one alone writes, as the operator chose.
#[tokio::test(flavor = "multi_thread")]
async fn sizes_of_quorums_are_kept_and_bind_changes_of_members() -> Result<()> {
    let flags = ["--elect-quorum=3", "--commit-quorum=1"].map(str::to_owned).to_vec();
    let setup = Setup { engine: Some(Engine::Paxos), flags, ..Setup::default() };
    let mut trial = Trial::start(&setup).await?;
    let load = start_load(&trial, 8)?;
    pause(1.0).await;
    let leader = trial.leader().await?;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let mut asked = ClusterClient::new(trial.channel(others[0], 10 * ELECTION)?);
    let doubt =
        "--elect-quorum and --commit-quorum of this cluster do not fit the number of voters it would have";
    let add = MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:9".to_owned()], is_learner: false };
    let refused = asked.member_add(add.clone()).await.unwrap_err();
    ensure!(refused.message().ends_with(doubt), "three and one do not meet among four: {refused}");
    let id = trial.member_id(others[1]).await?;
    let refused = asked.member_remove(MemberRemoveRequest { id }).await.unwrap_err();
    ensure!(refused.message().ends_with(doubt), "two cannot elect as three: {refused}");
    // One that only learns counts in no quorum, and may vote as little.
    let learner = asked.member_add(MemberAddRequest { is_learner: true, ..add }).await?.into_inner();
    let id = learner.member.map(|member| member.id).unwrap_or_default();
    asked.member_remove(MemberRemoveRequest { id }).await?;
    for node in others {
        trial.cluster.servers_mut()[node].kill()?;
    }
    for _ in 0..2 {
        pause(2.0 * ELECTION.as_secs_f64()).await;
        load.next_write(ELECTION).await?;
    }
    // Without it nobody is elected, for it may hold what nobody else does.
    trial.cluster.servers_mut()[leader].kill()?;
    for node in others {
        trial.cluster.servers_mut()[node].restart()?;
    }
    pause(5.0 * ELECTION.as_secs_f64()).await;
    for node in others {
        ensure!(trial.status(node).await?.leader == 0, "two of three elected");
    }
    trial.restart_ended()?;
    load.next_write(10 * ELECTION).await?;
    pause(1.0).await;
    trial.check(load).await
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

/// A cluster founded by one, to which two more were added.
struct Grown {
    nodes: [Solo; 3],
    _directories: [tempfile::TempDir; 3],
}

impl Grown {
    async fn start() -> Result<Self> {
        let engine = engine()?;
        let directories = [tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?];
        let first = Solo::launch(directories[0].path(), &[engine.flag()])?.ready()?;
        let mut members = format!("n1={}", Trial::peer_url(first.ports()));
        let mut others = Vec::new();
        for (at, directory) in directories.iter().enumerate().skip(1) {
            let (name, ports) = (format!("n{}", at + 1), Ports::free(1)?[0]);
            let request = MemberAddRequest { peer_ur_ls: vec![Trial::peer_url(ports)], is_learner: false };
            ClusterClient::new(first.channel(10 * ELECTION)?).member_add(request).await?;
            members = format!("{members},{name}={}", Trial::peer_url(ports));
            others.push(Solo::join(directory.path(), &name, ports, &members, engine)?);
            let voting = || first.log_text().matches("a new member has caught up and votes").count();
            until("the new member votes", || voting() == at).await?;
            until_introduced(&first).await?;
        }
        let others: [Solo; 2] = others.try_into().expect("two were added");
        let [second, third] = others;
        Ok(Self { nodes: [first, second, third], _directories: directories })
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let limit = Instant::now() + 20 * ELECTION;
    while !holds() {
        ensure!(Instant::now() < limit, "in vain: {what}");
        pause(0.05).await;
    }
    Ok(())
}

/// The members a node lists have told it their names: before, they count as not started.
async fn until_introduced(node: &Solo) -> Result<()> {
    let mut asked = ClusterClient::new(node.channel(10 * ELECTION)?);
    let limit = Instant::now() + 20 * ELECTION;
    loop {
        let listed = asked.member_list(MemberListRequest { linearizable: true }).await?.into_inner();
        if listed.members.iter().all(|member| !member.name.is_empty()) {
            return Ok(());
        }
        ensure!(Instant::now() < limit, "one has no name: {listed:?}");
        pause(0.05).await;
    }
}

/// Checks what was written at a node, as soon as a leader is there to serve it.
async fn keeps(client: &mut Client, written: &Written) -> Result<()> {
    let limit = Instant::now() + 20 * ELECTION;
    while let Err(status) = client.range(RangeRequest { key: "any".into(), ..RangeRequest::default() }).await
    {
        ensure!(Instant::now() < limit, "it does not serve: {status}");
        pause(0.1).await;
    }
    written.check(client).await
}

const REPLACED: &str = "came with another data directory than the one it is known by";

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_founder_that_lost_its_disk_does_not_begin_anew() -> Result<()> {
    let Grown { nodes: [mut first, second, third], _directories } = Grown::start().await?;
    let written = Written::keys(&mut first.client()?, 200).await?;
    first.kill()?;
    fs::remove_dir_all(first.data_dir())?;
    let refusal = first.restart_refused()?;
    ensure!(refusal.line.contains(REPLACED), "{refusal:?}");
    keeps(&mut second.client()?, &written).await?;

    // The others are away for longer than it waits for them: it ends when they are back, and nothing of it reaches them.
    fs::remove_dir_all(first.data_dir())?;
    second.pause()?;
    third.pause()?;
    first.restart()?;
    Written::keys(&mut first.client()?, 3).await?;
    let from = first.log_text().len();
    second.resume()?;
    third.resume()?;
    let refusal = first.ended(from)?;
    ensure!(refusal.line.contains(REPLACED), "{refusal:?}");
    keeps(&mut second.client()?, &written).await?;
    keeps(&mut third.client()?, &written).await?;

    // So does one that was restarted meanwhile, and holds what it began with.
    fs::remove_dir_all(first.data_dir())?;
    second.pause()?;
    third.pause()?;
    first.restart()?;
    first.kill()?;
    first.restart()?;
    let from = first.log_text().len();
    second.resume()?;
    third.resume()?;
    let refusal = first.ended(from)?;
    ensure!(refusal.line.contains(REPLACED), "{refusal:?}");
    keeps(&mut second.client()?, &written).await?;
    keeps(&mut third.client()?, &written).await
}

/// Where three founders are to be, the one first whom the others ask first.
fn founders() -> Result<Vec<Ports>> {
    let ports = Ports::free(3)?;
    let members = conclave_node::config::url::parse_members(&founding(&ports))?;
    let ids = conclave_node::identity::bootstrap(&conclave_node::Config {
        name: "n1".to_owned(),
        initial_cluster: members,
        ..conclave_node::Config::default()
    })?;
    let at = |name: &str| ports[usize::from(name.as_bytes()[1] - b'1')];
    Ok(ids.members.iter().map(|peer| at(&peer.name)).collect())
}

fn founding(ports: &[Ports]) -> String {
    let member = |(at, ports): (usize, &Ports)| format!("n{}={}", at + 1, Trial::peer_url(*ports));
    ports.iter().enumerate().map(member).collect::<Vec<_>>().join(",")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_founders_begin_whenever_they_start() -> Result<()> {
    let engine = engine()?;
    for apart in [0.0, 0.3, 1.0] {
        let ports = founders()?;
        let members = founding(&ports);
        // The machine of the third takes connections and says nothing, so that whoever asks it looks at the other rarely.
        let _silent = std::net::TcpListener::bind(("127.0.0.1", ports[0].peer))?;
        let directories = [tempfile::tempdir()?, tempfile::tempdir()?];
        let mut second = Solo::found(directories[0].path(), "n2", ports[1], &members, engine)?;
        pause(apart).await;
        let mut third = Solo::found(directories[1].path(), "n3", ports[2], &members, engine)?;
        second.wait_ready()?;
        third.wait_ready()?;
        let written = Written::keys(&mut second.client()?, 50).await?;
        written.check(&mut third.client()?).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_while_all_others_changed_comes_back() -> Result<()> {
    let flags = vec!["--strict-reconfig-check=false".to_owned()];
    let mut trial = Trial::start(&Setup { flags, ..Setup::default() }).await?;
    let leader = trial.leader().await?;
    let away = (leader + 1) % 3;
    let ids = [trial.member_id(0).await?, trial.member_id(1).await?, trial.member_id(2).await?];
    trial.cluster.servers_mut()[away].kill()?;
    let mut asked = ClusterClient::new(trial.channel(leader, 10 * ELECTION)?);
    let mut members = trial.members();
    let directories = [tempfile::tempdir()?, tempfile::tempdir()?];
    let mut joined = Vec::new();
    for (at, directory) in directories.iter().enumerate() {
        let (name, ports) = (format!("n{}", at + 4), Ports::free(1)?[0]);
        let request = MemberAddRequest { peer_ur_ls: vec![Trial::peer_url(ports)], is_learner: false };
        asked.member_add(request).await?;
        members = format!("{members},{name}={}", Trial::peer_url(ports));
        joined.push(Solo::join(directory.path(), &name, ports, &members, trial.engine)?);
        let voting = || trial.log_text(leader).matches("a new member has caught up and votes").count();
        until("the new member votes", || voting() > at).await?;
    }
    let mut asked = ClusterClient::new(joined[0].channel(10 * ELECTION)?);
    for id in (0..3).filter(|node| *node != away).map(|node| ids[node]) {
        asked.member_remove(MemberRemoveRequest { id }).await?;
    }
    for node in (0..3).filter(|node| *node != away) {
        until("it is told", || trial.cluster.servers_mut()[node].ended().is_some()).await?;
    }
    let written = Written::keys(&mut joined[0].client()?, 50).await?;
    trial.cluster.servers_mut()[away].restart()?;
    // It knows none of those that are there, and answers the one that leads them.
    let mut client = connect(&trial.endpoints()[away])?;
    keeps(&mut client, &written).await
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
