//! The Conclave node: an etcd-compatible key-value server, as a library and a binary.
//!
//! # Where things are
//! ```text
//! config     flags, environment, configuration file → Config
//! identity   Config → ids of member and cluster
//! datadir    one process, one member, one cluster a directory
//! engine     which consensus engine replicates
//! front      listeners, connections, HTTP endpoints ─┐
//! service    etcd's gRPC services ───────────────────┴→ backend: the trait behind which consensus and store are
//! lease      when leases run out, and how keep-alives come to the leader
//! awaited    who waits for changes of keys, as in the queue for a lock
//! metrics    figures under etcd's names
//! logging    etcd's log lines;  notify: systemd
//! ```

#![forbid(unsafe_code)]

pub mod awaited;
pub mod backend;
pub mod config;
pub mod datadir;
pub mod engine;
pub mod front;
pub mod identity;
mod lease;
pub mod logging;
mod membership;
pub mod metrics;
mod node;
pub mod notify;
mod replicated;
mod run;
mod service;

pub use backend::Backend;
pub use config::Config;
pub use engine::Engine;
pub use membership::JoinError;
pub use node::{Node, NodeError};
pub use run::{RunError, run};
