//! Software transactions: read and write as if alone, and be run again when somebody came in between.

mod workspace;

use bytes::Bytes;
use conclave_api::errors::EtcdError;
use tokio::time::sleep;

use crate::{
    backoff::{Backoff, random_bits},
    client::Client,
    error::Error,
    kv::{Get, Revision},
    lock::Guard,
    txn::Compare,
};

use workspace::Workspace;

pub use workspace::{Isolation, KEYS_MAX};

/// A software transaction is run at most so often.
pub const ATTEMPTS_MAX: u32 = 64;

/// Why a software transaction did not take place.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StmError {
    /// Others came in between each time. Let fewer write the same keys.
    #[error("others came in between {ATTEMPTS_MAX} times")]
    Conflict,
    /// It reads or writes more keys than a server takes in one transaction, [`KEYS_MAX`].
    #[error("a software transaction of more than {KEYS_MAX} keys")]
    TooLarge,
    /// The lock on which it depends is no longer held.
    #[error("the lock is no longer held")]
    NotHeld,
    /// The transaction gave up by itself.
    #[error("given up: {0}")]
    GivenUp(String),
    /// A request failed; see [`Error`] for whether it took place.
    #[error("a request of the transaction failed")]
    Request(#[from] Error),
}

/// How one attempt ended.
enum Ending {
    Done,
    Again,
}

/// A software transaction, as it is set up and while it runs.
///
/// What a body reads is of one revision; what it writes takes place at its end, all at once, or not at all. When others changed meanwhile
/// what it depends on, the body is run again: it must not do anything outside that may not be done twice.
#[derive(Debug)]
pub struct Stm {
    client: Client,
    isolation: Isolation,
    fences: Vec<Compare>,
    workspace: Workspace,
}

impl Client {
    /// A software transaction to be set up and run.
    ///
    /// ```no_run
    /// use conclave_client::{Client, Stm, StmError};
    ///
    /// # async fn example(client: Client) -> Result<(), StmError> {
    /// client.stm().run(async |tx: &mut Stm| {
    ///     let balance = |value: Option<bytes::Bytes>| -> i64 {
    ///         value.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or(0)
    ///     };
    ///     let (mine, yours) = (balance(tx.get("mine").await?), balance(tx.get("yours").await?));
    ///     if mine < 10 {
    ///         return Err(StmError::GivenUp("not enough".to_owned()));
    ///     }
    ///     tx.put("mine", (mine - 10).to_string());
    ///     tx.put("yours", (yours + 10).to_string());
    ///     Ok(())
    /// }).await
    /// # }
    /// ```
    #[must_use]
    pub fn stm(&self) -> Stm {
        Stm {
            client: self.clone(),
            isolation: Isolation::default(),
            fences: Vec::new(),
            workspace: Workspace::default(),
        }
    }
}

impl Stm {
    /// On what condition it takes place; [`Isolation::Serializable`] if nothing is said.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Only while that lock is held.
    #[must_use]
    pub fn while_held(mut self, guard: &Guard) -> Self {
        self.fences.push(guard.still_held());
        self
    }

    /// Runs it until it takes place, and returns what the body returned that time.
    ///
    /// # Errors
    /// See [`StmError`]; what the body itself returns ends it at once.
    pub async fn run<T>(
        mut self,
        mut body: impl AsyncFnMut(&mut Self) -> Result<T, StmError>,
    ) -> Result<T, StmError> {
        let config = self.client.config();
        let mut backoff = Backoff::new(config.backoff_min / 4, config.backoff_max / 4, random_bits());
        for _ in 0..ATTEMPTS_MAX {
            self.workspace = Workspace::default();
            match body(&mut self).await {
                Ok(outcome) => {
                    if matches!(self.commit().await?, Ending::Done) {
                        return Ok(outcome);
                    }
                }
                // The snapshot is gone while it was read.
                Err(StmError::Request(error)) if error.is(EtcdError::Compacted) => {}
                Err(error) => return Err(error),
            }
            sleep(backoff.pause()).await;
        }
        Err(StmError::Conflict)
    }

    /// What stands under a key, as the transaction sees it.
    ///
    /// # Errors
    /// See [`StmError`]; to be passed on by the body.
    pub async fn get(&mut self, key: impl Into<Bytes>) -> Result<Option<Bytes>, StmError> {
        let key = key.into();
        if let Some(known) = self.workspace.known(&key) {
            return Ok(known);
        }
        let mut get = Get::new(key.clone());
        if let Some(snapshot) = self.workspace.snapshot() {
            get = get.at(snapshot);
        }
        let found = self.client.read(get).await?;
        Ok(self.workspace.note(key, found.kvs.into_iter().next(), found.revision))
    }

    /// Puts a value under a key when the transaction takes place.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.workspace.write(key.into(), Some(value.into()));
    }

    /// Deletes a key when the transaction takes place.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.workspace.write(key.into(), None);
    }

    /// The revision as of which it reads, once it has read.
    #[must_use]
    pub fn snapshot(&self) -> Option<Revision> {
        self.workspace.snapshot()
    }

    async fn commit(&self) -> Result<Ending, StmError> {
        if self.workspace.is_read_only() && self.fences.is_empty() {
            return Ok(Ending::Done);
        }
        if self.workspace.is_too_large(self.isolation, self.fences.len()) {
            return Err(StmError::TooLarge);
        }
        let mut txn = self.workspace.commit(self.isolation);
        txn.when.extend(self.fences.iter().cloned());
        if self.client.txn(txn).await?.succeeded {
            return Ok(Ending::Done);
        }
        self.check_fences().await?;
        Ok(Ending::Again)
    }

    /// A lock that is lost does not come back.
    async fn check_fences(&self) -> Result<(), StmError> {
        if self.fences.is_empty() {
            return Ok(());
        }
        let fences = self.fences.iter().cloned().fold(crate::Txn::new(), crate::Txn::when);
        if self.client.txn(fences).await?.succeeded { Ok(()) } else { Err(StmError::NotHeld) }
    }
}
