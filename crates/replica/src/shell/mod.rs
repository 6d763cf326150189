//! The shell: a task and threads that wait for clocks, disks and sockets around a [`Host`] that decides.
//!
//! | thread | waits for | does |
//! |---|---|---|
//! | host, a task beside the transport's | its mailbox, the next deadline | steps the host, hands out its effects |
//! | `log` | its mailbox, the disk | appends for all groups, one sync for all, then sends what had to be durable first |
//! | `apply` | its mailbox | applies chosen entries, answers clients, lets reads go |
//! | `checkpoint` | its mailbox, the disk | writes checkpoints |
//! | `catchup` | its mailbox, the disk | reads the log back, stores and serves snapshots |
//!
//! Every queue is bounded: clients' proposals and reads by number (refused as busy), packets by number (dropped, as a network
//! would), and everything else by the windows of the cores.

mod apply;
mod budget;
mod calls;
mod catchup;
mod clock;
mod decide;
mod log;
mod mailbox;
mod reads;
mod waiters;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Config, Consensus, Epoch, GroupId, MembershipChange, NodeId, Proposal, ProposalId, ReplicaId,
    Slot, SnapshotMeta, Status, Time,
};
use conclave_storage::{LogStore, StateMachine};
use conclave_transport::{Inbound, Packet, Transport};
use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use self::{
    apply::{ApplyJob, CheckpointJob},
    calls::Calls,
    catchup::CatchupJob,
    log::LogJob,
    mailbox::{Mailbox, Refused},
    reads::{Baton, ReadGate},
    waiters::{Place, Waiters},
};
pub use self::{
    calls::{Answerer, Responder},
    reads::BarrierError,
};
use crate::{
    Applier, CheckpointPolicy, Host, HostConfig, HostCounters, HostInput, ProposeError, ReconfigureError,
    groups::Groups,
};

/// How a shell is set up.
#[derive(Clone, Debug)]
pub struct ShellConfig {
    /// The host within.
    pub host: HostConfig,
    /// When state is made durable.
    pub checkpoint: CheckpointPolicy,
    /// How many proposals of this node's clients may be unanswered; more are refused as busy. Default 8,192.
    pub proposals_max: usize,
    /// How many linearizable reads of a group may wait; more are refused as busy. Default 16,384.
    pub reads_max: usize,
    /// How many bunches of packets may wait for the host; more are dropped. Default 4,096.
    pub packets_max: usize,
    /// How many bytes a second of snapshots this node serves, to all who fetch together and in turn, so that those who catch up do not hurt the rest. It
    /// takes some 100 KiB for each of them: a fetch that gets no piece (about 1 MiB) for 60 of [`HostConfig::piece_timeout`] is given up. `None`, the
    /// default: as many as are asked for.
    pub serve_bytes_per_second: Option<u64>,
    /// Told of slow work, for metrics.
    pub observer: Option<Arc<dyn ShellObserver>>,
}

/// Hears of work done, for metrics. Called on the thread that did it: be short.
pub trait ShellObserver: Send + Sync + fmt::Debug {
    /// A checkpoint of a group became durable after `took`.
    fn checkpointed(&self, group: GroupId, took: Duration);
}

impl ShellConfig {
    /// The defaults for a node's boot, as [`begin_epoch`](crate::begin_epoch) counted it.
    #[must_use]
    pub fn of(node: NodeId, epoch: Epoch) -> Self {
        Self {
            host: HostConfig::of(node, epoch),
            checkpoint: CheckpointPolicy::default(),
            proposals_max: 8_192,
            reads_max: 16_384,
            packets_max: 4_096,
            serve_bytes_per_second: None,
            observer: None,
        }
    }
}

/// One group to be run.
#[derive(Debug)]
pub struct GroupSetup {
    /// Which.
    pub group: GroupId,
    /// Its engine, booted from the log and the state.
    pub core: Box<dyn Consensus>,
    /// Its state machine, opened at `state`.
    pub machine: Box<dyn StateMachine>,
    /// The last completed checkpoint, or the initial membership at slot 0.
    pub state: SnapshotMeta,
}

