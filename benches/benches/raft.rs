//! The Raft core alone: three replicas in memory, every entry applied and checked on each of them.
//!
//! Batches of 64 with payloads of 16 bytes; messages are delivered at once and logs are durable at once, so that nothing but
//! the cores is measured. Sixteen batches are under way at a time, as a busy host has them.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use conclave_consensus::{
    Boot, Config, Consensus, Effect, Entry, Input, Kind, Message, NodeId, Proposal, ProposalId, ReplicaId,
    Slot, SnapshotMeta, Time,
};
use conclave_raft::{Raft, RaftConfig};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const REPLICAS: u64 = 3;
const BATCH: u64 = 64;
const PAYLOAD_BYTES: usize = 16;
const UNDER_WAY: u64 = 16;
/// The log is cut below a checkpoint every so many entries, as a host does.
const CHECKPOINT_ENTRIES: u64 = 65_536;

struct Replica {
    core: Box<dyn Consensus>,
    applied: Slot,
    /// Commands applied: the next one must carry this number.
    commands: u64,
    checkpoint: Slot,
}

struct Cluster {
    now: Time,
    replicas: Vec<Replica>,
    network: VecDeque<Message>,
    effects: Vec<Effect>,
    config: Config,
    proposed: u64,
    leader: usize,
}

impl Cluster {
    /// Three replicas of which one leads.
    fn new() -> Cluster {
        let config = Config::of_voters((1..=REPLICAS).map(|id| (ReplicaId(id), NodeId(id))));
        let replicas = (1..=REPLICAS)
            .map(|id| {
                let boot = Boot {
                    replica: ReplicaId(id),
                    meta: Bytes::new(),
                    state: SnapshotMeta { config: config.clone(), ..SnapshotMeta::default() },
                    entries: Vec::new(),
                    first: Slot(1),
                    now: Time::default(),
                    seed: id,
                };
                let core = Raft::new(boot, RaftConfig::default()).expect("the settings are the defaults");
                Replica { core: Box::new(core), applied: Slot(0), commands: 0, checkpoint: Slot(0) }
            })
            .collect();
        let mut cluster = Cluster {
            now: Time::default(),
            replicas,
            network: VecDeque::new(),
            effects: Vec::new(),
            config,
            proposed: 0,
            leader: 0,
        };
        loop {
            cluster.now = cluster.now.after(Duration::from_millis(50));
            for at in 0..cluster.replicas.len() {
                cluster.step(at, Input::Tick);
            }
            cluster.deliver();
            if let Some(leader) = cluster.replicas.iter().position(|r| r.core.status().serving) {
                // From here on time stands still: no heartbeat and no election is in the figures.
                cluster.leader = leader;
                return cluster;
            }
        }
    }

    fn step(&mut self, at: usize, input: Input) {
        self.replicas[at].core.step(self.now, input).expect("no input of the bench is refused");
        loop {
            let mut effects = std::mem::take(&mut self.effects);
            self.replicas[at].core.drain(&mut effects);
            if effects.is_empty() {
                self.effects = effects;
                return;
            }
            for effect in effects.drain(..) {
                self.carry_out(at, effect);
            }
            self.effects = effects;
        }
    }

    fn carry_out(&mut self, at: usize, effect: Effect) {
        let replica = &mut self.replicas[at];
        let completion = match effect {
            Effect::Send(message) => {
                self.network.push_back(message);
                return;
            }
            Effect::Persist { mark, then, .. } => {
                self.network.extend(then);
                Input::Persisted(mark)
            }
            Effect::Commit(entries) => {
                for entry in &entries {
                    replica.apply(entry);
                }
                Input::Applied(replica.applied)
            }
            Effect::Write { .. } | Effect::Role { .. } | Effect::Membership { .. } => return,
            other => panic!("nothing is lost, read or fetched here: {other:?}"),
        };
        replica.core.step(self.now, completion).expect("a completion is not refused");
        if let Some(meta) = replica.checkpoint(&self.config) {
            replica.core.step(self.now, Input::Compacted(meta)).expect("a checkpoint is not refused");
        }
    }

    fn deliver(&mut self) {
        while let Some(message) = self.network.pop_front() {
            let at = message.to.0 as usize - 1;
            self.step(at, Input::Message(message));
        }
    }

    /// Has `batches` batches chosen and applied by all replicas.
    fn run(&mut self, batches: u64) {
        let mut left = batches;
        while left > 0 {
            let now = left.min(UNDER_WAY);
            for _ in 0..now {
                let batch = (0..BATCH).map(|_| self.proposal()).collect();
                self.step(self.leader, Input::Propose { batch, only_in: None });
            }
            self.deliver();
            left -= now;
        }
        for replica in &self.replicas {
            assert_eq!(replica.commands, self.proposed, "every replica applied everything");
        }
    }

    fn proposal(&mut self) -> Proposal {
        let mut payload = [0u8; PAYLOAD_BYTES];
        payload[..8].copy_from_slice(&self.proposed.to_le_bytes());
        self.proposed += 1;
        let id = ProposalId { node: NodeId(1), sequence: self.proposed };
        Proposal { id, payload: Bytes::copy_from_slice(&payload) }
    }
}

impl Replica {
    fn apply(&mut self, entry: &Entry) {
        assert_eq!(entry.slot, self.applied.next(), "entries come in order");
        self.applied = entry.slot;
        if entry.kind == Kind::Command {
            assert_eq!(entry.payload[..8], self.commands.to_le_bytes(), "the entry that was proposed");
            self.commands += 1;
        }
    }

    fn checkpoint(&mut self, config: &Config) -> Option<SnapshotMeta> {
        if self.applied.0 - self.checkpoint.0 < CHECKPOINT_ENTRIES {
            return None;
        }
        self.checkpoint = self.applied;
        let ballot = self.core.status().ballot;
        Some(SnapshotMeta { slot: self.applied, ballot, config: config.clone(), generation: 0 })
    }
}

fn replication(c: &mut Criterion) {
    let mut group = c.benchmark_group("raft");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("three replicas, a batch of 64 entries of 16 bytes", |b| {
        let mut cluster = Cluster::new();
        b.iter_custom(|batches| {
            let started = Instant::now();
            cluster.run(batches);
            started.elapsed()
        });
    });
    group.finish();
}

criterion_group!(benches, replication);
criterion_main!(benches);
