//! One node: its identity, its data directory, its replica and its front.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use conclave_consensus::NodeId;
use conclave_replica::Shell;
use conclave_transport::{Refusal, TcpTransport};
use thiserror::Error;
use tokio::task::JoinHandle;

use crate::Backend;
use crate::config::{ClusterState, Config, ConfigError};
use crate::datadir::{self, DataDir, DataDirError};
use crate::engine::EngineError;
use crate::front::{Front, ListenError, Listeners};
use crate::identity::{self, IdentityError};
use crate::membership::{self, JoinError, Members};
use crate::replicated::{self, DATA, Network, Replicated, Running};

/// How long a stop waits for another member to take leadership over.
const HANDOVER_LIMIT: Duration = Duration::from_secs(1);

/// How long a stop waits for the disk.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Why a node did not start, or had to halt.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The configuration's parts disagree.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No ids can be derived.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A client address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A peer address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] conclave_transport::BindError),
    /// The data directory is not this node's.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log's directory cannot be used.
    #[error("cannot use the log directory {}: {source}", .path.display())]
    LogDir {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] conclave_storage::LogError),
    /// The state is there and the log is not.
    #[error(
        "the data directory {} has a state but no log: the log was lost, and with it what this member promised; \
         restore both from one copy, or start with an empty data directory as a new member",
        .0.display()
    )]
    LogMissing(PathBuf),
    /// The state cannot be opened.
    #[error(transparent)]
    State(#[from] conclave_storage::StateError),
    /// The store in it cannot be read.
    #[error(transparent)]
    Store(#[from] conclave_kv::OpenError),
    /// Log and state do not fit together, or are another node's.
    #[error(transparent)]
    Boot(#[from] conclave_replica::BootError),
    /// The data directory names sizes of quorums that do not fit the founders.
    #[error("the identity file is damaged: {0}")]
    Quorums(#[from] conclave_consensus::QuorumsError),
    /// The engine cannot start from them.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The cluster that runs already cannot be joined.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The others say that this member is none of them.
    #[error("the other members do not take this one for theirs: {0}")]
    Dismissed(Refusal),
    /// What is noted of the other members cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Peers {
        /// The file's directory.
        path: PathBuf,
        /// What the operating system said, or what is wrong with the file.
        source: std::io::Error,
    },
    /// The operating system gives no threads.
    #[error("cannot start a thread: {0}")]
    Threads(std::io::Error),
    /// The node halted by itself rather than guess.
    #[error(transparent)]
    Halted(#[from] conclave_replica::Fatal),
}

/// A running node. Dropped without [`shutdown`](Self::shutdown), it stops at once, as in a crash.
pub struct Node {
    front: Front,
    shell: Shell,
    backend: Arc<Replicated>,
    transport: Arc<TcpTransport>,
    members: Arc<Members>,
    tasks: Vec<JoinHandle<()>>,
    _network: Network,
    _data_dir: DataDir,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl Node {
    /// Starts a node; it serves when this returns, as soon as there is a leader. Needs a tokio runtime with two threads or more.
    ///
    /// # Errors
    /// Whatever kept it from starting; nothing is left running.
    pub async fn start(config: Config) -> Result<Self, NodeError> {
        config.validate()?;
        let bootstrap = match datadir::standing(&config.data_dir, &config)? {
            Some(standing) => standing,
            None if config.initial_cluster_state == ClusterState::Existing => {
                membership::find_cluster(&config).await?
            }
            None => identity::bootstrap(&config)?,
        };
        // Before anything is written: a port in use is the likeliest mistake, and a directory would keep the identity it was made with.
        let listeners = Listeners::bind(&config)?;
        let listening = replicated::listen(&config, &bootstrap).await?;
        let data_dir = DataDir::open(&config.data_dir, &bootstrap, &config)?;
        let members = Members::new(&bootstrap, &config, listening.door());
        let Running { backend, shell, transport, network } =
            replicated::start(&config, &bootstrap, data_dir.path(), listening, &members).await?;
        let mut tasks = members.begin(shell.handle(), backend.reader().clone(), Arc::clone(&transport));
        tasks.extend(backend.begin_leases());
        let front = Front::serve(listeners, &config, Arc::clone(&backend) as Arc<dyn Backend>);
        Ok(Self { front, shell, backend, transport, members, tasks, _network: network, _data_dir: data_dir })
    }

    /// The address of the first listener for clients.
    #[must_use]
    pub fn client_addr(&self) -> SocketAddr {
        self.front.client_addr()
    }

    /// Returns when the node has to halt by itself, as when its disk fails.
    pub async fn halted(&mut self) -> NodeError {
        tokio::select! {
            fatal = self.backend.handle().failed() => fatal.into(),
            refusal = self.members.dismissed() => NodeError::Dismissed(refusal),
        }
    }

    /// Stops the node cleanly: hands leadership over if it leads and another member can take it, lets requests under way end, and syncs.
    pub async fn shutdown(self) {
        self.hand_over().await;
        self.tasks.iter().for_each(JoinHandle::abort);
        self.front.shutdown().await;
        for task in self.tasks {
            // Aborted, and with it goes what it holds of the node.
            let _ = task.await;
        }
        let shell = self.shell;
        // The threads may be in a sync: not for a runtime's thread to wait for.
        let stopping = tokio::task::spawn_blocking(move || shell.stop());
        if tokio::time::timeout(STOP_LIMIT, stopping).await.is_err() {
            tracing::error!("a thread waits for the disk; what it writes was acknowledged to nobody");
        }
        self.transport.shutdown().await;
    }

    async fn hand_over(&self) {
        let handle = self.backend.handle();
        let Some(mut role) = handle.role(DATA) else { return };
        if !role.borrow().serving {
            return;
        }
        let this = NodeId(self.backend.identity().member_id);
        let Some(status) = handle.status(DATA).await else { return };
        // To the voter that is furthest: it has least to catch up with.
        let heir = status
            .progress
            .iter()
            .filter(|progress| progress.active && status.config.voters.contains(&progress.replica))
            .max_by_key(|progress| progress.matched)
            .and_then(|progress| status.config.nodes.get(&progress.replica));
        let Some(heir) = heir.filter(|heir| **heir != this) else { return };
        tracing::info!(heir = format_args!("{:x}", heir.0), "handing leadership over");
        handle.transfer(DATA, *heir);
        let changed = role.wait_for(|role| role.leader.is_some_and(|leader| leader != this));
        if tokio::time::timeout(HANDOVER_LIMIT, changed).await.is_err() {
            tracing::warn!("leadership was not taken over in time");
        }
    }
}
