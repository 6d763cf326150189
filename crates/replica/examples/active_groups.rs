//! What groups cost on whole nodes: idle, in CPU and memory, and a put where few or many of them are active and as much is asked of all together.
//!
//! `cargo run --release -p conclave-replica --example active_groups -- [idle | puts under way] [seconds] [groups ...]`
//!
//! Three nodes in one process, each with its own threads, talking TCP over loopback; their logs are real and synced, in a temporary directory.
//! State is etcd's, in memory; what waits for checkpoints, and what stays of logs in memory and on disk, is as much in all active groups
//! together whatever their number. Groups sleep by the heartbeats of nodes.
//!
//! So many clients put one value of 256 bytes after the other. They are spread evenly over groups and nodes; two in three of their puts are
//! forwarded. What is counted is the CPU of the whole process, clients included, by thread. `groups` is how many are active, or `hosted:active`.

use std::{
    collections::BTreeMap,
    error::Error,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use conclave_api::etcdserverpb::PutRequest;
use conclave_consensus::{Config, GroupId, NodeId, ReplicaId};
use conclave_kv::{
    Machine, Options,
    command::{self, Revision},
};
use conclave_raft::{Raft, RaftConfig};
use conclave_replica::{
    CheckpointPolicy, GroupSetup, Handle, Prepared, Shell, ShellConfig, begin_epoch, boot_group, boot_time,
};
use conclave_storage::{Disk, LogStore, MemoryEngine, RealDisk, StateEngine, Wal, WalOptions};
use conclave_transport::{ClusterId, TcpOptions, TcpTransport};
use tokio::runtime::{Builder, Runtime};

const NODES: u64 = 3;
const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 256;
/// What waits for checkpoints in all active groups together.
const PENDING_BYTES: usize = 24 << 20;
/// What the cores keep of their logs in memory, in all active groups together.
const CACHE_BYTES: usize = 4 << 20;
/// What stays in the logs below checkpoints, in all active groups together.
const MARGIN_ENTRIES: u64 = 20_000;
const WARM_UP: Duration = Duration::from_secs(2);
/// How long groups are left alone before they count as idle.
const SETTLING: Duration = Duration::from_secs(5);

type Failure = Box<dyn Error>;

struct Node {
    shell: Shell,
    transport: Arc<TcpTransport>,
    wal: Arc<Wal>,
    network: Runtime,
}

/// The nodes, connected with each other.
fn start(directory: &Path, groups: u64, active: u64) -> Result<Vec<Node>, Failure> {
    let members = Config::of_voters((1..=NODES).map(|n| (ReplicaId(n), NodeId(n))));
    let mut nodes = Vec::new();
    for n in 1..=NODES {
        nodes.push(start_one(&directory.join(n.to_string()), n, (groups, active), &members)?);
    }
    for node in &nodes {
        for (n, other) in (1..).zip(&nodes) {
            if let Some(address) = other.transport.addresses().first() {
                node.transport.set_peer(NodeId(n), &[address.to_string()]);
            }
        }
    }
    Ok(nodes)
}

fn start_one(
    directory: &Path,
    n: u64,
    (groups, active): (u64, u64),
    members: &Config,
) -> Result<Node, Failure> {
    std::fs::create_dir_all(directory)?;
    let network = Builder::new_multi_thread().worker_threads(1).thread_name("net").enable_all().build()?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(directory)?);
    let wal = Arc::new(Wal::open(disk, WalOptions { log_id: n, ..WalOptions::default() })?);
    let log: Arc<dyn LogStore> = Arc::clone(&wal) as _;
    let epoch = begin_epoch(log.as_ref(), 1, NodeId(n))?;
    let engine = MemoryEngine::new();
    let mut setups = Vec::new();
    for group in (1..=groups).map(GroupId) {
        let (machine, _) = Machine::open(engine.store(group, 0)?, Options::default())?;
        let seed = group.0 * 64 + n;
        let boot = boot_group(log.as_ref(), group, ReplicaId(n), None, members, boot_time(), seed)?;
        let state = boot.state.clone();
        let config = RaftConfig {
            cache_kept_bytes: CACHE_BYTES / usize::try_from(active)?,
            compaction_margin_entries: MARGIN_ENTRIES / active,
            quiesce: true,
            ..RaftConfig::default()
        };
        let core = Box::new(Raft::new(boot, config)?);
        setups.push(GroupSetup { group, core, machine: Box::new(machine), state });
    }
    let pending_bytes = PENDING_BYTES / usize::try_from(active)?;
    let checkpoint = CheckpointPolicy { pending_bytes, ..CheckpointPolicy::default() };
    let mut config = ShellConfig { checkpoint, ..ShellConfig::of(NodeId(n), epoch) };
    config.host.alive_every = Some(Duration::from_millis(100));
    let prepared = Prepared::new(config, setups, None);
    let options = TcpOptions::new(NodeId(n), ClusterId(1), vec!["127.0.0.1:0".to_owned()]);
    let transport = Arc::new(network.block_on(TcpTransport::bind(options))?);
    transport.start(prepared.inbound());
    let shell = prepared.start(log, Arc::clone(&transport) as _, network.handle())?;
    Ok(Node { shell, transport, wal, network })
}

