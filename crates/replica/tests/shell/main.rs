//! Shells in one process: real threads around real cores, with a log and a network in memory.

#![expect(clippy::unwrap_used, reason = "what cannot go on fails the test")]

mod calls;
mod fixture;
mod groups;
mod membership;
mod serving;
mod snapshots;
