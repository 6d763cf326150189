//! Many consensus groups in one process ("multi-raft" as a library).
//!
//! A [`Host`] is a value that owns any number of groups, each a `Box<dyn Consensus>` of any engine. It decides and never waits: a
//! simulator steps it as it is. A [`Shell`] puts threads around it that wait for a [`LogStore`](conclave_storage::LogStore), a
//! [`Transport`](conclave_transport::Transport) and the clock; services use it through a [`Handle`].
//!
//! # Invariants
//! 1. A promise leaves only once it is durable: messages in [`HostEffect::Log`]`::then` are sent after its sync, by whoever syncs.
//! 2. Each group's log operations reach the log in the order in which its core gave them.
//! 3. A proposal is forwarded at most once and proposed in at most one slot; each is answered at most once.
//! 4. The log is cut only below a completed checkpoint, and a snapshot is switched to only after the log names it.
//! 5. Every queue is bounded, and what meets a bound is refused to the client or dropped as a network would.
//!
//! # Starting
//! [`begin_epoch`] counts the boot, [`boot_group`] assembles what a core starts from, [`Prepared::new`] makes the shell that the transport
//! delivers to, [`Prepared::start`] runs it.

#![forbid(unsafe_code)]

mod applier;
mod boot;
mod change;
mod effects;
mod groups;
mod host;
mod shell;
mod snapshot;

pub use applier::{Applier, CheckpointPolicy};
pub use boot::{BootError, HostRecord, begin_epoch, boot_group};
pub use change::ReconfigureError;
pub use conclave_storage::{Job, Replies, SnapshotSink, SnapshotSource, StateMachine};
pub use effects::{HostEffect, HostInput, ProposeError};
pub use host::{Host, HostConfig, HostCounters};
pub use shell::{
    Answerer, BarrierError, Fatal, GroupSetup, Handle, Prepared, Responder, Role, Shell, ShellConfig,
    ShellObserver, boot_time,
};
pub use snapshot::{ArrivedPiece, PieceRequest, Served, SnapshotReceiver, SnapshotServer};
