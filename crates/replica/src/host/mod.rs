//! The host: every group of a process, stepped as one value.
//!
//! A host owns consensus cores and knows which node each replica lives on. It is stepped with [`HostInput`]s and drained of
//! [`HostEffect`]s; like a core it reads no clock and waits for nothing, so a simulator drives it unchanged.
//!
//! What it adds to the cores:
//! - replicas are resolved to nodes, and packets from a node that does not host the replica they claim to be from are dropped
//!   (see `addresses`);
//! - proposals made where the leader is not are forwarded to its node, at most once; while no leader is known they are *parked*, bounded in
//!   number, bytes and time;
//! - snapshots are fetched piece by piece, from whoever goes on with them (see `fetch`);
//! - nodes tell each other that they live, once for all groups (see `liveness`), and only groups that are due are looked at (see `deadlines`).

mod addresses;
mod deadlines;
mod fetch;
mod liveness;
mod proposals;
mod snapshots;

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use conclave_consensus::{
    Consensus, Effect, Epoch, GroupId, Input, Message, NodeId, Outcome, Proposal, ReadId, ReplicaId, Slot,
    Status, StepError, Time,
};
use conclave_transport::Packet;

use self::{addresses::Addresses, deadlines::Deadlines, fetch::Fetch, liveness::Nodes, snapshots::Guest};
use crate::{
    PieceRequest,
    effects::{HostEffect, HostInput, ProposeError},
    groups::Groups,
};

/// How a host is set up.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Which node this is.
    pub node: NodeId,
    /// Which of its lives: so that what answers an earlier one is nobody's.
    pub epoch: Epoch,
    /// How many proposals of a group may wait for a leader to be known. Default 4,096; more are refused as busy.
    pub parked_max: usize,
    /// How many bytes of them: they leave together, so half of what a peer's queue takes. Default 16 MiB.
    pub parked_bytes_max: usize,
    /// How long they wait before they fail. Default 3 s.
    pub parked_for: Duration,
    /// How long a snapshot's piece may take before it is asked for again, if pieces do not take longer anyway. A source that is silent for four of these
    /// gives way to another, for ten if there is none; a fetch that stores nothing for sixty is given up. Default 500 ms.
    pub piece_timeout: Duration,
    /// How often this node says to each other that it lives: one heartbeat between two nodes for all groups they share, by which groups
    /// sleep that nobody asks anything (in Raft, `RaftConfig::quiesce`). `None`, the default: it says nothing and heeds nothing.
    pub alive_every: Option<Duration>,
    /// How long a node counts as alive after it was heard: an election timeout, and several of `alive_every`. Default 1 s.
    pub alive_for: Duration,
}

impl HostConfig {
    /// The defaults for a node.
    #[must_use]
    pub fn of(node: NodeId, epoch: Epoch) -> Self {
        Self {
            node,
            epoch,
            parked_max: 4_096,
            parked_bytes_max: 16 << 20,
            parked_for: Duration::from_secs(3),
            piece_timeout: Duration::from_millis(500),
            alive_every: None,
            alive_for: Duration::from_secs(1),
        }
    }
}

/// Things that go wrong at the edges, counted for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCounters {
    /// Messages a core or the host refused as malformed or misaddressed.
    pub bad_messages: u64,
    /// Proposals forwarded to another node.
    pub forwarded: u64,
    /// Proposals that failed here.
    pub proposals_failed: u64,
    /// Times the leader of some group changed.
    pub leader_changes: u64,
    /// Snapshots that were begun to be fetched, those begun anew included.
    pub fetches: u64,
    /// Times that a fetch went on from what it had received, after its source had failed or changed.
    pub fetches_resumed: u64,
    /// Times that what was received was thrown away because nobody could go on with it.
    pub fetches_anew: u64,
    /// Fetches that were given up, or whose snapshot could not be stored.
    pub fetches_failed: u64,
    /// Bytes of snapshots that arrived.
    pub fetched_bytes: u64,
}

#[derive(Debug)]
struct Parked {
    until: Time,
    batch: Vec<Proposal>,
}

