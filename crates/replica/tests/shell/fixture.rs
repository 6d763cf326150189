//! Shells in one process, around a machine that adds up and a log that can be held up.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    Answerer, GroupSetup, Handle, Job, Prepared, ProposeError, Replies, Shell, ShellConfig, SnapshotSink,
    SnapshotSource, StateMachine, boot_time,
};
use conclave_storage::{LogError, LogStore, MemoryLog, StateError};
use conclave_transport::MemoryNetwork;
use parking_lot::{Condvar, Mutex};

pub(crate) const GROUP: GroupId = GroupId(1);
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Adds numbers up; a command that is no number is a defect that panics.
#[derive(Debug, Default)]
pub(crate) struct Sum(u64);

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
pub(crate) struct Gated {
    log: MemoryLog,
    held: Mutex<bool>,
    released: Condvar,
    /// How many syncs were asked for.
    pub(crate) syncs: AtomicU64,
    pub(crate) broken: AtomicBool,
}

impl Gated {
    pub(crate) fn hold(&self, held: bool) {
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
        self.syncs.fetch_add(1, Ordering::Relaxed);
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

pub(crate) struct Node {
    pub(crate) log: Arc<Gated>,
    pub(crate) handle: Handle,
    pub(crate) shell: Option<Shell>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

/// A sum beside a state of so many pieces, each of so many bytes.
#[derive(Debug)]
pub(crate) struct Heavy {
    sum: Sum,
    pieces: usize,
    piece_bytes: usize,
}

impl Heavy {
    pub(crate) fn new(pieces: usize, piece_bytes: usize) -> Self {
        Self { sum: Sum::default(), pieces, piece_bytes }
    }
}

impl StateMachine for Heavy {
    fn apply(&mut self, entries: &[Entry], waits: &dyn Fn(ProposalId) -> bool, replies: &mut Replies) {
        self.sum.apply(entries, waits, replies);
    }

    fn pending_bytes(&self) -> usize {
        0
    }

    fn checkpoint(&mut self, _: SnapshotMeta) -> Option<Box<dyn Job>> {
        None
    }

    fn checkpointed(&mut self) {}

    fn snapshot(&self) -> Option<Box<dyn SnapshotSource>> {
        Some(Box::new(Weight { left: self.pieces, piece_bytes: self.piece_bytes }))
    }

    fn receive(&self, generation: u64) -> Result<Box<dyn SnapshotSink>, StateError> {
        self.sum.receive(generation)
    }

    fn install(&mut self, meta: &SnapshotMeta) -> Result<(), StateError> {
        self.sum.install(meta)
    }
}

#[derive(Debug)]
struct Weight {
    left: usize,
    piece_bytes: usize,
}

impl SnapshotSource for Weight {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { slot: Slot(1), ..SnapshotMeta::default() }
    }

    fn next(&mut self, _: usize) -> Result<Option<Bytes>, StateError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        Ok(Some(Bytes::from(vec![self.left as u8; self.piece_bytes])))
    }
}

/// Every replica of a group of so many.
pub(crate) fn start(nodes: u64, adjust: impl Fn(&mut ShellConfig)) -> Vec<Node> {
    let network = MemoryNetwork::new();
    let members = Config::of_voters((1..=nodes).map(|n| (ReplicaId(n), NodeId(n))));
    (1..=nodes).map(|n| start_one(&network, n, ReplicaId(n), &members, &adjust, None)).collect()
}

/// A replica without a state, on its node.
pub(crate) fn start_one(
    network: &MemoryNetwork,
    node: u64,
    replica: ReplicaId,
    members: &Config,
    adjust: &dyn Fn(&mut ShellConfig),
    answerer: Option<Arc<dyn Answerer>>,
) -> Node {
    start_with(network, node, replica, members, adjust, answerer, Box::new(Sum::default()))
}

/// As [`start_one`], with a machine of its own.
pub(crate) fn start_with(
    network: &MemoryNetwork,
    node: u64,
    replica: ReplicaId,
    members: &Config,
    adjust: &dyn Fn(&mut ShellConfig),
    answerer: Option<Arc<dyn Answerer>>,
    machine: Box<dyn StateMachine>,
) -> Node {
    let group = GroupSetup { machine, ..setup(GROUP, node, replica, members) };
    start_groups(network, node, vec![group], adjust, answerer)
}

/// A group's replica without a state.
fn setup(group: GroupId, node: u64, replica: ReplicaId, members: &Config) -> GroupSetup {
    let state = SnapshotMeta { config: members.clone(), ..SnapshotMeta::default() };
    let boot = Boot {
        replica,
        meta: Bytes::new(),
        state: state.clone(),
        entries: Vec::new(),
        first: Slot(1),
        now: boot_time(),
        seed: group.0 << 32 | node,
    };
    let timing = Timing { heartbeat: Duration::from_millis(40), election: Duration::from_millis(400) };
    let core = Raft::new(boot, RaftConfig { timing, ..RaftConfig::default() }).unwrap();
    GroupSetup { group, core: Box::new(core), machine: Box::new(Sum::default()), state }
}

/// As many nodes, each with a replica of as many groups, numbered from [`GROUP`] on.
pub(crate) fn start_many(nodes: u64, groups: u64) -> Vec<Node> {
    let network = MemoryNetwork::new();
    let members = Config::of_voters((1..=nodes).map(|n| (ReplicaId(n), NodeId(n))));
    let all = |n| (0..groups).map(|nth| setup(GroupId(GROUP.0 + nth), n, ReplicaId(n), &members)).collect();
    (1..=nodes).map(|n| start_groups(&network, n, all(n), &|_| {}, None)).collect()
}

fn start_groups(
    network: &MemoryNetwork,
    node: u64,
    groups: Vec<GroupSetup>,
    adjust: &dyn Fn(&mut ShellConfig),
    answerer: Option<Arc<dyn Answerer>>,
) -> Node {
    let mut config = ShellConfig::of(NodeId(node), Epoch(1));
    adjust(&mut config);
    let prepared = Prepared::new(config, groups, answerer);
    let transport = network.join(NodeId(node), prepared.inbound());
    let log = Arc::new(Gated::default());
    let shell = prepared
        .start(Arc::clone(&log) as Arc<dyn LogStore>, Arc::new(transport), &tokio::runtime::Handle::current())
        .unwrap();
    Node { log, handle: shell.handle(), shell: Some(shell) }
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

pub(crate) async fn add(handle: &Handle, number: u64) -> Result<u64, ProposeError> {
    add_to(handle, GROUP, number).await
}

pub(crate) async fn add_to(handle: &Handle, group: GroupId, number: u64) -> Result<u64, ProposeError> {
    let sum = within(handle.propose(group, Bytes::from(number.to_string()))).await?;
    Ok(std::str::from_utf8(&sum).unwrap().parse().unwrap())
}
