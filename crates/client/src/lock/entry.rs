//! How a client enters a lock's queue and waits in it.

use std::time::Duration;

use bytes::Bytes;
use conclave_api::errors::EtcdError;
use tokio::time::timeout;

use crate::{
    backoff::{Backoff, random_bits},
    call::Repeat,
    client::Client,
    error::Error,
    kv::{Get, Keys, Put, Revision},
    lease::{Lease, Loss},
    txn::{Compare, Is, OpAnswer, Txn, TxnAnswer},
    watch::{EventKind, Watch, WatchError, Watcher},
};

use super::{
    Guard, LockError, TTL_DEFAULT,
    queue::{Await, Place, Queue, Want},
};

/// How often `try_lock` looks at a queue that others join meanwhile.
const TRIES_MAX: usize = 8;

/// The way into one lock's queue.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    client: Client,
    prefix: Bytes,
    pub(crate) ttl: Duration,
}

impl Entry {
    pub(crate) fn new(client: &Client, name: &Bytes) -> Self {
        Self { client: client.clone(), prefix: [name, &b"/"[..]].concat().into(), ttl: TTL_DEFAULT }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What all keys of the queue begin with.
    pub(crate) fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// Enters and waits.
    pub(super) async fn acquire(&self, want: Want, limit: Option<Duration>) -> Result<Guard, LockError> {
        self.acquire_with(want, want.value(), limit).await
    }

    /// Enters with a value of the owner's, and waits.
    pub(crate) async fn acquire_alone(&self, value: Bytes) -> Result<Guard, LockError> {
        self.acquire_with(Want::Alone, value, None).await
    }

    async fn acquire_with(
        &self,
        want: Want,
        value: Bytes,
        limit: Option<Duration>,
    ) -> Result<Guard, LockError> {
        let Some(limit) = limit else { return self.enter_and_wait(want, value).await };
        // The future that is dropped here gives its lease back in the background.
        timeout(limit, self.enter_and_wait(want, value)).await.unwrap_or(Err(LockError::TimedOut(limit)))
    }

    async fn enter_and_wait(&self, want: Want, value: Bytes) -> Result<Guard, LockError> {
        let lease = self.client.lease(self.ttl).await?;
        let key = want.key(&self.prefix, lease.id());
        let put = Put::new(key.clone(), value).with_lease(lease.id());
        let enter = Txn::new()
            .when(Compare::absent(key.clone()))
            .then(put)
            .then(self.queue_of(want))
            .otherwise(self.queue_of(want));
        let outcome = self.persist(&lease, || self.client.txn_as(Repeat::Same, enter.clone())).await?;
        let mut queue = self.queue_in(&outcome)?;
        loop {
            match queue.place(want, &key)? {
                Place::Holds(token) => return self.hold(lease, key, token),
                Place::Gone => return Err(LockError::Lost(lease.loss().unwrap_or(Loss::Gone))),
                Place::Waits(obstacle) => self.wait(&lease, obstacle, queue.revision).await?,
            }
            let get = self.queue_of(want);
            let found = self.persist(&lease, || self.client.read(get.clone())).await?;
            queue = Queue::new(found, &self.prefix);
        }
    }

    /// Enters only if that is to hold the lock at once.
    pub(super) async fn try_acquire(&self, want: Want) -> Result<Option<Guard>, LockError> {
        let mut lease = None;
        for _ in 0..TRIES_MAX {
            let queue = Queue::new(self.client.read(self.queue_of(want)).await?, &self.prefix);
            if !queue.admits(want)? {
                return Ok(None);
            }
            let owned = match lease.take() {
                Some(lease) => lease,
                None => self.client.lease(self.ttl).await?,
            };
            let key = want.key(&self.prefix, owned.id());
            // Nobody came since. Who went meanwhile is not in the way.
            let nobody_came =
                Compare::mod_revision(Keys::prefix(self.prefix.clone()), Is::Less, queue.revision.next());
            let enter = Txn::new()
                .when(nobody_came)
                .then(Put::new(key.clone(), want.value()).with_lease(owned.id()))
                .then(self.queue_of(want))
                .otherwise(self.queue_of(want));
            let outcome = self.persist(&owned, || self.client.txn_as(Repeat::Same, enter.clone())).await?;
            // An attempt whose answer was lost may have put the key: then it is there, and the condition failed on it.
            match self.queue_in(&outcome)?.place(want, &key)? {
                Place::Holds(token) => return self.hold(owned, key, token).map(Some),
                Place::Gone if outcome.succeeded => return Err(LockError::Lost(Loss::Gone)),
                Place::Gone => lease = Some(owned),
                // It was put before others went that came before it: that is not at once.
                Place::Waits(_) => return Ok(None),
            }
        }
        Ok(None)
    }

    fn hold(&self, lease: Lease, key: Bytes, token: Revision) -> Result<Guard, LockError> {
        match lease.loss() {
            Some(loss) => Err(LockError::Lost(loss)),
            None => Ok(Guard::new(self.client.clone(), lease, key, token)),
        }
    }

    /// The read of the whole queue.
    fn queue_of(&self, want: Want) -> Get {
        let get = Get::new(Keys::prefix(self.prefix.clone()));
        if want.needs_values() { get } else { get.keys_only() }
    }

    /// The queue as a transaction's last step read it.
    fn queue_in(&self, answer: &TxnAnswer) -> Result<Queue, LockError> {
        match answer.answers.last() {
            Some(OpAnswer::Get(found)) => Ok(Queue::new(found.clone(), &self.prefix)),
            _ => Err(Error::Malformed("a transaction's answer without what a step read").into()),
        }
    }

    /// Asks again for as long as the lease lasts. What is asked does no harm twice.
    async fn persist<A, F: Future<Output = Result<A, Error>>>(
        &self,
        lease: &Lease,
        ask: impl Fn() -> F,
    ) -> Result<A, LockError> {
        let config = self.client.config();
        let mut backoff = Backoff::new(config.backoff_min, config.backoff_max, random_bits());
        let asking = async {
            loop {
                match ask().await {
                    Err(error) if error.is_transient() || matches!(error, Error::OutcomeUnknown { .. }) => {
                        tokio::time::sleep(backoff.pause()).await;
                    }
                    outcome => return outcome,
                }
            }
        };
        tokio::select! {
            outcome = asking => match outcome {
                Err(error) if error.is(EtcdError::LeaseNotFound) => Err(LockError::Lost(Loss::Gone)),
                outcome => Ok(outcome?),
            },
            loss = lease.lost() => Err(LockError::Lost(loss)),
        }
    }

    /// Waits until the queue is to be judged again.
    async fn wait(&self, lease: &Lease, obstacle: Await, judged: Revision) -> Result<(), LockError> {
        let keys = match &obstacle {
            Await::Key(key) => Keys::one(key.clone()),
            Await::AnyOf { .. } => Keys::prefix(self.prefix.clone()),
        };
        let watcher = self.client.watch(Watch::new(keys).after(judged).deletes_only());
        tokio::select! {
            outcome = gone(watcher, obstacle) => outcome,
            loss = lease.lost() => Err(LockError::Lost(loss)),
        }
    }
}

async fn gone(mut watcher: Watcher, mut obstacle: Await) -> Result<(), LockError> {
    loop {
        let batch = match watcher.next().await {
            Ok(batch) => batch,
            // Deletions may have been missed: the queue says whether.
            Err(WatchError::Compacted { .. }) => return Ok(()),
            Err(error) => return Err(LockError::Watch(error)),
        };
        let mut deleted = batch.events.iter().filter(|event| event.kind == EventKind::Delete);
        if deleted.any(|event| obstacle.is_over(event.key())) {
            return Ok(());
        }
    }
}