/// Puts one key after the other until told to stop.
async fn client(
    handle: Handle,
    group: GroupId,
    from: u64,
    keys: u64,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) {
    let value = vec![b'v'; VALUE_BYTES];
    let mut key = from;
    while !stop.load(Ordering::Relaxed) {
        key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let name = format!("/registry/objects/{:06}", (key >> 33) % keys);
        let request = PutRequest { key: name.into(), value: value.clone().into(), ..PutRequest::default() };
        match handle.propose(group, command::put(Revision::Next, &request)).await {
            Ok(_) => done.fetch_add(1, Ordering::Relaxed),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                0
            }
        };
    }
}

/// The CPU that threads have used, by their names.
fn cpu() -> BTreeMap<String, Duration> {
    let mut used: BTreeMap<String, Duration> = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let nanos = read("schedstat").split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
        *used.entry(read("comm").trim().to_owned()).or_default() += Duration::from_nanos(nanos);
    }
    used
}

/// What this process holds in memory, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// What all nodes together have done so far.
#[derive(Clone, Copy)]
struct Work {
    frames: u64,
    syncs: u64,
    packets: u64,
    writes: u64,
}

impl Work {
    fn of(nodes: &[Node]) -> Self {
        let mut work = Self { frames: 0, syncs: 0, packets: 0, writes: 0 };
        for node in nodes {
            let log = node.wal.stats();
            (work.frames, work.syncs) = (work.frames + log.frames, work.syncs + log.syncs);
            for peer in node.transport.stats().peers {
                work.packets += peer.consensus.sent_packets;
                work.writes += peer.consensus.writes;
            }
        }
        work
    }
}

/// Waits until every node knows every group's leader.
async fn led(handles: &[Handle], groups: u64) -> Result<(), Failure> {
    for group in (1..=groups).map(GroupId) {
        for mut role in handles.iter().filter_map(|handle| handle.role(group)) {
            role.wait_for(|role| role.leader.is_some()).await?;
        }
    }
    Ok(())
}

fn stop(nodes: Vec<Node>) {
    for Node { shell, network, .. } in nodes {
        shell.stop();
        network.shutdown_background();
    }
}

fn idle(groups: u64, lasting: Duration) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let before = resident_bytes();
    let nodes = start(directory.path(), groups, groups)?;
    let handles: Vec<Handle> = nodes.iter().map(|node| node.shell.handle()).collect();
    Builder::new_current_thread().enable_all().build()?.block_on(led(&handles, groups))?;
    std::thread::sleep(SETTLING);
    let bytes = resident_bytes().saturating_sub(before) / (NODES * groups);
    let total = || cpu().values().sum::<Duration>();
    let (began, used, work) = (Instant::now(), total(), Work::of(&nodes));
    std::thread::sleep(lasting);
    let seconds = began.elapsed().as_secs_f64() * NODES as f64;
    let share = (total() - used).as_secs_f64() / seconds * 100.0;
    let packets = (Work::of(&nodes).packets - work.packets) as f64 / seconds;
    println!("{groups:>6} | {share:>11.3} % | {packets:>17.1} | {bytes:>13}");
    stop(nodes);
    Ok(())
}

