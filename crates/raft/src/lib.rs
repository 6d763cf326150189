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
//! * *Serving*: leading, with an entry of the own term committed.
//! * *Quorum*: a majority of the voters; in a joint configuration one of each of its two sets.
//! * *Batch*: what gathers between two drains and is written as one `Persist`.
//! * *Learner*: a member that receives entries and counts for nothing. *Joint*: the configuration between two sets of voters.
//! * *Round*: a heartbeat that all replicas answer, by which a leader confirms that it leads.
//!
//! # The rules
//! Each with what breaks without it (*else*) and the tests that show it: `file::test` in `tests/suite`; those of `golden` are stories that can be read,
//! `testdata/<test>.txt`.
//!
//! ## Who leads
//! 1. **One vote a term**, durable before it is told, and only for a log that holds at least as much: a later last term, or the same and no fewer
//!    slots (paper 5.2, 5.4.1). A candidate counts its own vote when that is durable, and asks for others only then. *Else* two lead in one term, or
//!    a leader lacks what was chosen. `golden::election_of_three`, `golden::election_refused_by_log`, `wounds::no_vote_leaves_before_it_is_durable`.
//! 2. **Pre-vote** (thesis 9.6): before it raises its term a replica asks whether it would be elected. Asking and granting change nothing: neither a
//!    term nor when a leader was last heard. *Else* whoever was away deposes the leader when it comes back.
//!    `golden::pre_vote_of_one_that_was_away`, `wounds::a_granted_pre_vote_does_not_refresh_last_contact`.
//! 3. **Check-quorum** (thesis 6.2): a leader that has not heard a quorum for an election timeout steps down; a replica that heard a leader within
//!    one ignores candidates, unless that leader itself sent them (rule 5). A booted replica ignores them as long, for it may have answered a
//!    leader just before. Pre-vote and this need each other, so neither can be turned off. *Else* leadership goes round, or stays where nothing
//!    can be chosen. `golden::leader_that_hears_nobody_goes`, `partitions::a_bridge_between_two_pairs_keeps_one_leader`,
//!    `wounds::a_booted_replica_votes_for_nobody_as_long_as_it_may_have_heard_a_leader`.
//! 4. **A leader with a hanging disk steps down**: a write that is not durable within an election timeout counts as silence. *Else* a group waits for
//!    as long as the disk does. `golden::leader_with_a_hanging_disk_goes`.
//! 5. **Leadership is handed over** (thesis 3.10): the leader takes no more proposals, brings the heir's log up to its own, and tells it to stand;
//!    who is asked for that vote need not wait for silence. After an election timeout the leader gives it up. Only a voter is an heir. *Else* a
//!    planned stop costs a whole timeout, or a replica leads that no quorum counts. `golden::transfer_of_leadership`, `golden::transfer_given_up`,
//!    `wounds::leadership_is_never_handed_to_a_learner_or_to_nobody`.
//! 6. **Priorities** are obeyed by handing over, never by how a replica votes or how long it waits, and once in four election timeouts at most. *Else* a
//!    preferred replica that is away, or cannot lead, costs the others an election again and again.
//!    `golden::leadership_goes_where_it_is_preferred`, `priority::one_that_cannot_take_over_costs_the_group_little`.
//!
//! ## What is chosen
//! 7. **Followers make their log the leader's** (paper 5.3): entries are taken where the one before them matches; a conflicting suffix is truncated,
//!    never below what is committed. *Else* logs differ for good. `golden::log_conflict_repaired`,
//!    `paper::section_5_3_figure_7_every_log_becomes_the_leaders`.
//! 8. **An acknowledgement rests on the disk**: it travels in the `then` of the `Persist` that it promises, and a completion counts only for the
//!    write that asked for it, even where the slot was truncated and written again meanwhile. *Else* a crash takes back what was acknowledged.
//!    `golden::crash_forgets_what_was_not_synced`, `wounds::a_write_that_was_truncated_meanwhile_does_not_count_when_it_completes`.
//! 9. **A leader commits by counting only entries of its own term** (paper 5.4.2), itself included only once it persisted them; what is below is
//!    committed with them. So its first entry is a no-op (thesis 6.4), in an empty log the configuration that the group was founded with, and only when
//!    that is committed is it *serving*. *Else* what was chosen is
//!    replaced: the paper's Figure 8. `golden::commit_of_own_term_only`,
//!    `paper::section_5_4_2_figure_8_an_entry_of_an_earlier_term_is_not_committed_by_counting`.
//! 10. **What is delivered is committed and durable here.** *Else* the state machine is ahead of the log that is to rebuild it.
//!     `wounds::nothing_is_acknowledged_before_it_is_durable`.
//! 11. **Each proposal has one outcome**: it comes back in `Commit`, or `Lost` says `Dropped` (it can never be chosen) or `Unknown`. A truncated one is
//!     neither until its slot is decided, for another replica may hold it. *Else* a client that asks again has it applied twice.
//!     `golden::leader_deposed_and_back`, `golden::outcome_unknown_after_a_snapshot`,
//!     `wounds::an_entry_truncated_once_and_chosen_after_all_was_never_called_dropped`.
//! 12. **Everything is bounded**: what is under way to a follower in messages and bytes, what is uncommitted, what is delivered and not applied, reads
//!     that wait, entries in memory. What meets a bound waits or is refused as `Busy`, and older entries are read back from the log. *Else* one slow
//!     follower, or one eager client, takes the memory of all. `replication::what_is_under_way_to_a_silent_follower_is_bounded`,
//!     `replication::a_laggard_is_served_from_the_log_where_memory_does_not_reach`.
//! 13. **A snapshot is refused** at or below what is delivered; it brings its own membership; the log's suffix stays where it fits; until it is the
//!     durable state its replica neither stands nor acknowledges it. A leader keeps the log for a live laggard, within a bound. *Else* a delayed one
//!     unlearns what was acknowledged, or a laggard needs the next as soon as it has one. `golden::snapshot_for_a_laggard`,
//!     `snapshots::a_delayed_snapshot_unlearns_nothing`,
//!     `snapshots::the_log_waits_for_a_live_follower_but_not_for_ever_and_not_for_a_dead_one`.
//!
//! ## What is read
//! 14. **A read** (thesis 6.4) may be served at the leader's commit slot of a moment after the read arrived, once a quorum answered a round begun after
//!     that moment, and never before the leader serves. Another replica asks the leader for the slot, and an answer counts only for the question
//!     and the life that asked it. *Else* reads are stale. `golden::read_confirmed_by_a_round`, `golden::read_waits_for_the_leader_to_serve`,
//!     `golden::reads_on_a_follower`, `wounds::a_late_answer_to_a_former_life_answers_no_newer_read`.
//! 15. **Under a lease** (thesis 6.4.1) it is served at once: who answers a beat promises, durably, to elect nobody else for the leader's timeout,
//!     and the leader relies on it for as much less as clocks may differ by the operator's word. It drops the lease for good before it tells an heir
//!     to stand. *Else* reads are stale, as they are where a clock breaks that word. `golden::read_under_a_lease`,
//!     `lease::within_the_stated_drift_no_read_is_stale_and_beyond_it_some_are`,
//!     `lease::a_lease_is_dropped_before_leadership_is_handed_over_and_for_good`.
//!
//! ## Who belongs to the group
//! 16. **A configuration is in force when it is appended** (thesis 4.1), committed or not, and ceases to be when it is truncated. *Else* leader and
//!     followers count by different ones, and two majorities decide that do not meet.
//!     `wounds::a_membership_change_is_in_force_on_append_and_reverted_by_truncation`, `golden::membership_truncated`.
//! 17. **Who votes changes through a joint configuration** (thesis 4.3), in which both sets must agree, for elections, commits and reads alike; one change
//!     at a time, begun by a leader that serves, and left by whoever serves next. *Else* as before, or nobody can ever leave it.
//!     `golden::membership_through_a_joint_configuration`, `membership::thesis_4_1_no_change_before_an_entry_of_the_term_is_committed`,
//!     `membership::a_joint_configuration_is_left_by_whoever_leads_next`.
//! 18. **Requests are taken from replicas that the own configuration does not name, answers are not** (thesis 4.1): the asker's configuration says who
//!     counts. *Else* a group that added a voter can find no leader, or a stranger's vote counts.
//!     `membership::thesis_4_1_a_replica_votes_for_a_candidate_that_its_configuration_does_not_name`,
//!     `wounds::strangers_and_misdirected_messages_are_refused`.
//! 19. **Learners** receive everything and count in no quorum; one becomes a voter when it holds nine tenths of the leader's log, or, where it is wanted,
//!     by the leader itself when it lacks no more than a bound (thesis 4.2.1). *Else* a new voter with an empty log costs the group its majority.
//!     `golden::learner_promoted`, `membership::learners_count_in_no_quorum_of_reads_leadership_or_joint_configurations`.
//! 20. **A leader that is removed** leads to the commit of its end without counting itself, and then has another stand; as long as it does not know that
//!     to be committed it may stand again (thesis 4.2.2). So may a learner whose vote a candidate counts on that lacks what its log holds. A replica that was removed and does not know it disturbs nobody (rules 2 and 3). *Else* a
//!     group is left whose only complete log may not lead. `golden::leader_removed_from_its_group`,
//!     `membership::thesis_4_2_2_a_replica_stands_until_the_end_of_its_membership_is_committed`,
//!     `membership::thesis_4_2_2_a_learner_whose_vote_is_counted_on_stands_if_its_log_is_the_longest`,
//!     `membership::thesis_4_2_3_a_removed_replica_that_does_not_know_it_disturbs_nobody`.
//! 21. **A replica's id is allotted once**, also where the entry that allots it is truncated: the term's number is in it. *Else* votes for one
//!     replica count for another of its name. `membership::a_change_that_is_truncated_is_lost_and_no_longer_in_force`.
//!
//! ## Who may sleep
//! 22. **Who sleeps relies on nodes** (opt-in): what the host says of a node stands for its replica's beats, for no longer than it says so, and for no
//!     vote, acknowledgement or lease. *Else* a group sleeps through the end of its leader. `golden::idle_group_goes_to_sleep`,
//!     `quiescence::when_the_leaders_node_dies_another_leads`, `quiescence::a_lease_does_not_outlive_the_beats_that_renewed_it`.
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
//! * `drain` decides what is sent: step everything at hand, then drain once. A follower gets one `Append` a drain, whatever
//!   the number of proposals, and a commit rides on it if there is one to tell.
//! * A `Persist` without operations is a barrier: its `then` waits for what was written before.
//! * What `Boot::entries` holds counts as durable: sync the log at boot if a crash of the process, and not of the machine, may have
//!   left it in a cache.
//! * `InstallSnapshot` stands among the writes: its `Reset` reaches the log after every `Persist` drained before it. If a drain after
//!   `SnapshotReady` gives no `InstallSnapshot`, the snapshot was refused and may be thrown away.
//! * A replica that a change of membership adds boots with `Config::default()`: it votes and stands for nothing that it would have to know, and
//!   follows the leader that writes to it. The first entry it has, or its snapshot, names the voters of that slot, so every state after slot 0 does. Its driver must be able to send to that leader although the core's configuration does not name it.
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
mod read;
mod reconfigure;
mod replication;
mod snapshot;
mod transfer;
mod wire;

pub use config::{RaftConfig, RaftConfigError};
pub use core::{BootError, Raft};
pub use describe::describe;