/// Why a shell stopped by itself. The process must not go on: what is durable is unknown, or an invariant broke.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fatal {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] conclave_storage::LogError),
    /// The state engine failed.
    #[error("state of group {group}: {source}")]
    State {
        /// Whose state.
        group: GroupId,
        /// What it said.
        source: conclave_storage::StateError,
    },
    /// A core found an invariant broken.
    #[error("group {group} broke an invariant: {why}")]
    Broken {
        /// Which group.
        group: GroupId,
        /// Which invariant.
        why: &'static str,
    },
    /// The committed membership of a group has this node's replica no more: what it holds may be destroyed.
    #[error("this member was removed from the cluster")]
    Removed {
        /// Which group.
        group: GroupId,
    },
    /// A thread panicked.
    #[error("thread {0} panicked")]
    Panicked(&'static str),
}

/// Leadership of a group as known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// The ballot.
    pub ballot: Ballot,
    /// The leader's node, if known.
    pub leader: Option<NodeId>,
    /// Whether this node leads and serves.
    pub serving: bool,
}

/// What everyone around the host shares.
pub(crate) struct Shared {
    node: NodeId,
    inbox: Arc<Mailbox<ShellInput, Notify>>,
    logs: Mailbox<LogJob>,
    applies: Mailbox<ApplyJob>,
    checkpoints: Mailbox<CheckpointJob>,
    catchups: Mailbox<CatchupJob>,
    packets_max: usize,
    serve_bytes_per_second: Option<u64>,
    waiters: Arc<Waiters>,
    gates: Groups<Arc<ReadGate>>,
    roles: BTreeMap<GroupId, watch::Sender<Role>>,
    configs: Mutex<BTreeMap<GroupId, Config>>,
    memberships: BTreeMap<GroupId, watch::Sender<Config>>,
    replicas: BTreeMap<GroupId, ReplicaId>,
    committed: Groups<AtomicU64>,
    counters: Mutex<HostCounters>,
    observer: Option<Arc<dyn ShellObserver>>,
    calls: Calls,
    transport: OnceLock<Arc<dyn Transport>>,
    fatal: watch::Sender<Option<Fatal>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("node", &self.node).finish_non_exhaustive()
    }
}

type ThreadBody = Box<dyn FnOnce(&Arc<Shared>) + Send>;

/// What reaches the host's task.
#[derive(Debug)]
pub(crate) enum ShellInput {
    Host(HostInput),
    Status {
        group: GroupId,
        answer: oneshot::Sender<Option<Status>>,
    },
    /// This node's replica left the group, and everything up to that is applied.
    Removed {
        group: GroupId,
    },
}

impl Shared {
    fn transport(&self) -> &dyn Transport {
        self.transport.get().expect("set before any thread starts").as_ref()
    }

    /// Stops everything for good, telling why; the first reason stays.
    fn halt(&self, why: Fatal) {
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            if first {
                tracing::error!(error = %why, "halting");
                *fatal = Some(why);
            }
            first
        });
        self.close();
    }

    fn panicked(&self, name: &'static str) {
        self.halt(Fatal::Panicked(name));
        // What will not be taken any more may hold the other end of somebody's wait.
        self.inbox.clear();
        self.applies.clear();
        self.catchups.clear();
    }

    fn close(&self) {
        self.inbox.close();
        self.logs.close();
        self.applies.close();
        self.checkpoints.close();
        self.catchups.close();
        self.waiters.fail_all(ProposeError::Stopped);
        self.gates.iter().for_each(|(_, gate)| gate.fail_all());
    }
}

/// A shell prepared but not started: the transport needs it to deliver to, and it needs the transport to send.
#[derive(Debug)]
pub struct Prepared {
    shared: Arc<Shared>,
    config: ShellConfig,
    groups: Vec<GroupSetup>,
}

/// Delivers a transport's packets into a shell.
#[derive(Debug)]
struct Inlet(Arc<Shared>);

