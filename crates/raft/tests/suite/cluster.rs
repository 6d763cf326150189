//! Replicas in memory under a test's control: every message, sync and moment of time happens when the test says so.
//!
//! Whatever the test does, after each step the cluster checks what must always hold: one leader a term, matching logs, no two entries
//! chosen at a slot, nothing chosen that a quorum does not hold durably, leaders that hold all that was chosen, one outcome a
//! proposal, reads that see what was chosen before them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Boot, Config, Consensus, Effect, Entry, Epoch, Input, Kind, LogOp, LogSlice, Mark,
    MembershipChange, Message, NodeId, Outcome, Proposal, ProposalId, ReadId, ReadMode, ReplicaId, Slot,
    SnapshotMeta, Status, StepError, Time,
};
use conclave_raft::{Raft, RaftConfig, describe};

/// What a log on a disk holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) meta: Bytes,
    pub(crate) entries: BTreeMap<Slot, Entry>,
    pub(crate) first: u64,
    /// The last durable checkpoint.
    pub(crate) state: SnapshotMeta,
}

impl Disk {
    fn apply(&mut self, op: &LogOp) {
        match op {
            LogOp::Meta(meta) => self.meta = meta.clone(),
            LogOp::Put(entries) => {
                self.entries.extend(entries.iter().map(|entry| (entry.slot, entry.clone())));
            }
            LogOp::TruncateFrom(slot) => {
                self.entries.split_off(slot);
            }
            LogOp::CutBelow(slot) => {
                self.entries = self.entries.split_off(slot);
                self.first = self.first.max(slot.0);
            }
            LogOp::Reset(meta) => {
                let fits = self.entries.get(&meta.slot).is_some_and(|entry| entry.ballot == meta.ballot);
                let rest = self.entries.split_off(&meta.slot.next());
                self.entries = if fits { rest } else { BTreeMap::new() };
                self.first = meta.slot.0 + 1;
                self.state = SnapshotMeta::clone(meta);
            }
        }
    }

    fn holds(&self, slot: Slot, ballot: Ballot) -> bool {
        self.state.slot >= slot || self.entries.get(&slot).is_some_and(|entry| entry.ballot == ballot)
    }
}

#[derive(Debug)]
struct Write {
    mark: Option<Mark>,
    ops: Vec<LogOp>,
    then: Vec<Message>,
    install: bool,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) raft: Option<Raft>,
    /// What a crash leaves.
    pub(crate) disk: Disk,
    /// The disk once everything written is synced.
    pub(crate) view: Disk,
    writes: VecDeque<Write>,
    pub(crate) delivered: Slot,
    /// The membership in force at `delivered`.
    applied_config: Config,
    /// The last membership that was told, with its slot and whether it is committed.
    pub(crate) told: Option<(Config, Slot, bool)>,
    pub(crate) fetching: Option<(Slot, ReplicaId)>,
    pub(crate) boots: u64,
    /// Proposals of this life without an outcome.
    open: BTreeSet<ProposalId>,
    /// Reads of this life without an answer, and what was chosen when they were asked.
    reads: BTreeMap<ReadId, Slot>,
}

pub(crate) struct Cluster {
    pub(crate) now: Time,
    pub(crate) nodes: BTreeMap<ReplicaId, Node>,
    pub(crate) network: VecDeque<Message>,
    /// Links that lose everything, by sender and receiver.
    pub(crate) cut: BTreeSet<(ReplicaId, ReplicaId)>,
    /// Disks that hang.
    pub(crate) stalled: BTreeSet<ReplicaId>,
    pub(crate) transcript: Vec<String>,
    pub(crate) chosen: BTreeMap<Slot, Entry>,
    pub(crate) lost: BTreeMap<ProposalId, Outcome>,
    pub(crate) answered: BTreeMap<ReadId, Option<Slot>>,
    pub(crate) memberships: usize,
    leaders: BTreeMap<u64, ReplicaId>,
    /// Every membership that was ever in force somewhere, by its slot.
    configs: BTreeMap<Slot, Vec<Config>>,
    pub(crate) config: RaftConfig,
    /// Settings of single replicas.
    pub(crate) configs_of: BTreeMap<ReplicaId, RaftConfig>,
    /// By how many parts in a million a replica's clock is too fast (or slow).
    pub(crate) drift_ppm: BTreeMap<ReplicaId, i64>,
    /// How long a node counts as alive after it was heard, if nodes speak to each other at all; once a heartbeat.
    pub(crate) alive_for: Option<Duration>,
    next_alive: Time,
    /// Until when a node (the second) counts as alive at another, and in which life.
    alive: BTreeMap<(ReplicaId, ReplicaId), (u64, Time)>,
    /// Reads that missed what was chosen before they were asked, if such are to be counted and not to fail the test.
    pub(crate) stale_reads: Option<u64>,
    seed: u64,
    counter: u64,
}

