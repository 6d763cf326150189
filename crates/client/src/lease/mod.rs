//! Leases: a time that must be renewed, and keys that go with it.
//!
//! A [`Lease`] renews itself on a task of its own, which ends with it. [`Lease::lost`] resolves when it is no longer certain that the server
//! has it, and before the server could have given it up by itself. Dropping a lease revokes it in the background.

mod keeper;
mod tenure;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{
        LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
        lease_client::LeaseClient,
    },
};
use tokio::{runtime::Handle, task::AbortHandle, time::timeout};

use crate::{
    backoff::{Backoff, random_bits},
    call::Repeat,
    client::Client,
    error::Error,
    kv::LeaseId,
    moment::Moment,
};

use tenure::Tenure;

pub(crate) use keeper::Standing;
pub use tenure::Loss;

/// A lease is granted for at most so long.
pub const TTL_MAX: Duration = Duration::from_secs(9_000_000_000);

/// What a server says of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// How long it will last unless it is renewed; rounded down to seconds.
    pub remaining: Duration,
    /// For how long it is granted.
    pub granted: Duration,
    /// The keys that go with it, if that was asked for.
    pub keys: BTreeSet<Bytes>,
}

impl Client {
    /// A lease that renews itself until it is dropped. Times are whole seconds, rounded up; a server may grant more than it is asked for.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use conclave_client::{Client, Put};
    ///
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let lease = client.lease(Duration::from_secs(10)).await?;
    /// client.write(Put::new("workers/7", "10.0.0.7:80").with_lease(lease.id())).await?;
    /// let loss = lease.lost().await; // as long as it is renewed, this waits
    /// println!("no longer registered: {loss}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Error`]; [`EtcdError::LeaseTtlTooLarge`] above [`TTL_MAX`].
    pub async fn lease(&self, ttl: Duration) -> Result<Lease, Error> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        // The id is chosen here, so that a grant whose answer was lost can be repeated, and given back if nobody waits for it any more.
        let id = LeaseId(i64::try_from(random_bits() >> 1).unwrap_or(i64::MAX).max(1));
        let runtime = Handle::current();
        let unclaimed = Unclaimed { client: self, runtime: runtime.clone(), id, is_claimed: false };
        let request = LeaseGrantRequest { ttl: seconds, id: id.0 };
        let sent = Moment::now();
        let call = |way, request| async move { LeaseClient::new(way).lease_grant(request).await };
        let granted = match self.shared.unary(self.timeout, Repeat::Same, &request, call).await {
            Ok(answer) => seconds_of(answer.ttl),
            // An earlier attempt was carried out, and its answer was lost: the server may have raised the time, never shortened it.
            Err(error) if error.is(EtcdError::LeaseExist) => seconds_of(seconds),
            Err(error) => return Err(error),
        };
        let tenure = Tenure::granted(sent, granted);
        let standing = Arc::new(Standing::new(tenure));
        let keeper = tokio::spawn(keeper::keep(self.clone(), id, Arc::clone(&standing)));
        unclaimed.claim();
        Ok(Lease {
            client: self.clone(),
            runtime,
            id,
            ttl: granted,
            standing,
            keeper: keeper.abort_handle(),
            is_given_back: false,
        })
    }

    /// Revokes a lease: deletes it and all keys that go with it. A lease that is not there is as good as revoked.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.revoke_if_there(lease).await.map(drop)
    }

    /// Revokes a lease; whether it was there.
    async fn revoke_if_there(&self, lease: LeaseId) -> Result<bool, Error> {
        let request = LeaseRevokeRequest { id: lease.0 };
        let call = |way, request| async move { LeaseClient::new(way).lease_revoke(request).await };
        match self.shared.unary(self.timeout, Repeat::Same, &request, call).await {
            Ok(_) => Ok(true),
            Err(error) if error.is(EtcdError::LeaseNotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the server knows of a lease, with the keys that go with it if `keys`; `None` if there is no such lease.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease_status(&self, lease: LeaseId, keys: bool) -> Result<Option<LeaseStatus>, Error> {
        let request = LeaseTimeToLiveRequest { id: lease.0, keys };
        let limit = self.shared.config.answer_bytes_max;
        let call = |way, request| async move {
            LeaseClient::new(way).max_decoding_message_size(limit).lease_time_to_live(request).await
        };
        let answer = self.shared.unary(self.timeout, Repeat::Read, &request, call).await?;
        Ok((answer.ttl >= 0).then(|| LeaseStatus {
            remaining: seconds_of(answer.ttl),
            granted: seconds_of(answer.granted_ttl),
            keys: answer.keys.into_iter().collect(),
        }))
    }

    /// All leases there are.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leases(&self) -> Result<Vec<LeaseId>, Error> {
        let request = LeaseLeasesRequest {};
        let limit = self.shared.config.answer_bytes_max;
        let call = |way, request| async move {
            LeaseClient::new(way).max_decoding_message_size(limit).lease_leases(request).await
        };
        let answer = self.shared.unary(self.timeout, Repeat::Read, &request, call).await?;
        Ok(answer.leases.into_iter().map(|lease| LeaseId(lease.id)).collect())
    }
}

fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// A lease under way to being granted: given back if nobody waits for it any more.
struct Unclaimed<'a> {
    client: &'a Client,
    runtime: Handle,
    id: LeaseId,
    is_claimed: bool,
}