impl Inbound for Inlet {
    fn receive(&self, from: NodeId, mut packets: Vec<Packet>) {
        let shared = &self.0;
        let Some(transport) = shared.transport.get() else { return };
        shared.calls.receive(from, &mut packets, transport);
        if packets.is_empty() {
            return;
        }
        // A full mailbox loses packets as a network would; the engines are built for that.
        if shared.inbox.offer(ShellInput::Host(HostInput::Packets { from, packets })) == Err(Refused::Full) {
            tracing::debug!(%from, bound = shared.packets_max, "host is behind: packets dropped");
        }
    }
}

impl Prepared {
    /// Prepares a shell for groups. `answerer` answers other nodes' questions.
    #[must_use]
    pub fn new(config: ShellConfig, groups: Vec<GroupSetup>, answerer: Option<Arc<dyn Answerer>>) -> Self {
        let inbox = Arc::new(Mailbox::new(config.packets_max.saturating_add(config.proposals_max)));
        let gate_of = |group: GroupId, applied: Slot| {
            let inbox = Arc::clone(&inbox);
            let begin = move |id| inbox.push(ShellInput::Host(HostInput::ReadBarrier { group, id }));
            ReadGate::new(applied, config.reads_max, reads::ROUNDS_MAX, begin)
        };
        let shared = Shared {
            node: config.host.node,
            gates: groups.iter().map(|g| (g.group, gate_of(g.group, g.state.slot))).collect(),
            inbox,
            logs: Mailbox::new(usize::MAX),
            applies: Mailbox::new(usize::MAX),
            checkpoints: Mailbox::new(usize::MAX),
            catchups: Mailbox::new(CATCHUPS_MAX),
            packets_max: config.packets_max,
            serve_bytes_per_second: config.serve_bytes_per_second,
            waiters: Waiters::new(config.host.node, config.host.epoch, config.proposals_max),
            roles: groups.iter().map(|g| (g.group, watch::Sender::new(Role::default()))).collect(),
            configs: Mutex::new(groups.iter().map(|g| (g.group, g.core.status().config)).collect()),
            memberships: groups
                .iter()
                .map(|g| (g.group, watch::Sender::new(g.state.config.clone())))
                .collect(),
            replicas: groups.iter().map(|g| (g.group, g.core.replica())).collect(),
            committed: groups.iter().map(|g| (g.group, AtomicU64::new(g.state.slot.0))).collect(),
            counters: Mutex::default(),
            observer: config.observer.clone(),
            calls: Calls::new(answerer),
            transport: OnceLock::new(),
            fatal: watch::Sender::new(None),
        };
        Self { shared: Arc::new(shared), config, groups }
    }

    /// Where the transport is to deliver.
    #[must_use]
    pub fn inbound(&self) -> Arc<dyn Inbound> {
        Arc::new(Inlet(Arc::clone(&self.shared)))
    }

    /// Starts the threads, and the host as a task on `runtime`. That is best the one that the transport's tasks run on: then what a peer
    /// says needs no switch of threads to be answered. None of that runtime's tasks may block: a heartbeat would wait.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn start(
        self,
        log: Arc<dyn LogStore>,
        transport: Arc<dyn Transport>,
        runtime: &tokio::runtime::Handle,
    ) -> std::io::Result<Shell> {
        let Self { shared, config, groups } = self;
        // Nobody else holds a `Prepared`, so nothing was set before.
        let _ = shared.transport.set(transport);
        let mut host = Host::new(config.host.clone());
        let mut appliers = Vec::new();
        for GroupSetup { group, core, machine, state } in groups {
            host.add_group(group, core, state.generation);
            appliers.push((group, Applier::new(machine, state, config.checkpoint)));
        }
        let mut threads = Vec::new();
        let mut spawn = |name: &'static str, work: ThreadBody| {
            let shared = Arc::clone(&shared);
            let body = move || {
                let guarded = std::panic::AssertUnwindSafe(|| work(&shared));
                if std::panic::catch_unwind(guarded).is_err() {
                    shared.panicked(name);
                }
            };
            std::thread::Builder::new().name(name.into()).spawn(body).map(|thread| threads.push(thread))
        };
        let apply_log = Arc::clone(&log);
        let bodies: [(&'static str, ThreadBody); 4] = [
            ("log", Box::new(move |shared| log::run(shared, apply_log.as_ref()))),
            ("checkpoint", Box::new(apply::run_checkpoints)),
            ("apply", Box::new(move |shared| apply::run(shared, appliers))),
            ("catchup", Box::new(move |shared| catchup::run(shared, log.as_ref()))),
        ];
        for (name, body) in bodies {
            if let Err(error) = spawn(name, body) {
                shared.close();
                return Err(error);
            }
        }
        let deciding = std::panic::AssertUnwindSafe(decide::run(Arc::clone(&shared), host)).catch_unwind();
        let of = Arc::clone(&shared);
        runtime.spawn(async move {
            if deciding.await.is_err() {
                of.panicked("host");
            }
        });
        Ok(Shell { shared, threads })
    }
}

