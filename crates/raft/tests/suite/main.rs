//! The engine against the paper, against what went wrong elsewhere, and against chance.

#![allow(clippy::unwrap_used)] // Tests say what went wrong by failing where it does.

mod cluster;
mod garbage;
mod golden;
mod lease;
mod membership;
mod paper;
mod partitions;
mod priority;
mod quiescence;
mod replication;
mod schedules;
mod snapshots;
mod tutorial;
mod wounds;