pub(crate) fn replica(id: u64) -> ReplicaId {
    ReplicaId(id)
}

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
pub(crate) const ELECTION: Duration = Duration::from_millis(1_000);

impl Cluster {
    pub(crate) fn new(voters: u64, seed: u64) -> Self {
        Self::with(voters, 0, seed, RaftConfig::default())
    }

    pub(crate) fn with(voters: u64, learners: u64, seed: u64, config: RaftConfig) -> Self {
        let mut initial = Config::of_voters((1..=voters).map(|id| (ReplicaId(id), NodeId(id))));
        for id in voters + 1..=voters + learners {
            initial.learners.insert(ReplicaId(id));
            initial.nodes.insert(ReplicaId(id), NodeId(id));
        }
        initial.next_replica = ReplicaId(voters + learners + 1);
        let mut cluster = Self {
            now: Time(0),
            nodes: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            stalled: BTreeSet::new(),
            transcript: Vec::new(),
            chosen: BTreeMap::new(),
            lost: BTreeMap::new(),
            answered: BTreeMap::new(),
            memberships: 0,
            leaders: BTreeMap::new(),
            configs: [(Slot(0), vec![initial.clone()])].into(),
            config,
            configs_of: BTreeMap::new(),
            drift_ppm: BTreeMap::new(),
            alive_for: None,
            next_alive: Time(0),
            alive: BTreeMap::new(),
            stale_reads: None,
            seed,
            counter: 0,
        };
        for id in 1..=voters + learners {
            cluster.add_node(ReplicaId(id), initial.clone());
        }
        cluster
    }

