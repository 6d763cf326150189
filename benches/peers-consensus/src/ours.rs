//! Our cores: three of either engine in a loop, each stepped with what arrived and drained once.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave_consensus::{
    Boot, Config, Consensus, Effect, Entries, GroupId, Input, Kind, LogOp, Message, NodeId, Proposal,
    ProposalId, ReplicaId, Slot, SnapshotMeta, Time,
};
use conclave_paxos::{Paxos, PaxosConfig};
use conclave_raft::{Raft, RaftConfig};
use conclave_transport::{
    Packet,
    codec::{Decoder, Encoder},
};

use crate::load::{Applied, BATCH_MAX, LOG_KEPT, Load, PAYLOAD_BYTES, WARM_UP, command};

const FRAME_BYTES_MAX: usize = 1 << 20;
/// As the transport reads from its peers: pieces of this size, begun anew when less than a part of one is left.
const READ_BYTES: usize = 64 << 10;
const ROOM_BYTES_MIN: usize = 4 << 10;

struct Node<Core> {
    core: Core,
    /// The runs that were written.
    log: VecDeque<Entries>,
    compacted: Slot,
    applied: Applied,
    inbox: VecDeque<Message>,
    /// What was sent to this node as bytes, and how it is read.
    sent: Encoder,
    bytes: BytesMut,
    decoder: Decoder,
}

struct Cluster<Core> {
    nodes: Vec<Node<Core>>,
    now: Time,
    encoded: bool,
    effects: Vec<Effect>,
    packets: Vec<Packet>,
}

/// Entries of one message, in bytes.
const MESSAGE_BYTES_MAX: usize = (PAYLOAD_BYTES + 64) * BATCH_MAX as usize;

fn raft(boot: Boot) -> Result<Raft> {
    let config = RaftConfig {
        message_bytes_max: MESSAGE_BYTES_MAX,
        compaction_margin_entries: LOG_KEPT,
        ..RaftConfig::default()
    };
    Ok(Raft::new(boot, config)?)
}

fn paxos(boot: Boot) -> Result<Paxos> {
    let config = PaxosConfig {
        message_bytes_max: MESSAGE_BYTES_MAX,
        compaction_margin_entries: LOG_KEPT,
        ..PaxosConfig::default()
    };
    Ok(Paxos::new(boot, config)?)
}

fn boot(id: u64) -> Boot {
    let config = Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id))));
    Boot {
        replica: ReplicaId(id),
        meta: Bytes::new(),
        state: SnapshotMeta { config, ..SnapshotMeta::default() },
        entries: Vec::new(),
        first: Slot(1),
        now: Time(0),
        seed: id,
    }
}

impl<Core: Consensus> Node<Core> {
    fn of(core: Core) -> Self {
        Self {
            core,
            log: VecDeque::new(),
            compacted: Slot(0),
            applied: Applied::default(),
            inbox: VecDeque::new(),
            sent: Encoder::new(),
            bytes: BytesMut::new(),
            decoder: Decoder::new(FRAME_BYTES_MAX),
        }
    }
}

impl<Core: Consensus> Cluster<Core> {
    fn send(&mut self, message: Message) -> Result<()> {
        let to = &mut self.nodes[message.to.0 as usize - 1];
        if self.encoded {
            to.sent.push(&Packet::Consensus { group: GroupId(1), message }, FRAME_BYTES_MAX)?;
        } else {
            to.inbox.push_back(message);
        }
        Ok(())
    }

    /// Steps a node with everything that arrived.
    fn receive(&mut self, at: usize) -> Result<()> {
        let node = &mut self.nodes[at];
        if node.sent.has_remaining() {
            if node.bytes.capacity() - node.bytes.len() < node.sent.remaining().max(ROOM_BYTES_MIN) {
                node.bytes.reserve(node.sent.remaining().max(READ_BYTES));
            }
            node.bytes.put(&mut node.sent);
            node.sent.clear();
            node.decoder.decode(&mut node.bytes, &mut self.packets)?;
            for packet in self.packets.drain(..) {
                if let Packet::Consensus { message, .. } = packet {
                    node.core.step(self.now, Input::Message(message))?;
                }
            }
        }
        while let Some(message) = node.inbox.pop_front() {
            node.core.step(self.now, Input::Message(message))?;
        }
        Ok(())
    }

