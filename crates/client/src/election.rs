//! Elections: an office, those who campaign for it, and those who want to know who has it.
//!
//! An election is a [`Mutex`](crate::Mutex) whose holder has something to say: it leads while it holds it, and the value under its key is what it
//! proclaims. Keys and values are those of etcd's election service, so campaigners through it and through this client compete with each other.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    client::Client,
    error::Error,
    kv::{Get, KeyValue, Keys, LeaseId, Put, Revision},
    lease::Loss,
    lock::{Entry, Guard, GuardError, LockError, Queue, Token},
    moment::Moment,
    txn::{Txn, TxnAnswer},
    watch::{EventKind, Watch, WatchError, Watcher},
};

/// An election by its name.
///
/// ```no_run
/// use conclave_client::{Client, Election};
///
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let election = Election::new(&client, "scheduler");
/// let office = election.campaign("10.0.0.7:80").await?; // waits until it leads
/// tokio::select! {
///     () = lead() => office.resign().await?,
///     loss = office.lost() => println!("no longer the leader: {loss}"),
/// }
/// # async fn lead() {}
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Election {
    entry: Entry,
}

impl Election {
    /// The election of this name. Nothing is asked of the server.
    pub fn new(client: &Client, name: impl Into<Bytes>) -> Self {
        Self { entry: Entry::new(client, &name.into()) }
    }

    /// A leader that is not heard of for so long loses its office; whole seconds, [`TTL_DEFAULT`](crate::TTL_DEFAULT) if nothing is said.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.entry.ttl = ttl;
        self
    }

    /// Campaigns until elected, with something to say then. First come, first served. Dropping the future withdraws.
    ///
    /// # Errors
    /// See [`LockError`].
    pub async fn campaign(&self, proclamation: impl Into<Bytes>) -> Result<Office, LockError> {
        let guard = self.entry.acquire_alone(proclamation.into()).await?;
        Ok(Office { guard })
    }

    /// Who leads now, if anybody does.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        self.read_leader().await.map(|(leader, _)| leader)
    }

    /// Who leads, and each change of that or of what the leader proclaims, from now on.
    #[must_use]
    pub fn observe(&self) -> Observer {
        Observer { election: self.clone(), told: None, following: None }
    }

    async fn read_leader(&self) -> Result<(Option<Leader>, Revision), Error> {
        let client = self.entry.client();
        loop {
            let prefix = self.entry.prefix();
            let found = client.read(Get::new(Keys::prefix(prefix.clone())).keys_only()).await?;
            let revision = found.revision;
            let Some(first) = Queue::new(found, prefix).first().map(|entrant| entrant.key.clone()) else {
                return Ok((None, revision));
            };
            // At the same revision, so that it is there; if that is gone, all of it has changed.
            match client.read(Get::new(first).at(revision)).await {
                Ok(found) => return Ok((found.kvs.into_iter().next().map(Leader::from), revision)),
                Err(error) if error.is(conclave_api::errors::EtcdError::Compacted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The key that stands for the leader.
    pub key: Bytes,
    /// What it proclaims.
    pub proclamation: Bytes,
    /// Its number: greater than that of every leader before.
    pub token: Token,
}

impl From<KeyValue> for Leader {
    fn from(kv: KeyValue) -> Self {
        Self { key: kv.key, proclamation: kv.value, token: Token(kv.create_revision.0) }
    }
}

/// An office that is held. Dropping it resigns in the background; [`resign`](Self::resign) waits for it.
#[derive(Debug)]
pub struct Office {
    guard: Guard,
}

impl Office {
    /// The number by which whatever the leader writes to can tell it from leaders before.
    #[must_use]
    pub fn token(&self) -> Token {
        self.guard.token()
    }

    /// The key that stands for the leader.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        self.guard.key()
    }

    /// The lease that the office goes with.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.guard.lease()
    }

    /// Until when the office is certainly held, on the local clock, if no renewal succeeds.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        self.guard.deadline()
    }

    /// Why the office is no longer certainly held, if it is not: a look at the clock, no request.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        self.guard.loss()
    }

    /// Resolves when the office is lost, before the server could give it to another; see [`Guard::lost`].
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + 'static {
        self.guard.lost()
    }

    /// A transaction that takes place only if the office is still held; see [`Guard::txn`].
    ///
    /// # Errors
    /// See [`GuardError`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnAnswer, GuardError> {
        self.guard.txn(txn).await
    }

    /// Says something else to those who observe.
    ///
    /// # Errors
    /// See [`GuardError`].
    pub async fn proclaim(&self, proclamation: impl Into<Bytes>) -> Result<(), GuardError> {
        let put = Put::new(self.key().clone(), proclamation).with_lease(self.lease());
        self.txn(Txn::new().then(put)).await.map(drop)
    }

    /// Gives up the office, and waits until that is done.
    ///
    /// # Errors
    /// See [`Error`]; it is then tried further in the background.
    pub async fn resign(self) -> Result<(), Error> {
        self.guard.unlock().await
    }
}

/// Why an observer has ended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// A read failed. The next call tries again.
    #[error("who leads could not be read")]
    Read(#[source] Error),
    /// The server ended the watch.
    #[error("the watch of the election ended")]
    Watch(#[source] WatchError),
}

/// Sees each leader and each proclamation that it comes to see: of several in quick succession perhaps only the last.
#[derive(Debug)]
pub struct Observer {
    election: Election,
    /// The leader that was told last, by the revision of what it proclaimed.
    told: Option<Leader>,
    following: Option<Following>,
}

/// What is watched: the leader's key, or, if nobody leads, all.
#[derive(Debug)]
struct Following {
    watcher: Watcher,
    leader: Option<Leader>,
}

impl Observer {
    /// The leader, at first and after each change. Waits while there is none. Dropping the future loses nothing.
    ///
    /// # Errors
    /// See [`ObserveError`].
    pub async fn next(&mut self) -> Result<Leader, ObserveError> {
        loop {
            if let Some(news) = self.news() {
                return Ok(news);
            }
            let Some(following) = &mut self.following else {
                self.follow().await?;
                continue;
            };
            match following.watcher.next().await {
                Ok(batch) => {
                    let Some(leader) = &mut following.leader else {
                        // Somebody came.
                        self.following = None;
                        continue;
                    };
                    for event in batch.events {
                        match event.kind {
                            EventKind::Put if Token(event.kv.create_revision.0) == leader.token => {
                                *leader = Leader::from(event.kv);
                            }
                            // Gone, or gone and come again as another.
                            EventKind::Put | EventKind::Delete => {
                                self.following = None;
                                break;
                            }
                        }
                    }
                }
                // What was missed is to be seen in what is there.
                Err(WatchError::Compacted { .. }) => self.following = None,
                Err(error) => {
                    self.following = None;
                    return Err(ObserveError::Watch(error));
                }
            }
        }
    }

    /// A leader that differs from the one told last.
    fn news(&mut self) -> Option<Leader> {
        let leader = self.following.as_ref()?.leader.as_ref()?;
        if self.told.as_ref() == Some(leader) {
            return None;
        }
        self.told = Some(leader.clone());
        self.told.clone()
    }

    async fn follow(&mut self) -> Result<(), ObserveError> {
        let (leader, revision) = self.election.read_leader().await.map_err(ObserveError::Read)?;
        let entry = &self.election.entry;
        let watch = match &leader {
            Some(leader) => Watch::new(leader.key.clone()),
            None => Watch::new(Keys::prefix(entry.prefix().clone())).puts_only(),
        };
        let watcher = entry.client().watch(watch.after(revision));
        self.following = Some(Following { watcher, leader });
        Ok(())
    }
}
