//! Replication inside your own program: three nodes share a map of words, each with a write-ahead log on the disk.
//!
//! What is yours is a [`StateMachine`] and where its replies go; what is ours is everything else: election, log, replication, reads, restart. The
//! nodes stand in one process, joined by an in-memory network; over sockets they would be joined by `TcpTransport`.
//!
//! `cargo run -p conclave-replica --example register`

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use conclave_consensus::{Config, Entry, GroupId, Kind, NodeId, ProposalId, ReplicaId, SnapshotMeta, Timing};
use conclave_raft::{Raft, RaftConfig};
use conclave_replica::{
    GroupSetup, Handle, Job, Prepared, ProposeError, Replies, Shell, ShellConfig, SnapshotSink,
    SnapshotSource, StateMachine, begin_epoch, boot_group, boot_time,
};
use conclave_storage::{LogStore, RealDisk, StateError, Wal, WalOptions};
use conclave_transport::MemoryNetwork;
use parking_lot::RwLock;

type Error = Box<dyn std::error::Error>;
type Words = Arc<RwLock<BTreeMap<String, String>>>;

const GROUP: GroupId = GroupId(1);

/// The state: a command is `word=meaning`, the reply is what the word meant before. Readers share the map.
///
/// It makes no checkpoints, so a boot replays the whole log, which is never cut; a machine that outgrows that makes them, as
/// `conclave_kv::Machine` does.
#[derive(Debug, Default)]
struct Dictionary(Words);

impl StateMachine for Dictionary {
    fn apply(&mut self, entries: &[Entry], waits: &dyn Fn(ProposalId) -> bool, replies: &mut Replies) {
        let mut words = self.0.write();
        for entry in entries.iter().filter(|entry| entry.kind == Kind::Command) {
            // Every replica must come to the same: what is no command is none everywhere.
            let Some((word, meaning)) =
                std::str::from_utf8(&entry.payload).ok().and_then(|c| c.split_once('='))
            else {
                continue;
            };
            let before = words.insert(word.to_owned(), meaning.to_owned()).unwrap_or_default();
            if waits(entry.id) {
                replies.push((entry.id, before.into()));
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

struct Node {
    shell: Shell,
    handle: Handle,
    words: Words,
}

impl Node {
    /// Starts a node with what its directory holds: nothing at first, its log later.
    fn start(id: u64, directory: &Path, network: &MemoryNetwork) -> Result<Self, Error> {
        let node = NodeId(id);
        let members = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
        let disk = Arc::new(RealDisk::open(directory)?);
        let options = WalOptions { log_id: id, segment_bytes: 1 << 20, ..WalOptions::default() };
        let log = Arc::new(Wal::open(disk, options)?);
        let epoch = begin_epoch(log.as_ref(), 7, node)?;
        let boot =
            boot_group(log.as_ref(), GROUP, ReplicaId(id), None, &members, boot_time(), id ^ epoch.0 << 8)?;
        let timing = Timing { heartbeat: Duration::from_millis(50), election: Duration::from_millis(500) };
        let state = boot.state.clone();
        let core = Box::new(Raft::new(boot, RaftConfig { timing, ..RaftConfig::default() })?);
        let words = Words::default();
        let machine = Box::new(Dictionary(Arc::clone(&words)));
        let setup = GroupSetup { group: GROUP, core, machine, state };
        let prepared = Prepared::new(ShellConfig::of(node, epoch), vec![setup], None);
        let transport = Arc::new(network.join(node, prepared.inbound()));
        let shell =
            prepared.start(log as Arc<dyn LogStore>, transport, &tokio::runtime::Handle::current())?;
        Ok(Self { handle: shell.handle(), shell, words })
    }

    /// Any node may be asked: one that does not lead forwards.
    async fn define(&self, word: &str, meaning: &str) -> Result<Bytes, ProposeError> {
        loop {
            match self.handle.propose(GROUP, Bytes::from(format!("{word}={meaning}"))).await {
                // Certain not to have happened: asked again it is not applied twice.
                Err(ProposeError::NoLeader | ProposeError::LeaderChanged | ProposeError::Busy) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Sees everything that was acknowledged before the question, wherever it was.
    async fn look_up(&self, word: &str) -> Result<Option<String>, Error> {
        self.handle.read_barrier(GROUP).await?;
        Ok(self.words.read().get(word).cloned())
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    let path = |id: u64| directory.path().join(id.to_string());
    let network = MemoryNetwork::new();
    let mut nodes = (1..=3).map(|id| Node::start(id, &path(id), &network)).collect::<Result<Vec<_>, _>>()?;

    nodes[0].define("conclave", "a locked room").await?;
    let before = nodes[1].define("conclave", "a group that agrees").await?;
    assert_eq!(before, "a locked room");
    println!("node 3 reads what node 2 wrote: {:?}", nodes[2].look_up("conclave").await?);

    let stopped = nodes.remove(2);
    stopped.shell.stop();
    drop(stopped.handle);
    network.leave(NodeId(3));
    nodes[0].define("quorum", "two of three").await?;
    println!("two of three go on: {:?}", nodes[1].look_up("quorum").await?);

    nodes.push(Node::start(3, &path(3), &network)?);
    for word in ["conclave", "quorum"] {
        let meaning = nodes[2].look_up(word).await?.ok_or("node 3 lacks what was acknowledged")?;
        println!("node 3, from its log and from the others: {word} is {meaning}");
    }
    nodes.into_iter().for_each(|node| node.shell.stop());
    Ok(())
}
