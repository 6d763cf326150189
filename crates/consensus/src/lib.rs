//! The language that consensus engines speak.
//!
//! Engines such as Raft and Multi-Paxos solve one problem: replicas agree on a sequence of entries although messages are lost
//! and processes crash. This crate holds what such engines share, so that a host, a log, a transport and a checker are
//! written once: identifiers ([`ReplicaId`], [`Ballot`], [`Slot`] …), entries and log operations ([`Entry`], [`Entries`], [`LogOp`]),
//! membership, its changes and quorum arithmetic ([`Config`], [`MembershipChange`]), and the object-safe [`Consensus`] trait with its [`Input`]s and [`Effect`]s.
//!
//! Nothing here performs I/O, reads a clock or draws randomness. The rules a driver keeps stand at the head of
//! the engine contract, [`Consensus`]; those a core keeps:
//!
//! 1. `Commit` stops at the lesser of what is chosen and what is durable here: state never runs ahead of the own log.
//! 2. [`Outcome::Dropped`] is said only of a proposal that never had a slot or at whose slot *another* entry was chosen.
//!    Whatever else does not come back is [`Outcome::Unknown`].
//! 3. A core never proposes a command at a second slot and never forwards it.
//! 4. A message that is for another replica is dropped, and so is the answer of a replica that is not in the configuration. Its
//!    requests are not: a replica's own configuration may be older, or newer, than that of its leader.
//! 5. A completion with another [`Mark`] than the expected one is ignored.

#![forbid(unsafe_code)]

mod change;
mod engine;
mod entries;
mod entry;
mod head;
mod ids;
mod membership;
#[cfg(feature = "mutants")]
mod mutant;
mod random;
#[cfg(any(test, feature = "testing"))]
pub mod story;

pub use change::{ChangeError, MembershipChange};
pub use engine::{
    Boot, Class, Consensus, Effect, Input, LogSlice, Message, Outcome, Progress, ReadError, ReadMode, Status,
    StepError, Timing,
};
pub use entries::Entries;
pub use entry::{Entry, Kind, LogOp, LogState, Proposal, SlotRange, SnapshotMeta};
pub use head::Head;
pub use ids::{Ballot, Epoch, GroupId, LogReadId, Mark, NodeId, ProposalId, ReadId, ReplicaId, Slot, Time};
pub use membership::{Config, ConfigError, MEMBERS_MAX, Quorums, QuorumsError};
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use random::Random;
