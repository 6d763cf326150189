//! One trial: a cluster, what is done to it, and what must hold afterwards.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use conclave_api::etcdserverpb::{
    HashKvRequest, StatusRequest, StatusResponse, maintenance_client::MaintenanceClient,
};
use conclave_sim::check::{agree, check_dense_revisions, check_linearizability};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use xtask::engine::Engine;
use xtask::server::{Cluster, Launch, Ports};

use crate::{load::Load, proxy::Proxies};

/// How long a cluster may take to serve, on a busy machine.
const READY: Duration = Duration::from_secs(30);
/// How long the search for an order of one key's operations may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A trial's default election timeout.
pub const ELECTION: Duration = Duration::from_secs(1);

/// How a trial's cluster is set up.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// On the disk that keeps unsynced writes in process memory, so that `kill -9` is a power cut.
    pub volatile: bool,
    /// With a proxy before each peer port.
    pub proxied: bool,
    /// A bug put back, by name.
    pub mutant: Option<&'static str>,
    /// What replicates the data, where a trial is about one engine alone.
    pub engine: Option<Engine>,
    /// Further flags.
    pub flags: Vec<String>,
}

/// What replicates a trial's data: what the variable `CONCLAVE_TEST_ENGINE` names, else Raft.
///
/// # Errors
/// If it names none.
pub fn engine() -> Result<Engine> {
    match std::env::var("CONCLAVE_TEST_ENGINE") {
        Ok(name) => {
            Engine::named(&name).with_context(|| format!("CONCLAVE_TEST_ENGINE names no engine: {name}"))
        }
        Err(_) => Ok(Engine::Raft),
    }
}

/// A running cluster of three.
#[derive(Debug)]
pub struct Trial {
    /// The processes.
    pub cluster: Cluster,
    /// The links, if proxied.
    pub proxies: Option<Proxies>,
    /// What replicates its data.
    pub engine: Engine,
    dir: TempDir,
    ports: Vec<Ports>,
}

/// The node's program: what the variable `CONCLAVE_BIN` names, else the one that a debug build of the workspace leaves.
///
/// # Errors
/// If there is none.
pub fn program() -> Result<PathBuf> {
    let path = std::env::var_os("CONCLAVE_BIN")
        .map(PathBuf::from)
        .unwrap_or_else(|| xtask::workspace::target().join("debug").join("conclave"));
    ensure!(path.exists(), "{} is not built; run `cargo xtask cluster`", path.display());
    Ok(path)
}

impl Trial {
    /// Starts three nodes and waits until they serve.
    ///
    /// # Errors
    /// If they do not.
    pub async fn start(setup: &Setup) -> Result<Self> {
        let mut dir = tempfile::tempdir()?;
        if std::env::var_os("CONCLAVE_KEEP").is_some() {
            dir.disable_cleanup(true);
            println!("data and logs stay under {}", dir.path().display());
        }
        let ports = Ports::free(3)?;
        let peers: Vec<u16> = ports.iter().map(|ports| ports.peer).collect();
        let proxies = if setup.proxied { Some(Proxies::start(&peers).await?) } else { None };
        let mut environment = Vec::new();
        if setup.volatile {
            environment.push(("CONCLAVE_TEST_DISK".to_owned(), "volatile".to_owned()));
        }
        if let Some(mutant) = setup.mutant {
            environment.push(("CONCLAVE_MUTANT".to_owned(), mutant.to_owned()));
        }
        let program = program()?;
        let engine = setup.engine.map_or_else(engine, Ok)?;
        println!("on {}", engine.name());
        let mut flags = setup.flags.clone();
        flags.push(engine.flag());
        let launch = Launch {
            advertised_peers: proxies.as_ref().map(Proxies::ports),
            flags: &flags,
            environment: &environment,
            ..Launch::new(&program, dir.path(), &ports)
        };
        let mut cluster = launch.start()?;
        tokio::task::block_in_place(|| cluster.wait_ready(READY))?;
        let trial = Self { cluster, proxies, engine, dir, ports };
        // A program built without them would ignore these and the trial would show nothing.
        if setup.volatile {
            ensure!(
                trial.log_text(0).contains("test-only disk"),
                "the program has no test-only disk; run `cargo xtask cluster`"
            );
        }
        if setup.mutant.is_some() {
            ensure!(
                trial.log_text(0).contains("mutant"),
                "the program has no mutants; run `cargo xtask cluster`"
            );
        }
        Ok(trial)
    }

