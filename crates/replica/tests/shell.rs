//! Shells in one process: real threads around real cores, with a log and a network in memory.

#![expect(clippy::unwrap_used, reason = "what cannot go on fails the test")]

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{
    Boot, Config, Entry, Epoch, GroupId, Kind, LogOp, LogSlice, LogState, NodeId, ProposalId, ReplicaId,
    Slot, SlotRange, SnapshotMeta, Timing,
};
use conclave_raft::{Raft, RaftConfig};
use conclave_replica::{
    Fatal, GroupSetup, Handle, HostConfig, Job, Prepared, ProposeError, Replies, Shell, ShellConfig,
    SnapshotSink, SnapshotSource, StateMachine, boot_time,
};
use conclave_storage::{LogError, LogStore, MemoryLog, StateError};
use conclave_transport::MemoryNetwork;
use parking_lot::{Condvar, Mutex};

const GROUP: GroupId = GroupId(1);
const PATIENCE: Duration = Duration::from_secs(20);

/// Adds numbers up; a command that is no number is a defect that panics.
#[derive(Debug, Default)]
struct Sum(u64);

impl StateMachine for Sum {
    fn apply(&mut self, entries: &[Entry], waits: &dyn Fn(ProposalId) -> bool, replies: &mut Replies) {
        for entry in entries.iter().filter(|entry| entry.kind == Kind::Command) {
            let number: u64 = std::str::from_utf8(&entry.payload).unwrap().parse().unwrap();
            self.0 += number;
            if waits(entry.id) {
                replies.push((entry.id, Bytes::from(self.0.to_string())));
            }
        }
    }

    fn pending_bytes(&self) -> usize {
        0
    }

    fn checkpoint(&mut self, _: SnapshotMeta) -> Option<Box<dyn Job>> {
        None
    }

    fn checkpointed(&mut self) {}

    fn snapshot(&self) -> Option<Box<dyn SnapshotSource>> {
        None
    }

    fn receive(&self, generation: u64) -> Result<Box<dyn SnapshotSink>, StateError> {
        Err(StateError::NoGeneration(generation))
    }

    fn install(&mut self, meta: &SnapshotMeta) -> Result<(), StateError> {
        Err(StateError::NoGeneration(meta.generation))
    }
}

/// A log whose syncs can be held up, and can fail.
#[derive(Debug, Default)]
struct Gated {
    log: MemoryLog,
    held: Mutex<bool>,
    released: Condvar,
    broken: AtomicBool,
}

impl Gated {
    fn hold(&self, held: bool) {
        *self.held.lock() = held;
        self.released.notify_all();
    }
}

impl LogStore for Gated {
    fn groups(&self) -> Vec<GroupId> {
        self.log.groups()
    }

    fn state(&self, group: GroupId) -> LogState {
        self.log.state(group)
    }

    fn append(&self, batch: &[(GroupId, Vec<LogOp>)]) -> Result<(), LogError> {
        self.log.append(batch)
    }

    fn sync(&self) -> Result<(), LogError> {
        let mut held = self.held.lock();
        while *held {
            self.released.wait(&mut held);
        }
        if self.broken.load(Ordering::Relaxed) { Err(LogError::Full) } else { self.log.sync() }
    }

    fn read(&self, group: GroupId, range: SlotRange, bytes_max: usize) -> Result<LogSlice, LogError> {
        self.log.read(group, range, bytes_max)
    }

    fn size_bytes(&self) -> u64 {
        self.log.size_bytes()
    }
}

