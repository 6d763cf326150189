//! One replica: its state, how it boots, and which room each input goes to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{
    Ballot, Boot, Config, ConfigError, Consensus, Effect, Entries, Entry, Input, Kind, LogReadId, Mark,
    Message, Progress, ProposalId, Random, ReplicaId, Slot, SnapshotMeta, Status, StepError, Time,
};

use crate::{
    PaxosConfig, PaxosConfigError,
    catchup::CatchUp,
    election::Seek,
    lease::Lease,
    log::Log,
    members::Members,
    meta::Meta,
    outbox::Outbox,
    progress::Peer,
    proposal::Own,
    read::{Asking, Confirming},
    reconfigure::Leaving,
    recovery::Candidate,
    snapshot::Fetch,
    transfer::Transfer,
    wire::{self, Body},
};

/// How far what is known chosen may be ahead of what the record says, before it is recorded with the next write.
const CHOSEN_UNRECORDED_MAX: u64 = 1_024;

/// Why a replica cannot start. All but a bad configuration mean that the disk does not hold what a replica wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// A setting is out of bounds.
    #[error(transparent)]
    Config(#[from] PaxosConfigError),
    /// Replica 0 is nobody.
    #[error("replica id 0 is nobody")]
    Nobody,
    /// The record of what was promised cannot be read.
    #[error("the record of what was promised cannot be read")]
    Meta,
    /// The log holds an entry that was accepted in a higher ballot than was promised: writes were reordered or lost.
    #[error("the entry at slot {0} was accepted in a higher ballot than the record of promises knows of")]
    PromiseBehindLog(Slot),
    /// Entries are not in slot order, or the lowest does not follow on the state.
    #[error("the log has slot {found} where slot {expected} or a later one belongs")]
    Order {
        /// The lowest that can follow.
        expected: Slot,
        /// What is there.
        found: Slot,
    },
    /// A membership entry cannot be read.
    #[error("the configuration at slot {slot} cannot be read")]
    Membership {
        /// Where it stands.
        slot: Slot,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
}

/// What a replica is in its ballot.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    Follower,
    /// Runs phase 1.
    Candidate(Box<Candidate>),
    Leader(Box<Leader>),
}

/// What a leader keeps besides.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) peers: BTreeMap<ReplicaId, Peer>,
    /// The last slot that phase 1 found: what was chosen before this ballot is chosen here once this one is.
    pub(crate) recovered: Slot,
    /// The slot of the configuration that ends this one, from its proposal on. Nothing is proposed beyond.
    pub(crate) stop: Option<Slot>,
    /// The stop is chosen and another configuration in force, without a vote for this replica: it only helps the others to it.
    pub(crate) is_over: bool,
    /// When the next beat is due.
    pub(crate) beat_due: Time,
    pub(crate) reads: Confirming,
    pub(crate) transfer: Option<Transfer>,
    pub(crate) lease: Lease,
    /// Leadership is offered to nobody of higher priority before.
    pub(crate) prefers_after: Time,
    /// Peers that the configuration in force no longer has.
    pub(crate) leaving: Vec<Leaving>,
}

/// The last `Role` effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    ballot: Ballot,
    leader: Option<ReplicaId>,
    serving: bool,
}

/// One replica of one group under Multi-Paxos: see the [crate's documentation](crate).
#[derive(Clone, Debug)]
pub struct Paxos {
    pub(crate) id: ReplicaId,
    pub(crate) config: PaxosConfig,
    pub(crate) random: Random,
    pub(crate) now: Time,

    pub(crate) meta: Meta,
    /// What the record says is chosen.
    pub(crate) chosen_recorded: Slot,
    pub(crate) log: Log,
    pub(crate) members: Members,
    /// The write that remembers that the configuration is in force.
    pub(crate) entered_in: u64,
    /// Accepted configurations that are not chosen.
    pub(crate) stops: BTreeSet<Slot>,
    /// The newest durable state here, which is also what a laggard is offered.
    pub(crate) state: SnapshotMeta,