    /// Drains a node and does what it wants. What it wants after that it says when it is drained next.
    fn settle(&mut self, at: usize) -> Result<()> {
        let mut effects = std::mem::take(&mut self.effects);
        self.nodes[at].core.drain(&mut effects);
        for effect in effects.drain(..) {
            self.carry_out(at, effect)?;
        }
        self.effects = effects;
        Ok(())
    }

    fn carry_out(&mut self, at: usize, effect: Effect) -> Result<()> {
        match effect {
            Effect::Send(message) => self.send(message)?,
            Effect::Persist { mark, ops, then } => {
                let node = &mut self.nodes[at];
                for op in ops {
                    match op {
                        LogOp::Put(entries) => node.log.push_back(entries),
                        LogOp::TruncateFrom(slot) => {
                            for run in &mut node.log {
                                run.truncate(run.partition_point(|entry| entry.slot < slot));
                            }
                            node.log.retain(|run| !run.is_empty());
                        }
                        _ => {}
                    }
                }
                node.core.step(self.now, Input::Persisted(mark))?;
                for message in then {
                    self.send(message)?;
                }
            }
            Effect::Commit(entries) => {
                let node = &mut self.nodes[at];
                for entry in entries.iter().filter(|entry| entry.kind == Kind::Command) {
                    node.applied.apply(&entry.payload);
                }
                if let Some(last) = entries.last() {
                    node.core.step(self.now, Input::Applied(last.slot))?;
                    if last.slot.0 - node.compacted.0 >= LOG_KEPT {
                        node.compacted = last.slot;
                        let config = node.core.status().config;
                        let meta =
                            SnapshotMeta { slot: last.slot, ballot: last.ballot, config, generation: 0 };
                        node.core.step(self.now, Input::Compacted(meta))?;
                    }
                }
            }
            Effect::Write { ops } => {
                for op in ops {
                    if let LogOp::CutBelow(slot) = op {
                        let log = &mut self.nodes[at].log;
                        let is_below = |run: &mut Entries| run.last().is_none_or(|last| last.slot < slot);
                        while log.pop_front_if(is_below).is_some() {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn elect(&mut self) -> Result<()> {
        while !self.nodes[0].core.status().serving {
            self.now = self.nodes[0].core.next_deadline().context("a follower waits for something")?;
            self.nodes[0].core.step(self.now, Input::Tick)?;
            // Enough for either engine's questions and answers.
            for _ in 0..10 {
                for at in 0..3 {
                    self.receive(at)?;
                    self.settle(at)?;
                }
            }
        }
        Ok(())
    }

    /// Has every command up to `last` applied everywhere.
    fn decide(&mut self, proposed: &mut u64, last: u64, window: u64) -> Result<()> {
        while self.nodes.iter().any(|node| node.applied.count < last) {
            for at in 0..3 {
                self.receive(at)?;
                if at == 0 {
                    let until = last.min(self.nodes[0].applied.count + window);
                    let batch: Vec<Proposal> = (*proposed..until)
                        .map(|number| Proposal {
                            id: ProposalId { node: NodeId(1), sequence: number + 1 },
                            payload: Bytes::copy_from_slice(&command(number)),
                        })
                        .collect();
                    if !batch.is_empty() {
                        *proposed = until;
                        self.nodes[0].core.step(self.now, Input::Propose { batch, only_in: None })?;
                    }
                }
                self.settle(at)?;
            }
        }
        Ok(())
    }
}

/// How long the load takes on Raft.
pub(crate) fn run_raft(load: &Load) -> Result<Duration> {
    run(load, raft)
}

/// How long the load takes on Multi-Paxos.
pub(crate) fn run_paxos(load: &Load) -> Result<Duration> {
    run(load, paxos)
}

fn run<Core: Consensus>(load: &Load, core: fn(Boot) -> Result<Core>) -> Result<Duration> {
    let mut cluster = Cluster {
        nodes: (1..=3).map(|id| core(boot(id)).map(Node::of)).collect::<Result<_>>()?,
        now: Time(0),
        encoded: load.encoded,
        effects: Vec::new(),
        packets: Vec::new(),
    };
    cluster.elect()?;
    let mut proposed = 0;
    cluster.decide(&mut proposed, WARM_UP, load.window)?;
    let started = Instant::now();
    cluster.decide(&mut proposed, WARM_UP + load.commands, load.window)?;
    Ok(started.elapsed())
}
