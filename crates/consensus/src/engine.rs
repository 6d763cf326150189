//! The contract between a consensus core and whoever drives it.
//!
//! A core is a value. It is stepped with [`Input`]s and drained of [`Effect`]s; the same inputs give the same effects,
//! bit for bit. It reads no clock, draws no randomness of its own and waits for nothing.
//!
//! # What a driver must keep
//! 1. **Durability by type.** A message that promises something durable travels in the `then` of the
//!    [`Effect::Persist`] it depends on. The driver sends it after the sync, never before.
//! 2. **Order.** `Write` and `Persist` of one group reach the log in the order in which they were drained; each is atomic.
//! 3. **Completions** carry the [`Mark`] they were asked with, and come back in order.
//! 4. **Time** is read *after* the input it judges arrived, and never goes backwards within a boot.
//! 5. **`Commit` is contiguous**, at most a window beyond the last [`Input::Applied`], and never beyond what is durable here.
//! 6. **After an effect the driver could not carry out** (a failed sync above all) it stops stepping the core: the disk's state is unknown.

use std::{fmt, time::Duration};

use bytes::Bytes;

use crate::{
    Ballot, ChangeError, Config, Entries, Entry, Epoch, Head, LogOp, LogReadId, Mark, MembershipChange,
    NodeId, Proposal, ProposalId, ReadId, ReplicaId, Slot, SlotRange, SnapshotMeta, Time,
};

/// How a message may be queued, and what may be dropped first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Periodic: only the newest counts.
    Beat,
    /// Votes, acknowledgements, barriers: small, answered soon.
    Control,
    /// Entries in the ordinary course.
    Append,
    /// Catch-up that may wait behind everything else.
    Bulk,
}

/// What one replica says to another. `head` is the engine's own encoding, bounded and versioned; entries ride beside
/// it so that their payloads are never copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender.
    pub from: ReplicaId,
    /// The receiver; a core drops a message that is not for it.
    pub to: ReplicaId,
    /// How it may be queued.
    pub class: Class,
    /// The engine's own part.
    pub head: Head,
    /// Entries, in slot order.
    pub entries: Entries,
}

impl Message {
    /// What it costs in bounds of bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        32 + self.head.len() + self.entries.iter().map(Entry::size_bytes).sum::<usize>()
    }
}

/// How a linearizable read proves that it is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadMode {
    /// The leader has a quorum confirm it (Ongaro, section 6.4). Fails on any other replica.
    Quorum,
    /// The leader relies on its lease, where the engine keeps one; else as `Quorum`.
    Lease,
    /// Any replica: asks the leader for a read slot, which confirms as in `Quorum`.
    Follower,
}

/// What the log found for a [`Effect::ReadLog`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSlice {
    /// A contiguous, non-empty run that begins at the asked slot, at most the asked bytes or one entry.
    Entries(Vec<Entry>),
    /// The slot was cut: only a snapshot can help.
    Compacted,
}

/// What a core is stepped with.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has come: the deadline that [`Consensus::next_deadline`] named, or any other moment.
    Tick,
    /// A message for this replica.
    Message(Message),
    /// The host heard of a node: it lives in `epoch` and will count as alive until the given time.
    Peer {
        /// Which node.
        node: NodeId,
        /// In which of its lives.
        epoch: Epoch,
        /// Until when, on this host's clock.
        alive_until: Time,
    },
    /// Commands to be given slots, in order. Refused as a whole or taken as a whole.
    Propose {
        /// The commands.
        batch: Vec<Proposal>,
        /// If given, only while this is the ballot in which the core leads; else `Lost`.
        only_in: Option<Ballot>,
    },
    /// A linearizable read asks for the slot it must wait for.
    ReadBarrier {
        /// How the answer names it.
        id: ReadId,
        /// How it proves freshness.
        mode: ReadMode,
    },
    /// Change the membership: all of the changes, or none. The entry that decides it comes back in [`Effect::Commit`] with the id, or
    /// [`Effect::Lost`] names it; a joint configuration is left by the engine itself. [`Effect::Membership`] tells each step.
    Reconfigure {
        /// How the answer names it.
        id: ProposalId,
        /// What to change, in order.
        changes: Vec<MembershipChange>,
    },
    /// Hand leadership to another voter.
    Transfer {
        /// How the answer names it.
        id: ProposalId,
        /// The heir.
        to: ReplicaId,
    },
    /// A `Persist` with this mark, and every one before it, is durable.
    Persisted(Mark),
    /// The answer to a `ReadLog`.
    LogRead {
        /// Which one.
        id: LogReadId,
        /// What was found.
        result: LogSlice,
    },
    /// The snapshot that `FetchSnapshot` asked for is here, synced, and not yet switched to.
    SnapshotReady(SnapshotMeta),
    /// The fetch could not be finished; the core asks again when it sees need.
    SnapshotFailed,
    /// An `InstallSnapshot` with this mark is done: `Reset` durable, state switched.
    SnapshotInstalled(Mark),
    /// The state machine applied everything up to the slot.
    Applied(Slot),
    /// A durable checkpoint of the state exists: the log below its slot may go.
    Compacted(SnapshotMeta),
}

