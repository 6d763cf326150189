//! Multi-Paxos as a pure state machine.
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
mod random;
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
