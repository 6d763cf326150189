//! `raft` 0.7: three `RawNode`s over its own in-memory storage in the same loop, driven as its documentation says.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::Result;
use protobuf::{CodedInputStream, Message as _};
use raft::{
    Config, RawNode,
    eraftpb::{Entry, EntryType, Message, MessageType},
    storage::MemStorage,
};

use crate::load::{Applied, BATCH_MAX, LOG_KEPT, Load, PAYLOAD_BYTES, WARM_UP, command};

struct Node {
    raw: RawNode<MemStorage>,
    applied: Applied,
    compacted: u64,
    inbox: VecDeque<Message>,
    /// What was sent to this node as bytes: messages with their lengths, end to end.
    bytes: Vec<u8>,
}

struct Cluster {
    nodes: Vec<Node>,
    encoded: bool,
}

fn node(id: u64) -> Result<Node> {
    let config = Config {
        id,
        election_tick: 10,
        heartbeat_tick: 1,
        // Beside the data an entry has term, index and two tags.
        max_size_per_msg: (PAYLOAD_BYTES as u64 + 16) * BATCH_MAX,
        max_inflight_msgs: 256,
        check_quorum: true,
        pre_vote: true,
        ..Config::default()
    };
    let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let raw = RawNode::new(&config, storage, &logger)?;
    Ok(Node { raw, applied: Applied::default(), compacted: 0, inbox: VecDeque::new(), bytes: Vec::new() })
}

impl Node {
    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            if entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
                self.applied.apply(&entry.data);
            }
        }
    }
}

impl Cluster {
    fn send(&mut self, messages: Vec<Message>) -> Result<()> {
        for message in messages {
            let to = &mut self.nodes[message.to as usize - 1];
            if self.encoded {
                message.write_length_delimited_to_vec(&mut to.bytes)?;
            } else {
                to.inbox.push_back(message);
            }
        }
        Ok(())
    }

    fn receive(&mut self, at: usize) -> Result<()> {
        let node = &mut self.nodes[at];
        let mut input = CodedInputStream::from_bytes(&node.bytes);
        while !input.eof()? {
            let mut message = Message::default();
            input.merge_message(&mut message)?;
            node.raw.step(message)?;
        }
        drop(input);
        node.bytes.clear();
        while let Some(message) = node.inbox.pop_front() {
            node.raw.step(message)?;
        }
        Ok(())
    }

    fn settle(&mut self, at: usize) -> Result<()> {
        while self.nodes[at].raw.has_ready() {
            let node = &mut self.nodes[at];
            let mut ready = node.raw.ready();
            let mut messages = ready.take_messages();
            node.apply(ready.take_committed_entries());
            let store = node.raw.store().clone();
            if !ready.entries().is_empty() {
                store.wl().append(ready.entries())?;
            }
            if let Some(state) = ready.hs() {
                store.wl().set_hardstate(state.clone());
            }
            messages.extend(ready.take_persisted_messages());
            let mut light = node.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                store.wl().mut_hard_state().set_commit(commit);
            }
            messages.extend(light.take_messages());
            node.apply(light.take_committed_entries());
            node.raw.advance_apply();
            let applied = node.raw.raft.raft_log.applied;
            if applied - node.compacted >= LOG_KEPT {
                node.compacted = applied;
                store.wl().compact(applied.saturating_sub(LOG_KEPT).max(1))?;
            }
            self.send(messages)?;
        }
        Ok(())
    }

    fn elect(&mut self) -> Result<()> {
        self.nodes[0].raw.campaign()?;
        let first = |cluster: &Self| {
            let raft = &cluster.nodes[0].raw.raft;
            raft.state == raft::StateRole::Leader && raft.commit_to_current_term()
        };
        while !first(self) {
            for at in 0..3 {
                self.receive(at)?;
                self.settle(at)?;
            }
        }
        Ok(())
    }

    fn decide(&mut self, proposed: &mut u64, last: u64, window: u64) -> Result<()> {
        while self.nodes.iter().any(|node| node.applied.count < last) {
            for at in 0..3 {
                self.receive(at)?;
                if at == 0 {
                    let until = last.min(self.nodes[0].applied.count + window);
                    if until > *proposed {
                        // One message for the batch, as `propose` makes one for a single entry.
                        let entries: Vec<Entry> = (*proposed..until)
                            .map(|number| Entry { data: command(number).to_vec().into(), ..Entry::default() })
                            .collect();
                        let mut message = Message { from: 1, entries: entries.into(), ..Message::default() };
                        message.set_msg_type(MessageType::MsgPropose);
                        *proposed = until;
                        self.nodes[0].raw.raft.step(message)?;
                    }
                }
                self.settle(at)?;
            }
        }
        Ok(())
    }
}

/// How long the load takes.
pub(crate) fn run(load: &Load) -> Result<Duration> {
    let mut cluster = Cluster { nodes: (1..=3).map(node).collect::<Result<_>>()?, encoded: load.encoded };
    cluster.elect()?;
    let mut proposed = 0;
    cluster.decide(&mut proposed, WARM_UP, load.window)?;
    let started = Instant::now();
    cluster.decide(&mut proposed, WARM_UP + load.commands, load.window)?;
    Ok(started.elapsed())
}