/// What became of a proposal that will not come back as a committed entry in this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It never had a slot, or another entry was chosen at its slot: it can be proposed again.
    Dropped,
    /// It may be chosen yet, or may have been: only reading tells.
    Unknown,
}

/// Why a read barrier failed. All may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ReadError {
    /// No leader is known, or this replica was to be it.
    #[error("no leader")]
    NoLeader,
    /// Leadership changed before the read was confirmed.
    #[error("leader changed")]
    LeaderChanged,
    /// Too many reads wait.
    #[error("too many reads wait")]
    Busy,
}

/// What a core wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Safe to send at once.
    Send(Message),
    /// Log operations on whose durability nothing depends.
    Write {
        /// In order, atomic.
        ops: Vec<LogOp>,
    },
    /// Log operations to be made durable, and what may be said once they are.
    Persist {
        /// Comes back in [`Input::Persisted`].
        mark: Mark,
        /// In order, atomic.
        ops: Vec<LogOp>,
        /// To be sent only after the sync.
        then: Vec<Message>,
    },
    /// Entries to apply, the first right after the last of the previous `Commit`.
    Commit(Entries),
    /// These proposals will not come back.
    Lost {
        /// Which.
        id: ProposalId,
        /// Why.
        outcome: Outcome,
    },
    /// The read may be served once everything up to `at` is applied here.
    ReadReady {
        /// Which.
        id: ReadId,
        /// From which slot on.
        at: Slot,
    },
    /// The read cannot be served.
    ReadFailed {
        /// Which.
        id: ReadId,
        /// Why.
        why: ReadError,
    },
    /// Read entries back from the log.
    ReadLog {
        /// How the answer names it.
        id: LogReadId,
        /// Which slots; the answer may be shorter.
        range: SlotRange,
        /// At most so many bytes, but at least one entry.
        bytes_max: u32,
    },
    /// This replica is behind what the others' logs still hold: fetch a snapshot. Until that is answered, a further one says who can serve
    /// too, and is not answered itself.
    FetchSnapshot {
        /// It must contain this slot.
        at_least: Slot,
        /// Who can give it, in order of preference.
        from: Vec<ReplicaId>,
    },
    /// Make the fetched snapshot the state: `Reset` durable first, then switch.
    InstallSnapshot {
        /// Comes back in [`Input::SnapshotInstalled`].
        mark: Mark,
        /// Which. Boxed: it is rare, and an effect is otherwise as small as a message.
        meta: Box<SnapshotMeta>,
    },
    /// The membership in force changed, or the one in force became committed. A replica that a committed one
    /// [has removed](Config::has_removed) may be destroyed; what was proposed at it and has no outcome is [`Outcome::Unknown`].
    Membership {
        /// To this.
        config: Box<Config>,
        /// By the entry at this slot.
        at: Slot,
        /// Whether that entry is committed.
        committed: bool,
    },
    /// Leadership changed as far as this replica knows.
    Role {
        /// The current ballot.
        ballot: Ballot,
        /// Who leads in it, if known.
        leader: Option<ReplicaId>,
        /// Whether this replica leads and has committed an entry of its ballot.
        serving: bool,
    },
}

