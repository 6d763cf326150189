//! Multi-Paxos as a pure state machine: no I/O, no clock, no thread, no global randomness.
//!
//! # The problem
//! A few replicas are to agree on one sequence of entries, although messages are lost, repeated and reordered and processes crash and
//! come back with what their disk held. What was once *chosen* must stay chosen, and as long as a quorum of replicas lives and some replica can
//! talk to one, new entries must become chosen.
//!
//! This crate is the deciding part behind the [`Consensus`](conclave_consensus::Consensus) trait: a value that is stepped with
//! inputs and drained of effects. Its sources: Lamport, *Paxos Made Simple* (2001), cited as PMS; van Renesse and Altinbuken, *Paxos Made Moderately
//! Complex* (2015), PMMC; Chandra, Griesemer and Redstone, *Paxos Made Live* (2007), PML; Howard, Malkhi and Spiegelman, *Flexible Paxos* (2016);
//! Howard and Mortier, *Paxos vs Raft* (2020); Ng, Haridi and Carbone, *Omni-Paxos* (2023).
//!
//! # From one value to a log
//! **One value.** Begin with [`synod`]: acceptors promise ballots and accept values, a proposer is bound by the highest ballot it hears of. Two rules,
//! and one value is chosen for ever. `examples/synod.rs` is a hundred lines of it.
//!
//! **Many values.** A log is one Synod a slot. To run both phases for each slot would cost two round trips an entry. But phase 1 names no value, so one
//! promise can stand for all slots, those to come included (PMS section 3): an acceptor keeps *one* [`synod::Promise`], and for each slot what it
//! accepted last. A proposer that a quorum promised is the *leader*, and from then on each entry costs one round trip.
//!
//! **A new leader** asks from its first slot on that it does not know to be chosen. For each slot beyond it is bound as a proposer of one value is
//! ([`synod::Reports`]); where nobody accepted anything but something comes after, it proposes a no-op, or what comes after could never be delivered.
//!
//! **Chosen** is what the leader knows first: it counts acknowledgements, slot by slot. It tells the others with the next message. They know a slot to be
//! chosen up to there if they accepted it *in that leader's ballot*; what they accepted before may be another value.
//!
//! **Who leads** is a matter of time, not of safety. Any replica can, for phase 1 tells it what it lacks; so the one that hears a quorum does.
//!
//! **Who takes part** is decided in the log as well: an entry, the *stop*, ends one configuration and names the next.
//!
//! # Vocabulary
//! * *Ballot*: `(configuration, round, replica)`, in this order. Its replica is its only proposer.
//! * *Slot*: a position in the log. *Accepted*: a replica took a value for a slot in a ballot. *Persisted*: durable in this replica's log.
//! * *Chosen*: accepted by a commit quorum in one ballot. *Delivered*: handed out in `Commit`. *Applied*: the state machine said so. Always
//!   applied ≤ delivered ≤ min(chosen, persisted).
//! * *Elect quorum*, *commit quorum*: who must promise, who must accept. Each elect quorum meets each commit quorum.
//! * *Stop*: an entry that holds the next configuration. *Settled*: the configuration in force needs the one before no more.
//! * *Round* of beats: one that its receivers answer. *Learner*: a member that receives entries and counts for nothing.
//!
//! # The rules
//! Each with what breaks without it; in brackets, where the tests in `tests/suite` show it.
//! 1. **A promise binds** all slots, is durable before it is told, and outlives a restart (PMS 2.2). *Else* two leaders have two values chosen in one slot
//!    (`wounds::a_promise_outlives_a_restart`, `wounds::no_promise_leaves_before_it_is_durable`, `schedules`).
//! 2. **The highest ballot binds** a new leader, slot by slot, and only an empty gap is filled with a no-op (PMS 2.2 and 3). *Else* what was chosen is
//!    replaced (`recovery::the_highest_ballot_binds_a_new_leader_and_gaps_are_filled`,
//!    `recovery::a_value_in_a_gap_that_was_chosen_is_not_replaced_by_a_no_op`).
//! 3. **A leader has been told everything** by an elect quorum, in bounded pages, and holds all that those know to be chosen, from their logs or a snapshot,
//!    before it proposes or serves (PMMC 4). *Else* it fills slots that are decided, or its reads are stale
//!    (`recovery::promises_are_told_in_bounded_pages`, `recovery::a_leader_that_lacks_what_was_chosen_asks_for_it_before_it_leads`,
//!    `wounds::no_read_is_served_before_all_is_chosen_that_was_found`).
//! 4. **An acknowledgement is durable**, travels in the `then` of the `Persist` it rests on, and a leader counts itself by its own disk. *Else* a crash
//!    takes back what was acknowledged (`wounds::nothing_is_acknowledged_before_it_is_durable`).
//! 5. **Slots stand for themselves**: accepted, durable and chosen in any order, delivered in theirs (*Paxos vs Raft*, section 4). What replaces an entry
//!    is durable with its own write alone. *Else* one lost message holds up all that follow, or a late completion vouches for another value
//!    (`recovery::slots_are_accepted_and_chosen_in_any_order_and_delivered_in_theirs`,
//!    `wounds::what_is_written_over_is_durable_only_with_its_own_write`).
//! 6. **Election by quorum connection** (*Omni-Paxos* 5): who looks for a leader asks, and stands only if free replicas that could elect it answer, and
//!    enough to choose. Asking changes nothing. *Else* the only replica that could lead may not, or leadership goes round (`partitions`: quorum loss,
//!    constrained election, chains, any lasting loss of links).
//! 7. **A leader that is not answered steps down**, and so does one whose disk hangs; whoever heard it within an election timeout promises nothing to
//!    another, unless it wants that itself. *Else* a group waits for one that can do nothing, or is disturbed by one that was away
//!    (`partitions::a_leader_that_is_heard_and_hears_nothing_gives_way`, `wounds::a_leader_whose_disk_hangs_goes`,
//!    `partitions::one_that_comes_back_deposes_nobody`).
//! 8. **Quorums meet**: elect and commit quorums of any sizes whose sum is more than the voters (*Flexible Paxos*), in the configuration itself, checked
//!    with each change; a read barrier and a lease need a set that meets every elect quorum. *Else* two values are chosen, or reads are stale
//!    (`membership::with_small_commit_quorums_two_choose_and_four_elect`, `membership::sizes_that_would_not_meet_are_refused_across_a_change`).
//! 9. **Nothing beyond a stop**: a leader proposes nothing there, and a new one leaves out what it finds there. *Else* an old configuration
//!    decides slots of the new one (`recovery::nothing_is_recovered_beyond_a_stop`, `membership::nothing_is_proposed_beyond_a_stop`).
//! 10. **A configuration governs once its stop is chosen**, its ballots are above all of the one before, and who knows of it refuses the old ones.
//!     *Else* an old configuration is revived (`membership::an_old_configuration_is_not_revived`).
//! 11. **Nobody goes before the rest is settled**: the new configuration holds all that led to it, and remembers that it is in force. *Else* removed
//!     replicas take the only copy with them, or are waited for (`membership::new_voters_hold_what_was_decided_before_the_old_ones_go`,
//!     `membership::who_was_removed_is_destroyed_only_when_the_others_remember_that_without_it`).
//! 12. **A read** may be served at the leader's chosen slot of a moment after it arrived, once replicas that meet every elect quorum answered a round begun
//!     after that; under a *lease* at once, where a bound on the drift of clocks is stated (PML 5.2). *Else* reads are stale (`wounds`, `lease`).
//! 13. **A snapshot says what was chosen and takes back nothing** that was accepted beyond, on the disk too. *Else* an acceptor forgets what it was counted
//!     for (`snapshots::what_was_accepted_above_a_snapshot_stays_on_the_disk_too`).
//! 14. **Each proposal has one slot and one outcome**: it comes back in `Commit`, or `Lost` says `Dropped` (another was chosen there) or `Unknown`. *Else* a
//!     client's retry is applied twice (`recovery::the_first_proposal_at_a_slot_is_lost_when_another_is_chosen_there`, `schedules`).
//! 15. **A replica that lost its disk is gone**: it returns under another id (one promise covers all slots, so no catching up restores it). That is
//!     its host's to keep.
//!
//! # Driving it
//! One replica is the whole group here, its disk a vector and its state machine a line on the screen:
//!
//! ```
//! use bytes::Bytes;
//! use conclave_consensus::*;
//! use conclave_paxos::{Paxos, PaxosConfig};
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
//! let mut core: Box<dyn Consensus> = Box::new(Paxos::new(boot, PaxosConfig::default())?);
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
//!                 applied.extend(entries.iter().filter(|entry| entry.kind == Kind::Command).cloned());
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
//! * `drain` decides what is sent: step everything at hand, then drain once. A follower gets one `Accept` a drain, whatever
//!   the number of proposals, and what is chosen rides on it.
//! * A `Persist` without operations is a barrier: its `then` waits for what was written before.
//! * What `Boot::entries` holds counts as durable: sync the log at boot if a crash of the process, and not of the machine, may have
//!   left it in a cache. It may have gaps, and a log may be asked to write over a slot, or beyond a gap.
//! * An entry in `Commit` has the ballot `Ballot::default()`, and so has a `SnapshotMeta` made of it. The ballot that `InstallSnapshot` names is
//!   this replica's own for that slot: hand its `meta` to the log as it is.
//! * `InstallSnapshot` stands among the writes: its `Reset` reaches the log after every `Persist` drained before it. If a drain after
//!   `SnapshotReady` gives no `InstallSnapshot`, the snapshot was refused and may be thrown away.
//! * A replica that a change of membership adds boots with `Config::default()`: it promises and accepts for whoever asks, and stands for nothing. Its
//!   driver must be able to send to that leader although the core's configuration does not name it.
//! * A replica may be destroyed when a `Membership` that is `committed` [has removed](conclave_consensus::Config::has_removed) it. One that was
//!   away when that happened, for longer than its leader would tell it, learns it when it next looks for a leader and is answered.
//! * A `Transfer` that fails says `Lost` with its id (`Dropped`: given up, this replica leads on; `Unknown`: leadership ended, look at
//!   `Role`). One that succeeds says so by `Role` and, since the old leader cannot know who won, by `Lost` with `Unknown`.
//!
//! # Deviations from the papers
//! * There is no gossip of ballots, and no ballot is raised in a search: the beats that look for a leader are pre-votes as well. In *Omni-Paxos* a
//!   server raises its own ballot to be elected.
//! * Roles are not spread over processes as in PMMC: each replica is acceptor, learner and possible leader, and its log is the acceptors' memory.
//! * A leader proposes to a follower that lags what it knows to be chosen, in its own ballot, instead of telling it apart.
//! * A follower that accepts in a ballot promises it; so does one that learns a chosen value accepted in a higher one.
//! * Who votes changes through a joint configuration although stops alone would be safe ([`MembershipChange`](conclave_consensus::MembershipChange)): for
//!   the time until new voters hold what was decided.
//!
//! # Caveats
//! * A change of membership that changes who votes costs two stops, and during each the leader takes no proposals for two round trips.
//! * A leader that lacks what no log holds any more fetches a snapshot before it serves, and the group waits.
//! * A value may surface long after it was proposed, if nobody who held it was heard in between; its proposer was told `Unknown`.
//! * This engine does not sleep: what the host says of nodes (`Input::Peer`) is ignored.
#![forbid(unsafe_code)]

mod catchup;
mod config;
mod core;
mod delivery;
mod describe;
mod election;
mod inbox;
mod lease;
mod log;
mod members;
mod meta;
mod outbox;
mod progress;
mod proposal;
mod read;
mod reconfigure;
mod recovery;
mod replication;
mod snapshot;
pub mod synod;
mod transfer;
mod wire;

pub use config::{PaxosConfig, PaxosConfigError};
pub use core::{BootError, Paxos};
pub use describe::describe;
