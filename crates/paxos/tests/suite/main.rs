//! The engine against its rules, against what went wrong elsewhere, and against chance.

#![allow(clippy::unwrap_used)] // Tests say what went wrong by failing where it does.

mod cluster;
mod garbage;
mod golden;
mod lease;
mod membership;
#[cfg(feature = "mutants")]
mod mutants;
mod partitions;
mod priority;
mod recovery;
mod schedules;
mod snapshots;
mod wounds;