struct Node {
    log: Arc<Gated>,
    handle: Handle,
    shell: Option<Shell>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

fn start(nodes: u64, adjust: impl Fn(&mut ShellConfig)) -> Vec<Node> {
    let network = MemoryNetwork::new();
    let members = Config::of_voters((1..=nodes).map(|n| (ReplicaId(n), NodeId(n))));
    let start_one = |n: u64| {
        let state = SnapshotMeta { config: members.clone(), ..SnapshotMeta::default() };
        let boot = Boot {
            replica: ReplicaId(n),
            meta: Bytes::new(),
            state: state.clone(),
            entries: Vec::new(),
            first: Slot(1),
            now: boot_time(),
            seed: n,
        };
        let timing = Timing { heartbeat: Duration::from_millis(20), election: Duration::from_millis(200) };
        let core = Raft::new(boot, RaftConfig { timing, ..RaftConfig::default() }).unwrap();
        let mut config = ShellConfig::of(NodeId(n), Epoch(1));
        adjust(&mut config);
        let setup =
            GroupSetup { group: GROUP, core: Box::new(core), machine: Box::new(Sum::default()), state };
        let prepared = Prepared::new(config, vec![setup], None);
        let transport = network.join(NodeId(n), prepared.inbound());
        let log = Arc::new(Gated::default());
        let shell = prepared
            .start(
                Arc::clone(&log) as Arc<dyn LogStore>,
                Arc::new(transport),
                &tokio::runtime::Handle::current(),
            )
            .unwrap();
        Node { log, handle: shell.handle(), shell: Some(shell) }
    };
    (1..=nodes).map(start_one).collect()
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

async fn add(handle: &Handle, number: u64) -> Result<u64, ProposeError> {
    let sum = within(handle.propose(GROUP, Bytes::from(number.to_string()))).await?;
    Ok(std::str::from_utf8(&sum).unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_proposes_and_reads() {
    let nodes = start(3, |_| {});
    let mut sum = 0;
    for round in 1..=5 {
        for node in &nodes {
            sum += round;
            // Asked of any node; while nobody leads the proposal is parked.
            assert_eq!(add(&node.handle, round).await, Ok(sum));
            within(node.handle.read_barrier(GROUP)).await.unwrap();
        }
    }
    let applied = nodes[0].handle.applied(GROUP);
    for node in &nodes {
        within(node.handle.read_barrier(GROUP)).await.unwrap();
        assert!(node.handle.applied(GROUP) >= applied, "a barrier waits for what was acknowledged anywhere");
    }
    for node in nodes {
        node.shell.unwrap().stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_says_so_and_loses_nothing_it_took() {
    let nodes = start(1, |config| config.proposals_max = 8);
    let node = &nodes[0];
    assert_eq!(add(&node.handle, 1).await, Ok(1));
    node.log.hold(true);
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let handle = node.handle.clone();
            tokio::spawn(async move { add(&handle, 1).await })
        })
        .collect();
    while node.handle.proposals_pending() < 8 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(add(&node.handle, 100).await, Err(ProposeError::Busy));
    node.log.hold(false);
    for task in waiting {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!(add(&node.handle, 1).await, Ok(10), "the refused one had no effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_its_place() {
    let nodes = start(1, |config| config.proposals_max = 1);
    let node = &nodes[0];
    assert_eq!(add(&node.handle, 1).await, Ok(1));
    node.log.hold(true);
    let impatient = node.handle.propose(GROUP, Bytes::from_static(b"1"));
    assert!(tokio::time::timeout(Duration::from_millis(50), impatient).await.is_err());
    assert_eq!(node.handle.proposals_pending(), 0);
    node.log.hold(false);
    assert_eq!(add(&node.handle, 1).await, Ok(3), "given up is not undone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_halts_the_node_and_acknowledges_nothing() {
    let mut nodes = start(1, |_| {});
    assert_eq!(add(&nodes[0].handle, 1).await, Ok(1));
    nodes[0].log.broken.store(true, Ordering::Relaxed);
    assert_eq!(add(&nodes[0].handle, 1).await, Err(ProposeError::Stopped));
    assert!(matches!(within(nodes[0].handle.failed()).await, Fatal::Log(LogError::Full)));
    assert_eq!(add(&nodes[0].handle, 1).await, Err(ProposeError::Stopped));
    assert!(within(nodes[0].handle.read_barrier(GROUP)).await.is_err());
    nodes.remove(0).shell.unwrap().stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_panics_ends_every_thread() {
    let mut nodes = start(1, |_| {});
    let outcome = within(nodes[0].handle.propose(GROUP, Bytes::from_static(b"no number"))).await;
    assert_eq!(outcome, Err(ProposeError::Stopped));
    assert!(matches!(within(nodes[0].handle.failed()).await, Fatal::Panicked("apply")));
    let shell = nodes.remove(0).shell.unwrap();
    within(tokio::task::spawn_blocking(move || shell.stop())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_lost_another_goes_on() {
    let mut nodes = start(3, |config| {
        config.host = HostConfig { parked_for: Duration::from_secs(10), ..config.host.clone() };
    });
    assert_eq!(add(&nodes[0].handle, 5).await, Ok(5));
    let mut role = nodes[0].handle.role(GROUP).unwrap();
    let leader = within(role.wait_for(|role| role.leader.is_some())).await.unwrap().leader.unwrap();
    let place = usize::try_from(leader.0 - 1).unwrap();
    nodes.remove(place).shell.unwrap().stop();
    // One that was on its way to the lost leader is never answered; what is asked of the new one is.
    let mut tries = 0;
    loop {
        let asked = nodes[0].handle.propose(GROUP, Bytes::from_static(b"1"));
        match tokio::time::timeout(Duration::from_secs(2), asked).await {
            Ok(Ok(_)) => break,
            other => {
                tries += 1;
                assert!(tries < 10, "{other:?}");
            }
        }
    }
    within(nodes[1].handle.read_barrier(GROUP)).await.unwrap();
}