    pub(crate) role: Role,
    pub(crate) leader: Option<ReplicaId>,
    /// Until then the leader counts as heard, and nothing is promised to another.
    pub(crate) heard_until: Time,
    /// Until then a lease may rest on this replica.
    pub(crate) promised_until: Time,
    /// Until then someone else's phase 1 is given time.
    pub(crate) candidate_until: Time,
    pub(crate) election_due: Time,
    pub(crate) seek: Seek,

    /// Each slot up to here was accepted in the promised ballot, or is known chosen.
    pub(crate) received: Slot,
    /// Each slot up to here is durable here.
    pub(crate) persisted: Slot,
    /// Each slot up to here is known chosen, and held.
    pub(crate) chosen: Slot,
    /// Handed out in `Commit` up to this slot.
    pub(crate) delivered: Slot,
    /// Of what was handed out and is not applied: the last slot and the bytes of each `Commit`, and their sum.
    pub(crate) unapplied: VecDeque<(Slot, usize)>,
    pub(crate) unapplied_bytes: usize,
    pub(crate) applied: Slot,
    /// Bytes above `chosen`.
    pub(crate) unchosen_bytes: usize,
    /// The read that brings chosen entries back that memory could not hold.
    pub(crate) delivery_read: Option<LogReadId>,
    log_reads: u64,

    pub(crate) own: Own,
    pub(crate) asking: Asking,
    pub(crate) fetch: Fetch,
    pub(crate) catch_up: CatchUp,
    pub(crate) outbox: Outbox,
    /// Runs accepted since the last drain in the ballot of the leader, to be acknowledged to it.
    pub(crate) acknowledge: Option<Vec<(Slot, Slot)>>,
    told: Told,
}