    /// A replica with an empty disk; with an empty membership it waits for a leader to tell it one.
    pub(crate) fn add_node(&mut self, id: ReplicaId, config: Config) {
        let state = SnapshotMeta { config, ..SnapshotMeta::default() };
        let disk = Disk { first: 1, state, ..Disk::default() };
        let node = Node {
            raft: None,
            view: disk.clone(),
            disk,
            writes: VecDeque::new(),
            delivered: Slot(0),
            applied_config: Config::default(),
            told: None,
            fetching: None,
            boots: 0,
            open: BTreeSet::new(),
            reads: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
        self.restart(id);
    }

    pub(crate) fn ids(&self) -> Vec<ReplicaId> {
        self.nodes.keys().copied().collect()
    }

    pub(crate) fn node(&mut self, id: ReplicaId) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub(crate) fn status(&self, id: ReplicaId) -> Status {
        self.nodes[&id].raft.as_ref().unwrap().status()
    }

    pub(crate) fn say(&mut self, line: impl Into<String>) {
        self.transcript.push(line.into());
    }

    /// The disk of a replica that is down, as if it had written these terms from slot 1 on and then reached `term`.
    pub(crate) fn write_disk(&mut self, id: ReplicaId, term: u8, terms: &[u64]) {
        assert!(self.nodes[&id].raft.is_none() && term < 128);
        let node = self.node(id);
        // The record of term and vote: version 1, the term, no vote.
        node.disk.meta = Bytes::from(vec![0x08, 1, 0x10, term]);
        for (slot, term) in (1..).zip(terms) {
            let entry = Entry {
                slot: Slot(slot),
                ballot: Ballot::term(*term),
                kind: Kind::Noop,
                id: ProposalId::NONE,
                payload: Bytes::new(),
            };
            node.disk.entries.insert(Slot(slot), entry);
        }
        node.view = node.disk.clone();
    }

    /// A cluster that begins with these logs, all replicas in `term`.
    pub(crate) fn of_logs(term: u8, logs: &[&[u64]], config: RaftConfig) -> Self {
        let mut cluster = Self::with(logs.len() as u64, 0, 1, config);
        for (id, terms) in (1..).zip(logs) {
            cluster.crash(ReplicaId(id));
            cluster.write_disk(ReplicaId(id), term, terms);
            cluster.restart(ReplicaId(id));
        }
        cluster
    }

    /// The terms in a replica's log, from slot 1 on.
    pub(crate) fn terms(&self, id: ReplicaId) -> Vec<u64> {
        self.nodes[&id].view.entries.values().map(|entry| entry.ballot.round).collect()
    }

    /// The messages under way whose description contains `what`.
    pub(crate) fn under_way(&self, what: &str) -> Vec<String> {
        self.network.iter().map(describe).filter(|line| line.contains(what)).collect()
    }

    // ---- lives ----

    /// Everything that was not synced is gone.
    pub(crate) fn crash(&mut self, id: ReplicaId) {
        let node = self.node(id);
        node.raft = None;
        node.writes.clear();
        node.view = node.disk.clone();
        node.fetching = None;
        node.open.clear();
        node.reads.clear();
        self.network.retain(|message| message.to != id);
    }

    pub(crate) fn restart(&mut self, id: ReplicaId) {
        let (now, seed) = (self.clock(id), self.seed);
        let config = self.configs_of.get(&id).copied().unwrap_or(self.config);
        let node = self.node(id);
        if node.raft.is_some() {
            return;
        }
        node.boots += 1;
        node.delivered = node.disk.state.slot;
        node.applied_config = node.disk.state.config.clone();
        let boot = Boot {
            replica: id,
            meta: node.disk.meta.clone(),
            state: node.disk.state.clone(),
            entries: node
                .disk
                .entries
                .range(node.disk.state.slot.next()..)
                .map(|(_, entry)| entry.clone())
                .collect(),
            first: Slot(node.disk.first),
            now,
            // So that no boot of one replica draws what a boot of another does.
            seed: seed ^ node.boots.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        node.raft = Some(Raft::new(boot, config).unwrap());
    }

    // ---- inputs ----

    /// What a replica's clock shows.
    pub(crate) fn clock(&self, id: ReplicaId) -> Time {
        let rate = i128::from(1_000_000 + self.drift_ppm.get(&id).copied().unwrap_or(0));
        Time(u64::try_from(i128::from(self.now.0) * rate / 1_000_000).unwrap())
    }

    /// When a replica wants to be stepped, in true time.
    fn deadline(&self, id: ReplicaId) -> Option<Time> {
        let due = self.nodes[&id].raft.as_ref()?.next_deadline()?;
        let rate = i128::from(1_000_000 + self.drift_ppm.get(&id).copied().unwrap_or(0));
        let true_due = (i128::from(due.0) * 1_000_000 + rate - 1) / rate;
        Some(Time(u64::try_from(true_due).unwrap_or(u64::MAX)))
    }

    pub(crate) fn step(&mut self, id: ReplicaId, input: Input) -> Result<(), StepError> {
        let now = self.clock(id);
        let Some(raft) = self.node(id).raft.as_mut() else { return Ok(()) };
        let done = raft.step(now, input);
        assert!(!matches!(done, Err(StepError::Broken(_))), "{done:?}");
        done
    }

    /// Steps and drains.
    pub(crate) fn input(&mut self, id: ReplicaId, input: Input) -> Result<(), StepError> {
        let done = self.step(id, input);
        self.drain(id);
        done
    }

    pub(crate) fn propose(&mut self, id: ReplicaId, count: u64) -> Result<Vec<ProposalId>, StepError> {
        let mut batch = Vec::new();
        for _ in 0..count {
            self.counter += 1;
            let id = ProposalId { node: NodeId(id.0), sequence: self.counter };
            batch.push(Proposal { id, payload: Bytes::from(self.counter.to_be_bytes().to_vec()) });
        }
        let ids: Vec<_> = batch.iter().map(|proposal| proposal.id).collect();
        if self.nodes[&id].raft.is_none() {
            return Err(StepError::NotLeader { leader: None });
        }
        self.step(id, Input::Propose { batch, only_in: None })?;
        self.node(id).open.extend(ids.iter().copied());
        self.drain(id);
        Ok(ids)
    }

    pub(crate) fn transfer(&mut self, id: ReplicaId, to: ReplicaId) -> Result<ProposalId, StepError> {
        self.counter += 1;
        let proposal = ProposalId { node: NodeId(id.0), sequence: self.counter };
        self.input(id, Input::Transfer { id: proposal, to }).map(|()| proposal)
    }

    pub(crate) fn reconfigure(
        &mut self,
        id: ReplicaId,
        changes: &[MembershipChange],
    ) -> Result<ProposalId, StepError> {
        self.counter += 1;
        let proposal = ProposalId { node: NodeId(id.0), sequence: self.counter };
        self.step(id, Input::Reconfigure { id: proposal, changes: changes.to_vec() })?;
        if self.nodes[&id].raft.is_some() {
            self.node(id).open.insert(proposal);
        }
        self.drain(id);
        Ok(proposal)
    }

    pub(crate) fn read(&mut self, id: ReplicaId, mode: ReadMode) -> ReadId {
        self.counter += 1;
        let read = ReadId(self.counter);
        let seen = self.chosen.keys().next_back().copied().unwrap_or_default();
        if self.nodes[&id].raft.is_some() {
            self.node(id).reads.insert(read, seen);
            self.input(id, Input::ReadBarrier { id: read, mode }).unwrap();
        }
        read
    }

    // ---- effects ----

    pub(crate) fn drain(&mut self, id: ReplicaId) {
        loop {
            let mut effects = Vec::new();
            let Some(raft) = self.node(id).raft.as_mut() else { return };
            raft.drain(&mut effects);
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.carry_out(id, effect);
            }
        }
        self.check(id);
    }

    fn carry_out(&mut self, id: ReplicaId, effect: Effect) {
        match effect {
            Effect::Send(message) => self.send(message),
            Effect::Write { ops } => {
                self.write(id, Write { mark: None, ops, then: Vec::new(), install: false })
            }
            Effect::Persist { mark, ops, then } => {
                self.say(format!("  {id} writes {}{}", ops_line(&ops), then_line(&then)));
                self.write(id, Write { mark: Some(mark), ops, then, install: false });
            }
            Effect::Commit(entries) => {
                let last = entries.last().unwrap().slot;
                let first = entries[0].slot;
                self.say(format!("  {id} commits {first}..={last}"));
                for entry in &entries {
                    self.commit(id, entry.clone());
                }
                self.step(id, Input::Applied(last)).unwrap();
            }
            Effect::Lost { id: proposal, outcome } => {
                self.say(format!("  {id} lost proposal {} {outcome:?}", proposal.sequence));
                self.node(id).open.remove(&proposal);
                let before = self.lost.insert(proposal, outcome);
                assert_eq!(before, None, "two outcomes of {proposal:?}");
                if outcome == Outcome::Dropped {
                    assert!(self.chosen.values().all(|entry| entry.id != proposal), "dropped but chosen");
                }
            }
            Effect::ReadReady { id: read, at } => {
                self.say(format!("  {id} read {read} ready at {at}"));
                let seen = self.node(id).reads.remove(&read).expect("a read is answered once");
                match &mut self.stale_reads {
                    Some(count) => *count += u64::from(at < seen),
                    None => {
                        assert!(at >= seen, "read {read} at {at} misses {seen}, chosen before it was asked")
                    }
                }
                self.answered.insert(read, Some(at));
            }
            Effect::ReadFailed { id: read, why } => {
                self.say(format!("  {id} read {read} failed: {why}"));
                self.node(id).reads.remove(&read).expect("a read is answered once");
                self.answered.insert(read, None);
            }
            Effect::ReadLog { id: read, range, bytes_max } => {
                let view = &self.nodes[&id].view;
                let result = if range.from.0 < view.first {
                    LogSlice::Compacted
                } else {
                    let mut bytes = 0;
                    let run = view.entries.range(range.from..range.to).map(|(_, entry)| entry.clone());
                    let fits = |entry: &Entry| {
                        bytes += entry.size_bytes();
                        bytes <= bytes_max as usize || bytes == entry.size_bytes()
                    };
                    LogSlice::Entries(run.take_while(fits).collect())
                };
                self.step(id, Input::LogRead { id: read, result }).unwrap();
            }
            Effect::FetchSnapshot { at_least, from } => {
                self.say(format!("  {id} fetches a snapshot of at least {at_least} from {}", from[0]));
                self.node(id).fetching = Some((at_least, from[0]));
            }
            Effect::InstallSnapshot { mark, meta } => {
                self.say(format!("  {id} installs the snapshot of {}", meta.slot));
                self.node(id).delivered = meta.slot;
                self.node(id).applied_config = meta.config.clone();
                let ops = vec![LogOp::Reset(meta)];
                self.write(id, Write { mark: Some(mark), ops, then: Vec::new(), install: true });
            }
            Effect::Membership { config, at, committed } => {
                self.memberships += 1;
                self.say(format!("  {id} membership of {at} in force, committed: {committed}"));
                let known = self.configs.entry(at).or_default();
                if !known.contains(&config) {
                    known.push((*config).clone());
                }
                // Whoever a leader wants to write to is there, with nothing, whether or not the change is ever committed.
                for added in config.nodes.keys() {
                    if !self.nodes.contains_key(added) {
                        self.add_node(*added, Config::default());
                    }
                }
                self.node(id).told = Some((*config, at, committed));
            }
            Effect::Role { ballot, leader, serving } => {
                let who = leader.map_or("nobody".to_owned(), |leader| leader.to_string());
                let how = if serving { ", serving" } else { "" };
                self.say(format!("  {id} in t{} sees {who} lead{how}", ballot.round));
            }
        }
    }

    fn send(&mut self, message: Message) {
        self.say(format!("  {}", describe(&message)));
        self.network.push_back(message);
    }

    fn write(&mut self, id: ReplicaId, write: Write) {
        let node = self.node(id);
        write.ops.iter().for_each(|op| node.view.apply(op));
        node.writes.push_back(write);
    }

    fn commit(&mut self, id: ReplicaId, entry: Entry) {
        let node = self.nodes.get_mut(&id).unwrap();
        assert_eq!(entry.slot, node.delivered.next(), "Commit is contiguous");
        node.delivered = entry.slot;
        node.open.remove(&entry.id);
        if entry.kind == Kind::Config {
            node.applied_config = Config::decode(&entry.payload).unwrap();
        }
        assert!(node.disk.holds(entry.slot, entry.ballot), "committed before it was durable here");
        match self.lost.get(&entry.id) {
            Some(Outcome::Dropped) => panic!("{:?} was dropped, and chosen", entry.id),
            Some(Outcome::Unknown) | None => {}
        }
        if let Some(before) = self.chosen.get(&entry.slot) {
            assert_eq!(before, &entry, "two entries chosen at one slot");
            return;
        }
        let holders: BTreeSet<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.disk.holds(entry.slot, entry.ballot))
            .map(|(id, _)| *id)
            .collect();
        // A leader counts by the membership in force in its log: the last chosen one at or below the slot, or one that came after it.
        let before = |(slot, entry): (&Slot, &Entry)| (entry.kind == Kind::Config).then_some(*slot);
        let begin = self.chosen.range(..entry.slot).rev().find_map(before).unwrap_or(Slot(0));
        let mut counts = self.configs.range(begin..).flat_map(|(_, configs)| configs);
        assert!(
            counts.any(|config| config.is_commit_quorum(|id| holders.contains(&id))),
            "chosen before a quorum held it"
        );
        self.chosen.insert(entry.slot, entry);
    }