/// How many reads of the log and pieces of snapshots may wait; the engines ask again for what was refused.
const CATCHUPS_MAX: usize = 1_024;

/// The threads of a running host. Dropping it stops them without waiting.
#[derive(Debug)]
pub struct Shell {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Shell {
    /// A way in for services.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared) }
    }

    /// Stops the threads and waits for them. What was acknowledged is durable; whoever still waits is told `Stopped`.
    pub fn stop(mut self) {
        self.shared.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has reported it.
            let _ = thread.join();
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A way into a running shell. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// Proposes a command and waits until it is applied here; gives what the state machine replied. Sets no time limit: the caller's
    /// timeout drops the future, and the outcome is then unknown.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, group: GroupId, payload: Bytes) -> Result<Bytes, ProposeError> {
        self.submit(|id| HostInput::Propose { group, batch: vec![Proposal { id, payload }] }).await
    }

    /// Proposes a command that is of use only if this node leads in `ballot`: it is chosen in that ballot or, as
    /// [`LeaderChanged`](ProposeError::LeaderChanged) says, not at all. Commands proposed so reach the log in the order of the calls' first polls.
    /// Else as [`propose`](Self::propose).
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose_in(
        &self,
        group: GroupId,
        ballot: Ballot,
        payload: Bytes,
    ) -> Result<Bytes, ProposeError> {
        self.submit(|id| HostInput::ProposeIn { group, ballot, proposal: Proposal { id, payload } }).await
    }

    async fn submit(&self, input: impl FnOnce(ProposalId) -> HostInput) -> Result<Bytes, ProposeError> {
        let place: Place<Result<Bytes, ProposeError>> =
            self.shared.waiters.wait().ok_or(ProposeError::Busy)?;
        match self.shared.inbox.offer(ShellInput::Host(input(place.id))) {
            Ok(()) => place.answer().await.unwrap_or(Err(ProposeError::Stopped)),
            Err(Refused::Full) => Err(ProposeError::Busy),
            Err(Refused::Closed) => Err(ProposeError::Stopped),
        }
    }

    /// Changes the membership of a group, all of the changes or none, and returns once the entry that decides it is applied here. Where who
    /// votes changes, the joint configuration is in force by then and the engine leaves it by itself: [`membership`](Self::membership)
    /// tells. Only the leader takes changes. Sets no time limit: the caller's timeout drops the future, and the outcome is then unknown.
    ///
    /// # Errors
    /// See [`ReconfigureError`].
    pub async fn reconfigure(
        &self,
        group: GroupId,
        changes: Vec<MembershipChange>,
    ) -> Result<(), ReconfigureError> {
        let place: Place<Result<(), ReconfigureError>> =
            self.shared.waiters.wait().ok_or(ReconfigureError::Busy)?;
        let input = HostInput::Reconfigure { group, id: place.id, changes };
        match self.shared.inbox.offer(ShellInput::Host(input)) {
            Ok(()) => place.answer().await.unwrap_or(Err(ReconfigureError::Stopped)),
            Err(Refused::Full) => Err(ReconfigureError::Busy),
            Err(Refused::Closed) => Err(ReconfigureError::Stopped),
        }
    }

