//! One replica as it is explored: a core, its clock, its disk, and the writes on their way to the disk.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{
    Boot, Config, Consensus, Effect, Entry, Input, Kind, LogOp, Mark, MembershipChange, Message, NodeId,
    Outcome, Proposal, ProposalId, ReplicaId, Slot, SnapshotMeta, StepError, Time, Timing,
};
use conclave_raft::{Raft, RaftConfig};

use super::{Bug, canonical};

/// Long beside any number of heartbeats within the bounds.
const ELECTION: Duration = Duration::from_secs(3600);
const HEARTBEAT: Duration = Duration::from_millis(1);
/// Why a core refuses an answer of whom its membership does not name. All others are of correct peers.
const STRANGER: &str = "a stranger's answer";

/// What can happen to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Action {
    /// The message of this number arrives.
    Receive(u32),
    /// The deadline comes that the core named.
    Tick,
    /// An election timeout passes in which nothing happens.
    Silence,
    /// The command of this number is proposed.
    Propose(u8),
    /// The oldest write is done.
    Persist,
    /// A crash and a boot; of the writes on their way so many are on the disk.
    Crash { kept: u8 },
    /// As leader, the replica is asked for a change, its `number`th.
    Change { number: u8, change: Change },
}

/// A change of membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Change {
    /// The last node gets a voter.
    AddVoter,
    /// The last node gets a learner.
    AddLearner,
    Promote(ReplicaId),
    Remove(ReplicaId),
    /// All others go, in one request.
    Alone,
}

/// What an action came to.
#[derive(Debug)]
pub(super) enum Acted {
    /// It cannot happen in this state.
    Disabled,
    /// It showed a violation.
    Broken(String),
    /// The state after it, and what was said.
    Done(Box<Replica>, Said),
}

/// What a replica said in one action.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) sent: Vec<Message>,
    /// Proposals that can never be chosen, as it says.
    pub(super) dropped: Vec<ProposalId>,
}

/// An entry as far as it must be the same everywhere: its term and whose it is.
pub(super) type Cell = (u64, ProposalId);

/// What the checks look at.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) id: ReplicaId,
    /// The membership in force there.
    pub(super) config: Config,
    /// The memberships in its log, by place.
    pub(super) configs: Vec<(usize, Config)>,
    pub(super) term: u64,
    pub(super) leads: bool,
    pub(super) committed: usize,
    /// What it would hold if all writes were done.
    pub(super) log: Vec<Cell>,
    /// What it would hold after a crash.
    pub(super) durable: Vec<Cell>,
    pub(super) writes: usize,
}

#[derive(Clone, Debug, Default)]
struct Disk {
    meta: Bytes,
    log: Vec<Entry>,
    /// Earlier records, kept for [`Bug::StaleRecord`] only.
    records: Vec<Bytes>,
}

#[derive(Clone, Debug)]
struct Write {
    /// Missing if nobody waits for it.
    mark: Option<Mark>,
    ops: Vec<LogOp>,
    then: Vec<Message>,
}

#[derive(Clone, Debug)]
pub(super) struct Replica {
    /// Nobody, as long as a replica is none.
    id: ReplicaId,
    /// How many voters there are at first.
    voters: u64,
    /// Missing on a node that has no replica yet.
    core: Option<Raft>,
    now: Time,
    disk: Disk,
    writes: VecDeque<Write>,
}

fn cells(log: &[Entry]) -> Vec<Cell> {
    log.iter().map(|entry| (entry.ballot.round, entry.id)).collect()
}

impl Disk {
    fn write(&mut self, ops: &[LogOp], bug: Option<Bug>) {
        for op in ops {
            match op {
                LogOp::Meta(meta) => {
                    if bug == Some(Bug::StaleRecord) {
                        self.records.push(self.meta.clone());
                    }
                    self.meta = meta.clone();
                }
                LogOp::Put(entries) => {
                    for entry in entries {
                        self.log.truncate(index(entry.slot));
                        self.log.push(entry.clone());
                    }
                }
                LogOp::TruncateFrom(slot) => self.log.truncate(index(*slot)),
                // Nothing is compacted within the bounds, and no snapshot is offered.
                LogOp::CutBelow(_) | LogOp::Reset(_) => {}
            }
        }
    }
}

/// Where the entry of a slot stands: logs begin at slot 1.
fn index(slot: Slot) -> usize {
    usize::try_from(slot.0.saturating_sub(1)).unwrap_or(usize::MAX)
}

/// The membership at first.
pub(super) fn founders(voters: u64) -> Config {
    Config::of_voters((1..=voters).map(|id| (ReplicaId(id), NodeId(id))))
}

