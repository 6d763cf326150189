//! A host around a core that does as it is told.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Class, Config, Consensus, Effect, Entries, Epoch, GroupId, Head, Input, Message, NodeId,
    Proposal, ProposalId, ReplicaId, Slot, Status, StepError, Time,
};
use conclave_replica::{Host, HostConfig, HostEffect, HostInput, ProposeError};
use conclave_transport::Packet;
use parking_lot::Mutex;

pub(crate) const GROUP: GroupId = GroupId(1);

#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) steps: Vec<String>,
    pub(crate) refuse: Option<StepError>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) deadline: Option<Time>,
    pub(crate) config: Config,
}

#[derive(Debug)]
pub(crate) struct FakeCore(Arc<Mutex<Script>>);

impl Consensus for FakeCore {
    fn step(&mut self, _: Time, input: Input) -> Result<(), StepError> {
        let mut script = self.0.lock();
        let name = match &input {
            Input::Propose { batch, only_in: None } => format!("propose {}", batch.len()),
            Input::Propose { batch, only_in: Some(ballot) } => {
                format!("propose {} in term {}", batch.len(), ballot.round)
            }
            Input::Message(message) => format!("message from {}", message.from),
            Input::Peer { node, epoch, alive_until } => {
                format!("peer {node} epoch {epoch} until {}", alive_until.0 / 1_000_000)
            }
            Input::SnapshotReady(meta) => format!("snapshot at {}", meta.slot),
            other => format!("{other:?}"),
        };
        script.steps.push(name);
        script.refuse.clone().map_or(Ok(()), Err)
    }

    fn next_deadline(&self) -> Option<Time> {
        self.0.lock().deadline
    }

    fn drain(&mut self, out: &mut Vec<Effect>) {
        out.append(&mut self.0.lock().effects);
    }

    fn status(&self) -> Status {
        Status {
            replica: ReplicaId(1),
            ballot: Ballot::term(1),
            leader: None,
            serving: false,
            last: Slot(0),
            persisted: Slot(0),
            committed: Slot(0),
            applied: Slot(0),
            config: self.0.lock().config.clone(),
            progress: Vec::new(),
        }
    }

    fn replica(&self) -> ReplicaId {
        ReplicaId(1)
    }

    fn leader(&self) -> Option<ReplicaId> {
        None
    }
}

pub(crate) struct Fixture {
    pub(crate) host: Host,
    pub(crate) script: Arc<Mutex<Script>>,
}

impl Fixture {
    /// Replica 1 of three, on node 10; replica n is on node 10 n.
    pub(crate) fn new() -> Self {
        Self::of(Config::of_voters((1..=3).map(|n| (ReplicaId(n), NodeId(n * 10)))))
    }

    /// As [`new`](Self::new), on a node that speaks every 100 ms and is dead after 1 s.
    pub(crate) fn alive() -> Self {
        let alive_every = Some(Duration::from_millis(100));
        let config = HostConfig { alive_every, ..HostConfig::of(NodeId(10), Epoch(3)) };
        Self::with(config, Config::of_voters((1..=3).map(|n| (ReplicaId(n), NodeId(n * 10)))))
    }

    pub(crate) fn of(config: Config) -> Self {
        Self::with(HostConfig { parked_max: 2, ..HostConfig::of(NodeId(10), Epoch(3)) }, config)
    }

    fn with(host: HostConfig, config: Config) -> Self {
        let script = Arc::new(Mutex::new(Script { config, ..Script::default() }));
        let mut host = Host::new(host);
        host.add_group(GROUP, Box::new(FakeCore(Arc::clone(&script))), 4);
        Self { host, script }
    }

    pub(crate) fn led_by(leader: Option<u64>) -> Self {
        let mut fixture = Self::new();
        fixture.emit(role(leader));
        fixture.host.drain(&mut Vec::new());
        fixture
    }

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.script.lock().effects.push(effect);
        // Any input makes the host look at the group.
        self.host.step(Time(0), HostInput::Applied { group: GROUP, slot: Slot(0) });
    }

    pub(crate) fn step(&mut self, at: Time, input: HostInput) -> Vec<HostEffect> {
        self.host.step(at, input);
        let mut effects = Vec::new();
        self.host.drain(&mut effects);
        effects
    }

    pub(crate) fn steps(&self) -> Vec<String> {
        self.script.lock().steps.clone()
    }
}

pub(crate) fn role(leader: Option<u64>) -> Effect {
    Effect::Role { ballot: Ballot::term(2), leader: leader.map(ReplicaId), serving: leader == Some(1) }
}

pub(crate) fn proposal(node: u64, sequence: u64) -> Proposal {
    Proposal { id: ProposalId { node: NodeId(node), sequence }, payload: Bytes::from_static(b"x") }
}

pub(crate) fn propose(sequence: u64) -> HostInput {
    HostInput::Propose { group: GROUP, batch: vec![proposal(10, sequence)] }
}

pub(crate) fn failures(effects: &[HostEffect]) -> Vec<(u64, ProposeError)> {
    let failed = |effect: &HostEffect| match effect {
        HostEffect::Failed { id, why } => Some((id.sequence, *why)),
        _ => None,
    };
    effects.iter().filter_map(failed).collect()
}

/// A small message that nobody decodes.
pub(crate) fn message(from: u64, to: u64) -> Message {
    Message {
        from: ReplicaId(from),
        to: ReplicaId(to),
        class: Class::Control,
        head: Head::default(),
        entries: Entries::default(),
    }
}

/// A replica speaks, from a node.
pub(crate) fn says(replica: u64, node: u64) -> HostInput {
    let packet = Packet::Consensus { group: GROUP, message: message(replica, 1) };
    HostInput::Packets { from: NodeId(node), packets: vec![packet] }
}

/// Where packets went.
pub(crate) fn receivers(effects: &[HostEffect]) -> Vec<u64> {
    let to = |effect: &HostEffect| match effect {
        HostEffect::Send { to, .. } => Some(to.0),
        _ => None,
    };
    effects.iter().filter_map(to).collect()
}