    /// Makes the oldest writes of a replica durable.
    pub(crate) fn sync(&mut self, id: ReplicaId) -> bool {
        if self.stalled.contains(&id) || self.nodes[&id].writes.is_empty() {
            return false;
        }
        let writes: Vec<Write> = self.node(id).writes.drain(..).collect();
        let mut done = Vec::new();
        for write in writes {
            let node = self.node(id);
            write.ops.iter().for_each(|op| node.disk.apply(op));
            write.then.into_iter().for_each(|message| self.send(message));
            if let Some(mark) = write.mark {
                done.push(if write.install {
                    Input::SnapshotInstalled(mark)
                } else {
                    Input::Persisted(mark)
                });
            }
        }
        for input in done {
            self.step(id, input).unwrap();
        }
        self.drain(id);
        true
    }

    /// Makes everything written durable; says whether there was anything.
    pub(crate) fn sync_all(&mut self) -> bool {
        self.ids().into_iter().filter(|id| self.sync(*id)).count() > 0
    }

    // ---- the network ----

    pub(crate) fn is_cut(&self, message: &Message) -> bool {
        self.cut.contains(&(message.from, message.to))
    }

    /// Brings the message at `place` of those under way.
    pub(crate) fn deliver_at(&mut self, place: usize) -> bool {
        let Some(message) = self.network.remove(place) else { return false };
        if !self.is_cut(&message) && self.nodes.get(&message.to).is_some_and(|node| node.raft.is_some()) {
            let _ = self.input(message.to, Input::Message(message));
        }
        true
    }

