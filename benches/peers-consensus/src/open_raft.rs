//! `openraft` 0.9: three nodes on one thread's runtime, each RPC a call of the other node, over a log and a state machine in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    io::Cursor,
    ops::RangeBounds,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use openraft::{
    BasicNode, Config, Entry, EntryPayload, LogId, LogState, OptionalSend, Raft, RaftLogReader, RaftNetwork,
    RaftNetworkFactory, RaftSnapshotBuilder, Snapshot, SnapshotMeta, SnapshotPolicy, StorageError,
    StorageIOError, StoredMembership, Vote,
    error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
        VoteRequest, VoteResponse,
    },
    storage::{LogFlushed, RaftLogStorage, RaftStateMachine},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::load::{Applied, BATCH_MAX, LOG_KEPT, Load, PAYLOAD_BYTES, WARM_UP, command};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Command([u8; PAYLOAD_BYTES]);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Done;

openraft::declare_raft_types!(
    pub(crate) Types:
        D = Command,
        R = Done,
);

type Node = Raft<Types>;
type Failure = StorageError<u64>;

/// The nodes by id, once all run.
type Nodes = Arc<OnceLock<BTreeMap<u64, Node>>>;

#[derive(Debug, Default)]
struct LogContent {
    vote: Option<Vote<u64>>,
    committed: Option<LogId<u64>>,
    /// The index of the first entry.
    first: u64,
    entries: VecDeque<Entry<Types>>,
}

