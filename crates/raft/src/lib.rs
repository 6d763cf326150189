//! Raft as a pure state machine: no I/O, no clock, no thread, no global randomness.
#![forbid(unsafe_code)]

mod config;
mod core;
mod delivery;
mod describe;
mod election;
mod log;
mod membership;
mod meta;
mod outbox;
mod progress;
mod proposal;
mod random;
mod read;
mod replication;
mod snapshot;
mod transfer;
mod wire;

pub use config::{RaftConfig, RaftConfigError};
pub use core::{BootError, Raft};
pub use describe::describe;
