//! Locks: [`Mutex`], [`RwLock`], [`Semaphore`], and the [`Guard`] that all of them give.
//!
//! # How they work
//! A lock is a queue of keys that go with their owners' leases; its order is the order of creation. A client puts its key and judges the queue
//! in one transaction. If it does not hold the lock, it watches one key (a semaphore: all) ahead of its own, and judges the whole queue
//! again after each wake. There is no lock service in this: it is keys, leases and watches, and works with every server of the etcd v3 API. A
//! [`Mutex`] also excludes those who lock the same name through etcd's lock service or its Go client.
//!
//! # What a lock is worth
//! A holder that stands still, or is cut off, loses its lease without noticing, and another gets the lock. So:
//!
//! - [`Guard::lost`] resolves before the server could pass the lock on, if only the holder's task gets to run. Stop then.
//! - [`Guard::txn`] makes any transaction conditional on still holding the lock. What is kept in the store itself is safe that way, whatever
//!   the holder believes.
//! - [`Guard::token`] is a number that grows from each holder to the next. Send it along to whatever else the lock protects, and have that
//!   refuse a lower one than it has seen: `examples/fenced_resource.rs`.
//!
//! # Cancellation
//! Dropping the future of `lock` at any point gives back its lease in the background, and with it the key: no waiter is left behind. If the
//! whole program ends, the lease expires.
//!
//! # Names
//! The keys of lock `a` begin with `a/`. Where keys are placed on several groups, a `{tag}` in the name puts the lock beside what it guards,
//! as in `{orders}/lock` for keys that begin with `{orders}/`: then a guarded transaction stays within one group.

mod entry;
mod guard;
mod queue;

use std::time::Duration;

use bytes::Bytes;

use crate::{client::Client, error::Error, lease::Loss, watch::WatchError};

use queue::Want;

pub(crate) use entry::Entry;
pub use guard::{Guard, GuardError, REENTRIES_MAX, Token, TooManyReentries};
pub(crate) use queue::Queue;

/// A holder that is not heard of for so long loses the lock, if nothing else is said.
pub const TTL_DEFAULT: Duration = Duration::from_secs(10);

/// Why a lock was not acquired. Its waiter is gone, or goes in the background.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// It was not to be had in the time given.
    #[error("the lock was not to be had within {0:?}")]
    TimedOut(Duration),
    /// The place in the queue was lost. Lock again, at its end.
    #[error("the place in the queue was lost: {0}")]
    Lost(#[source] Loss),
    /// Another client reckons with another number of permits. They must agree.
    #[error("the semaphore has {theirs} permits elsewhere and {ours} here")]
    Capacity {
        /// The number here.
        ours: u32,
        /// What stands under another's key.
        theirs: String,
    },
    /// A request failed.
    #[error("a request for the lock failed")]
    Request(#[from] Error),
    /// The server ended the watch for the lock.
    #[error("the watch for the lock ended")]
    Watch(#[source] WatchError),
}

/// What all locks can do, written once: methods that differ in what is wanted.
macro_rules! acquire {
    ($want:expr, $lock:ident, $lock_within:ident, $try_lock:ident) => {
        /// Waits until it is acquired. Dropping the future leaves no waiter behind.
        ///
        /// # Errors
        /// See [`LockError`].
        pub async fn $lock(&self) -> Result<Guard, LockError> {
            self.entry.acquire($want(self), None).await
        }

        /// Waits until it is acquired, at most so long. When that is over, the waiter has been removed or is being removed in the background.
        ///
        /// # Errors
        /// See [`LockError`]; [`LockError::TimedOut`] when the time is over.
        pub async fn $lock_within(&self, limit: Duration) -> Result<Guard, LockError> {
            self.entry.acquire($want(self), Some(limit)).await
        }

        /// Acquires it if that can be done at once: without it being seen in the queue otherwise.
        ///
        /// # Errors
        /// See [`LockError`].
        pub async fn $try_lock(&self) -> Result<Option<Guard>, LockError> {
            self.entry.try_acquire($want(self)).await
        }
    };
}

/// A lock that one holds at a time.
///
/// ```no_run
/// use conclave_client::{Client, Mutex, Put, Txn};
///
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let mutex = Mutex::new(&client, "reports/lock");
/// let guard = mutex.lock().await?;
/// tokio::select! {
///     written = guard.txn(Txn::new().then(Put::new("reports/latest", "42"))) => { written?; }
///     loss = guard.lost() => println!("somebody else may hold it: {loss}"),
/// }
/// guard.unlock().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Mutex {
    entry: Entry,
}

impl Mutex {
    /// The mutex of this name. Nothing is asked of the server.
    pub fn new(client: &Client, name: impl Into<Bytes>) -> Self {
        Self { entry: Entry::new(client, &name.into()) }
    }

    /// Holders that are not heard of for so long lose the lock; whole seconds, [`TTL_DEFAULT`] if nothing is said.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.entry.ttl = ttl;
        self
    }

    acquire!(|_: &Self| Want::Alone, lock, lock_within, try_lock);
}

/// A lock that one writer or any number of readers hold at a time. First come, first served: readers that come after a waiting writer wait for it.
///
/// ```no_run
/// use conclave_client::{Client, RwLock};
///
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let lock = RwLock::new(&client, "catalogue/lock");
/// let reading = lock.read().await?;
/// assert!(lock.try_write().await?.is_none());
/// reading.unlock().await?;
/// let writing = lock.write().await?;
/// # drop(writing);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RwLock {
    entry: Entry,
}

impl RwLock {
    /// The lock of this name. Nothing is asked of the server.
    pub fn new(client: &Client, name: impl Into<Bytes>) -> Self {
        Self { entry: Entry::new(client, &name.into()) }
    }

    /// Holders that are not heard of for so long lose the lock; whole seconds, [`TTL_DEFAULT`] if nothing is said.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.entry.ttl = ttl;
        self
    }

    acquire!(|_: &Self| Want::Read, read, read_within, try_read);
    acquire!(|_: &Self| Want::Write, write, write_within, try_write);
}

/// A lock that so many hold at a time. All clients must agree on how many; who does not is refused.
///
/// The tokens of its guards do not order those who hold it at the same time.
///
/// ```no_run
/// use std::time::Duration;
/// use conclave_client::{Client, LockError, Semaphore};
///
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let licences = Semaphore::new(&client, "licences", 5);
/// match licences.acquire_within(Duration::from_secs(3)).await {
///     Ok(permit) => println!("holding {:?}", permit.token()),
///     Err(LockError::TimedOut(_)) => println!("all five are taken"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Semaphore {
    entry: Entry,
    capacity: u32,
}

impl Semaphore {
    /// The semaphore of this name with so many permits, at least one. Nothing is asked of the server.
    pub fn new(client: &Client, name: impl Into<Bytes>, permits: u32) -> Self {
        Self { entry: Entry::new(client, &name.into()), capacity: permits.max(1) }
    }

    /// Holders that are not heard of for so long lose their permit; whole seconds, [`TTL_DEFAULT`] if nothing is said.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.entry.ttl = ttl;
        self
    }

    fn want(&self) -> Want {
        Want::Permit { capacity: self.capacity }
    }

    acquire!(Self::want, acquire, acquire_within, try_acquire);
}
