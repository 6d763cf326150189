//! A group of replicas in memory: every message, sync and moment of time happens when the story says so.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;

use super::{Engine, StoryError, disk::Disk, script::Command, show};
use crate::{
    Boot, Config, Consensus, Effect, Entry, Epoch, Input, Kind, LogOp, Mark, Message, NodeId, Proposal,
    ProposalId, ReadId, ReplicaId, Slot, SnapshotMeta, StepError, Time, Timing,
};

/// So many rounds of deliveries and syncs, and so many candidacies, before a story counts as endless.
const ROUNDS_MAX: usize = 5_000;
const CANDIDACIES_MAX: usize = 50;

#[derive(Debug)]
struct Write {
    ops: Vec<LogOp>,
    then: Vec<Message>,
    done: Option<Input>,
}

#[derive(Debug)]
struct Replica {
    node: NodeId,
    core: Option<Box<dyn Consensus>>,
    /// What a crash leaves.
    disk: Disk,
    /// The disk once everything written is synced.
    written: Disk,
    writes: VecDeque<Write>,
    delivered: Slot,
    /// The membership in force at `delivered`.
    config: Config,
    fetching: Option<(Slot, ReplicaId)>,
    boots: u64,
    /// How it was shown last: itself, and its membership.
    shown: (String, String),
}

/// What hosts hear of each other.
#[derive(Debug)]
struct Nodes {
    believed_for: Duration,
    next: Time,
    /// Until when the second counts as alive at the first, and in which life.
    alive: BTreeMap<(ReplicaId, ReplicaId), (Epoch, Time)>,
}

pub(super) struct Group<'a> {
    engine: &'a dyn Engine,
    words: Vec<String>,
    timing: Timing,
    now: Time,
    replicas: BTreeMap<ReplicaId, Replica>,
    network: VecDeque<Message>,
    cut: BTreeSet<(ReplicaId, ReplicaId)>,
    isolated: BTreeSet<ReplicaId>,
    hanging: BTreeSet<ReplicaId>,
    nodes: Option<Nodes>,
    chosen: BTreeMap<Slot, Entry>,
    proposals: u64,
    reads: u64,
    transcript: Vec<String>,
}

impl<'a> Group<'a> {
    pub(super) fn new(
        engine: &'a dyn Engine,
        voters: u64,
        learners: u64,
        words: Vec<String>,
    ) -> Result<Self, StoryError> {
        let mut config = Config::of_voters((1..=voters + learners).map(|id| (ReplicaId(id), NodeId(id))));
        config.learners = config.voters.split_off(&ReplicaId(voters + 1));
        let mut group = Self {
            engine,
            words,
            timing: Timing::default(),
            now: Time(0),
            replicas: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            isolated: BTreeSet::new(),
            hanging: BTreeSet::new(),
            nodes: None,
            chosen: BTreeMap::new(),
            proposals: 0,
            reads: 0,
            transcript: Vec::new(),
        };
        for (id, node) in config.nodes.clone() {
            group.add(id, node, config.clone())?;
        }
        Ok(group)
    }

    fn add(&mut self, id: ReplicaId, node: NodeId, config: Config) -> Result<(), StoryError> {
        let state = SnapshotMeta { config, ..SnapshotMeta::default() };
        let disk = Disk::new(state);
        let replica = Replica {
            node,
            core: None,
            written: disk.clone(),
            disk,
            writes: VecDeque::new(),
            delivered: Slot(0),
            config: Config::default(),
            fetching: None,
            boots: 0,
            shown: <(String, String)>::default(),
        };
        self.replicas.insert(id, replica);
        self.boot(id)
    }

    fn replica(&mut self, id: ReplicaId) -> Result<&mut Replica, StoryError> {
        self.replicas.get_mut(&id).ok_or(StoryError::NoReplica(id))
    }

