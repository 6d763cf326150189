//! One replica as it is explored: a core, its clock, its disk, and the writes on their way to the disk.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::{
    Boot, Config, Consensus, Effect, Entry, Input, LogOp, Mark, MembershipChange, Message, NodeId, Outcome,
    Proposal, ProposalId, ReplicaId, Slot, SnapshotMeta, StepError, Time, Timing,
};
use conclave_raft::{Raft, RaftConfig};

use super::{Bug, canonical};

/// Long beside any number of heartbeats within the bounds.
const ELECTION: Duration = Duration::from_secs(3600);
const HEARTBEAT: Duration = Duration::from_millis(1);

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
    /// The replica is asked to remove another.
    Remove(u8),
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
    id: ReplicaId,
    replicas: usize,
    core: Raft,
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

fn boot(id: ReplicaId, replicas: usize, disk: &Disk, now: Time) -> Result<Raft, String> {
    let members = (1..=replicas as u64).map(|id| (ReplicaId(id), NodeId(id)));
    let boot = Boot {
        replica: id,
        meta: disk.meta.clone(),
        state: SnapshotMeta { config: Config::of_voters(members), ..SnapshotMeta::default() },
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
    /// A replica that never ran.
    pub(super) fn new(id: u64, replicas: usize) -> Result<Self, String> {
        let (id, disk) = (ReplicaId(id), Disk::default());
        let core = boot(id, replicas, &disk, Time(0))?;
        Ok(Self { id, replicas, core, now: Time(0), disk, writes: VecDeque::new() })
    }

    /// The text that stands for this state.
    pub(super) fn canonical(&self) -> String {
        let mut text = canonical::reduce(&format!("{:?}", self.core), self.now, ELECTION);
        text.push_str(&format!("{:?}", self.disk));
        for write in &self.writes {
            text.push_str(&format!("{:?}{:?}{}", write.ops, write.then, write.mark.is_some()));
        }
        text
    }

    pub(super) fn view(&self) -> View {
        let status = self.core.status();
        let mut written = self.disk.clone();
        for write in &self.writes {
            written.write(&write.ops, None);
        }
        View {
            term: status.ballot.round,
            leads: status.leader == Some(self.id),
            committed: usize::try_from(status.committed.0).unwrap_or(usize::MAX),
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
        let stepped = match action {
            Action::Receive(_) => {
                let Some(message) = message else { return Ok(None) };
                self.core.step(self.now, Input::Message(message.clone()))
            }
            Action::Tick => {
                let Some(deadline) = self.core.next_deadline() else { return Ok(None) };
                self.now = self.now.max(deadline);
                self.core.step(self.now, Input::Tick)
            }
            Action::Silence => {
                self.now = self.now.after(ELECTION);
                return Ok(Some(said));
            }
            Action::Propose(number) => {
                let id = ProposalId { node: NodeId(1), sequence: u64::from(number) + 1 };
                let batch = vec![Proposal { id, payload: Bytes::new() }];
                match self.core.step(self.now, Input::Propose { batch, only_in: None }) {
                    Err(StepError::NotLeader { .. } | StepError::Busy) => return Ok(None),
                    other => other,
                }
            }
            Action::Remove(replica) => {
                let id = ProposalId { node: NodeId(2), sequence: u64::from(replica) };
                let change = MembershipChange::Remove(ReplicaId(u64::from(replica)));
                match self.core.step(self.now, Input::Reconfigure { id, changes: vec![change] }) {
                    // Refused in this state, or not offered.
                    Err(_) => return Ok(None),
                    other => other,
                }
            }
            Action::Persist => {
                let Some(write) = self.writes.pop_front() else { return Ok(None) };
                self.disk.write(&write.ops, bug);
                if bug == Some(Bug::AcknowledgesEarly) {
                    return Ok(Some(said));
                }
                said.sent.extend(write.then);
                match write.mark {
                    Some(mark) => self.core.step(self.now, Input::Persisted(mark)),
                    None => Ok(()),
                }
            }
            Action::Crash { kept } => {
                if usize::from(kept) > self.writes.len() {
                    return Ok(None);
                }
                for write in self.writes.drain(..).take(usize::from(kept)) {
                    self.disk.write(&write.ops, bug);
                }
                self.core = self.reboot(bug)?;
                return Ok(Some(said));
            }
        };
        stepped.map_err(|error| format!("replica {} refuses what it was given: {error}", self.id))?;
        self.settle(&mut said, bug)?;
        Ok(Some(said))
    }

    fn reboot(&self, bug: Option<Bug>) -> Result<Raft, String> {
        if bug == Some(Bug::StaleRecord) {
            for record in &self.disk.records {
                let disk = Disk { meta: record.clone(), ..self.disk.clone() };
                if let Ok(core) = boot(self.id, self.replicas, &disk, self.now) {
                    return Ok(core);
                }
            }
        }
        boot(self.id, self.replicas, &self.disk, self.now)
    }

    /// Drains the core and does what it wants, until it wants nothing more. The state machine applies at once.
    fn settle(&mut self, said: &mut Said, bug: Option<Bug>) -> Result<(), String> {
        let mut effects = Vec::new();
        loop {
            self.core.drain(&mut effects);
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
        let stepped = self.core.step(self.now, input);
        stepped.map_err(|error| format!("replica {} refuses what it was given: {error}", self.id))
    }
}
