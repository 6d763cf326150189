//! What a holder has in its hand.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use tokio::task::AbortHandle;

use crate::{
    client::Client,
    error::Error,
    kv::{Get, LeaseId, Revision},
    lease::{Lease, Loss, Standing},
    moment::Moment,
    txn::{Compare, Is, OpAnswer, Txn, TxnAnswer},
    watch::{EventKind, Watch, WatchError},
};

/// A lock is entered again at most so often.
pub const REENTRIES_MAX: u32 = 64;

/// A fencing token: each holder's is greater than that of the one before. It is the revision at which the holder's key came into being.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub i64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a guarded transaction had no effect.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// The lock is no longer held, and nothing took place.
    #[error("the lock is no longer held: {0}")]
    Lost(#[source] Loss),
    /// The request failed; see [`Error`] for whether it took place.
    #[error("the request failed")]
    Request(#[from] Error),
}

/// The lock was entered again [`REENTRIES_MAX`] times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock was entered again {REENTRIES_MAX} times already")]
pub struct TooManyReentries;

/// A lock that is held. Dropping it releases the lock in the background; [`unlock`](Self::unlock) waits for it.
#[derive(Debug)]
pub struct Guard {
    hold: Arc<Hold>,
}

#[derive(Debug)]
struct Hold {
    client: Client,
    key: Bytes,
    token: Revision,
    entries: AtomicU32,
    lease: Lease,
    lookout: Lookout,
}

/// The task that sees the key go; it ends with this.
#[derive(Debug)]
struct Lookout(AbortHandle);

impl Drop for Lookout {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Guard {
    pub(super) fn new(client: Client, lease: Lease, key: Bytes, token: Revision) -> Self {
        let watching = tokio::spawn(look_out(client.clone(), lease.standing().clone(), key.clone(), token));
        let lookout = Lookout(watching.abort_handle());
        Self { hold: Arc::new(Hold { client, key, token, entries: AtomicU32::new(0), lease, lookout }) }
    }

    /// The number by which whatever the lock protects can tell this holder from those before.
    #[must_use]
    pub fn token(&self) -> Token {
        Token(self.hold.token.0)
    }

    /// The key that stands for the holder.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        &self.hold.key
    }

    /// The lease that the key goes with. Keys put with it go with the lock.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.hold.lease.id()
    }

    /// Until when the lock is certainly held, on the local clock, if no renewal succeeds.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        self.hold.lease.deadline()
    }

    /// Why the lock is no longer certainly held, if it is not: a look at the clock, no request.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        self.hold.lease.loss()
    }

    /// Resolves when the lock is lost: when its lease could not be renewed in time, before the server could hand the lock to another; or when the
    /// server says that the lease or the key is gone. The future borrows nothing and can be spawned.
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + 'static {
        self.hold.lease.lost()
    }

    /// The condition that the lock is still held, for transactions of one's own.
    #[must_use]
    pub fn still_held(&self) -> Compare {
        Compare::create_revision(self.hold.key.clone(), Is::Equal, self.hold.token)
    }

    /// A transaction that takes place only if the lock is still held: the server judges that, at the transaction's own revision.
    ///
    /// # Errors
    /// See [`GuardError`]; of [`GuardError::Lost`] nothing took place.
    pub async fn txn(&self, txn: Txn) -> Result<TxnAnswer, GuardError> {
        if let Some(loss) = self.loss() {
            return Err(GuardError::Lost(loss));
        }
        let guarded = Txn::new().when(self.still_held()).then(txn);
        let mut answer = self.hold.client.txn(guarded).await?;
        if !answer.succeeded {
            self.hold.lease.standing().lose(Loss::KeyDeleted);
            return Err(GuardError::Lost(Loss::KeyDeleted));
        }
        match answer.answers.pop() {
            Some(OpAnswer::Txn(answer)) => Ok(answer),
            _ => Err(Error::Malformed("a transaction's answer without that of the one within").into()),
        }
    }

    /// Enters the lock once more: it is released when all guards are gone. This takes no request.
    ///
    /// # Errors
    /// After [`REENTRIES_MAX`].
    pub fn reenter(&self) -> Result<Self, TooManyReentries> {
        let enter = |entries| (entries < REENTRIES_MAX).then_some(entries + 1);
        self.hold
            .entries
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter)
            .map_err(|_| TooManyReentries)?;
        Ok(Self { hold: Arc::clone(&self.hold) })
    }

    /// Releases the lock, and waits until that is done. If it was entered several times, this leaves it once.
    ///
    /// # Errors
    /// See [`Error`]. The release is then tried further in the background, and at the latest the lease expires.
    pub async fn unlock(self) -> Result<(), Error> {
        let hold = Arc::clone(&self.hold);
        drop(self);
        let Some(Hold { lease, lookout, .. }) = Arc::into_inner(hold) else { return Ok(()) };
        drop(lookout);
        lease.revoke().await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The first guard is not counted.
        let leave = |entries: u32| entries.checked_sub(1);
        let _ = self.hold.entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave);
    }
}

/// Sees the key go although the lease lasts: deleted by somebody, or its lease revoked.
async fn look_out(client: Client, standing: Arc<Standing>, key: Bytes, token: Revision) {
    loop {
        // A read that fails tells nothing, and the lease runs on.
        let Ok(found) = client.read(Get::new(key.clone()).keys_only()).await else {
            tokio::time::sleep(client.config().backoff_max).await;
            continue;
        };
        if found.kvs.first().is_none_or(|kv| kv.create_revision != token) {
            return standing.lose(Loss::KeyDeleted);
        }
        let mut watcher = client.watch(Watch::new(key.clone()).after(found.revision).deletes_only());
        loop {
            match watcher.next().await {
                Ok(batch) if batch.events.iter().any(|event| event.kind == EventKind::Delete) => {
                    return standing.lose(Loss::KeyDeleted);
                }
                Ok(_) => {}
                // The deletion may be among what was compacted.
                Err(WatchError::Compacted { .. }) => break,
                Err(error) => {
                    tracing::debug!(%error, "the owner's key is not watched");
                    return;
                }
            }
        }
    }
}