impl Unclaimed<'_> {
    fn claim(mut self) {
        self.is_claimed = true;
    }
}

impl Drop for Unclaimed<'_> {
    fn drop(&mut self) {
        if !self.is_claimed {
            give_back(&self.runtime, self.client, self.id, TTL_UNKNOWN, true);
        }
    }
}

/// For how long a lease is given back of which nothing is known.
const TTL_UNKNOWN: Duration = Duration::from_secs(10);

/// Revokes a lease in the background, for as long as that is of use: after `ttl` it is gone by itself. One that `may_come` is looked for
/// again when it is not there: its grant may have been overtaken.
fn give_back(runtime: &Handle, client: &Client, lease: LeaseId, ttl: Duration, may_come: bool) {
    let client = client.clone();
    runtime.spawn(async move {
        let config = &client.shared.config;
        let mut backoff = Backoff::new(config.backoff_min, config.backoff_max, random_bits());
        let revoke = async {
            loop {
                match client.revoke_if_there(lease).await {
                    Ok(was_there) if was_there || !may_come => return,
                    Err(Error::Refused(_) | Error::Answered { .. }) => return,
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%lease, %error, "revoking"),
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        };
        // Where it does not succeed, the lease has expired.
        let _ = timeout(ttl, revoke).await;
    });
}

/// A lease that renews itself. Dropping it revokes it in the background, and with it the keys that go with it.
#[derive(Debug)]
pub struct Lease {
    client: Client,
    /// Where it is given back, wherever it is dropped.
    runtime: Handle,
    id: LeaseId,
    ttl: Duration,
    standing: Arc<Standing>,
    keeper: AbortHandle,
    is_given_back: bool,
}

impl Lease {
    /// Its number, for [`Put::with_lease`](crate::Put::with_lease).
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// For how long it was granted, and is renewed each time.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Until when it is certainly held, on the local clock. Renewals move it on.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        self.standing.deadline()
    }

    /// Why it is no longer certainly held, if it is not: a look at the clock, no request.
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        self.standing.loss()
    }

    /// Resolves when the lease is lost. If its keeper cannot reach the server, that is before the server could give it up. The future borrows
    /// nothing and can be spawned.
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + 'static {
        let standing = Arc::clone(&self.standing);
        async move { standing.lost().await }
    }

    /// Revokes it, and with it all keys that go with it.
    ///
    /// # Errors
    /// See [`Error`]; it is then tried further in the background.
    pub async fn revoke(mut self) -> Result<(), Error> {
        self.keeper.abort();
        self.standing.lose(Loss::Released);
        let outcome = self.client.revoke(self.id).await;
        self.is_given_back = outcome.is_ok();
        outcome
    }

    /// Ends its renewal, but leaves it and its keys to whoever renews it from here, or to expire.
    pub fn leave(mut self) -> LeaseId {
        self.is_given_back = true;
        self.id
    }

    pub(crate) fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.keeper.abort();
        self.standing.lose(Loss::Released);
        if !self.is_given_back {
            give_back(&self.runtime, &self.client, self.id, self.ttl, false);
        }
    }
}
