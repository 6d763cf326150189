//! Raft as a pure state machine: no I/O, no clock, no thread, no global randomness.
//!
//! # The problem
//! A few replicas are to agree on one sequence of entries, although messages are lost, repeated and reordered and processes crash and
//! come back with what their disk held. What was once *chosen* must stay chosen, and as long as a majority of replicas lives and
//! can talk, new entries must become chosen. Raft solves it with a leader: replicas elect one for a *term*, it gives
//! each entry its slot, and an entry is chosen when a quorum holds it durably.
//!
//! This crate is Raft's deciding part behind the [`Consensus`](conclave_consensus::Consensus) trait: a value that is stepped with
//! inputs and drained of effects. It follows Diego Ongaro's thesis, *Consensus: Bridging Theory and Practice* (2014), cited below as
//! "thesis"; "paper" is Ongaro and Ousterhout, *In Search of an Understandable Consensus Algorithm* (extended version, 2014).
//!
//! # Vocabulary
//! * *Term*: Raft's ballot, `Ballot::term(t)`. At most one replica leads in a term.
//! * *Slot*: a position in the log (the paper's index).
//! * *Persisted*: durable in this replica's log. *Committed*: known chosen. *Delivered*: handed out in `Commit`. *Applied*: the state
//!   machine said so. Always applied ≤ delivered ≤ min(committed, persisted).
//! * *Batch*: what gathers between two drains and is written as one `Persist`.
//! * *Learner*: a member that receives entries and counts for nothing. *Joint*: the configuration between two sets of voters.
//! * *Round*: a heartbeat that all replicas answer, by which a leader confirms that it leads.
//!
//! # The rules
//! Each with what breaks without it; in brackets, where the tests in `tests/suite` show it.
//! 1. **One vote a term**, durable before it is told, and only for a log that holds at least as much (paper 5.4.1). A candidate counts
//!    its own vote when that is durable, and asks for others only then. *Else* two lead in one term, or a leader lacks what was chosen
//!    (`paper`, `wounds`).
//! 2. **Pre-vote** (thesis 9.6): before it raises its term a replica asks whether it would be elected. Asking and granting change
//!    nothing: neither a term nor when a leader was last heard. *Else* whoever was away deposes the leader when it comes back (`wounds`).
//! 3. **Check-quorum** (thesis 6.2): a leader that has not heard a quorum for an election timeout steps down; a replica that heard a
//!    leader within one ignores candidates, unless that leader itself sent them (thesis 3.10). A booted replica ignores them as
//!    long, for it may have answered a leader just before. Neither can be turned off: each needs the other. *Else* leadership goes round, or
//!    stays where nothing can be chosen (`partitions`).
//! 4. **A leader with a hanging disk steps down**: a write that is not durable within an election timeout counts as silence. *Else* a group
//!    waits for as long as the disk does (`wounds`).
//! 5. **Followers make their log the leader's** (paper 5.3): an entry is accepted where the one before it matches; a conflicting suffix
//!    is truncated, never below what is committed. Acknowledgements travel in the `then` of the `Persist` they rest on. *Else* logs
//!    differ, or a crash takes back what was acknowledged (`paper`, `replication`, `wounds`).
//! 6. **A leader commits by counting only entries of its own term** (paper 5.4.2), itself included only once it persisted them. So its
//!    first entry is a no-op (thesis 6.4), and only when that is committed is it *serving*. *Else* what was chosen is replaced: the paper's
//!    Figure 8 (`paper`).
//! 7. **A read** (thesis 6.4) may be served at the leader's commit slot of a moment after the read arrived, once a quorum answered a
//!    round begun after that moment; under a *lease* (thesis 6.4.1) at once, where a bound on the drift of clocks is stated.
//!    Never before the leader serves. *Else* reads are stale (`wounds`, `lease`).
//! 8. **A configuration is in force when it is appended** (thesis 4.1) and ceases to be when truncated. Who votes changes through a joint
//!    configuration (thesis 4.3), one change at a time, begun by a leader that serves and left by whoever serves next. Requests are
//!    taken from replicas that the own configuration does not name, answers are not (thesis 4.1). Learners count in no quorum. *Else* two
//!    majorities decide that do not meet, or none can be found (`membership`).
//! 9. **A replica that its configuration does not name** leads on without its own vote, and stands, until that is known to be committed
//!    (thesis 4.2.2). *Else* a group is left whose only complete log may not lead (`membership`).
//! 10. **A replica's id is allotted once**, also where the entry that allots it is truncated. *Else* votes for one replica count for another of
//!     its name (`membership`).
//! 11. **A snapshot is refused** at or below what is delivered; it brings its own membership; the log's suffix stays where it fits. *Else* a
//!     delayed one unlearns what was acknowledged (`snapshots`).
//! 12. **Each proposal has one outcome**: it comes back in `Commit`, or `Lost` says `Dropped` (it can never be chosen) or `Unknown`. *Else* a
//!     client's retry is applied twice (`wounds`).
//! 13. **Who sleeps relies on nodes** (opt-in): what the host says of a node stands for its replica's beats, for no longer than it says so, and
//!     for no vote, acknowledgement or lease. *Else* a group sleeps through the end of its leader (`quiescence`).
//!
//! # Driving it
//! One replica is the whole group here, its disk a vector and its state machine a line on the screen:
//!
//! ```
//! use bytes::Bytes;
//! use conclave_consensus::*;
//! use conclave_raft::{Raft, RaftConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::of_voters([(ReplicaId(1), NodeId(1))]);
//! let boot = Boot {
//!     replica: ReplicaId(1),
//!     meta: Bytes::new(), // the last LogOp::Meta; empty at the first boot
//!     state: SnapshotMeta { config, ..SnapshotMeta::default() },
//!     entries: Vec::new(), // what the log holds above `state.slot`
//!     first: Slot(1),
//!     now: Time(0),
//!     seed: 42,
//! };
//! let mut core: Box<dyn Consensus> = Box::new(Raft::new(boot, RaftConfig::default())?);
//! let (mut now, mut log, mut applied) = (Time(0), Vec::new(), Vec::new());
//!
//! let mut inputs = vec![Input::Tick];
//! let mut proposed = false;
//! while applied.is_empty() {
//!     for input in inputs.drain(..) {
//!         core.step(now, input)?; // several inputs before one drain make one batch
//!     }
//!     let mut effects = Vec::new();
//!     core.drain(&mut effects);
//!     for effect in effects {
//!         match effect {
//!             Effect::Send(message) => drop(message), // to the transport
//!             Effect::Write { ops } => log.extend(ops), // no need to sync
//!             Effect::Persist { mark, ops, then } => {
//!                 log.extend(ops); // append, sync, and only then …
//!                 assert!(then.is_empty()); // … send what rests on it
//!                 inputs.push(Input::Persisted(mark));
//!             }
//!             Effect::Commit(entries) => {
//!                 let last = entries.last().map(|entry| entry.slot);
//!                 applied.extend(entries.into_iter().filter(|entry| entry.kind == Kind::Command));
//!                 inputs.extend(last.map(Input::Applied));
//!             }
//!             Effect::Role { serving: true, .. } if !proposed => {
//!                 let id = ProposalId::new(NodeId(1), Epoch(1), 1);
//!                 let batch = vec![Proposal { id, payload: Bytes::from_static(b"hello") }];
//!                 inputs.push(Input::Propose { batch, only_in: None });
//!                 proposed = true;
//!             }
//!             _ => {} // Lost, ReadReady, ReadFailed, ReadLog, FetchSnapshot, InstallSnapshot, Membership, Role
//!         }
//!     }
//!     if inputs.is_empty() {
//!         now = core.next_deadline().ok_or("nothing will ever happen")?; // sleep until then, or until something arrives
//!         inputs.push(Input::Tick);
//!     }
//! }
//! assert_eq!(&applied[0].payload[..], b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! * `drain` decides what is sent: step everything at hand, then drain once. A follower gets one `Append` a drain, whatever
//!   the number of proposals, and a commit rides on it if there is one to tell.
//! * A `Persist` without operations is a barrier: its `then` waits for what was written before.
//! * What `Boot::entries` holds counts as durable: sync the log at boot if a crash of the process, and not of the machine, may have
//!   left it in a cache.
//! * `InstallSnapshot` stands among the writes: its `Reset` reaches the log after every `Persist` drained before it. If a drain after
//!   `SnapshotReady` gives no `InstallSnapshot`, the snapshot was refused and may be thrown away.
//! * A replica that a change of membership adds boots with `Config::default()`: it votes and stands for nothing that it would have to know, and
//!   follows the leader that writes to it. Its driver must be able to send to that leader although the core's configuration does not name it.
//! * A replica may be destroyed when a `Membership` that is `committed` [has removed](conclave_consensus::Config::has_removed) it. One that was
//!   away when that happened, for longer than its leader would tell it, is never told: its host has to ask elsewhere.
//! * A `Transfer` that fails says `Lost` with its id (`Dropped`: given up, this replica leads on; `Unknown`: leadership ended, look at
//!   `Role`). One that succeeds says so by `Role` and, since the old leader cannot know who won, by `Lost` with `Unknown`.
//!
//! # Deviations from the thesis
//! * A leader sends entries while its own disk still writes them (thesis 10.2.1), several messages ahead of their acknowledgements.
//! * A rejection carries the last slot and term that may match (end of paper 5.3), so that one round trip skips a whole term.
//! * A leader does not push snapshots: it names the slot one must contain, and the follower fetches.
//! * A replica of a higher term answers a leader of a lower one, which then steps down; otherwise pre-vote and check-quorum could
//!   keep the two apart for ever.
//! * A pre-candidate asks again after one to three heartbeats, since asking costs nothing; only elections are spread over a full
//!   election timeout.
//! * A truncated proposal is `Dropped` as soon as an entry of a higher term is chosen at its slot *or below*: terms never fall along a
//!   log, so no log with that entry can hold the truncated one any more.
//!
//! * Membership goes through a joint configuration whatever the number of voters that change; there are no single-server changes (thesis 4.1).
//!   A learner is ready by a plain bound on what it lacks, not by the thesis' rounds (4.2.1).
//! * A lease rests on a promise that a follower makes durable, for the leader's timeout and not its own: so timings may differ.
//!
//! # Caveats
//! * A snapshot fetch ends with `SnapshotReady` or `SnapshotFailed`; until then no other is begun, and who else offers one is named as a further source.
//! * A replica that alone hears a majority and whose log lacks what the others chose cannot lead, and no one else can: under such a partition a
//!   group waits.
//! * A group that sleeps is as alive as its node's heartbeat says; a host whose groups cannot be stepped must fall silent.
#![forbid(unsafe_code)]

mod config;
mod core;
mod delivery;
mod describe;
mod election;
mod inbox;
mod lease;
mod log;
mod membership;
mod meta;
mod outbox;
mod progress;
mod proposal;
mod quiescence;
mod random;
mod read;
mod reconfigure;
mod replication;
mod snapshot;
mod transfer;
mod wire;

pub use config::{RaftConfig, RaftConfigError};
pub use core::{BootError, Raft};
pub use describe::describe;
