//! The backend that replicates: opens what is durable, boots the group, and joins replica, transport and store behind
//! the services.

use std::{
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use conclave_api::{errors::EtcdError, etcdserverpb::Member};
use conclave_consensus::{Config as Membership, GroupId, NodeId, ReplicaId, SnapshotMeta};
use conclave_kv::{Machine, Reader};
use conclave_replica::{
    CheckpointPolicy, GroupSetup, Handle, HostConfig, Prepared, Shell, ShellConfig, ShellObserver,
    begin_epoch, boot_group, boot_time,
};
use conclave_storage::{
    Disk, HOST_GROUP, LogStore, LsmEngine, LsmOptions, RealDisk, StateEngine, StateStore, Wal, WalObserver,
    WalOptions,
};
use conclave_transport::{ClusterId, Inbound, Packet, TcpOptions, TcpTransport};
use tokio::time::Instant;

use crate::{
    awaited::{AwaitedKeys, KeyChanges},
    backend::{Backend, BarrierError, BoxFuture, ProposeError, RaftStatus, StorageStatus},
    config::{Config, url::Url},
    identity::{Bootstrap, Identity},
    lease::{Leases, Questions},
    membership::{Acquaintances, Change, Members, holds_nothing, wait_for_recognition},
    metrics::{BackendMetrics, Counter, Histogram, PeerMetrics, SnapshotMetrics},
    node::NodeError,
};

/// How many bytes of values stay in memory, those included that are not durable in the engine yet.
const VALUE_CACHE_BYTES: usize = 8 << 20;
/// How many bytes may wait for a checkpoint before one begins.
const PENDING_BYTES: usize = 6 << 20;
/// How many bytes of the engine's blocks stay in memory: enough for the indices and filters of half a gigabyte.
const BLOCK_CACHE_BYTES: u64 = 8 << 20;

/// What the state takes before the first checkpoint, in whole blocks. Never zero: `etcdctl endpoint status` divides by it.
const EMPTY_STATE_BYTES: u64 = 16 << 10;

/// The one group that holds all keys.
pub(crate) const DATA: GroupId = GroupId(1);

/// Durations of disk work, observed where they happen.
#[derive(Debug, Default)]
struct DiskTimes {
    log_sync: Histogram,
    checkpoint: Histogram,
}

impl WalObserver for DiskTimes {
    fn synced(&self, took: Duration) {
        self.log_sync.observe(took);
    }
}

impl ShellObserver for DiskTimes {
    fn checkpointed(&self, _: GroupId, took: Duration) {
        self.checkpoint.observe(took);
    }
}

/// The backend of a running node.
pub(crate) struct Replicated {
    identity: Identity,
    handle: Handle,
    role: tokio::sync::watch::Receiver<conclave_replica::Role>,
    reader: Reader,
    members: Arc<Members>,
    leases: Arc<Leases>,
    awaited: Arc<AwaitedKeys>,
    wal: Arc<Wal>,
    state: Arc<dyn StateStore>,
    transport: Arc<TcpTransport>,
    times: Arc<DiskTimes>,
    barriers_failed: Counter,
}

impl fmt::Debug for Replicated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicated").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A backend and the threads behind it.
pub(crate) struct Running {
    pub(crate) backend: Arc<Replicated>,
    pub(crate) shell: Shell,
    pub(crate) transport: Arc<TcpTransport>,
    pub(crate) network: Network,
}

/// The runtime of the transport's tasks and of the host. Dropped, it ends without waiting, since that may happen inside another runtime.
#[derive(Debug)]
pub(crate) struct Network(Option<tokio::runtime::Runtime>);

impl Network {
    fn handle(&self) -> &tokio::runtime::Handle {
        self.0.as_ref().expect("taken by drop alone").handle()
    }

    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.handle().spawn(work).await.expect("the work does not panic, and nobody aborts it")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Delivers to the shell, once there is one: what comes before is lost, as on a network.
#[derive(Debug, Default)]
struct Inlet(OnceLock<Arc<dyn Inbound>>);

impl Inbound for Inlet {
    fn receive(&self, from: NodeId, packets: Vec<Packet>) {
        if let Some(inbound) = self.0.get() {
            inbound.receive(from, packets);
        }
    }
}

/// A transport that has claimed its addresses.
pub(crate) struct Listening {
    network: Network,
    transport: Arc<TcpTransport>,
    door: Arc<Acquaintances>,
    /// `None` if it listens where nobody can look for it: on ports that the system chose.
    since: Option<Instant>,
}

impl Listening {
    /// Who knows the others by their data directories.
    pub(crate) fn door(&self) -> Arc<Acquaintances> {
        Arc::clone(&self.door)
    }
}

/// Listens for peers, who are not answered before [`start`].
pub(crate) async fn listen(config: &Config, bootstrap: &Bootstrap) -> Result<Listening, NodeError> {
    let Identity { cluster_id, member_id } = bootstrap.identity;
    let listen = authorities(&config.listen_peer_urls);
    let door = Arc::new(Acquaintances::default());
    let options = TcpOptions {
        incarnation: bootstrap.incarnation,
        doorkeeper: Arc::clone(&door) as _,
        advertised: advertised(config, bootstrap),
        ..TcpOptions::new(NodeId(member_id), ClusterId(cluster_id), listen)
    };
    // A thread of its own: a long read in a client's request must never keep heartbeats waiting.
    let network = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("conclave-net")
        .enable_all()
        .build()
        .map_err(NodeError::Threads)?;
    let network = Network(Some(network));
    let transport = Arc::new(network.run(TcpTransport::bind(options)).await?);
    let is_found = config.listen_peer_urls.iter().any(|url| url.port() != 0);
    Ok(Listening { network, transport, door, since: is_found.then(Instant::now) })
}

fn authorities(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::authority).collect()
}

/// Where the others reach this member: as it was decided when its data directory was made, and as its flags say, which may be newer.
fn advertised(config: &Config, bootstrap: &Bootstrap) -> Vec<String> {
    let own = bootstrap.members.iter().find(|peer| peer.id == bootstrap.identity.member_id);
    let mut all = own.map(|peer| authorities(&peer.peer_urls)).unwrap_or_default();
    for address in authorities(&config.initial_advertise_peer_urls) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// Opens the log and the state under `data_dir` and starts everything but the services.
pub(crate) async fn start(
    config: &Config,
    bootstrap: &Bootstrap,
    data_dir: &Path,
    Listening { network, transport, door, since: listening_since }: Listening,
    members: &Arc<Members>,
) -> Result<Running, NodeError> {
    door.open(data_dir).map_err(|source| NodeError::Peers { path: data_dir.to_owned(), source })?;
    door.speak_for(Arc::downgrade(members));
    let Identity { cluster_id, member_id } = bootstrap.identity;
    let node = NodeId(member_id);
    let times = Arc::new(DiskTimes::default());
    let options = WalOptions {
        log_id: cluster_id ^ member_id.rotate_left(32),
        observer: Some(Arc::clone(&times) as Arc<dyn WalObserver>),
        ..WalOptions::default()
    };
    let wal = Arc::new(Wal::open(open_disk(&data_dir.join("log"))?, options)?);
    let log: Arc<dyn LogStore> = Arc::clone(&wal) as Arc<dyn LogStore>;
    if log.state(HOST_GROUP).meta.is_empty() && data_dir.join("state").exists() {
        return Err(NodeError::LogMissing(data_dir.to_owned()));
    }
    let epoch = begin_epoch(log.as_ref(), cluster_id, node)?;

    let found = log.state(DATA);
    let generation = found.reset.as_ref().map_or(0, |reset| reset.generation);
    let engine = LsmEngine::open(data_dir.join("state"), &LsmOptions { cache_bytes: BLOCK_CACHE_BYTES })?;
    let state = engine.store(DATA, generation)?;
    // One that was added is told by its leader who belongs to the group.
    let membership = if bootstrap.founding {
        Membership::of_voters(replicas(bootstrap)).with_quorums(bootstrap.quorums)?
    } else {
        Membership::default()
    };
    let checkpoint: Option<SnapshotMeta> = state.checkpoint().map(|checkpoint| checkpoint.meta);
    let leases = Leases::new(node, config);
    let awaited = Arc::new(AwaitedKeys::default());
    let options = conclave_kv::Options {
        value_cache_bytes: VALUE_CACHE_BYTES,
        observer: Some(members.observer()),
        lease_observer: Some(Arc::clone(&leases) as _),
        key_observer: Some(Arc::clone(&awaited) as _),
    };
    let (machine, reader) = Machine::open(Arc::clone(&state), options)?;

    let inlet = Arc::new(Inlet::default());
    // No checkpoint is ahead of the log.
    let holds_nothing = holds_nothing(&found) && checkpoint.is_none();
    members.set_log(Arc::clone(&log), holds_nothing);
    transport.start(Arc::clone(&inlet) as _);
    if holds_nothing {
        if bootstrap.members.len() > 1 {
            wait_for_recognition(bootstrap, &*door).await.map_err(NodeError::Dismissed)?;
        } else if let Some(since) = listening_since {
            members.wait_alone(since).await.map_err(NodeError::Dismissed)?;
        }
    }
    let replica = ReplicaId(bootstrap.replica);
    // Differs between replicas and between boots; what it decides (timeouts) need not be secret.
    let seed = member_id ^ epoch.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let boot = boot_group(log.as_ref(), DATA, replica, checkpoint, &membership, boot_time(), seed)?;
    tracing::info!(
        epoch = epoch.0,
        checkpoint = boot.state.slot.0,
        replayed = boot.entries.len(),
        first = boot.first.0,
        "opened log and state"
    );
    let meta = SnapshotMeta { generation, ..boot.state.clone() };
    let core = config.engine.boot(boot, config)?;

    let shell_config = ShellConfig {
        host: HostConfig { parked_for: config.election_timeout * 3, ..HostConfig::of(node, epoch) },
        checkpoint: CheckpointPolicy {
            entries: config.snapshot_count,
            pending_bytes: PENDING_BYTES,
            first_percent: first_checkpoint_percent(bootstrap),
        },
        serve_bytes_per_second: config.snapshot_serve_bytes_per_second,
        observer: Some(Arc::clone(&times) as Arc<dyn ShellObserver>),
        ..ShellConfig::of(node, epoch)
    };
    let setup = GroupSetup { group: DATA, core, machine: Box::new(machine), state: meta };
    let questions = Questions { members: Arc::downgrade(members), leases: Arc::downgrade(&leases) };
    let prepared = Prepared::new(shell_config, vec![setup], Some(Arc::new(questions)));
    for peer in bootstrap.members.iter().filter(|peer| peer.id != member_id) {
        transport.set_peer(NodeId(peer.id), &authorities(&peer.peer_urls));
    }
    // Set once.
    let _ = inlet.0.set(prepared.inbound());
    let shell =
        prepared.start(log, Arc::clone(&transport) as _, network.handle()).map_err(NodeError::Threads)?;
    let handle = shell.handle();
    let role = handle.role(DATA).expect("the shell was given this group");
    let backend = Arc::new(Replicated {
        identity: bootstrap.identity,
        handle,
        role,
        reader,
        members: Arc::clone(members),
        leases,
        awaited,
        wal,
        state,
        transport: Arc::clone(&transport),
        times,
        barriers_failed: Counter::default(),
    });
    Ok(Running { backend, shell, transport, network })
}

/// The founders' replicas.
fn replicas(bootstrap: &Bootstrap) -> impl Iterator<Item = (ReplicaId, NodeId)> + '_ {
    bootstrap.members.iter().map(|peer| (ReplicaId(peer.replica), NodeId(peer.id)))
}

/// Spreads the members' checkpoints evenly.
fn first_checkpoint_percent(bootstrap: &Bootstrap) -> u8 {
    let members = bootstrap.members.len();
    let before_us =
        bootstrap.members.iter().take_while(|peer| peer.id != bootstrap.identity.member_id).count();
    u8::try_from((before_us + 1) * 100 / members.max(1)).unwrap_or(100).min(100)
}

/// The log's disk. With the feature `testing`, `CONCLAVE_TEST_DISK=volatile` makes it one on which `kill -9` is a power cut.
fn open_disk(path: &Path) -> Result<Arc<dyn Disk>, NodeError> {
    let failed = |source| NodeError::LogDir { path: path.to_owned(), source };
    #[cfg(feature = "mutants")]
    if let Some(name) = std::env::var_os("CONCLAVE_MUTANT") {
        match name.to_str().and_then(conclave_consensus::Mutant::named) {
            Some(mutant) if mutant.choose_everywhere() => tracing::warn!(?name, "a mutant of this program"),
            Some(_) => {}
            None => tracing::error!(?name, "CONCLAVE_MUTANT names none"),
        }
    }
    #[cfg(feature = "testing")]
    if std::env::var_os("CONCLAVE_TEST_DISK").is_some_and(|kind| kind == "volatile") {
        tracing::warn!("the log is on the test-only disk: what is not synced dies with the process");
        return Ok(Arc::new(conclave_storage::VolatileDisk::open(path).map_err(failed)?));
    }
    Ok(Arc::new(RealDisk::open(path).map_err(failed)?))
}

impl Replicated {
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Begins to keep leases, in tasks that run until they are aborted.
    pub(crate) fn begin_leases(&self) -> Vec<tokio::task::JoinHandle<()>> {
        self.leases.begin(self.handle.clone(), self.reader.clone())
    }
}

impl Backend for Replicated {
    fn propose(&self, command: Bytes) -> BoxFuture<'_, Result<Bytes, ProposeError>> {
        Box::pin(async move {
            use conclave_replica::ProposeError as Failure;
            self.handle.propose(DATA, command).await.map_err(|error| match error {
                Failure::Busy => ProposeError::Overloaded,
                Failure::NoLeader => ProposeError::NoLeader,
                Failure::LeaderChanged => ProposeError::Dropped,
                Failure::TooLarge => ProposeError::TooLarge,
                Failure::Unknown => ProposeError::Unknown,
                Failure::Stopped | Failure::NoGroup => ProposeError::Stopped,
            })
        })
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<(), BarrierError>> {
        Box::pin(async move {
            self.handle.read_barrier(DATA).await.map_err(|error| {
                self.barriers_failed.increment();
                match error {
                    conclave_replica::BarrierError::Busy => BarrierError::Overloaded,
                    conclave_replica::BarrierError::Stopped | conclave_replica::BarrierError::NoGroup => {
                        BarrierError::Stopped
                    }
                }
            })
        })
    }

    fn reader(&self) -> &Reader {
        &self.reader
    }

    fn identity(&self) -> Identity {
        self.identity
    }

    fn raft(&self) -> RaftStatus {
        let role = *self.role.borrow();
        RaftStatus {
            term: role.ballot.round,
            leader: role.leader.map(|node| node.0),
            committed_index: self.handle.committed(DATA).0,
            applied_index: self.handle.applied(DATA).0,
            is_learner: self.members.is_learner(),
        }
    }

    fn members(&self) -> Vec<Member> {
        self.members.list()
    }

    fn change_members(&self, change: Change) -> BoxFuture<'_, Result<u64, EtcdError>> {
        Box::pin(self.members.change(change))
    }

    fn move_leader(&self, to: u64) -> BoxFuture<'_, Result<(), EtcdError>> {
        Box::pin(self.members.move_leader(to))
    }

    fn renew_lease(&self, id: i64) -> BoxFuture<'_, Result<Option<i64>, EtcdError>> {
        Box::pin(self.leases.renew(id))
    }

    fn lease_left(&self, id: i64) -> BoxFuture<'_, Result<Option<i64>, EtcdError>> {
        Box::pin(self.leases.left(id))
    }

    fn key_changes(&self) -> &dyn KeyChanges {
        &*self.awaited
    }

    fn storage(&self) -> StorageStatus {
        let size_bytes = self.state.size_bytes().max(EMPTY_STATE_BYTES);
        StorageStatus { size_bytes, in_use_bytes: size_bytes }
    }

    fn metrics(&self) -> BackendMetrics {
        let stats = self.transport.stats();
        let peers = stats.peers.iter().map(|peer| PeerMetrics {
            id: peer.node.0,
            sent_bytes: peer.consensus.sent_bytes + peer.bulk.sent_bytes,
            received_bytes: peer.consensus.received_bytes + peer.bulk.received_bytes,
            sent_failures: peer.consensus.dropped() + peer.bulk.dropped(),
            connected: peer.consensus.connected_since.is_some(),
        });
        let counters = self.handle.counters();
        BackendMetrics {
            leader_changes: counters.leader_changes,
            proposals_pending: self.handle.proposals_pending() as u64,
            proposals_failed: counters.proposals_failed,
            read_barriers_failed: self.barriers_failed.value(),
            wal_fsync: self.times.log_sync.snapshot(),
            wal_written_bytes: self.wal.stats().bytes,
            backend_commit: self.times.checkpoint.snapshot(),
            peers: peers.collect(),
            snapshots: SnapshotMetrics {
                begun: counters.fetches,
                resumed: counters.fetches_resumed,
                failed: counters.fetches_failed,
                bytes: counters.fetched_bytes,
            },
            keys: self.reader.stats().keys,
            leases: self.leases.metrics(),
        }
    }
}