#[derive(Debug)]
struct Group {
    core: Box<dyn Consensus>,
    addresses: Addresses,
    leader: Option<ReplicaId>,
    parked: VecDeque<Parked>,
    parked_count: usize,
    parked_bytes: usize,
    reads: BTreeSet<ReadId>,
    fetch: Option<Fetch>,
    /// One that was given up, and until when what it received is kept.
    kept_fetch: Option<(Fetch, Time)>,
    fetches: u64,
    /// After a fetch that failed, the next is not begun before this.
    fetch_after: Time,
    generation: u64,
    guest: Option<Guest>,
    /// When what is parked under a leader that refused is tried again.
    unpark_at: Option<Time>,
    /// The other members' nodes.
    nodes: BTreeSet<NodeId>,
    /// From when on the core may know less of them than the host; zero if it does for certain.
    refresh_at: Time,
    /// Its deadline as the index has it.
    indexed: Option<Time>,
    /// Whether it is among those touched.
    touched: bool,
}

/// Groups that something happened to since the last drain, each once: they are drained, and their deadlines looked at.
#[derive(Debug, Default)]
struct Touched(Vec<GroupId>);

impl Touched {
    fn add(&mut self, id: GroupId, group: &mut Group) {
        if !std::mem::replace(&mut group.touched, true) {
            self.0.push(id);
        }
    }
}

/// Every group of a process, as one value: stepped with [`HostInput`]s, drained of [`HostEffect`]s.
#[derive(Debug)]
pub struct Host {
    config: HostConfig,
    groups: Groups<Group>,
    deadlines: Deadlines,
    nodes: Nodes,
    touched: Touched,
    effects: Vec<HostEffect>,
    scratch: Vec<Effect>,
    counters: HostCounters,
    now: Time,
}

