//! A kind of server under test, and three running nodes of it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use conclave_api::etcdserverpb::TxnRequest;
use tempfile::TempDir;
use xtask::engine::Engine;
use xtask::server::{Cluster, Launch, Ports, Server};
use xtask::workspace;

use crate::connection::{Call, Connection, Framed};
use crate::workload::{Random, put_op};

const NODES: usize = 3;
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Operations in a transaction that fills; etcd allows 128.
const FILL_OPS: u64 = 100;
/// Transactions under way at once while filling.
const FILL_CLIENTS: u64 = 8;

/// A program that serves the etcd API and takes etcd's flags.
#[derive(Clone, Debug)]
pub struct Subject {
    /// As it is called in reports.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its flags, beside those that make a cluster.
    pub flags: Vec<String>,
}

impl Subject {
    /// Conclave on one of its engines.
    pub fn conclave(program: PathBuf, engine: Engine) -> Self {
        let name = match engine {
            Engine::Raft => "conclave",
            Engine::Paxos => "conclave-paxos",
        };
        Self { name, program, flags: vec![engine.flag()] }
    }

    /// Starts three nodes with default settings and empty data under the target folder, on a real file system with
    /// synced writes, and waits until they serve.
    ///
    /// # Errors
    /// When a node does not come up; the message has the end of its log.
    pub fn start(&self) -> Result<Running> {
        let parent = workspace::target().join("bench");
        std::fs::create_dir_all(&parent)?;
        let dir = tempfile::Builder::new().prefix(self.name).tempdir_in(parent)?;
        let ports = Ports::free(NODES)?;
        let launch = Launch { flags: &self.flags, ..Launch::new(&self.program, dir.path(), &ports) };
        let mut cluster = launch.start().with_context(|| format!("starting {}", self.name))?;
        cluster.wait_ready(READY_LIMIT).with_context(|| format!("starting {}", self.name))?;
        Ok(Running { cluster, _dir: dir })
    }
}

/// Three nodes; they end, and their data goes, when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// The processes.
    pub cluster: Cluster,
    _dir: TempDir,
}

impl Running {
    /// The process ids.
    pub fn pids(&self) -> Vec<u32> {
        self.cluster.servers().iter().map(Server::pid).collect()
    }

    /// Opens `each` connections to every node, node after node in turn.
    ///
    /// # Errors
    /// When a node does not answer.
    pub async fn connect(&self, each: usize) -> Result<Vec<Connection>> {
        let mut connections = Vec::new();
        for _ in 0..each {
            for endpoint in self.cluster.endpoints() {
                connections.push(Connection::open(&endpoint).await?);
            }
        }
        Ok(connections)
    }

    /// Writes the keys `0..keys`, a hundred in a transaction.
    ///
    /// # Errors
    /// When a transaction fails.
    pub async fn fill(&self, keys: u64) -> Result<()> {
        let connections = self.connect(1).await?;
        let tasks: Vec<_> = (0..FILL_CLIENTS)
            .map(|client| {
                let mut connection = connections[client as usize % connections.len()].clone();
                tokio::spawn(async move {
                    let mut random = Random::new(client);
                    for first in (client * FILL_OPS..keys).step_by((FILL_CLIENTS * FILL_OPS) as usize) {
                        let past = (first + FILL_OPS).min(keys);
                        let success = (first..past).map(|index| put_op(index, &mut random)).collect();
                        let txn = TxnRequest { success, ..TxnRequest::default() };
                        connection.call(Call::Txn, &Framed::new(&txn)).await?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await?.context("filling")?;
        }
        Ok(())
    }

    /// Kills all nodes, starts them again, and returns how long it took until all served.
    ///
    /// # Errors
    /// When one does not come back.
    pub fn restart(&mut self) -> Result<Duration> {
        for server in self.cluster.servers_mut() {
            server.kill()?;
        }
        let started = Instant::now();
        for server in self.cluster.servers_mut() {
            server.restart()?;
        }
        self.cluster.wait_ready(READY_LIMIT)?;
        Ok(started.elapsed())
    }

    /// Ends the nodes as an operator would.
    ///
    /// # Errors
    /// When one had ended before, or does not end.
    pub fn stop(mut self) -> Result<()> {
        self.cluster.check_alive()?;
        self.cluster.stop()
    }
}

/// The programs to compare, as the command line names them.
#[derive(Clone, Debug, clap::Args)]
pub struct Programs {
    /// The program `conclave`.
    #[arg(long, value_name = "PATH")]
    conclave: Option<PathBuf>,
    /// The program `etcd`.
    #[arg(long, value_name = "PATH")]
    etcd: Option<PathBuf>,
    /// The engines that Conclave is measured on, one after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Engine::Raft])]
    engine: Vec<Engine>,
    /// Measure this subject alone: `conclave` or `etcd`.
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,
}

impl Programs {
    /// The subjects, Conclave first.
    ///
    /// # Errors
    /// When there is none, or a program is not there.
    pub fn subjects(&self) -> Result<Vec<Subject>> {
        let given = |name: &str, program: &Option<PathBuf>| match program {
            Some(_) if self.subject.as_deref().is_some_and(|only| only != name) => Ok(None),
            Some(program) if !program.is_file() => bail!("no program at {}", program.display()),
            other => Ok(other.clone()),
        };
        let mut subjects = Vec::new();
        if let Some(program) = given("conclave", &self.conclave)? {
            subjects.extend(self.engine.iter().map(|engine| Subject::conclave(program.clone(), *engine)));
        }
        if let Some(program) = given("etcd", &self.etcd)? {
            subjects.push(Subject { name: "etcd", program, flags: Vec::new() });
        }
        if subjects.is_empty() {
            bail!("nothing to measure: give --conclave PATH, --etcd PATH or both");
        }
        Ok(subjects)
    }
}
