//! What must hold in every run: one file for each invariant, each with a test in which it is violated and seen.
//!
//! The checkers know nothing of hosts, logs or networks. They are told plain facts, so that a test can tell them a lie.

mod agreement;
mod changes;
mod dense_revisions;
mod durability;
mod durable_log;
mod election_safety;
mod joint_left;
mod leader_completeness;
mod leader_votes;
mod linearizability;
mod log_matching;
mod membership;
mod read_freshness;
mod replay;
mod revision_monotony;
mod state_machine_safety;

use std::fmt;

pub use agreement::agree;
pub use changes::Changes;
pub use dense_revisions::check_dense_revisions;
pub use durability::check_durability;
pub use durable_log::DurableLog;
pub use election_safety::ElectionSafety;
pub use joint_left::JointLeft;
pub use leader_completeness::LeaderCompleteness;
pub use leader_votes::check_leader_votes;
pub use linearizability::check_linearizability;
pub use log_matching::{LogMatching, MirrorEntry};
pub use membership::MembershipRules;
pub use read_freshness::ReadFreshness;
pub use replay::check_replay;
pub use revision_monotony::RevisionMonotony;
pub use state_machine_safety::{Chosen, StateMachineSafety};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}

impl std::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}