/// Why a step was refused. The core's state is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// A peer's message that cannot be: dropped, to be counted, never fatal.
    #[error("bad message from replica {from}: {why}")]
    BadMessage {
        /// Who sent it.
        from: ReplicaId,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Only a leader can do this; forward it.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<ReplicaId>,
    },
    /// A bound was met (uncommitted entries or bytes, waiting reads): ask again later.
    #[error("too many requests in flight")]
    Busy,
    /// A proposal is larger than an entry may be.
    #[error("proposal of {size_bytes} bytes is larger than {size_bytes_max}")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The bound.
        size_bytes_max: usize,
    },
    /// The transfer's target is not a voter, or is this replica.
    #[error("replica {0} cannot be given leadership")]
    NotTransferable(ReplicaId),
    /// The core leads and has not yet committed an entry of its ballot: ask again.
    #[error("the leader does not serve yet")]
    NotServing,
    /// The change of membership is impossible.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A change of membership is not committed yet, or its joint configuration not left: one at a time.
    #[error("another change of membership is under way")]
    ChangeInProgress,
    /// A learner too far behind is no voter to wish for: the group would tolerate less.
    #[error("learner {replica} holds {matched} of {last} slots")]
    LearnerNotReady {
        /// Which learner.
        replica: ReplicaId,
        /// What it is known to hold.
        matched: Slot,
        /// What the leader holds.
        last: Slot,
    },
    /// The engine was built without this operation.
    #[error("this engine does not support {0}")]
    Unsupported(&'static str),
    /// The driver broke the contract, or the core an invariant: halt the replica.
    #[error("broken invariant: {0}")]
    Broken(&'static str),
}

/// What one replica knows of another, as its leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which.
    pub replica: ReplicaId,
    /// Known durable there up to this slot.
    pub matched: Slot,
    /// Whether it answered recently.
    pub active: bool,
}

/// A core's state for people, metrics and checkers. Cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This replica.
    pub replica: ReplicaId,
    /// The current ballot.
    pub ballot: Ballot,
    /// Who leads in it, if known.
    pub leader: Option<ReplicaId>,
    /// Whether this replica leads and has committed an entry of its ballot.
    pub serving: bool,
    /// The last slot in the log, durable or not.
    pub last: Slot,
    /// Durable here up to this slot.
    pub persisted: Slot,
    /// Known chosen up to this slot.
    pub committed: Slot,
    /// Applied up to this slot.
    pub applied: Slot,
    /// The membership in force.
    pub config: Config,
    /// As leader, the others.
    pub progress: Vec<Progress>,
}

/// One replica of one group. Object-safe, so that a host holds engines of any kind.
pub trait Consensus: Send + fmt::Debug {
    /// Takes one input at a time. Effects wait for [`drain`](Self::drain).
    ///
    /// # Errors
    /// See [`StepError`]: the state is unchanged, and only `Broken` is fatal.
    fn step(&mut self, now: Time, input: Input) -> Result<(), StepError>;

    /// When it wants to be stepped with [`Input::Tick`]; `None` if it is quiescent and costs nothing until stepped.
    fn next_deadline(&self) -> Option<Time>;

    /// Moves the effects since the last drain to the end of `out`, in the order in which they are to be carried out.
    fn drain(&mut self, out: &mut Vec<Effect>);

    /// A view for people, metrics and checkers.
    fn status(&self) -> Status;

    /// Which replica this is.
    fn replica(&self) -> ReplicaId;

    /// Who leads as far as this replica knows; [`status`](Self::status) without its allocations.
    fn leader(&self) -> Option<ReplicaId>;
}

/// What a core starts from: what the disk held, and the randomness it may use.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Which replica this is.
    pub replica: ReplicaId,
    /// The core's small durable record, empty on the first boot.
    pub meta: Bytes,
    /// The durable state: everything up to its slot is applied. At the first boot, slot 0 with the initial membership; a replica that
    /// a change of membership added boots with an empty one (`Config::default()`) and is told by its leader.
    pub state: SnapshotMeta,
    /// The entries the log holds above `state.slot`, in slot order; older ones are read back by `ReadLog`. Contiguous from there on, but
    /// for an engine that wrote its log with gaps (Paxos).
    pub entries: Vec<Entry>,
    /// The lowest slot the log still holds.
    pub first: Slot,
    /// The host's clock at boot.
    pub now: Time,
    /// Seeds the core's randomness.
    pub seed: u64,
}

/// Timing, the same for every engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader makes itself heard. Default 100 ms.
    pub heartbeat: Duration,
    /// How long silence lasts before a replica stands for election; drawn anew between one and two of it. Default 1 s.
    pub election: Duration,
}

impl Timing {
    /// How long a lease may last on its holder's clock, if those whose word it rests on keep that for an election timeout on theirs, and no
    /// clock runs faster or slower than true by more than `drift_ppm` parts in a million.
    #[must_use]
    pub fn lease_span(&self, drift_ppm: u32) -> Duration {
        let drift = u128::from(drift_ppm.min(1_000_000));
        let span = self.election.as_nanos() * (1_000_000 - drift) / (1_000_000 + drift);
        Duration::from_nanos(u64::try_from(span).unwrap_or(u64::MAX))
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat: Duration::from_millis(100), election: Duration::from_secs(1) }
    }
}