    /// The client URLs.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.cluster.endpoints()
    }

    /// The ports of the nodes.
    #[must_use]
    pub fn ports(&self) -> &[Ports] {
        &self.ports
    }

    /// The state directory of a node.
    #[must_use]
    pub fn state_dir(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("n{}", node + 1)).join("state")
    }

    /// The log of a node, as text.
    #[must_use]
    pub fn log_text(&self, node: usize) -> String {
        let path = self.dir.path().join(format!("n{}.log", node + 1));
        fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The index of the node that leads, once one does.
    ///
    /// # Errors
    /// If none does for long.
    pub async fn leader(&mut self) -> Result<usize> {
        let began = Instant::now();
        while began.elapsed() < READY {
            for node in 0..self.ports.len() {
                if self.cluster.servers_mut()[node].ended().is_some() {
                    continue;
                }
                if let Ok(status) = self.status(node).await
                    && status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
                {
                    return Ok(node);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("no node leads")
    }

    /// What a node says of itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&self, node: usize) -> Result<StatusResponse> {
        Ok(self.maintenance(node)?.status(StatusRequest::default()).await?.into_inner())
    }

    fn maintenance(&self, node: usize) -> Result<MaintenanceClient<Channel>> {
        Ok(MaintenanceClient::new(self.channel(node, Duration::from_secs(3))?))
    }

    /// A way to one node, on which each request has so much time.
    ///
    /// # Errors
    /// If its address is no URL.
    pub fn channel(&self, node: usize, limit: Duration) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(self.cluster.servers()[node].endpoint())?;
        Ok(endpoint.timeout(limit).connect_lazy())
    }

    /// The member's id.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn member_id(&self, node: usize) -> Result<u64> {
        Ok(self.status(node).await?.header.context("a header")?.member_id)
    }

    /// How many checkpoints a node has completed in this life, as its metrics say.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn checkpoints(&self, node: usize) -> Result<u64> {
        let text = xtask::server::http_get(self.ports[node].client, "/metrics")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("etcd_disk_backend_commit_duration_seconds_count "))
            .context("no count of checkpoints in the metrics")?;
        Ok(line.trim().parse::<f64>()? as u64)
    }

    /// Restarts every node that has ended, and waits until all serve.
    ///
    /// # Errors
    /// If one does not.
    pub fn restart_ended(&mut self) -> Result<()> {
        for server in self.cluster.servers_mut() {
            if server.ended().is_some() {
                server.restart()?;
            }
        }
        tokio::task::block_in_place(|| self.cluster.wait_ready(READY))
    }

    /// The peer URL of a port.
    #[must_use]
    pub fn peer_url(ports: Ports) -> String {
        format!("http://127.0.0.1:{}", ports.peer)
    }

    /// The members as `--initial-cluster` lists them.
    #[must_use]
    pub fn members(&self) -> String {
        let member = |(at, ports): (usize, &Ports)| format!("n{}={}", at + 1, Self::peer_url(*ports));
        self.ports.iter().enumerate().map(member).collect::<Vec<_>>().join(",")
    }

    /// A node's data directory.
    #[must_use]
    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("n{}", node + 1))
    }

    /// Ends the load and checks what its clients were told: a linearizable history, no acknowledged write lost, the same HashKV on all members.
    ///
    /// # Errors
    /// What does not hold.
    pub async fn check(&mut self, load: Load) -> Result<()> {
        self.cluster.check_alive()?;
        let writes = load.acknowledged();
        let (history, revision) = load.finish(&self.endpoints()).await?;
        check_linearizability(&history, PATIENCE).map_err(|violation| anyhow::anyhow!("{violation}"))?;
        check_dense_revisions(&history, revision).map_err(|violation| anyhow::anyhow!("{violation}"))?;
        let hashes = self.hashes(revision).await?;
        agree(&hashes).map_err(|violation| anyhow::anyhow!("{violation}"))?;
        ensure!(writes > 100, "only {writes} writes were acknowledged: the trial shows nothing");
        println!(
            "{} operations, {writes} writes acknowledged, revision {revision}: all hold",
            history.operations().len()
        );
        Ok(())
    }

    /// HashKV of all members at one revision, once each has applied it.
    ///
    /// # Errors
    /// If one does not answer.
    pub async fn hashes(&self, revision: i64) -> Result<Vec<(u64, u64)>> {
        let mut hashes = Vec::new();
        for node in 0..self.ports.len() {
            let began = Instant::now();
            let response = loop {
                match self.maintenance(node)?.hash_kv(HashKvRequest { revision }).await {
                    Ok(response) => break response.into_inner(),
                    // A member that lags has not seen the revision yet.
                    Err(status) if began.elapsed() > READY => return Err(status.into()),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            };
            hashes.push((node as u64, u64::from(response.hash)));
        }
        Ok(hashes)
    }
}

/// Copies a directory.
///
/// # Errors
/// What the operating system says.
pub fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