    /// What was said, wanted and changed since it was last taken.
    pub(super) fn take_transcript(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.transcript);
        for (id, replica) in &mut self.replicas {
            let (state, members) = match &replica.core {
                Some(core) => show::state(&core.status(), &replica.written.entries),
                None => ("is down".to_owned(), String::new()),
            };
            let changed = (state != replica.shown.0, members != replica.shown.1);
            match changed {
                (_, true) if members.is_empty() => lines.push(format!("= {id} {state}")),
                (_, true) => lines.push(format!("= {id} {state}; {members}")),
                (true, false) => lines.push(format!("= {id} {state}")),
                (false, false) => {}
            }
            replica.shown = (state, members);
        }
        lines
    }

    fn say(&mut self, line: String) {
        self.transcript.push(line);
    }

    pub(super) fn play(&mut self, command: &Command) -> Result<(), StoryError> {
        match command {
            Command::Group { .. } => {}
            Command::Elect(id) => self.elect(*id)?,
            Command::TimeOut(id) => {
                self.now = self.now.after(self.timing.election * 2);
                self.input(*id, Input::Tick)?;
            }
            Command::Skip(span) => self.now = self.now.after(*span),
            Command::Tick(id) => self.input(*id, Input::Tick)?,
            Command::Wait(span) => self.wait(*span)?,
            Command::Settle => self.settle()?,
            Command::Deliver { from, to } => {
                for message in self.take(*from, *to) {
                    self.deliver(message)?;
                }
            }
            Command::Lose { from, to } => drop(self.take(*from, *to)),
            Command::Cut { from, to } => drop(self.cut.insert((*from, *to))),
            Command::Isolate(id) => drop(self.isolated.insert(*id)),
            Command::Heal => (self.cut, self.isolated) = (BTreeSet::new(), BTreeSet::new()),
            Command::Hang(id) => drop(self.hanging.insert(*id)),
            Command::Resume(id) => drop(self.hanging.remove(id)),
            Command::Sync(id) => drop(self.sync(*id)?),
            Command::Crash(id) => self.crash(*id)?,
            Command::Boot(id) => self.boot(*id)?,
            Command::Propose { count, at } => self.propose(*at, *count)?,
            Command::Read { mode, at } => {
                self.reads += 1;
                self.input(*at, Input::ReadBarrier { id: ReadId(self.reads), mode: *mode })?;
            }
            Command::Transfer { from, to } => {
                let id = self.next_proposal(*from)?;
                self.input(*from, Input::Transfer { id, to: *to })?;
            }
            Command::Change { at, changes } => {
                let id = self.next_proposal(*at)?;
                self.input(*at, Input::Reconfigure { id, changes: changes.clone() })?;
            }
            Command::Checkpoint(id) => self.checkpoint(*id)?,
            Command::Fetch(id) => self.fetch(*id)?,
            Command::NodesLive(span) => {
                let (next, alive) = (self.now, BTreeMap::new());
                self.nodes = Some(Nodes { believed_for: *span, next, alive });
            }
        }
        Ok(())
    }

    // ---- lives ----

    fn crash(&mut self, id: ReplicaId) -> Result<(), StoryError> {
        let replica = self.replica(id)?;
        (replica.core, replica.fetching) = (None, None);
        replica.writes.clear();
        replica.written = replica.disk.clone();
        self.network.retain(|message| message.to != id);
        Ok(())
    }

    fn boot(&mut self, id: ReplicaId) -> Result<(), StoryError> {
        let (engine, words, now) = (self.engine, self.words.clone(), self.now);
        let replica = self.replica(id)?;
        replica.boots += 1;
        let state = replica.disk.state.clone();
        (replica.delivered, replica.config) = (state.slot, state.config.clone());
        let entries = replica.disk.entries.range(state.slot.next()..).map(|(_, entry)| entry.clone());
        let boot = Boot {
            replica: id,
            meta: replica.disk.meta.clone(),
            state: state.clone(),
            entries: entries.collect(),
            first: replica.disk.first,
            now,
            // So that no boot draws what another does.
            seed: id.0 << 32 | replica.boots,
        };
        let core = engine.boot(boot, &words).map_err(|why| StoryError::Boot { replica: id, why })?;
        replica.core = Some(core);
        Ok(())
    }

    // ---- inputs ----

    fn next_proposal(&mut self, at: ReplicaId) -> Result<ProposalId, StoryError> {
        self.proposals += 1;
        let sequence = self.proposals;
        Ok(ProposalId { node: self.replica(at)?.node, sequence })
    }

    fn propose(&mut self, at: ReplicaId, count: u64) -> Result<(), StoryError> {
        let mut batch = Vec::new();
        for _ in 0..count {
            let id = self.next_proposal(at)?;
            batch.push(Proposal { id, payload: Bytes::copy_from_slice(&id.sequence.to_be_bytes()) });
        }
        self.input(at, Input::Propose { batch, only_in: None })
    }

    fn step(&mut self, id: ReplicaId, input: Input) -> Result<(), StoryError> {
        let now = self.now;
        let Some(core) = &mut self.replica(id)?.core else { return Ok(()) };
        match core.step(now, input) {
            Ok(()) => Ok(()),
            Err(why @ StepError::Broken(_)) => Err(StoryError::Broken { replica: id, why }),
            Err(why) => {
                self.say(format!("{id} refuses: {why}"));
                Ok(())
            }
        }
    }

    fn input(&mut self, id: ReplicaId, input: Input) -> Result<(), StoryError> {
        self.step(id, input)?;
        self.drain(id)
    }

    fn drain(&mut self, id: ReplicaId) -> Result<(), StoryError> {
        let mut effects = Vec::new();
        loop {
            if let Some(core) = &mut self.replica(id)?.core {
                core.drain(&mut effects);
            }
            if effects.is_empty() {
                return Ok(());
            }
            for effect in effects.drain(..) {
                self.carry_out(id, effect)?;
            }
        }
    }

    // ---- effects ----

    fn carry_out(&mut self, id: ReplicaId, effect: Effect) -> Result<(), StoryError> {
        match effect {
            Effect::Send(message) => self.send(message),
            Effect::Write { ops } => self.write(id, Write { ops, then: Vec::new(), done: None })?,
            Effect::Persist { mark, ops, then } => {
                let then_line: String =
                    then.iter().map(|message| format!(", then {}", self.engine.describe(message))).collect();
                self.say(format!("{id} writes {}{then_line}", show::ops(&ops)));
                self.write(id, Write { ops, then, done: Some(Input::Persisted(mark)) })?;
            }
            Effect::Commit(entries) => self.commit(id, &entries)?,
            Effect::Lost { id: proposal, outcome } => {
                self.say(format!("{id} lost proposal {}: {outcome:?}", proposal.sequence));
            }
            Effect::ReadReady { id: read, at } => self.say(format!("{id} may serve read {read} at {at}")),
            Effect::ReadFailed { id: read, why } => self.say(format!("{id} fails read {read}: {why}")),
            Effect::ReadLog { id: read, range, bytes_max } => {
                let result = self.replica(id)?.written.read(range, bytes_max);
                self.step(id, Input::LogRead { id: read, result })?;
            }
            Effect::FetchSnapshot { at_least, from } => {
                let Some(from) = from.first() else { return Ok(()) };
                self.say(format!("{id} fetches a snapshot of at least {at_least} from {from}"));
                self.replica(id)?.fetching = Some((at_least, *from));
            }
            Effect::InstallSnapshot { mark, meta } => self.install(id, mark, *meta)?,
            Effect::Membership { config, at, committed } => {
                let how = if committed { "is committed" } else { "is in force" };
                self.say(format!("{id} the membership of {at} {how}"));
                // Whoever a leader wants to write to is there, with nothing, whether or not the change is ever committed.
                for (added, node) in &config.nodes {
                    if !self.replicas.contains_key(added) {
                        self.add(*added, *node, Config::default())?;
                    }
                }
            }
            // The state shows it.
            Effect::Role { .. } => {}
        }
        Ok(())
    }

    fn send(&mut self, message: Message) {
        self.say(self.engine.describe(&message));
        self.network.push_back(message);
    }

    fn write(&mut self, id: ReplicaId, write: Write) -> Result<(), StoryError> {
        let replica = self.replica(id)?;
        write.ops.iter().for_each(|op| replica.written.apply(op));
        replica.writes.push_back(write);
        Ok(())
    }

    fn commit(&mut self, id: ReplicaId, entries: &[Entry]) -> Result<(), StoryError> {
        let node = self.replica(id)?.node;
        let mine = entries.iter().filter(|entry| entry.id.node == node && !entry.id.is_none());
        let mine: String = mine.map(|entry| format!(" {}", entry.id.sequence)).collect();
        let mine = if mine.is_empty() { mine } else { format!(", proposals{mine}") };
        let ends = entries.first().zip(entries.last()).map(|(first, last)| (first.slot, last.slot));
        let Some((first, last)) = ends else { return Ok(()) };
        self.say(format!("{id} commits {first}..={last}{mine}"));
        for entry in entries {
            let slot = entry.slot;
            let replica = self.replica(id)?;
            if entry.kind == Kind::Config
                && let Ok(config) = Config::decode(&entry.payload)
            {
                replica.config = config;
            }
            replica.delivered = slot;
            let holds = replica.disk.entries.get(&slot).is_some_and(|held| held.payload == entry.payload);
            if !holds && replica.disk.state.slot < slot {
                return Err(StoryError::NotDurable { replica: id, slot });
            }
            // The ballot of an entry may differ between replicas; what it is may not.
            let chosen = self.chosen.entry(slot).or_insert_with(|| entry.clone());
            if (chosen.kind, chosen.id, &chosen.payload) != (entry.kind, entry.id, &entry.payload) {
                return Err(StoryError::Chosen { replica: id, slot });
            }
        }
        self.step(id, Input::Applied(last))
    }

    fn install(&mut self, id: ReplicaId, mark: Mark, meta: SnapshotMeta) -> Result<(), StoryError> {
        self.say(format!("{id} installs the snapshot of {}", meta.slot));
        let replica = self.replica(id)?;
        (replica.delivered, replica.config) = (meta.slot, meta.config.clone());
        let ops = vec![LogOp::Reset(Box::new(meta))];
        self.write(id, Write { ops, then: Vec::new(), done: Some(Input::SnapshotInstalled(mark)) })
    }

    /// Makes everything written by a replica durable; says whether there was anything.
    fn sync(&mut self, id: ReplicaId) -> Result<bool, StoryError> {
        let replica = self.replica(id)?;
        let writes = std::mem::take(&mut replica.writes);
        if writes.is_empty() {
            return Ok(false);
        }
        for Write { ops, then, done } in writes {
            let replica = self.replica(id)?;
            ops.iter().for_each(|op| replica.disk.apply(op));
            then.into_iter().for_each(|message| self.send(message));
            if let Some(done) = done {
                self.step(id, done)?;
            }
        }
        self.drain(id)?;
        Ok(true)
    }

    // ---- the network, and time ----

    fn take(&mut self, from: ReplicaId, to: ReplicaId) -> VecDeque<Message> {
        let all = std::mem::take(&mut self.network);
        let (taken, left) = all.into_iter().partition(|message| (message.from, message.to) == (from, to));
        self.network = left;
        taken
    }

    fn is_cut(&self, from: ReplicaId, to: ReplicaId) -> bool {
        [from, to].iter().any(|end| self.isolated.contains(end)) || self.cut.contains(&(from, to))
    }

    fn deliver(&mut self, message: Message) -> Result<(), StoryError> {
        if self.is_cut(message.from, message.to) || !self.replicas.contains_key(&message.to) {
            return Ok(());
        }
        self.input(message.to, Input::Message(message))
    }

    fn settle(&mut self) -> Result<(), StoryError> {
        for _ in 0..ROUNDS_MAX {
            let mut busy = false;
            for id in self.ids() {
                busy |= !self.hanging.contains(&id) && self.sync(id)?;
            }
            if let Some(message) = self.network.pop_front() {
                self.deliver(message)?;
                busy = true;
            }
            if !busy {
                return Ok(());
            }
        }
        Err(StoryError::Endless)
    }

    fn ids(&self) -> Vec<ReplicaId> {
        self.replicas.keys().copied().collect()
    }

    fn due(&self, id: ReplicaId) -> Option<Time> {
        self.replicas.get(&id)?.core.as_ref()?.next_deadline()
    }

    fn wait(&mut self, span: Duration) -> Result<(), StoryError> {
        let end = self.now.after(span);
        for _ in 0..ROUNDS_MAX {
            self.settle()?;
            let heard = self.nodes.as_ref().map(|nodes| {
                nodes.alive.values().map(|(_, until)| *until).chain([nodes.next]).min().unwrap_or(nodes.next)
            });
            let due = self.ids().into_iter().filter_map(|id| self.due(id)).chain(heard).min();
            let Some(due) = due.filter(|due| *due <= end) else {
                self.now = end;
                return Ok(());
            };
            self.now = self.now.max(due);
            self.nodes_speak()?;
            for id in self.ids() {
                if self.due(id).is_some_and(|due| due <= self.now) {
                    self.input(id, Input::Tick)?;
                }
            }
        }
        Err(StoryError::Endless)
    }

    fn nodes_speak(&mut self) -> Result<(), StoryError> {
        let (now, ids) = (self.now, self.ids());
        let up = |id: &ReplicaId| self.replicas.get(id).filter(|replica| replica.core.is_some());
        let pairs = ids.iter().flat_map(|from| ids.iter().map(move |to| (from, to)));
        let heard = pairs.filter(|(from, to)| from != to && !self.is_cut(**from, **to) && up(to).is_some());
        let heard: Vec<_> =
            heard.filter_map(|(from, to)| Some((*to, *from, Epoch(up(from)?.boots)))).collect();
        let Some(nodes) = &mut self.nodes else { return Ok(()) };
        let mut told = Vec::new();
        if now >= nodes.next {
            nodes.next = now.after(self.timing.heartbeat);
            for (to, from, epoch) in heard {
                let said = (epoch, now.after(nodes.believed_for));
                nodes.alive.insert((to, from), said);
                told.push((to, from, said));
            }
        }
        let silent = nodes.alive.extract_if(.., |_, (_, until)| *until <= now);
        told.extend(silent.map(|((to, from), said)| (to, from, said)));
        for (to, from, (epoch, alive_until)) in told {
            let node = self.replica(from)?.node;
            self.input(to, Input::Peer { node, epoch, alive_until })?;
        }
        Ok(())
    }

    fn elect(&mut self, id: ReplicaId) -> Result<(), StoryError> {
        self.settle()?;
        for _ in 0..CANDIDACIES_MAX {
            let due = self.due(id).unwrap_or(self.now);
            self.now = self.now.max(due).after(self.timing.election);
            self.input(id, Input::Tick)?;
            self.settle()?;
            if self.replica(id)?.core.as_ref().is_some_and(|core| core.status().serving) {
                return Ok(());
            }
        }
        Err(StoryError::Endless)
    }

    // ---- snapshots ----

    fn checkpoint(&mut self, id: ReplicaId) -> Result<(), StoryError> {
        let replica = self.replica(id)?;
        let slot = replica.delivered;
        let Some(entry) = replica.written.entries.get(&slot) else { return Ok(()) };
        let (ballot, config) = (entry.ballot, replica.config.clone());
        let meta = SnapshotMeta { slot, ballot, config, generation: 0 };
        (replica.disk.state, replica.written.state) = (meta.clone(), meta.clone());
        self.input(id, Input::Compacted(meta))
    }

    fn fetch(&mut self, id: ReplicaId) -> Result<(), StoryError> {
        let Some((at_least, from)) = self.replica(id)?.fetching.take() else { return Ok(()) };
        let meta = self.replica(from)?.disk.state.clone();
        let input = if meta.slot < at_least { Input::SnapshotFailed } else { Input::SnapshotReady(meta) };
        self.input(id, input)
    }
}
