//! `omnipaxos` 0.2: three servers over its own in-memory storage in the same loop, driven as its documentation says.
//!
//! Its entries are of a type that its user chooses, which it clones for each follower, into its log and out of it. So it runs twice: on arrays, whose
//! size is known when the program is compiled, and on commands of any length, which is what every other system here takes.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use bytes::Bytes;
use omnipaxos::{
    ClusterConfig, OmniPaxos, ServerConfig, macros::Entry, messages::Message, storage::Entry, util::LogEntry,
};
use omnipaxos_storage::memory_storage::MemoryStorage;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::load::{Applied, LOG_KEPT, Load, PAYLOAD_BYTES, WARM_UP, command};

trait Command: Entry + Serialize + DeserializeOwned {
    fn of(number: u64) -> Self;
    fn payload(&self) -> &[u8];
}

#[derive(Clone, Debug, Entry, Serialize, Deserialize)]
struct OneSize([u8; PAYLOAD_BYTES]);

impl Command for OneSize {
    fn of(number: u64) -> Self {
        Self(command(number))
    }

    fn payload(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Clone, Debug, Entry, Serialize, Deserialize)]
struct AnySize(Bytes);

impl Command for AnySize {
    fn of(number: u64) -> Self {
        Self(Bytes::copy_from_slice(&command(number)))
    }

    fn payload(&self) -> &[u8] {
        &self.0
    }
}

struct Node<C: Command> {
    server: OmniPaxos<C, MemoryStorage<C>>,
    applied: Applied,
    inbox: VecDeque<Message<C>>,
    /// What was sent to this node as bytes, end to end.
    bytes: Vec<u8>,
}

struct Cluster<C: Command> {
    nodes: Vec<Node<C>>,
    trimmed: u64,
    encoded: bool,
    outgoing: Vec<Message<C>>,
}

/// The library gathers a message's entries by itself between two times that messages are taken, so that its own batches, which wait for the clock
/// when they are not full, stay at their default of one.
fn node<C: Command>(pid: u64) -> Result<Node<C>> {
    let cluster = ClusterConfig { configuration_id: 1, nodes: vec![1, 2, 3], flexible_quorum: None };
    let server = ServerConfig { pid, ..ServerConfig::default() };
    let server = cluster.build_for_server(server, MemoryStorage::default());
    let server = server.map_err(|error| anyhow!("{error:?}"))?;
    Ok(Node { server, applied: Applied::default(), inbox: VecDeque::new(), bytes: Vec::new() })
}

impl<C: Command> Cluster<C> {
    /// Gives a node everything that arrived.
    fn receive(&mut self, at: usize) -> Result<()> {
        let node = &mut self.nodes[at];
        let mut input = &node.bytes[..];
        while !input.is_empty() {
            let (message, rest) = postcard::take_from_bytes(input)?;
            node.server.handle_incoming(message);
            input = rest;
        }
        node.bytes.clear();
        while let Some(message) = node.inbox.pop_front() {
            node.server.handle_incoming(message);
        }
        Ok(())
    }

    /// Applies what a node decided and sends what it wants to be sent.
    fn settle(&mut self, at: usize) -> Result<()> {
        let node = &mut self.nodes[at];
        let entries = node.server.read_decided_suffix(node.applied.count as usize);
        for entry in entries.into_iter().flatten() {
            match entry {
                LogEntry::Decided(command) => node.applied.apply(command.payload()),
                other => bail!("{other:?} is not what is decided next"),
            }
        }
        if at == 0 && node.applied.count >= self.trimmed + 2 * LOG_KEPT {
            // Asked of the leader, which takes the others along.
            self.trimmed = node.applied.count - LOG_KEPT;
            let trimmed = node.server.trim(Some(self.trimmed as usize));
            trimmed.map_err(|error| anyhow!("{error}"))?;
        }
        let mut outgoing = std::mem::take(&mut self.outgoing);
        node.server.take_outgoing_messages(&mut outgoing);
        for message in outgoing.drain(..) {
            let to = &mut self.nodes[message.get_receiver() as usize - 1];
            if self.encoded {
                to.bytes = postcard::to_extend(&message, std::mem::take(&mut to.bytes))?;
            } else {
                to.inbox.push_back(message);
            }
        }
        self.outgoing = outgoing;
        Ok(())
    }

    fn elect(&mut self) -> Result<()> {
        self.nodes[0].server.try_become_leader();
        while self.nodes.iter().any(|node| node.server.get_current_leader() != Some((1, true))) {
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
                    for number in *proposed..until {
                        let appended = self.nodes[0].server.append(C::of(number));
                        appended.map_err(|error| anyhow!("{error:?}"))?;
                    }
                    *proposed = until.max(*proposed);
                }
                self.settle(at)?;
            }
        }
        Ok(())
    }
}

/// How long the load takes, its commands being arrays.
pub(crate) fn run_one_size(load: &Load) -> Result<Duration> {
    run::<OneSize>(load)
}

/// How long the load takes, its commands being of any length.
pub(crate) fn run_any_size(load: &Load) -> Result<Duration> {
    run::<AnySize>(load)
}

fn run<C: Command>(load: &Load) -> Result<Duration> {
    let nodes = (1..=3).map(node::<C>).collect::<Result<_>>()?;
    let mut cluster = Cluster { nodes, trimmed: 0, encoded: load.encoded, outgoing: Vec::new() };
    cluster.elect()?;
    let mut proposed = 0;
    cluster.decide(&mut proposed, WARM_UP, load.window)?;
    let started = Instant::now();
    cluster.decide(&mut proposed, WARM_UP + load.commands, load.window)?;
    Ok(started.elapsed())
}