fn boot(id: ReplicaId, voters: u64, disk: &Disk, now: Time) -> Result<Raft, String> {
    // One that is added is told by its leader who belongs to the group.
    let config = if id.0 <= voters { founders(voters) } else { Config::default() };
    let boot = Boot {
        replica: id,
        meta: disk.meta.clone(),
        state: SnapshotMeta { config, ..SnapshotMeta::default() },
        entries: disk.log.clone(),
        first: Slot(1),
        now,
        seed: 1,
    };
    let timing = Timing { heartbeat: HEARTBEAT, election: ELECTION };
    Raft::new(boot, RaftConfig { timing, ..RaftConfig::default() })
        .map_err(|error| format!("replica {id} cannot boot from its own disk: {error}"))
}

impl Replica {
    /// A replica that never ran, of a group that begins with so many voters.
    pub(super) fn new(id: u64, voters: u64) -> Result<Self, String> {
        let vacant = Self::vacant(voters);
        let (id, disk) = (ReplicaId(id), Disk::default());
        let core = Some(boot(id, voters, &disk, Time(0))?);
        Ok(Self { id, core, ..vacant })
    }

    /// A node without a replica, beside a group that begins with so many voters.
    pub(super) fn vacant(voters: u64) -> Self {
        let (id, disk) = (ReplicaId(0), Disk::default());
        Self { id, voters, core: None, now: Time(0), disk, writes: VecDeque::new() }
    }

    /// The text that stands for this state.
    pub(super) fn canonical(&self) -> String {
        let Some(core) = &self.core else { return String::new() };
        let mut text = canonical::reduce(&format!("{core:?}"), self.now, ELECTION);
        text.push_str(&format!("{:?}", self.disk));
        for write in &self.writes {
            text.push_str(&format!("{:?}{:?}{}", write.ops, write.then, write.mark.is_some()));
        }
        text
    }

    pub(super) fn view(&self) -> View {
        let mut written = self.disk.clone();
        for write in &self.writes {
            written.write(&write.ops, None);
        }
        let of = |entry: &Entry| Config::decode(&entry.payload).ok().filter(|_| entry.kind == Kind::Config);
        let configs =
            written.log.iter().enumerate().filter_map(|(at, entry)| Some((at, of(entry)?))).collect();
        let status = self.core.as_ref().map(Consensus::status);
        let committed = status.as_ref().map_or(0, |status| status.committed.0);
        View {
            id: self.id,
            term: status.as_ref().map_or(0, |status| status.ballot.round),
            leads: status.as_ref().is_some_and(|status| status.leader == Some(self.id)),
            committed: usize::try_from(committed).unwrap_or(usize::MAX),
            config: status.map(|status| status.config).unwrap_or_default(),
            configs,
            log: cells(&written.log),
            durable: cells(&self.disk.log),
            writes: self.writes.len(),
        }
    }

    /// What the action comes to. `message` is the one that [`Action::Receive`] names.
    pub(super) fn act(&self, action: Action, message: Option<&Message>, bug: Option<Bug>) -> Acted {
        let mut next = Box::new(self.clone());
        let done = catch_unwind(AssertUnwindSafe(|| next.perform(action, message, bug)));
        match done {
            Ok(Ok(Some(said))) => Acted::Done(next, said),
            Ok(Ok(None)) => Acted::Disabled,
            Ok(Err(broken)) => Acted::Broken(broken),
            Err(_) => Acted::Broken(format!("replica {} panicked", self.id)),
        }
    }

    fn perform(
        &mut self,
        action: Action,
        message: Option<&Message>,
        bug: Option<Bug>,
    ) -> Result<Option<Said>, String> {
        let mut said = Said::default();
        match action {
            Action::Receive(_) => {
                let Some(message) = message else { return Ok(None) };
                if self.core.is_none() {
                    self.id = message.to;
                    self.core = Some(boot(self.id, self.voters, &self.disk, self.now)?);
                }
                let now = self.now;
                match self.core().step(now, Input::Message(message.clone())) {
                    // Whom its membership does not name, or no longer; or an earlier replica of this node was meant.
                    Err(StepError::BadMessage { why: STRANGER, .. }) => return Ok(Some(said)),
                    Err(StepError::BadMessage { .. }) if message.to != self.id => return Ok(Some(said)),
                    other => self.must(other)?,
                }
            }
            _ if self.core.is_none() => return Ok(None),
            Action::Tick => {
                let Some(deadline) = self.core().next_deadline() else { return Ok(None) };
                self.now = self.now.max(deadline);
                self.step(Input::Tick)?;
            }
            Action::Silence => {
                self.now = self.now.after(ELECTION);
                return Ok(Some(said));
            }
            Action::Propose(number) => {
                let id = ProposalId { node: NodeId(1), sequence: u64::from(number) + 1 };
                let batch = vec![Proposal { id, payload: Bytes::new() }];
                let now = self.now;
                match self.core().step(now, Input::Propose { batch, only_in: None }) {
                    Err(StepError::NotLeader { .. } | StepError::Busy) => return Ok(None),
                    other => self.must(other)?,
                }
            }
            Action::Change { number, change } => {
                let id = ProposalId { node: NodeId(2), sequence: u64::from(number) + 1 };
                let (now, changes) = (self.now, self.changes(change));
                // Refused in this state.
                if self.core().step(now, Input::Reconfigure { id, changes }).is_err() {
                    return Ok(None);
                }
            }
            Action::Persist => {
                let Some(write) = self.writes.pop_front() else { return Ok(None) };
                self.disk.write(&write.ops, bug);
                if bug == Some(Bug::AcknowledgesEarly) {
                    return Ok(Some(said));
                }
                said.sent.extend(write.then);
                if let Some(mark) = write.mark {
                    self.step(Input::Persisted(mark))?;
                }
            }
            Action::Crash { kept } => {
                if usize::from(kept) > self.writes.len() {
                    return Ok(None);
                }
                for write in self.writes.drain(..).take(usize::from(kept)) {
                    self.disk.write(&write.ops, bug);
                }
                self.core = Some(self.reboot(bug)?);
                return Ok(Some(said));
            }
        }
        self.settle(&mut said, bug)?;
        Ok(Some(said))
    }