impl Host {
    /// A host without groups.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        let nodes = Nodes::new(config.alive_every, config.alive_for);
        Self {
            config,
            groups: Groups::default(),
            deadlines: Deadlines::default(),
            nodes,
            touched: Touched::default(),
            effects: Vec::new(),
            scratch: Vec::new(),
            counters: HostCounters::default(),
            now: Time(0),
        }
    }

    /// Adds a group's replica. `generation` is the state generation in use, so that a snapshot is built beside it.
    pub fn add_group(&mut self, group: GroupId, core: Box<dyn Consensus>, generation: u64) {
        let status = core.status();
        let mut added = Group {
            core,
            addresses: Addresses::new(status.config),
            leader: status.leader,
            parked: VecDeque::new(),
            parked_count: 0,
            parked_bytes: 0,
            reads: BTreeSet::new(),
            fetch: None,
            kept_fetch: None,
            fetches: 0,
            fetch_after: Time(0),
            generation,
            guest: None,
            unpark_at: None,
            nodes: BTreeSet::new(),
            refresh_at: Time(0),
            indexed: None,
            touched: false,
        };
        self.touched.add(group, &mut added);
        self.deadlines.index(group, &mut added);
        self.groups.insert(group, added);
        self.share_nodes(group);
    }

    /// The groups here, as they were added.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.iter().map(|(group, _)| group)
    }

    /// A core's state.
    #[must_use]
    pub fn status(&self, group: GroupId) -> Option<Status> {
        self.groups.get(group).map(|g| g.core.status())
    }

    /// What went wrong at the edges so far.
    #[must_use]
    pub fn counters(&self) -> HostCounters {
        self.counters
    }

    /// When the host wants a `Tick`, as of the last drain. Cheap, whatever the number of groups.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        [self.deadlines.first(), self.nodes.next_deadline()].into_iter().flatten().min()
    }

    /// Takes one input. `now` is read after the input arrived and never goes backwards.
    pub fn step(&mut self, now: Time, input: HostInput) {
        self.now = self.now.max(now);
        match input {
            HostInput::Tick => self.tick(),
            HostInput::Packets { from, packets } => {
                for packet in packets {
                    self.packet(from, packet);
                }
            }
            HostInput::Propose { group, batch } => {
                let until = self.now.after(self.config.parked_for);
                self.propose(group, batch, until);
            }
            HostInput::ProposeIn { group, ballot, proposal } => self.propose_in(group, ballot, proposal),
            HostInput::ReadBarrier { group, id } => self.read_barrier(group, id),
            HostInput::Transfer { group, id, to } => self.transfer(group, id, to),
            HostInput::Reconfigure { group, id, changes } => self.reconfigure(group, id, changes),
            HostInput::Logged { group, mark } => {
                self.nodes.wrote(self.now, group, mark);
                self.feed(group, Input::Persisted(mark));
            }
            HostInput::LogRead { group, id, result } => self.feed(group, Input::LogRead { id, result }),
            HostInput::Applied { group, slot } => self.feed(group, Input::Applied(slot)),
            HostInput::Checkpointed { group, meta } => self.feed(group, Input::Compacted(meta)),
            HostInput::Installed { group, mark } => self.feed(group, Input::SnapshotInstalled(mark)),
            HostInput::PieceStored { group, fetch, have } => {
                self.fetch_step(group, |f, now, steps| {
                    if f.id() == fetch {
                        f.stored(now, have, steps);
                    }
                });
            }
            HostInput::PieceStrange { group, fetch, piece } => {
                self.fetch_step(group, |f, now, _| {
                    if f.id() == fetch {
                        f.strange(now, piece);
                    }
                });
            }
            HostInput::SnapshotStored { group, fetch, meta } => {
                let Some(g) = self.groups.get_mut(group) else { return };
                if g.fetch.take_if(|f| f.id() == fetch).is_some() {
                    self.feed(group, Input::SnapshotReady(meta));
                }
            }
            HostInput::SnapshotBroken { group, fetch } => {
                if self.groups.get(group).is_some_and(|g| g.fetch.as_ref().is_some_and(|f| f.id() == fetch)) {
                    self.fetch_failed(group);
                }
            }
        }
    }

    /// Moves what is to be done to the end of `out`, in the order in which it is to be done.
    pub fn drain(&mut self, out: &mut Vec<HostEffect>) {
        // Collecting may touch groups again.
        let mut collected = 0;
        while let Some(group) = self.touched.0.get(collected) {
            self.collect(*group);
            collected += 1;
        }
        self.touched.0.clear();
        out.append(&mut self.effects);
    }

    /// Visits the groups that are due, and no other.
    fn tick(&mut self) {
        let now = self.now;
        for group in self.touched.0.iter().copied() {
            if let Some(g) = self.groups.get_mut(group) {
                self.deadlines.index(group, g);
            }
        }
        self.tick_nodes();
        for group in self.deadlines.due(now) {
            self.drop_overdue(group);
            let Some(g) = self.groups.get_mut(group) else { continue };
            self.touched.add(group, g);
            if g.core.next_deadline().is_some_and(|at| at <= now) {
                self.feed(group, Input::Tick);
            }
            self.unpark_if_due(group);
            self.fetch_step(group, Fetch::tick);
            self.forget_kept_fetch(group);
        }
    }

    fn feed(&mut self, group: GroupId, input: Input) {
        self.offer(group, input);
    }

    /// Steps a core and sorts its refusals: a peer's misbehaviour is counted, a broken invariant halts the node. Says whether it was taken.
    fn offer(&mut self, group: GroupId, input: Input) -> bool {
        match self.step_core(group, input) {
            Some(Ok(())) => return true,
            Some(Err(StepError::Broken(_))) | None => {}
            Some(Err(_)) => self.counters.bad_messages += 1,
        }
        false
    }

    /// Steps a core, which first hears what is known of its nodes. A broken invariant halts the node. Nothing for an unknown group.
    fn step_core(&mut self, group: GroupId, input: Input) -> Option<Result<(), StepError>> {
        let g = self.groups.get_mut(group)?;
        self.touched.add(group, g);
        self.nodes.refresh(self.now, group, g, &mut self.effects);
        let result = g.core.step(self.now, input);
        if let Err(StepError::Broken(why)) = result {
            self.effects.push(HostEffect::Halt { group, why });
        }
        Some(result)
    }

    fn packet(&mut self, from: NodeId, packet: Packet) {
        match packet {
            Packet::Consensus { group, message } => self.message(from, group, message),
            Packet::Alive { epoch } => self.alive(from, epoch),
            Packet::Forward { group, batch } => self.forwarded(from, group, batch),
            Packet::Refused { ids, outcome, busy, .. } => {
                let why = match outcome {
                    Outcome::Unknown => ProposeError::Unknown,
                    Outcome::Dropped if busy => ProposeError::Busy,
                    Outcome::Dropped => ProposeError::LeaderChanged,
                };
                for id in ids {
                    if id.node == self.config.node {
                        self.fail(id, why);
                    }
                }
            }
            Packet::SnapshotPull { group, fetch, at_least, piece, have } => {
                self.serve(from, group, PieceRequest { fetch, at_least: Slot(at_least), piece, have });
            }
            Packet::SnapshotPiece { group, fetch, after, body, last } => {
                self.fetch_step(group, |f, now, steps| {
                    if f.id() == fetch {
                        f.arrived(now, from, after, body, last, steps);
                    }
                });
            }
            // Requests between services pass by the host: the shell answers them.
            Packet::Request { .. } | Packet::Response { .. } => {}
        }
    }

    fn message(&mut self, from: NodeId, group: GroupId, message: Message) {
        let Some(g) = self.groups.get(group) else {
            self.counters.bad_messages += 1;
            return;
        };
        // A replica that this node does not know yet may be real: it was added by an entry that is still on its way. One that is
        // known to live elsewhere is not.
        let replica = message.from;
        if g.addresses.of(replica).is_some_and(|node| node != from) {
            self.counters.bad_messages += 1;
            return;
        }
        let named = g.addresses.names(replica);
        if self.offer(group, Input::Message(message))
            && !named
            && let Some(g) = self.groups.get_mut(group)
        {
            g.addresses.heard(replica, from);
        }
    }

    /// Turns a core's effects into the host's.
    fn collect(&mut self, group: GroupId) {
        let Some(g) = self.groups.get_mut(group) else { return };
        g.touched = false;
        let mut scratch = std::mem::take(&mut self.scratch);
        g.core.drain(&mut scratch);
        self.deadlines.index(group, g);
        let mut led_anew = false;
        for effect in scratch.drain(..) {
            let Some(g) = self.groups.get_mut(group) else { break };
            match effect {
                Effect::Send(message) => {
                    if let Some(to) = g.addresses.of(message.to) {
                        let packet = Packet::Consensus { group, message };
                        self.effects.push(HostEffect::Send { to, packet });
                    }
                }
                Effect::Write { ops } => {
                    self.effects.push(HostEffect::Log { group, ops, mark: None, then: Vec::new() });
                }
                Effect::Persist { mark, ops, then } => {
                    let then = then
                        .into_iter()
                        .filter_map(|message| {
                            let to = g.addresses.of(message.to)?;
                            Some((to, Packet::Consensus { group, message }))
                        })
                        .collect();
                    self.nodes.writes(self.now, group, mark);
                    self.effects.push(HostEffect::Log { group, ops, mark: Some(mark), then });
                }
                Effect::Commit(entries) => self.effects.push(HostEffect::Apply { group, entries }),
                Effect::Lost { id, outcome } => self.lost(group, id, outcome),
                Effect::ReadReady { id, at } => {
                    if g.reads.remove(&id) {
                        self.effects.push(HostEffect::ReadReady { group, id, at });
                    }
                }
                Effect::ReadFailed { id, why } => {
                    if g.reads.remove(&id) {
                        self.effects.push(HostEffect::ReadFailed { group, id, why });
                    }
                }
                Effect::ReadLog { id, range, bytes_max } => {
                    self.effects.push(HostEffect::ReadLog { group, id, range, bytes_max });
                }
                Effect::FetchSnapshot { at_least, from } => self.fetch(group, at_least, &from),
                Effect::InstallSnapshot { mark, meta } => {
                    // No lower than one that was given to a fetch since.
                    g.generation = g.generation.max(meta.generation);
                    self.end_fetch(group);
                    self.effects.push(HostEffect::Install { group, mark, meta: *meta });
                }
                Effect::Membership { config, committed, .. } => {
                    g.addresses.enter((*config).clone());
                    self.share_nodes(group);
                    self.effects.push(HostEffect::Membership { group, config: *config, committed });
                }
                Effect::Role { ballot, leader, serving } => {
                    led_anew |= leader.is_some() && g.leader != leader;
                    self.counters.leader_changes += u64::from(leader.is_some() && g.leader != leader);
                    g.leader = leader;
                    let leader = leader.and_then(|replica| g.addresses.of(replica));
                    self.effects.push(HostEffect::Role { group, ballot, leader, serving });
                }
            }
        }
        self.scratch = scratch;
        if led_anew {
            self.unpark(group);
        }
    }
}