impl Paxos {
    /// A replica as the disk left it. What the log holds at boot counts as durable.
    ///
    /// A replica that is the only voter stands for election at its first tick, unless it may have promised a lease; any other looks for a leader after
    /// an election timeout. Until one has passed, or what it promised, it promises nothing, unless this is its first boot.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn new(boot: Boot, config: PaxosConfig) -> Result<Self, BootError> {
        config.validate()?;
        if boot.replica == ReplicaId(0) {
            return Err(BootError::Nobody);
        }
        let first_boot = boot.meta.is_empty();
        let (meta, chosen_recorded) = Meta::decode(&boot.meta).ok_or(BootError::Meta)?;
        let applied = boot.state.slot;
        let mut log = Log::new(boot.first.max(Slot(1)), applied);
        let mut stops = BTreeSet::new();
        let mut expected = applied.next();
        for entry in boot.entries {
            if entry.slot < expected {
                return Err(BootError::Order { expected, found: entry.slot });
            }
            expected = entry.slot.next();
            if entry.ballot == Ballot::default() {
                continue; // A filler: see `snapshot`.
            }
            if entry.ballot > meta.promise.ballot() {
                return Err(BootError::PromiseBehindLog(entry.slot));
            }
            if entry.kind == Kind::Config {
                let slot = entry.slot;
                Config::decode(&entry.payload).map_err(|source| BootError::Membership { slot, source })?;
                stops.insert(slot);
            }
            log.put(entry.into(), 0);
        }
        let mut persisted = applied;
        while log.get(persisted.next()).is_some() {
            persisted = persisted.next();
        }
        #[cfg(feature = "mutants")]
        let meta = if Mutant::PromiseLostOnRestart.is_on() { Meta::default() } else { meta };
        let mut random = Random::new(boot.seed ^ boot.replica.0.rotate_left(32));
        let quiet = boot.now.after(config.timing.election.max(meta.lease));
        let quiet_until = if first_boot { Time(0) } else { quiet };
        let told = Told { ballot: meta.promise.ballot(), leader: None, serving: false };
        let asking = Asking::new(random.number());
        let unchosen_bytes = log.bytes();
        let mut paxos = Self {
            id: boot.replica,
            config,
            random,
            now: boot.now,
            meta,
            chosen_recorded,
            log,
            members: Members::new(applied, boot.state.config.clone()),
            entered_in: 0,
            stops,
            state: boot.state,
            role: Role::Follower,
            leader: None,
            heard_until: quiet_until,
            promised_until: quiet_until,
            candidate_until: Time(0),
            election_due: boot.now,
            seek: Seek::default(),
            received: applied,
            persisted,
            chosen: applied,
            delivered: applied,
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            applied,
            unchosen_bytes,
            delivery_read: None,
            log_reads: 0,
            own: Own::default(),
            asking,
            fetch: Fetch::Idle,
            catch_up: CatchUp::default(),
            outbox: Outbox::default(),
            acknowledge: None,
            told,
        };
        #[cfg(feature = "mutants")]
        if Mutant::BootedReplicaVotes.is_on() {
            (paxos.heard_until, paxos.promised_until) = (Time(0), Time(0));
        }
        paxos.chosen_to(chosen_recorded.min(persisted));
        paxos.advance_received();
        if !paxos.is_sole_voter() || !paxos.meta.lease.is_zero() {
            paxos.rearm_election();
        }
        Ok(paxos)
    }

    /// The ballot that this replica promised last, which is its own if it leads or runs phase 1.
    pub(crate) fn ballot(&self) -> Ballot {
        self.meta.promise.ballot()
    }

    pub(crate) fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// Whether this replica leads and knows everything to be chosen that was before.
    pub(crate) fn is_serving(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if self.chosen >= leader.recovered && !leader.is_over)
    }

    pub(crate) fn is_sole_voter(&self) -> bool {
        let config = self.members.config();
        config.is_elect_quorum(|replica| replica == self.id)
            && config.is_commit_quorum(|replica| replica == self.id)
    }

    pub(crate) fn message(&self, to: ReplicaId, body: Body) -> Message {
        wire::message(self.id, to, self.ballot(), body, Entries::default())
    }

    pub(crate) fn next_log_read(&mut self) -> LogReadId {
        self.log_reads += 1;
        LogReadId(self.log_reads)
    }

    /// Whether a write has been on its way to the disk for an election timeout.
    pub(crate) fn disk_stalls(&self) -> bool {
        self.outbox.waits_since().is_some_and(|since| self.now.since(since) >= self.config.timing.election)
    }

    /// Promises a ballot, durably before anything that is said of it.
    pub(crate) fn write_meta(&mut self) -> u64 {
        self.chosen_recorded = self.chosen;
        self.outbox.write_meta(self.meta.encode(self.chosen))
    }

    /// Proposes a value at the next slot of the own ballot.
    pub(crate) fn append(&mut self, kind: Kind, id: ProposalId, payload: bytes::Bytes) {
        let slot = self.log.last().next();
        self.accept_entry(Entry { slot, ballot: self.ballot(), kind, id, payload });
    }

    /// Accepts an entry at its slot, which is not known chosen.
    pub(crate) fn accept_entry(&mut self, entry: Entry) {
        self.accept(entry.into());
    }

    /// Accepts entries at successive slots, which are not known chosen: in memory and into the batch.
    pub(crate) fn accept(&mut self, mut entries: Entries) {
        while !entries.is_empty() {
            match self.outbox.room_for(&entries, self.config.batch_bytes_max) {
                0 => self.flush(),
                count => self.accept_run(entries.split_to(count)),
            }
        }
    }

    fn accept_run(&mut self, entries: Entries) {
        let Some(first) = entries.first().map(|entry| entry.slot) else { return };
        for entry in &entries {
            if entry.kind == Kind::Config {
                self.stops.insert(entry.slot);
            } else {
                self.stops.remove(&entry.slot);
            }
            self.unchosen_bytes += entry.size_bytes();
        }
        self.outbox.put(entries.clone());
        for before in self.log.put(entries.clone(), self.outbox.sequence()) {
            self.unchosen_bytes -= before.size_bytes();
            if entries[(before.slot.0 - first.0) as usize].id != before.id {
                self.doubt(&before);
            }
        }
        if first <= self.persisted {
            self.persisted = first.before();
        }
    }

    /// Closes the batch. What is chosen is recorded on the way now and then.
    pub(crate) fn flush(&mut self) {
        if self.outbox.writes_entries() && self.chosen.0 - self.chosen_recorded.0 >= CHOSEN_UNRECORDED_MAX {
            self.chosen_recorded = self.chosen;
            self.outbox.note(|| self.meta.encode(self.chosen));
        }
        self.outbox.flush(self.meta.promise.ballot(), self.now);
    }

    fn on_persisted(&mut self, mark: Mark) {
        if !self.outbox.complete(mark) {
            return;
        }
        self.advance_persisted();
        match self.role {
            Role::Candidate(_) => self.finish_if_recovered(),
            Role::Leader(_) => {
                self.advance_chosen();
                self.settle_if_held();
            }
            Role::Follower => {}
        }
    }

    pub(crate) fn advance_persisted(&mut self) {
        self.persisted = self.log.durable_to(self.persisted.next(), self.outbox.durable());
    }

    fn on_tick(&mut self) {
        match self.role {
            Role::Leader(_) => self.tick_leader(),
            Role::Candidate(_) => self.tick_candidate(),
            Role::Follower if self.now >= self.election_due => self.look_for_leader(),
            Role::Follower => {}
        }
        self.retry_read_asks();
        self.retry_catch_up();
        self.give_up_doubtful();
    }

    fn tell_role(&mut self) {
        let told = Told { ballot: self.ballot(), leader: self.leader, serving: self.is_serving() };
        if told != self.told {
            self.told = told;
            let Told { ballot, leader, serving } = told;
            self.outbox.push(Effect::Role { ballot, leader, serving });
        }
    }
}

