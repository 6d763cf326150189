//! Hosts of many groups in one thread: a network with a fixed delay, a log and a state machine that take no time.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use conclave_consensus::{
    Boot, Config, Epoch, GroupId, Kind, NodeId, Proposal, ProposalId, ReplicaId, Slot, SnapshotMeta, Time,
};
use conclave_raft::{Raft, RaftConfig};
use conclave_replica::{Host, HostConfig, HostEffect, HostInput};
use conclave_transport::Packet;

const DELAY: Duration = Duration::from_micros(200);

/// What happened since it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) alive: u64,
    pub(crate) other: u64,
    pub(crate) ticks: u64,
    pub(crate) commands: u64,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) host: Host,
    /// A node that is down takes nothing and says nothing.
    pub(crate) up: bool,
}

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) now: Time,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) tally: Tally,
    in_flight: BTreeMap<(Time, u64), (NodeId, NodeId, Vec<Packet>)>,
    sent: u64,
    proposals: u64,
}

impl Cluster {
    /// So many nodes, each with a replica of each group.
    pub(crate) fn new(nodes: u64, groups: u64, quiesce: bool) -> Self {
        let members = Config::of_voters((1..=nodes).map(|n| (ReplicaId(n), NodeId(n))));
        let one = |n: u64| {
            let mut config = HostConfig::of(NodeId(n), Epoch(1));
            config.alive_every = quiesce.then_some(Duration::from_millis(100));
            let mut host = Host::new(config);
            for group in 1..=groups {
                let boot = Boot {
                    replica: ReplicaId(n),
                    meta: Bytes::new(),
                    state: SnapshotMeta { config: members.clone(), ..SnapshotMeta::default() },
                    entries: Vec::new(),
                    first: Slot(1),
                    now: Time(0),
                    seed: group * 64 + n,
                };
                let config = RaftConfig { quiesce, ..RaftConfig::default() };
                let core = Raft::new(boot, config).expect("a valid boot");
                host.add_group(GroupId(group), Box::new(core), 0);
            }
            (NodeId(n), Node { host, up: true })
        };
        Self {
            now: Time(0),
            nodes: (1..=nodes).map(one).collect(),
            tally: Tally::default(),
            in_flight: BTreeMap::new(),
            sent: 0,
            proposals: 0,
        }
    }

    /// Lets so much time pass.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now.after(span);
        loop {
            let arrival = self.in_flight.first_key_value().map(|((at, _), _)| *at);
            let up = self.nodes.values().filter(|node| node.up);
            let Some(at) = up.filter_map(|node| node.host.next_deadline()).chain(arrival).min() else {
                break;
            };
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            if arrival == Some(at)
                && let Some((_, (from, to, packets))) = self.in_flight.pop_first()
            {
                self.step(to, HostInput::Packets { from, packets });
            } else {
                let due =
                    |node: &Node| node.up && node.host.next_deadline().is_some_and(|due| due <= self.now);
                let ids: Vec<NodeId> =
                    self.nodes.iter().filter(|(_, node)| due(node)).map(|(id, _)| *id).collect();
                for id in ids {
                    self.tally.ticks += 1;
                    self.step(id, HostInput::Tick);
                }
            }
        }
        self.now = end;
    }

    /// Steps a node's host and carries out what it wants.
    pub(crate) fn step(&mut self, id: NodeId, input: HostInput) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up) else { return };
        node.host.step(self.now, input);
        let mut effects = Vec::new();
        let mut packets: BTreeMap<NodeId, Vec<Packet>> = BTreeMap::new();
        loop {
            node.host.drain(&mut effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects.drain(..) {
                match effect {
                    HostEffect::Send { to, packet } => packets.entry(to).or_default().push(packet),
                    HostEffect::Log { group, mark: Some(mark), then, .. } => {
                        then.into_iter().for_each(|(to, packet)| packets.entry(to).or_default().push(packet));
                        node.host.step(self.now, HostInput::Logged { group, mark });
                    }
                    HostEffect::Apply { group, entries } => {
                        let commands = entries.iter().filter(|entry| entry.kind == Kind::Command);
                        self.tally.commands += commands.count() as u64;
                        let Some(slot) = entries.last().map(|entry| entry.slot) else { continue };
                        node.host.step(self.now, HostInput::Applied { group, slot });
                    }
                    HostEffect::Halt { group, why } => panic!("group {group} of node {id} broke: {why}"),
                    _ => {}
                }
            }
        }
        for (to, packets) in packets {
            let alive = packets.iter().filter(|packet| matches!(packet, Packet::Alive { .. })).count() as u64;
            self.tally.alive += alive;
            self.tally.other += packets.len() as u64 - alive;
            self.sent += 1;
            self.in_flight.insert((self.now.after(DELAY), self.sent), (id, to, packets));
        }
    }

    /// Proposes a command to a group, at a node.
    pub(crate) fn propose(&mut self, id: NodeId, group: GroupId) {
        self.proposals += 1;
        let proposal = Proposal {
            id: ProposalId::new(id, Epoch(1), self.proposals),
            payload: Bytes::from_static(b"a command of some length"),
        };
        self.step(id, HostInput::Propose { group, batch: vec![proposal] });
    }

    /// The node that leads a group and serves, if one that is up does.
    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        let serves = |node: &Node| node.up && node.host.status(group).is_some_and(|status| status.serving);
        self.nodes.iter().find(|(_, node)| serves(node)).map(|(id, _)| *id)
    }

    /// What was counted, which begins anew.
    pub(crate) fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}