    /// Brings every message and every sync, until nothing is under way.
    pub(crate) fn settle(&mut self) {
        for _ in 0..5_000 {
            let synced = self.sync_all();
            if !self.deliver_at(0) && !synced {
                return;
            }
        }
        panic!("the cluster never comes to rest");
    }

    /// Lets time pass, with everything under way arriving at once.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now.after(span);
        loop {
            self.settle();
            let due = self.ids().into_iter().filter_map(|id| self.deadline(id));
            let due = due.chain(self.nodes_due()).min();
            match due {
                Some(due) if due <= end => self.tick_at(due),
                _ => break,
            }
        }
        self.now = end;
    }

    pub(crate) fn tick_at(&mut self, time: Time) {
        self.now = self.now.max(time);
        self.nodes_speak();
        for id in self.ids() {
            let due = self.deadline(id);
            if due.is_some_and(|due| due <= self.now) {
                self.input(id, Input::Tick).unwrap();
            }
        }
    }

    fn nodes_due(&self) -> Option<Time> {
        self.alive_for?;
        self.alive.values().map(|(_, until)| *until).chain([self.next_alive]).min()
    }

    /// What a host hears of the other nodes, and what it tells its groups of it. Nodes are called after their replicas.
    fn nodes_speak(&mut self) {
        let Some(alive_for) = self.alive_for else { return };
        if self.now >= self.next_alive {
            self.next_alive = self.now.after(HEARTBEAT);
            let ids = self.ids();
            for (from, to) in ids.iter().flat_map(|from| ids.iter().map(|to| (*from, *to))) {
                let up = self.nodes[&from].raft.is_some() && self.nodes[&to].raft.is_some();
                if from != to && up && !self.cut.contains(&(from, to)) {
                    let said = (self.nodes[&from].boots, self.now.after(alive_for));
                    self.alive.insert((to, from), said);
                    self.tell_of(to, from, said);
                }
            }
        }
        let now = self.now;
        let silent: Vec<_> = self.alive.extract_if(.., |_, (_, until)| *until <= now).collect();
        for ((to, from), said) in silent {
            self.tell_of(to, from, said);
        }
    }

    fn tell_of(&mut self, to: ReplicaId, from: ReplicaId, (epoch, until): (u64, Time)) {
        let input = Input::Peer { node: NodeId(from.0), epoch: Epoch(epoch), alive_until: until };
        self.input(to, input).unwrap();
    }

    pub(crate) fn isolate(&mut self, id: ReplicaId) {
        for other in self.ids() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    /// Runs until some replica serves, and says which.
    pub(crate) fn elect(&mut self) -> ReplicaId {
        for _ in 0..200 {
            self.run(HEARTBEAT);
            if let Some(leader) = self.serving() {
                return leader;
            }
        }
        panic!("nobody was elected");
    }

    /// Lets the replica stand before any other can, and win.
    pub(crate) fn elect_this(&mut self, id: ReplicaId) {
        self.settle();
        for _ in 0..50 {
            let due = self.deadline(id).unwrap();
            self.now = self.now.max(due).after(ELECTION);
            self.input(id, Input::Tick).unwrap();
            self.settle();
            if self.serving() == Some(id) {
                return;
            }
        }
        panic!("{id} was not elected");
    }

    /// Who serves in the highest term.
    pub(crate) fn serving(&self) -> Option<ReplicaId> {
        let up = self.nodes.iter().filter_map(|(id, node)| Some((*id, node.raft.as_ref()?.status())));
        up.filter(|(_, status)| status.serving).max_by_key(|(_, status)| status.ballot).map(|(id, _)| id)
    }

    // ---- snapshots ----

    /// A checkpoint of everything delivered is durable; the core may cut its log.
    pub(crate) fn checkpoint(&mut self, id: ReplicaId) {
        let node = self.node(id);
        if node.raft.is_none() {
            return;
        }
        let slot = node.delivered;
        let Some(entry) = node.view.entries.get(&slot) else { return };
        let config = node.applied_config.clone();
        let meta = SnapshotMeta { slot, ballot: entry.ballot, config, generation: 0 };
        if meta.slot <= node.disk.state.slot || node.view.state.slot > meta.slot {
            return;
        }
        node.disk.state = meta.clone();
        node.view.state = meta.clone();
        self.input(id, Input::Compacted(meta)).unwrap();
    }

    /// The snapshot that a replica fetches arrives, if its giver has one that serves.
    pub(crate) fn fetch(&mut self, id: ReplicaId) -> bool {
        let Some((at_least, from)) = self.node(id).fetching.take() else { return false };
        let meta = self.nodes[&from].disk.state.clone();
        if self.nodes[&from].raft.is_none() || meta.slot < at_least {
            self.input(id, Input::SnapshotFailed).unwrap();
            return false;
        }
        self.input(id, Input::SnapshotReady(meta)).unwrap();
        true
    }

    // ---- what must always hold ----

    fn check(&mut self, id: ReplicaId) {
        let Some(raft) = &self.nodes[&id].raft else { return };
        let status = raft.status();
        assert!(status.applied <= status.committed && status.committed <= status.last, "{status:?}");
        if status.leader == Some(id) {
            let first_seen = !self.leaders.contains_key(&status.ballot.round);
            let leader = *self.leaders.entry(status.ballot.round).or_insert(id);
            assert_eq!(leader, id, "two leaders in term {}", status.ballot.round);
            if first_seen {
                let view = &self.nodes[&id].view;
                for entry in self.chosen.values() {
                    assert!(view.holds(entry.slot, entry.ballot), "leader {id} lacks chosen {}", entry.slot);
                }
            }
        }
        let mine = &self.nodes[&id].view.entries;
        for (other, node) in &self.nodes {
            if *other == id {
                continue;
            }
            // Log matching: where two logs agree on a slot's ballot, they agree on everything before it.
            let mut agreed = false;
            for (slot, entry) in mine.iter().rev() {
                let Some(theirs) = node.view.entries.get(slot) else { continue };
                assert!(
                    !agreed || theirs == entry,
                    "logs of {id} and {other} agree above {slot} and differ at it"
                );
                agreed |= theirs.ballot == entry.ballot;
            }
        }
    }

    /// After everything healed: every proposal of a replica that still lives has had its outcome, every read its answer.
    pub(crate) fn check_outcomes(&self) {
        for (id, node) in &self.nodes {
            if node.raft.is_some() {
                assert!(node.open.is_empty(), "no outcome at {id} for {:?}", node.open);
                assert!(node.reads.is_empty(), "no answer at {id} for {:?}", node.reads);
            }
        }
    }
}

fn ops_line(ops: &[LogOp]) -> String {
    let mut puts = Vec::new();
    let mut parts = Vec::new();
    for op in ops {
        match op {
            LogOp::Meta(_) => parts.push("meta".to_owned()),
            LogOp::Put(entries) => {
                puts.extend(entries.iter().map(|entry| format!("{}/{}", entry.slot, entry.ballot.round)));
            }
            LogOp::TruncateFrom(slot) => parts.push(format!("truncate-from {slot}")),
            LogOp::CutBelow(slot) => parts.push(format!("cut-below {slot}")),
            LogOp::Reset(meta) => parts.push(format!("reset {}", meta.slot)),
        }
    }
    if !puts.is_empty() {
        parts.push(format!("[{}]", puts.join(" ")));
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}

fn then_line(then: &[Message]) -> String {
    then.iter().map(|message| format!(", then {}", describe(message))).collect()
}