impl Consensus for Paxos {
    fn step(&mut self, now: Time, input: Input) -> Result<(), StepError> {
        self.now = self.now.max(now);
        match input {
            Input::Tick => self.on_tick(),
            Input::Message(message) => self.on_message(message)?,
            Input::Propose { batch, only_in } => self.propose(batch, only_in)?,
            Input::ReadBarrier { id, mode } => self.read_barrier(id, mode)?,
            Input::Peer { .. } => {} // This engine does not sleep by it.
            Input::Reconfigure { id, changes } => self.reconfigure(id, &changes)?,
            Input::Transfer { id, to } => self.transfer(id, to)?,
            Input::Persisted(mark) => self.on_persisted(mark),
            Input::LogRead { id, result } => self.on_log_read(id, result)?,
            Input::SnapshotReady(meta) => self.on_snapshot_ready(meta),
            Input::SnapshotFailed => self.on_snapshot_failed(),
            Input::SnapshotInstalled(mark) => self.on_snapshot_installed(mark),
            Input::Applied(slot) => self.on_applied(slot)?,
            Input::Compacted(meta) => self.on_compacted(meta)?,
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Time> {
        let election = self.config.timing.election;
        let role = match &self.role {
            Role::Leader(leader) => {
                let beat = (!leader.peers.is_empty()).then_some(leader.beat_due);
                let stall = self.outbox.waits_since().map(|since| since.after(election));
                let transfer = leader.transfer.as_ref().map(|transfer| transfer.until);
                [beat, stall, transfer].into_iter().flatten().min()
            }
            Role::Candidate(candidate) => Some(candidate.beat_due),
            Role::Follower => self.members.config().is_voter(self.id).then_some(self.election_due),
        };
        [role, self.read_retry_due(), self.catch_up.due(), self.own.doubt_due()].into_iter().flatten().min()
    }

    fn drain(&mut self, out: &mut Vec<Effect>) {
        self.send_read_asks();
        if self.is_leader() {
            self.begin_read_round();
            self.send_accepts();
            self.retire_if_over();
        }
        self.flush_acknowledgement();
        self.flush();
        self.deliver();
        self.tell_role();
        self.release();
        self.outbox.drain(out);
    }

    fn status(&self) -> Status {
        let progress = match &self.role {
            Role::Leader(leader) => leader
                .peers
                .iter()
                .map(|(replica, peer)| Progress {
                    replica: *replica,
                    matched: peer.matched,
                    active: self.is_active(peer),
                })
                .collect(),
            _ => Vec::new(),
        };
        Status {
            replica: self.id,
            ballot: self.ballot(),
            leader: self.leader,
            serving: self.is_serving(),
            last: self.log.last(),
            persisted: self.persisted,
            committed: self.chosen,
            applied: self.applied,
            config: self.members.config().clone(),
            progress,
        }
    }

    fn leader(&self) -> Option<ReplicaId> {
        self.leader
    }

    fn replica(&self) -> ReplicaId {
        self.id
    }
}
