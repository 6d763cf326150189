//! Replicas in memory under a test's control: every message, sync and moment of time happens when the test says so.
//!
//! Whatever the test does, after each step the cluster checks what must always hold: no two entries chosen at a slot, nothing chosen that a
//! quorum of the configuration which governs the slot does not hold durably, no replica that takes part in a ballot below one it
//! promised, leaders that know all that was chosen before they serve, one outcome a proposal, reads that see what was chosen before them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Boot, Config, Consensus, Effect, Entry, Input, Kind, LogOp, LogSlice, Mark, MembershipChange,
    Message, NodeId, Outcome, Proposal, ProposalId, ReadId, ReadMode, ReplicaId, Slot, SnapshotMeta, Status,
    StepError, Time,
};
use conclave_paxos::{Paxos, PaxosConfig, describe};

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

    /// Whether the value is durable here, in whatever ballot.
    fn holds(&self, entry: &Entry) -> bool {
        let same =
            |other: &Entry| (other.kind, other.id, &other.payload) == (entry.kind, entry.id, &entry.payload);
        self.state.slot >= entry.slot || self.entries.get(&entry.slot).is_some_and(same)
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
    pub(crate) core: Option<Paxos>,
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
    pub(crate) fetching: Option<(Slot, Vec<ReplicaId>)>,
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
    leaders: BTreeMap<Ballot, ReplicaId>,
    /// Every membership that was chosen, by its slot.
    pub(crate) configs: BTreeMap<Slot, Config>,
    /// The highest ballot that each replica told anyone it promised.
    promised: BTreeMap<ReplicaId, Ballot>,
    pub(crate) config: PaxosConfig,
    /// Settings of single replicas.
    pub(crate) configs_of: BTreeMap<ReplicaId, PaxosConfig>,
    /// By how many parts in a million a replica's clock is too fast (or slow).
    pub(crate) drift_ppm: BTreeMap<ReplicaId, i64>,
    /// Reads that missed what was chosen before they were asked, if such are to be counted and not to fail the test.
    pub(crate) stale_reads: Option<u64>,
    seed: u64,
    counter: u64,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.transcript.len().saturating_sub(150);
            self.transcript[from..].iter().for_each(|line| println!("{line}"));
        }
    }
}

pub(crate) fn replica(id: u64) -> ReplicaId {
    ReplicaId(id)
}

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
pub(crate) const ELECTION: Duration = Duration::from_millis(1_000);

impl Cluster {
    pub(crate) fn new(voters: u64, seed: u64) -> Self {
        Self::with(voters, 0, seed, PaxosConfig::default())
    }

    pub(crate) fn with(voters: u64, learners: u64, seed: u64, config: PaxosConfig) -> Self {
        let mut initial = Config::of_voters((1..=voters).map(|id| (ReplicaId(id), NodeId(id))));
        for id in voters + 1..=voters + learners {
            initial.learners.insert(ReplicaId(id));
            initial.nodes.insert(ReplicaId(id), NodeId(id));
        }
        initial.next_replica = ReplicaId(voters + learners + 1);
        Self::of(initial, seed, config)
    }