/// Puts into `active` of so many groups.
fn put(hosted: u64, active: u64, under_way: u64, lasting: Duration) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let nodes = start(directory.path(), hosted, active)?;
    let clients =
        Builder::new_multi_thread().worker_threads(1).thread_name("clients").enable_all().build()?;
    let (stopped, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let handles: Vec<Handle> = nodes.iter().map(|node| node.shell.handle()).collect();
    clients.block_on(led(&handles, hosted))?;
    if hosted > active {
        std::thread::sleep(SETTLING);
    }
    for nth in 0..under_way {
        let handle = handles[(nth / active % NODES) as usize].clone();
        let (group, keys) = (GroupId(nth % active + 1), (KEYS / active).max(1));
        clients.spawn(client(handle, group, nth, keys, Arc::clone(&stopped), Arc::clone(&done)));
    }
    std::thread::sleep(WARM_UP);
    let (began, used, work, first) = (Instant::now(), cpu(), Work::of(&nodes), done.load(Ordering::Relaxed));
    std::thread::sleep(lasting);
    let puts = (done.load(Ordering::Relaxed) - first) as f64;
    let (rate, used_now, now) = (puts / began.elapsed().as_secs_f64(), cpu(), Work::of(&nodes));
    let spent = |name: &str| {
        let at = |used: &BTreeMap<String, Duration>| used.get(name).copied().unwrap_or_default();
        at(&used_now).saturating_sub(at(&used)).as_secs_f64() * 1e6 / puts
    };
    let all: f64 = used_now.keys().map(|name| spent(name)).sum();
    let behind = spent("checkpoint") + spent("wal-segments");
    print!("{hosted:>6} | {active:>6} | {rate:>7.0} | {all:>6.2} | {:>6.2}", all - behind);
    for name in ["clients", "net", "log", "apply"] {
        print!(" | {:>7.2}", spent(name));
    }
    let each = |now: u64, then: u64| (now - then) as f64 / puts;
    println!(
        " | {:>6.3} | {:>6.4} | {:>7.3} | {:>6.4}",
        each(now.frames, work.frames),
        each(now.syncs, work.syncs),
        each(now.packets, work.packets),
        each(now.writes, work.writes)
    );
    stopped.store(true, Ordering::Relaxed);
    clients.shutdown_background();
    stop(nodes);
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let load = arguments.next().unwrap_or_else(|| "6400".to_owned());
    let lasting = Duration::from_secs_f64(arguments.next().map_or(Ok(5.0), |text| text.parse())?);
    let mut groups: Vec<String> = arguments.collect();
    if load == "idle" {
        if groups.is_empty() {
            groups = ["1", "100", "10000"].map(str::to_owned).to_vec();
        }
        println!("{NODES} nodes, each with a replica of each group, and nobody asks anything");
        println!("groups | CPU of a node | packets of each/s | bytes/replica");
        for groups in groups {
            idle(groups.parse()?, lasting)?;
        }
        return Ok(());
    }
    if groups.is_empty() {
        groups = ["1", "100"].map(str::to_owned).to_vec();
    }
    let under_way = load.parse()?;
    println!("{NODES} nodes, {under_way} puts under way; of each put: CPU in us of all nodes, all of it and");
    println!(
        "without checkpoints and segments, then by thread; and frames, syncs, packets, writes to sockets"
    );
    println!(
        "hosted | active |  puts/s |    all |   road | clients |     net |     log |   apply | frames |  syncs | packets | writes"
    );
    for groups in groups {
        let (hosted, active) = groups.split_once(':').unwrap_or((&groups, &groups));
        put(hosted.parse()?, active.parse()?, under_way, lasting)?;
    }
    Ok(())
}
