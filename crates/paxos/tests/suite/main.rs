//! The engine against its rules, against what went wrong elsewhere, and against chance.

#![allow(clippy::unwrap_used)] // Tests say what went wrong by failing where it does.

mod cluster;
#[cfg(feature = "mutants")]
mod mutants;
mod schedules;