    fn core(&mut self) -> &mut Raft {
        self.core.as_mut().expect("a vacant node does nothing")
    }

    fn changes(&mut self, change: Change) -> Vec<MembershipChange> {
        let last = NodeId(self.voters + 1);
        match change {
            Change::AddVoter => vec![MembershipChange::AddVoter(last)],
            Change::AddLearner => vec![MembershipChange::AddLearner(last)],
            Change::Promote(replica) => vec![MembershipChange::Promote(replica)],
            Change::Remove(replica) => vec![MembershipChange::Remove(replica)],
            Change::Alone => {
                let (me, config) = (self.id, self.core().status().config);
                config
                    .nodes
                    .keys()
                    .filter(|other| **other != me)
                    .map(|id| MembershipChange::Remove(*id))
                    .collect()
            }
        }
    }

    fn reboot(&self, bug: Option<Bug>) -> Result<Raft, String> {
        if bug == Some(Bug::StaleRecord) {
            for record in &self.disk.records {
                let disk = Disk { meta: record.clone(), ..self.disk.clone() };
                if let Ok(core) = boot(self.id, self.voters, &disk, self.now) {
                    return Ok(core);
                }
            }
        }
        if bug == Some(Bug::ForgetsChanges) {
            let mut disk = self.disk.clone();
            for entry in disk.log.iter_mut().filter(|entry| entry.kind == Kind::Config) {
                entry.kind = Kind::Noop;
            }
            return boot(self.id, self.voters, &disk, self.now);
        }
        boot(self.id, self.voters, &self.disk, self.now)
    }

    /// Drains the core and does what it wants, until it wants nothing more. The state machine applies at once.
    fn settle(&mut self, said: &mut Said, bug: Option<Bug>) -> Result<(), String> {
        let mut effects = Vec::new();
        loop {
            self.core().drain(&mut effects);
            if effects.is_empty() {
                return Ok(());
            }
            for effect in effects.drain(..) {
                self.carry_out(effect, said, bug)?;
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, said: &mut Said, bug: Option<Bug>) -> Result<(), String> {
        match effect {
            Effect::Send(message) => said.sent.push(message),
            Effect::Write { ops } => self.writes.push_back(Write { mark: None, ops, then: Vec::new() }),
            Effect::Persist { mark, ops, then } if bug == Some(Bug::AcknowledgesEarly) => {
                self.writes.push_back(Write { mark: None, ops, then: Vec::new() });
                said.sent.extend(then);
                self.step(Input::Persisted(mark))?;
            }
            Effect::Persist { mark, ops, then } => {
                self.writes.push_back(Write { mark: Some(mark), ops, then });
            }
            Effect::Commit(entries) => {
                let durable = |entry: &Entry| self.disk.log.get(index(entry.slot)) == Some(entry);
                if let Some(entry) = entries.iter().find(|entry| bug.is_none() && !durable(entry)) {
                    return Err(format!("replica {} applies slot {}, not durable here", self.id, entry.slot));
                }
                if let Some(last) = entries.last() {
                    self.step(Input::Applied(last.slot))?;
                }
            }
            Effect::Lost { id, outcome: Outcome::Dropped } => said.dropped.push(id),
            Effect::Lost { outcome: Outcome::Unknown, .. }
            | Effect::Membership { .. }
            | Effect::Role { .. } => {}
            other => return Err(format!("replica {} wants {other:?}", self.id)),
        }
        Ok(())
    }

    fn step(&mut self, input: Input) -> Result<(), String> {
        let now = self.now;
        let stepped = self.core().step(now, input);
        self.must(stepped)
    }

    fn must(&self, stepped: Result<(), StepError>) -> Result<(), String> {
        stepped.map_err(|error| format!("replica {} refuses what it was given: {error}", self.id))
    }
}