    /// The committed membership, as of what is applied here; the receiver sees each change. `None` for an unknown group.
    #[must_use]
    pub fn membership(&self, group: GroupId) -> Option<watch::Receiver<Config>> {
        self.shared.memberships.get(&group).map(watch::Sender::subscribe)
    }

    /// Returns once this node's state holds everything acknowledged before the call. Waits for a leader as long as the caller does.
    ///
    /// # Errors
    /// See [`BarrierError`]. The want of a leader is no error: the caller's timeout ends the wait.
    pub async fn read_barrier(&self, group: GroupId) -> Result<(), BarrierError> {
        let gate = self.shared.gates.get(group).ok_or(BarrierError::NoGroup)?;
        let (turn, baton) = gate.enter()?;
        pass_on(baton);
        let baton = turn.await.unwrap_or(Err(BarrierError::Stopped))?;
        pass_on(baton);
        Ok(())
    }

    /// Asks another node's service; `None` if it does not answer, for which the caller sets the time.
    pub async fn ask(&self, node: NodeId, question: Bytes) -> Option<Bytes> {
        let answer = self.shared.calls.ask(node, question, self.shared.transport())?;
        answer.await.ok()
    }

    /// Asks the leader of a group, which must be this node, to hand over to the replica on another. Whether it came to that shows in [`role`](Self::role).
    pub fn transfer(&self, group: GroupId, to: NodeId) {
        let id = self.shared.waiters.next_id();
        self.shared.inbox.push(ShellInput::Host(HostInput::Transfer { group, id, to }));
    }

    /// Who leads, as known here; the receiver sees each change. `None` for an unknown group.
    #[must_use]
    pub fn role(&self, group: GroupId) -> Option<watch::Receiver<Role>> {
        self.shared.roles.get(&group).map(watch::Sender::subscribe)
    }

    /// The membership in force. `None` for an unknown group.
    #[must_use]
    pub fn config(&self, group: GroupId) -> Option<Config> {
        self.shared.configs.lock().get(&group).cloned()
    }

    /// Everything up to here is applied.
    #[must_use]
    pub fn applied(&self, group: GroupId) -> Slot {
        self.shared.gates.get(group).map(|gate| gate.applied_slot()).unwrap_or_default()
    }

    /// The engine's state. `None` for an unknown group or a stopped shell.
    pub async fn status(&self, group: GroupId) -> Option<Status> {
        let (answer, status) = oneshot::channel();
        self.shared.inbox.push(ShellInput::Status { group, answer });
        status.await.ok().flatten()
    }

    /// What went wrong at the edges so far.
    #[must_use]
    pub fn counters(&self) -> HostCounters {
        *self.shared.counters.lock()
    }

    /// Everything up to here is known chosen and was handed to the apply thread.
    #[must_use]
    pub fn committed(&self, group: GroupId) -> Slot {
        let handed = self.shared.committed.get(group).map_or(0, |slot| slot.load(Ordering::Relaxed));
        Slot(handed).max(self.applied(group))
    }

    /// Proposals of this node's clients that wait for an answer.
    #[must_use]
    pub fn proposals_pending(&self) -> usize {
        self.shared.waiters.len()
    }

    /// Waits for the shell to fail, which may be never.
    pub async fn failed(&self) -> Fatal {
        let mut fatal = self.shared.fatal.subscribe();
        let found = fatal.wait_for(Option::is_some).await;
        match found.as_deref() {
            Ok(Some(why)) => why.clone(),
            // The sender lives as long as `self`.
            _ => Fatal::Panicked("host"),
        }
    }

    /// The clock that deadlines are measured on.
    #[must_use]
    pub fn now(&self) -> Time {
        clock::now()
    }
}

/// Begins the next barrier once the runtime's other tasks had their turn: requests that lie in its sockets already share it.
fn pass_on(baton: Option<Baton>) {
    if let Some(baton) = baton {
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            drop(baton);
        });
    }
}

/// Reads the clock that every host of this crate uses: CLOCK_BOOTTIME.
#[must_use]
pub fn boot_time() -> Time {
    clock::now()
}
