//! What the services need of the node behind them: one object-safe trait.
//!
//! The services decide nothing about consensus. They propose a command and get the state machine's reply, or wait
//! for a read barrier and read the store. The composition implements [`Backend`] over a replica's handle; tests
//! implement it over the state machine alone.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::Member;
use conclave_kv::Reader;
use thiserror::Error;

use crate::awaited::KeyChanges;
use crate::identity::Identity;
pub use crate::membership::{Add, Change, Update};
use crate::metrics::BackendMetrics;

/// A future of a trait object's method.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The node behind the services.
pub trait Backend: Send + Sync {
    /// Replicates an encoded command of `kv` and answers with the state machine's reply once this member has
    /// applied it. A dropped future gives the answer up, never the command.
    ///
    /// # Errors
    /// See [`ProposeError`], which tells whether the command may still take effect.
    fn propose(&self, command: Bytes) -> BoxFuture<'_, Result<Bytes, ProposeError>>;

    /// Waits until [`reader`](Self::reader) shows everything that was acknowledged anywhere before the call.
    ///
    /// # Errors
    /// See [`BarrierError`].
    fn read_barrier(&self) -> BoxFuture<'_, Result<(), BarrierError>>;

    /// The store as far as this member has applied it.
    fn reader(&self) -> &Reader;

    /// Who this member is.
    fn identity(&self) -> Identity;

    /// The replica's state of consensus. Called once a request: a few atomic loads, no lock held for long.
    fn raft(&self) -> RaftStatus;

    /// The cluster's members, by id.
    fn members(&self) -> Vec<Member>;

    /// Has the leader change the membership, and gives the member's id once [`members`](Self::members) shows it.
    ///
    /// # Errors
    /// etcd's.
    fn change_members(&self, change: Change) -> BoxFuture<'_, Result<u64, EtcdError>>;

    /// Hands leadership, which this member must have, to another.
    ///
    /// # Errors
    /// etcd's.
    fn move_leader(&self, to: u64) -> BoxFuture<'_, Result<(), EtcdError>>;

    /// Has the leader renew a lease, and gives its time to live in seconds; nothing if there is no such lease.
    ///
    /// # Errors
    /// etcd's.
    fn renew_lease(&self, id: i64) -> BoxFuture<'_, Result<Option<i64>, EtcdError>>;

    /// How many seconds a lease has left, as the leader reckons; nothing if there is no such lease.
    ///
    /// # Errors
    /// etcd's.
    fn lease_left(&self, id: i64) -> BoxFuture<'_, Result<Option<i64>, EtcdError>>;

    /// Tells of changes of keys in [`reader`](Self::reader)'s store.
    fn key_changes(&self) -> &dyn KeyChanges;

    /// Sizes of what the member keeps on disk.
    fn storage(&self) -> StorageStatus;

    /// The composition's own figures for `/metrics`.
    fn metrics(&self) -> BackendMetrics;
}

/// A replica's state of consensus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// The current term.
    pub term: u64,
    /// The leader's member id, where one is known.
    pub leader: Option<u64>,
    /// The last log position known committed.
    pub committed_index: u64,
    /// The last log position applied here.
    pub applied_index: u64,
    /// Whether this member only learns.
    pub is_learner: bool,
}

/// Sizes of what a member keeps on disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageStatus {
    /// Taken from the file system.
    pub size_bytes: u64,
    /// In use thereof.
    pub in_use_bytes: u64,
}

/// Why a command has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// A queue is full; the command has no effect.
    #[error("too many requests")]
    Overloaded,
    /// Nobody leads; the command has no effect.
    #[error("no leader")]
    NoLeader,
    /// The command was not chosen and never will be.
    #[error("the proposal was dropped")]
    Dropped,
    /// The command is larger than a log entry may be.
    #[error("the command is too large")]
    TooLarge,
    /// The leader was lost with the command under way; it may take effect or not.
    #[error("the proposal's outcome is unknown")]
    Unknown,
    /// The node is stopping; the command may take effect or not.
    #[error("the node is stopping")]
    Stopped,
}

/// Why a read barrier was not passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BarrierError {
    /// A queue is full.
    #[error("too many requests")]
    Overloaded,
    /// Nobody leads, or the leader cannot confirm that it does.
    #[error("no leader")]
    NoLeader,
    /// The leader changed meanwhile.
    #[error("the leader changed")]
    LeaderChanged,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}
