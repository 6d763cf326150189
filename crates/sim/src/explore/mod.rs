//! Exhaustive exploration of the production Raft core at small size.
//!
//! A simulation draws schedules; here *all* of them are walked, breadth first, as long as they stay within [`Bounds`]: every order of
//! deliveries, losses, repetitions, timeouts, proposals, changes of membership, completions of writes and crashes, of two or three real
//! [`Raft`](conclave_raft::Raft) cores. The first violation found is thus one with the fewest steps.
//!
//! # Vocabulary
//! * A *replica's state* is its core, its disk and the writes on their way to it. Equal ones are kept once, and what an
//!   action does to one is computed once.
//! * A *state* is one such number for each replica, the set of messages in flight, what is known of the past, and what was spent of
//!   the bounds.
//!
//! # What is checked
//! In every state: one leader a term; logs that agree on a slot's term agree below it; a leader holds everything that was chosen before
//! its term; nothing else is ever chosen at a slot; what was chosen is durable on a quorum of a membership by which it can have been chosen, whoever
//! crashed; nothing is applied that is not durable here; what was said to be dropped is not chosen. And at every step: no core refuses what a correct peer sent,
//! refuses to boot from its own disk, or panics.
//!
//! # Membership
//! With [`Bounds::changes`] a leader is asked for every change of one replica: to remove a voter, itself too, or a learner, to promote one, and, where
//! the group begins with fewer voters than there are replicas, to add a voter or a learner on the last node, which is empty and
//! lives from the first message to it; and once in one request to remove all but itself. A replica that is removed goes on as if nobody told it.
//!
//! # How time is taken out
//! Replicas' clocks are never compared, so each has its own, moved by two actions: the deadline that the core named comes, or an election
//! timeout passes in which nothing happens. Of a time only that is part of a state which decides: whether a promise of silence still
//! holds, whether something was heard within the last election timeout. Heartbeats are so short beside that timeout that no number of them
//! within the bounds adds up to it.
//!
//! # Caveats
//! How far ahead a drawn election timeout lies is not part of a state: of two states that differ in no more, one is walked on. Every state
//! that is visited can be reached, so there are no false alarms. Two copies of one message in flight count as one; snapshots, reads
//! and transfers are not explored.

mod canonical;
mod facts;
mod replica;
mod search;
mod table;

use std::fmt;

pub use search::explore;

use crate::check::Violation;

/// The most replicas that are explored together.
pub const REPLICAS_MAX: usize = 3;

/// How far the exploration goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How many replicas: 1 to [`REPLICAS_MAX`].
    pub replicas: usize,
    /// Whether the last of them is no member at first.
    pub spare: bool,
    /// Whether the exploration begins when the first one leads term 1 and all is at rest, and not with empty disks: what a group does about
    /// its membership lies deeper than an election.
    pub led: bool,
    /// No replica enters a higher term.
    pub terms: u64,
    /// So many commands are proposed, one at a time.
    pub proposals: u8,
    /// So many messages are in flight at once; one step of a replica may send two.
    pub in_flight: usize,
    /// So many writes of one replica are on their way to its disk.
    pub writes: usize,
    /// So many crashes, each followed by a boot at once, after which any prefix of the writes on their way is on the disk.
    pub crashes: u8,
    /// So many messages are delivered and stay in flight.
    pub repetitions: u8,
    /// So many times a leader takes a change of membership.
    pub changes: u8,
    /// Ends the exploration, incomplete, once so many states were found.
    pub states_max: usize,
}

impl Bounds {
    /// Three replicas, one term, one command, one crash, and little under way.
    #[must_use]
    pub fn small() -> Self {
        Self {
            replicas: 3,
            spare: false,
            led: false,
            terms: 1,
            proposals: 1,
            in_flight: 3,
            writes: 2,
            crashes: 1,
            repetitions: 0,
            changes: 0,
            states_max: usize::MAX,
        }
    }
}

/// A bug put in around the cores, to show that the checks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A write is reported durable, and what rests on it sent, before the disk has it.
    AcknowledgesEarly,
    /// After a crash the oldest record of term and vote that goes with the log is read.
    StaleRecord,
    /// After a crash the changes of membership in the log are passed over.
    ForgetsChanges,
}

impl Bug {
    /// All of them, by name.
    pub const NAMED: [(&str, Self); 3] = [
        ("acknowledges-early", Self::AcknowledgesEarly),
        ("stale-record", Self::StaleRecord),
        ("forgets-changes", Self::ForgetsChanges),
    ];
}

/// What an exploration came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Distinct states.
    pub states: usize,
    /// Steps from a state to another, those to known ones included.
    pub steps: u64,
    /// The most steps from the beginning to a state, on the shortest way.
    pub depth: usize,
    /// Whether the whole space within the bounds was walked.
    pub complete: bool,
    /// Distinct states of single replicas.
    pub replica_states: usize,
    /// Distinct messages.
    pub messages: usize,
    /// How many elections were won, by term and replica.
    pub leaders: usize,
    /// The most entries that were chosen.
    pub chosen: usize,
    /// Every membership that was in force somewhere: its voters and, where it is joint, those it replaces.
    pub memberships: Vec<String>,
    /// The first violation, and the shortest way to it.
    pub violation: Option<Counterexample>,
}

/// A way to a violation.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// What was violated.
    pub violation: Violation,
    /// Each step, in words.
    pub steps: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extent = if self.complete { "the whole space within the bounds" } else { "a part of the space" };
        write!(
            f,
            "{} distinct states, {} steps, depth {}: {extent} ({} states of single replicas, {} messages, {} leaders, {} memberships, at most {} chosen)",
            self.states,
            self.steps,
            self.depth,
            self.replica_states,
            self.messages,
            self.leaders,
            self.memberships.len(),
            self.chosen
        )?;
        if let Some(found) = &self.violation {
            write!(f, "\nVIOLATION {}", found.violation)?;
            for (number, step) in (1..).zip(&found.steps) {
                write!(f, "\n  {number:>3}. {step}")?;
            }
        }
        Ok(())
    }
}
