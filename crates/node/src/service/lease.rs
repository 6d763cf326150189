//! `etcdserverpb.Lease`: grants and ends go through consensus, renewals to the leader without it.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;

use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::lease_server::Lease;
use conclave_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use conclave_kv::command::{self, Revision};
use conclave_kv::{LEASE_TTL_MAX_SECONDS, Reply, RequestId};
use futures::stream::{BoxStream, StreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::Serving;
use super::serving::{mismatched, request_id};

/// How many renewals of one stream may be under way. They are answered in the order in which they were asked.
const RENEWALS_MAX: usize = 64;

type Renewals = BoxStream<'static, Result<LeaseKeepAliveResponse, Status>>;

/// Serves leases.
pub(crate) struct LeaseService(pub(crate) Arc<Serving>);

impl Serving {
    /// Grants a lease, by the name that its request may have. Without an id it gets one that no lease has.
    pub(super) async fn grant_lease(
        &self,
        name: Option<RequestId>,
        LeaseGrantRequest { ttl, id }: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Status> {
        if ttl > LEASE_TTL_MAX_SECONDS {
            return Err(EtcdError::LeaseTtlTooLarge.into());
        }
        let ttl = ttl.max(self.lease_ttl_min_seconds);
        loop {
            let chosen = if id == 0 { any_lease_id() } else { id };
            let command = command::lease_grant(&LeaseGrantRequest { ttl, id: chosen });
            match self.apply(name, command).await {
                Ok(Reply::LeaseGrant(mut response)) => {
                    self.fill(response.header.get_or_insert_default());
                    return Ok(response);
                }
                Ok(_) => return Err(mismatched(name)),
                // Somebody has the id that was chosen; under its name the request would get this answer for ever.
                Err(status)
                    if id == 0 && name.is_none() && status.message() == EtcdError::LeaseExist.text() => {}
                Err(status) => return Err(status),
            }
        }
    }
}

/// An id for a lease: positive, of the system's randomness.
fn any_lease_id() -> i64 {
    let random = RandomState::new().build_hasher().finish();
    (random & i64::MAX.cast_unsigned()).max(1).cast_signed()
}

async fn renew(
    serving: Arc<Serving>,
    request: Result<LeaseKeepAliveRequest, Status>,
) -> Result<LeaseKeepAliveResponse, Status> {
    let id = request?.id;
    let ttl = serving.backend.renew_lease(id).await?.unwrap_or(0);
    Ok(LeaseKeepAliveResponse { header: Some(serving.header()), id, ttl })
}

#[async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let name = request_id(request.metadata())?;
        self.0.grant_lease(name, request.into_inner()).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let name = request_id(request.metadata())?;
        match self.0.apply(name, command::lease_revoke(Revision::Next, request.get_ref())).await? {
            Reply::LeaseRevoke(mut response) => {
                self.0.fill(response.header.get_or_insert_default());
                Ok(Response::new(response))
            }
            _ => Err(mismatched(name)),
        }
    }

    /// A stream that nothing is asked of holds nothing but itself. It ends with its client, with the first renewal that fails, and when the node stops.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Renewals>, Status> {
        self.0.admit(request.metadata(), false)?;
        let serving = self.0.clone();
        let stopping = self.0.clone();
        let renewals = request
            .into_inner()
            .take_until(async move { stopping.stopped().await })
            .map(move |request| renew(serving.clone(), request))
            .buffered(RENEWALS_MAX)
            .scan(false, |failed, renewal| {
                let goes_on = !std::mem::replace(failed, renewal.is_err());
                std::future::ready(goes_on.then_some(renewal))
            });
        Ok(Response::new(renewals.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let LeaseTimeToLiveRequest { id, keys } = *request.get_ref();
        let left = self.0.backend.lease_left(id).await?;
        let reader = self.0.backend.reader();
        let mut response = LeaseTimeToLiveResponse { id, ttl: -1, ..LeaseTimeToLiveResponse::default() };
        if let Some(left) = left {
            // The leader has applied the grant; so has this member then.
            self.0.read_barrier().await?;
            if let Some(lease) = reader.lease(id) {
                (response.ttl, response.granted_ttl) = (left, lease.ttl_seconds);
                if keys {
                    response.keys = reader.lease_keys(lease.granted).unwrap_or_default();
                }
            }
        }
        response.header = Some(self.0.header());
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        self.0.read_barrier().await?;
        let leases = self.0.backend.reader().leases();
        let leases = leases.iter().map(|lease| LeaseStatus { id: lease.granted.id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: Some(self.0.header()), leases }))
    }
}