/// A log that forgets by itself what is far behind: without snapshots nobody would ask for a purge.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<LogContent>>);

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, LogContent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, Failure> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let content = self.lock();
        let from = match range.start_bound() {
            Included(from) => *from,
            Excluded(from) => from + 1,
            Unbounded => 0,
        };
        let to = match range.end_bound() {
            Included(to) => to + 1,
            Excluded(to) => *to,
            Unbounded => u64::MAX,
        };
        let to = to.saturating_sub(content.first).min(content.entries.len() as u64);
        let from = from.saturating_sub(content.first).min(to);
        Ok(content.entries.range(from as usize..to as usize).cloned().collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Failure> {
        let last_log_id = self.lock().entries.back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: None, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Failure> {
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failure> {
        Ok(self.lock().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId<u64>>) -> Result<(), Failure> {
        self.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<u64>>, Failure> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut content = self.lock();
        content.entries.extend(entries);
        while content.entries.len() as u64 > 2 * LOG_KEPT {
            content.entries.pop_front();
            content.first += 1;
        }
        drop(content);
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), Failure> {
        let mut content = self.lock();
        let kept = log_id.index.saturating_sub(content.first);
        content.entries.truncate(kept as usize);
        Ok(())
    }

    async fn purge(&mut self, _log_id: LogId<u64>) -> Result<(), Failure> {
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
struct State {
    last: Option<LogId<u64>>,
    membership: StoredMembership<u64, BasicNode>,
    applied: Arc<Mutex<Applied>>,
}

impl State {
    fn count(&self) -> u64 {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).count
    }
}

/// The load is over before any node falls so far behind.
fn no_snapshots() -> Failure {
    StorageIOError::read_snapshot(None, &std::io::Error::other("nothing is compacted")).into()
}

impl RaftSnapshotBuilder<Types> for State {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Failure> {
        Err(no_snapshots())
    }
}

impl RaftStateMachine<Types> for State {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, BasicNode>), Failure> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Done>, Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let mut replies = Vec::new();
        for entry in entries {
            self.last = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(Command(payload)) => applied.apply(&payload),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            replies.push(Done);
        }
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Failure> {
        Err(no_snapshots())
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta<u64, BasicNode>,
        _snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failure> {
        Err(no_snapshots())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Failure> {
        Ok(None)
    }
}

#[derive(Clone)]
struct Network {
    nodes: Nodes,
    encoded: bool,
}

struct Link {
    network: Network,
    to: u64,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Link {
        Link { network: self.clone(), to: target }
    }
}

type Rpc<T, E = openraft::error::Infallible> = Result<T, RPCError<u64, BasicNode, RaftError<u64, E>>>;

impl Link {
    fn node<E: std::error::Error>(&self) -> Rpc<&Node, E> {
        let node = self.network.nodes.get().and_then(|nodes| nodes.get(&self.to));
        node.ok_or_else(|| RPCError::Network(NetworkError::new(&std::io::Error::other("not there yet"))))
    }

    /// What arrives of what is sent.
    fn carry<T: Serialize + DeserializeOwned, E: std::error::Error>(&self, value: T) -> Rpc<T, E> {
        if !self.network.encoded {
            return Ok(value);
        }
        let bytes =
            postcard::to_stdvec(&value).map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        postcard::from_bytes(&bytes).map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }

    fn remote<E: std::error::Error>(
        &self,
        error: RaftError<u64, E>,
    ) -> RPCError<u64, BasicNode, RaftError<u64, E>> {
        RPCError::RemoteError(RemoteError::new(self.to, error))
    }
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<u64>> {
        let rpc = self.carry(rpc)?;
        let answer = self.node()?.append_entries(rpc).await.map_err(|error| self.remote(error))?;
        self.carry(answer)
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, _option: RPCOption) -> Rpc<VoteResponse<u64>> {
        let rpc = self.carry(rpc)?;
        let answer = self.node()?.vote(rpc).await.map_err(|error| self.remote(error))?;
        self.carry(answer)
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Rpc<InstallSnapshotResponse<u64>, InstallSnapshotError> {
        self.node()?.install_snapshot(rpc).await.map_err(|error| self.remote(error))
    }
}

/// How long the load takes.
pub(crate) fn run(load: &Load) -> Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(measure(load))
}

async fn measure(load: &Load) -> Result<Duration> {
    let config = Config {
        heartbeat_interval: 1_000,
        election_timeout_min: 5_000,
        election_timeout_max: 10_000,
        max_payload_entries: BATCH_MAX,
        snapshot_policy: SnapshotPolicy::Never,
        ..Config::default()
    };
    let config = Arc::new(config.validate()?);
    let nodes = Nodes::default();
    let (mut running, mut states) = (BTreeMap::new(), Vec::new());
    for id in 1..=3 {
        let (network, state) = (Network { nodes: nodes.clone(), encoded: load.encoded }, State::default());
        states.push(state.clone());
        running.insert(id, Node::new(id, config.clone(), network, Log::default(), state).await?);
    }
    nodes.set(running).map_err(|_| anyhow!("set once"))?;
    let nodes = nodes.get().context("just set")?;
    let members: BTreeMap<u64, BasicNode> = (1..=3).map(|id| (id, BasicNode::default())).collect();
    let leader = nodes.get(&1).context("the first node")?;
    leader.initialize(members).await?;
    leader.wait(Some(Duration::from_secs(30))).current_leader(1, "the first node leads").await?;
    let mut proposed = 0;
    decide(leader, &states, &mut proposed, WARM_UP, load.window).await?;
    let started = Instant::now();
    decide(leader, &states, &mut proposed, WARM_UP + load.commands, load.window).await?;
    let took = started.elapsed();
    for node in nodes.values() {
        node.shutdown().await?;
    }
    Ok(took)
}

async fn decide(leader: &Node, states: &[State], proposed: &mut u64, last: u64, window: u64) -> Result<()> {
    let mut under_way = VecDeque::new();
    while *proposed < last || !under_way.is_empty() {
        while *proposed < last && (under_way.len() as u64) < window {
            under_way.push_back(leader.client_write_ff(Command(command(*proposed))).await?);
            *proposed += 1;
        }
        if let Some(answer) = under_way.pop_front() {
            answer.await?.map_err(|error| anyhow!("{error}"))?;
        }
    }
    while states.iter().any(|state| state.count() < last) {
        tokio::task::yield_now().await;
    }
    Ok(())
}
