//! One replica: its state, how it boots, and which room each input goes to.

use std::collections::{BTreeMap, VecDeque};

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{
    Ballot, Boot, Config, ConfigError, Consensus, Effect, Entries, Entry, Input, Kind, LogReadId, Mark,
    Message, Progress, ProposalId, Random, ReplicaId, Slot, SnapshotMeta, Status, StepError, Time,
};

use crate::{
    RaftConfig, RaftConfigError,
    election::Candidate,
    lease::Lease,
    log::Log,
    membership::Members,
    meta::Meta,
    outbox::Outbox,
    progress::Peer,
    proposal::Own,
    quiescence::{Drowsy, Quiescence},
    read::{Asking, Confirming},
    reconfigure::Leaving,
    snapshot::Fetch,
    transfer::Transfer,
    wire::{self, Body},
};

/// Why a replica cannot start. All but a bad configuration mean that the disk does not hold what a replica wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// A setting is out of bounds.
    #[error(transparent)]
    Config(#[from] RaftConfigError),
    /// Replica 0 is nobody.
    #[error("replica id 0 is nobody")]
    Nobody,
    /// One vote a term elects one leader a term only where any two quorums of votes meet.
    #[error("Raft elects and commits by majorities")]
    Quorums,
    /// The record of term and vote cannot be read.
    #[error("the record of term and vote cannot be read")]
    Meta,
    /// The log holds entries of a term that the record of term and vote does not know of: writes were reordered or lost.
    #[error("the log holds term {log}, but the record of term and vote says {meta}")]
    TermBehindLog {
        /// The highest term in the log.
        log: u64,
        /// The recorded term.
        meta: u64,
    },
    /// A slot is missing, or the entries do not follow on the state.
    #[error("the log has slot {found} where slot {expected} belongs")]
    Gap {
        /// The slot that follows on the one before.
        expected: Slot,
        /// What is there.
        found: Slot,
    },
    /// Terms fall along the log.
    #[error("the entry at slot {0} has a lower term than the one before it")]
    TermFalls(Slot),
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

/// What a replica is in its term.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    Follower,
    /// Asks whether it would be elected (thesis, section 9.6).
    PreCandidate(Candidate),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

/// What a leader keeps besides.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) peers: BTreeMap<ReplicaId, Peer>,
    /// The slot of the entry with which the term began.
    pub(crate) began_at: Slot,
    /// When the next beat is due.
    pub(crate) beat_due: Time,
    pub(crate) reads: Confirming,
    pub(crate) transfer: Option<Transfer>,
    pub(crate) lease: Lease,
    /// Leadership is offered to nobody of higher priority before.
    pub(crate) prefers_after: Time,
    pub(crate) drowsy: Drowsy,
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

/// One replica of one group under Raft: see the [crate's documentation](crate).
#[derive(Clone, Debug)]
pub struct Raft {
    pub(crate) id: ReplicaId,
    pub(crate) config: RaftConfig,
    pub(crate) random: Random,
    pub(crate) now: Time,

    pub(crate) meta: Meta,
    pub(crate) log: Log,
    pub(crate) members: Members,
    /// The newest durable state here, which is also what a laggard is offered.
    pub(crate) state: SnapshotMeta,

    pub(crate) role: Role,
    pub(crate) leader: Option<ReplicaId>,
    /// Until then a leader may rely on this replica not to vote for another.
    pub(crate) quiet_until: Time,
    /// When the last promise of the recorded length is over.
    pub(crate) promised_until: Time,
    pub(crate) election_due: Time,
    /// Since a leader was heard, a candidate that lacks what the log here holds counted on this replica's vote.
    pub(crate) called: bool,
    pub(crate) quiescence: Quiescence,

    /// Durable here up to this slot.
    pub(crate) persisted: Slot,
    pub(crate) committed: Slot,
    /// Handed out in `Commit` up to this slot.
    pub(crate) delivered: Slot,
    /// Of what was handed out and is not applied: the last slot and the bytes of each `Commit`, and their sum.
    pub(crate) unapplied: VecDeque<(Slot, usize)>,
    pub(crate) unapplied_bytes: usize,
    pub(crate) applied: Slot,
    /// Bytes above `committed`.
    pub(crate) uncommitted_bytes: usize,
    /// The read that brings committed entries back that memory could not hold.
    pub(crate) delivery_read: Option<LogReadId>,
    log_reads: u64,

    pub(crate) own: Own,
    pub(crate) asking: Asking,
    pub(crate) fetch: Fetch,
    pub(crate) outbox: Outbox,
    /// The acknowledgement that the batch ends with: to whom, up to where.
    pub(crate) acknowledge: Option<(ReplicaId, Slot)>,
    told: Told,
}

impl Raft {
    /// A replica as the disk left it. What the log holds at boot counts as durable.
    ///
    /// A replica that is the only voter stands for election at its first tick, unless it may have promised a leader not to; any other waits
    /// between one and two election timeouts. Until one has passed, or what it promised, it votes for nobody, unless this is its first boot.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn new(boot: Boot, config: RaftConfig) -> Result<Self, BootError> {
        config.validate()?;
        if boot.replica == ReplicaId(0) {
            return Err(BootError::Nobody);
        }
        if boot.state.config.quorums.is_some() || boot.state.config.outgoing_quorums.is_some() {
            return Err(BootError::Quorums);
        }
        let first_boot = boot.meta.is_empty();
        let mut meta = Meta::decode(&boot.meta).ok_or(BootError::Meta)?;
        if first_boot {
            meta.term = boot.state.ballot.round;
        }
        let mut log = Log::new(boot.first.max(Slot(1)), &boot.state);
        let mut members = Members::new(boot.state.slot, boot.state.config.clone());
        let mut uncommitted_bytes = 0;
        for entry in boot.entries {
            if entry.slot != log.last().next() {
                return Err(BootError::Gap { expected: log.last().next(), found: entry.slot });
            }
            if entry.ballot < log.last_ballot() {
                return Err(BootError::TermFalls(entry.slot));
            }
            if entry.kind == Kind::Config {
                let slot = entry.slot;
                let config = Config::decode(&entry.payload)
                    .map_err(|source| BootError::Membership { slot, source })?;
                members.append(slot, config);
            }
            uncommitted_bytes += entry.size_bytes();
            log.append(entry.into());
        }
        if log.last_ballot().round > meta.term {
            return Err(BootError::TermBehindLog { log: log.last_ballot().round, meta: meta.term });
        }
        let mut random = Random::new(boot.seed ^ boot.replica.0.rotate_left(32));
        let applied = boot.state.slot;
        let quiet_until =
            if first_boot { Time(0) } else { boot.now.after(config.timing.election.max(meta.promise)) };
        let told = Told { ballot: Ballot::term(meta.term), leader: None, serving: false };
        let asking = Asking::new(random.number());
        let mut raft = Self {
            id: boot.replica,
            config,
            random,
            now: boot.now,
            meta,
            persisted: log.last(),
            log,
            members,
            state: boot.state,
            role: Role::Follower,
            leader: None,
            quiet_until,
            promised_until: quiet_until,
            election_due: boot.now,
            called: false,
            quiescence: Quiescence::default(),
            committed: applied,
            delivered: applied,
            unapplied: VecDeque::new(),
            unapplied_bytes: 0,
            applied,
            uncommitted_bytes,
            delivery_read: None,
            log_reads: 0,
            own: Own::default(),
            asking,
            fetch: Fetch::Idle,
            outbox: Outbox::default(),
            acknowledge: None,
            told,
        };
        #[cfg(feature = "mutants")]
        if Mutant::BootedReplicaVotes.is_on() {
            raft.quiet_until = Time(0);
        }
        if !raft.is_sole_voter() || !raft.meta.promise.is_zero() {
            raft.rearm_election();
        }
        Ok(raft)
    }

    pub(crate) fn ballot(&self) -> Ballot {
        Ballot::term(self.meta.term)
    }

    pub(crate) fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// Whether this replica leads and has committed an entry of its term.
    pub(crate) fn is_serving(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if self.committed >= leader.began_at)
    }

    pub(crate) fn is_sole_voter(&self) -> bool {
        self.members.config().is_elect_quorum(|replica| replica == self.id)
    }

    pub(crate) fn message(&self, to: ReplicaId, body: Body) -> Message {
        wire::message(self.id, to, self.meta.term, body, Entries::default())
    }

    pub(crate) fn next_log_read(&mut self) -> LogReadId {
        self.log_reads += 1;
        LogReadId(self.log_reads)
    }

    /// Whether a write has been on its way to the disk for an election timeout.
    pub(crate) fn disk_stalls(&self) -> bool {
        self.outbox.waits_since().is_some_and(|since| self.now.since(since) >= self.config.timing.election)
    }

    /// Adds an entry at the end of the log and to the batch.
    pub(crate) fn append(&mut self, kind: Kind, id: ProposalId, payload: bytes::Bytes) {
        let slot = self.log.last().next();
        self.append_run(Entry { slot, ballot: self.ballot(), kind, id, payload }.into());
    }

    /// Adds entries at the end of the log and to the batch, or to several where one cannot hold them.
    pub(crate) fn append_run(&mut self, entries: Entries) {
        for entry in &entries {
            if entry.kind == Kind::Config
                && let Ok(config) = Config::decode(&entry.payload)
            {
                self.enter_config(entry.slot, config);
            }
            self.uncommitted_bytes += entry.size_bytes();
        }
        let mut rest = entries.clone();
        while !rest.is_empty() {
            match self.outbox.room_for(&rest, self.config.batch_bytes_max) {
                0 => self.outbox.flush(self.ballot(), self.now),
                room => self.outbox.put(rest.split_to(room)),
            }
        }
        self.log.append(entries);
    }

    fn on_persisted(&mut self, mark: Mark) {
        let Some(upto) = self.outbox.complete(mark) else { return };
        self.persisted = self.persisted.max(upto);
        match self.role {
            Role::Candidate(_) => self.count_own_vote(),
            Role::Leader(_) => self.advance_commit(),
            Role::Follower | Role::PreCandidate(_) => {}
        }
    }

    fn on_tick(&mut self) {
        match self.role {
            _ if self.is_asleep() => {}
            Role::Leader(_) => self.tick_leader(),
            _ if self.now >= self.election_due => self.election_timeout(),
            _ => {}
        }
        self.retry_read_asks();
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

impl Consensus for Raft {
    fn step(&mut self, now: Time, input: Input) -> Result<(), StepError> {
        self.now = self.now.max(now);
        if !matches!(input, Input::Peer { .. }) {
            self.wake_if_alone();
        }
        match input {
            Input::Tick => self.on_tick(),
            Input::Message(message) => self.on_message(message)?,
            Input::Propose { batch, only_in } => self.propose(batch, only_in)?,
            Input::ReadBarrier { id, mode } => self.read_barrier(id, mode)?,
            Input::Peer { node, epoch, alive_until } => self.on_peer(node, epoch, alive_until),
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
            _ if self.is_asleep() => None,
            Role::Leader(leader) => {
                let beat = (!leader.peers.is_empty()).then_some(leader.beat_due);
                let stall = self.outbox.waits_since().map(|since| since.after(election));
                let transfer = leader.transfer.as_ref().map(|transfer| transfer.until);
                [beat, stall, transfer].into_iter().flatten().min()
            }
            _ => self.may_stand().then_some(self.election_due),
        };
        [role, self.read_retry_due()].into_iter().flatten().min()
    }

    fn drain(&mut self, out: &mut Vec<Effect>) {
        self.send_read_asks();
        if self.is_leader() {
            self.begin_read_round();
            self.send_appends();
            self.retire_if_removed();
        }
        self.flush_acknowledgement();
        self.outbox.flush(self.ballot(), self.now);
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
                    active: self.is_active(peer) || (self.is_asleep() && self.lives(*replica)),
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
            committed: self.committed,
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::NodeId;

    use super::*;

    fn boot() -> Boot {
        Boot {
            replica: ReplicaId(1),
            meta: Bytes::new(),
            state: SnapshotMeta {
                config: Config::of_voters((1..=3).map(|id| (ReplicaId(id), NodeId(id)))),
                ..SnapshotMeta::default()
            },
            entries: Vec::new(),
            first: Slot(1),
            now: Time(0),
            seed: 1,
        }
    }

    fn entry(slot: u64, term: u64) -> Entry {
        let (slot, ballot) = (Slot(slot), Ballot::term(term));
        Entry { slot, ballot, kind: Kind::Noop, id: ProposalId::NONE, payload: Bytes::new() }
    }

    fn refused(boot: Boot) -> BootError {
        Raft::new(boot, RaftConfig::default()).unwrap_err()
    }

    #[test]
    fn a_disk_that_no_replica_can_have_written_is_refused() {
        let meta = Meta { term: 2, ..Meta::default() }.encode();
        assert_eq!(refused(Boot { replica: ReplicaId(0), ..boot() }), BootError::Nobody);
        let sizes = conclave_consensus::Quorums { elect: 2, commit: 2 };
        let config = boot().state.config.with_quorums(Some(sizes)).unwrap();
        let state = SnapshotMeta { config, ..SnapshotMeta::default() };
        assert_eq!(refused(Boot { state, ..boot() }), BootError::Quorums);
        assert_eq!(refused(Boot { meta: Bytes::from_static(b"?"), ..boot() }), BootError::Meta);
        assert_eq!(
            refused(Boot { entries: vec![entry(2, 1)], meta: meta.clone(), ..boot() }),
            BootError::Gap { expected: Slot(1), found: Slot(2) }
        );
        assert_eq!(
            refused(Boot { entries: vec![entry(1, 2), entry(2, 1)], meta: meta.clone(), ..boot() }),
            BootError::TermFalls(Slot(2))
        );
        assert_eq!(
            refused(Boot { entries: vec![entry(1, 3)], meta: meta.clone(), ..boot() }),
            BootError::TermBehindLog { log: 3, meta: 2 }
        );
        let bad = Entry { kind: Kind::Config, ..entry(1, 1) };
        assert!(matches!(refused(Boot { entries: vec![bad], meta, ..boot() }), BootError::Membership { .. }));
    }
}
