//! `v3lockpb.Lock`: mutual exclusion by name, first come, first served.

use std::sync::Arc;

use bytes::Bytes;
use conclave_api::etcdserverpb::DeleteRangeRequest;
use conclave_api::v3lockpb::lock_server::Lock;
use conclave_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use conclave_kv::command::{self, Revision};
use conclave_kv::validate::validate_delete_range;
use conclave_kv::{KvError, Reply};
use tonic::{Request, Response, Status, async_trait};

use super::Serving;
use super::queue::{Queue, fenced};
use super::serving::refusal;

/// etcd's words for a key that was lost while its owner waited.
const LOST: &str = "mutex: session is expired";

/// Serves locks.
pub(crate) struct LockService(pub(crate) Arc<Serving>);

#[async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let LockRequest { name, lease } = request.into_inner();
        let queue = Queue::new(&self.0, &name);
        let place = queue.enter(lease, Bytes::new()).await?;
        let header = queue.wait(&place, LOST).await?;
        let response = fenced(LockResponse { header, key: place.key.clone() }, place.created);
        place.stay();
        Ok(response)
    }

    /// Deletes the key, whoever's it is, as etcd does: to know it is the right to give it back.
    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let delete = DeleteRangeRequest { key: request.into_inner().key, ..DeleteRangeRequest::default() };
        validate_delete_range(&delete, &self.0.limits).map_err(refusal)?;
        match self.0.apply(None, command::delete_range(Revision::Next, &delete)).await? {
            Reply::DeleteRange(mut response) => {
                self.0.fill(response.header.get_or_insert_default());
                Ok(Response::new(UnlockResponse { header: response.header }))
            }
            _ => Err(refusal(KvError::Malformed)),
        }
    }
}