    pub(crate) fn of(initial: Config, seed: u64, config: PaxosConfig) -> Self {
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
            configs: [(Slot(0), initial.clone())].into(),
            promised: BTreeMap::new(),
            config,
            configs_of: BTreeMap::new(),
            drift_ppm: BTreeMap::new(),
            stale_reads: None,
            seed,
            counter: 0,
        };
        for id in initial.members() {
            cluster.add_node(id, initial.clone());
        }
        cluster
    }

    /// A replica with an empty disk; with an empty membership it waits for a leader to tell it one.
    pub(crate) fn add_node(&mut self, id: ReplicaId, config: Config) {
        let state = SnapshotMeta { config, ..SnapshotMeta::default() };
        let disk = Disk { first: 1, state, ..Disk::default() };
        let node = Node {
            core: None,
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
        self.nodes[&id].core.as_ref().unwrap().status()
    }

    pub(crate) fn say(&mut self, line: impl Into<String>) {
        self.transcript.push(line.into());
    }

    /// The messages under way whose description contains `what`.
    pub(crate) fn under_way(&self, what: &str) -> Vec<String> {
        self.network.iter().map(describe).filter(|line| line.contains(what)).collect()
    }

    // ---- lives ----

    /// Everything that was not synced is gone.
    pub(crate) fn crash(&mut self, id: ReplicaId) {
        let node = self.node(id);
        node.core = None;
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
        if node.core.is_some() {
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
        node.core = Some(Paxos::new(boot, config).unwrap());
    }

    // ---- inputs ----

    /// What a replica's clock shows.
    pub(crate) fn clock(&self, id: ReplicaId) -> Time {
        let rate = i128::from(1_000_000 + self.drift_ppm.get(&id).copied().unwrap_or(0));
        Time(u64::try_from(i128::from(self.now.0) * rate / 1_000_000).unwrap())
    }

    /// When a replica wants to be stepped, in true time.
    fn deadline(&self, id: ReplicaId) -> Option<Time> {
        let due = self.nodes[&id].core.as_ref()?.next_deadline()?;
        let rate = i128::from(1_000_000 + self.drift_ppm.get(&id).copied().unwrap_or(0));
        let true_due = (i128::from(due.0) * 1_000_000 + rate - 1) / rate;
        Some(Time(u64::try_from(true_due).unwrap_or(u64::MAX)))
    }

    pub(crate) fn step(&mut self, id: ReplicaId, input: Input) -> Result<(), StepError> {
        let now = self.clock(id);
        let Some(core) = self.node(id).core.as_mut() else { return Ok(()) };
        let done = core.step(now, input);
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
        if self.nodes[&id].core.is_none() {
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
        if self.nodes[&id].core.is_some() {
            self.node(id).open.insert(proposal);
        }
        self.drain(id);
        Ok(proposal)
    }

    pub(crate) fn read(&mut self, id: ReplicaId, mode: ReadMode) -> ReadId {
        self.counter += 1;
        let read = ReadId(self.counter);
        let seen = self.chosen.keys().next_back().copied().unwrap_or_default();
        if self.nodes[&id].core.is_some() {
            self.node(id).reads.insert(read, seen);
            self.input(id, Input::ReadBarrier { id: read, mode }).unwrap();
        }
        read
    }

    // ---- effects ----

    pub(crate) fn drain(&mut self, id: ReplicaId) {
        loop {
            let mut effects = Vec::new();
            let Some(core) = self.node(id).core.as_mut() else { return };
            core.drain(&mut effects);
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
                self.node(id).fetching = Some((at_least, from));
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
                self.say(format!(
                    "  {id} in {}.{}.{} sees {who} lead{how}",
                    ballot.config, ballot.round, ballot.replica
                ));
            }
        }
    }

    fn send(&mut self, message: Message) {
        let line = describe(&message);
        self.check_promise(message.from, &line);
        if !line.contains(" beat") {
            self.say(format!("  {line}"));
        }
        self.network.push_back(message);
    }

    /// What a replica says of ballots: it never takes part in one below what it said it promised.
    fn check_promise(&mut self, from: ReplicaId, line: &str) {
        let mut words = line.split(' ').skip(1);
        let (Some("promise" | "accepted"), Some(ballot)) = (words.next(), words.next()) else { return };
        let mut parts = ballot.split('.').map(|part| part.parse().unwrap());
        let (config, round, replica) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let ballot = Ballot { config, round, replica: ReplicaId(replica) };
        let promised = self.promised.entry(from).or_default();
        assert!(ballot >= *promised, "{from} forgot that it promised {promised:?}: {line}");
        *promised = ballot;
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
        assert!(node.disk.holds(&entry), "committed before it was durable here");
        assert_eq!(entry.ballot, Ballot::default(), "an entry that is handed out shows no ballot");
        match self.lost.get(&entry.id) {
            Some(Outcome::Dropped) => panic!("{:?} was dropped, and chosen", entry.id),
            Some(Outcome::Unknown) | None => {}
        }
        if let Some(before) = self.chosen.get(&entry.slot) {
            assert_eq!(before, &entry, "two entries chosen at one slot");
            return;
        }
        let holders: BTreeSet<_> =
            self.nodes.iter().filter(|(_, node)| node.disk.holds(&entry)).map(|(id, _)| *id).collect();
        let (_, governs) = self.configs.range(..entry.slot).next_back().unwrap();
        assert!(
            governs.is_commit_quorum(|id| holders.contains(&id)),
            "slot {} chosen before a quorum held it: {holders:?} of {governs:?}",
            entry.slot
        );
        if entry.kind == Kind::Config {
            self.configs.insert(entry.slot, Config::decode(&entry.payload).unwrap());
        }
        self.chosen.insert(entry.slot, entry);
    }

    /// Makes everything that a replica wrote durable.
    pub(crate) fn sync(&mut self, id: ReplicaId) -> bool {
        if self.stalled.contains(&id) || self.nodes[&id].writes.is_empty() {
            return false;
        }
        let count = self.nodes[&id].writes.len();
        self.sync_some(id, count)
    }

    /// Makes the oldest write of a replica durable, alone.
    pub(crate) fn sync_first(&mut self, id: ReplicaId) {
        self.sync_some(id, 1);
    }

    fn sync_some(&mut self, id: ReplicaId, count: usize) -> bool {
        let writes: Vec<Write> = self.node(id).writes.drain(..count).collect();
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
        if !self.is_cut(&message) && self.nodes.get(&message.to).is_some_and(|node| node.core.is_some()) {
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
            let due = due.min();
            match due {
                Some(due) if due <= end => self.tick_at(due),
                _ => break,
            }
        }
        self.now = end;
    }

    pub(crate) fn tick_at(&mut self, time: Time) {
        self.now = self.now.max(time);
        for id in self.ids() {
            let due = self.deadline(id);
            if due.is_some_and(|due| due <= self.now) {
                self.input(id, Input::Tick).unwrap();
            }
        }
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
        let up = self.nodes.iter().filter_map(|(id, node)| Some((*id, node.core.as_ref()?.status())));
        up.filter(|(_, status)| status.serving).max_by_key(|(_, status)| status.ballot).map(|(id, _)| id)
    }

    // ---- snapshots ----

    /// A checkpoint of everything delivered is durable; the core may cut its log.
    pub(crate) fn checkpoint(&mut self, id: ReplicaId) {
        let node = self.node(id);
        if node.core.is_none() {
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
        let gives = from.into_iter().find(|other| {
            let cut = self.cut.contains(&(id, *other)) || self.cut.contains(&(*other, id));
            let node = self.nodes.get(other).filter(|node| !cut && node.core.is_some());
            node.is_some_and(|node| node.disk.state.slot >= at_least)
        });
        let Some(from) = gives else {
            self.input(id, Input::SnapshotFailed).unwrap();
            return false;
        };
        let meta = self.nodes[&from].disk.state.clone();
        self.input(id, Input::SnapshotReady(meta)).unwrap();
        true
    }

    // ---- what must always hold ----

    fn check(&mut self, id: ReplicaId) {
        let Some(core) = &self.nodes[&id].core else { return };
        let status = core.status();
        assert!(status.applied <= status.committed && status.committed <= status.last, "{status:?}");
        if status.serving {
            let first_seen = !self.leaders.contains_key(&status.ballot);
            let leader = *self.leaders.entry(status.ballot).or_insert(id);
            assert_eq!(leader, id, "two leaders in {:?}", status.ballot);
            let last = self.chosen.keys().next_back().copied().unwrap_or_default();
            assert!(!first_seen || status.committed >= last, "leader {id} serves without {last}: {status:?}");
        }
    }

    /// After everything healed: every proposal of a replica that still lives has had its outcome, every read its answer.
    pub(crate) fn check_outcomes(&self) {
        for (id, node) in &self.nodes {
            if node.core.is_some() {
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
            LogOp::Put(entries) => puts.extend(entries.iter().map(|entry| entry.slot.to_string())),
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
