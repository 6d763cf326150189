//! `etcdserverpb.Maintenance`: how the member is, and checksums to compare it with others.

use std::sync::Arc;

use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::alarm_request::AlarmAction;
use conclave_api::etcdserverpb::maintenance_server::Maintenance;
use conclave_api::etcdserverpb::{
    AlarmRequest, AlarmResponse, DowngradeInfo, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, StatusRequest, StatusResponse,
};
use conclave_kv::Reader;
use tonic::{Request, Response, Status, async_trait};

use super::Serving;
use crate::config::{API_VERSION, CLUSTER_VERSION};

/// The quota that etcd reports where nobody set one: 2 GiB.
const QUOTA_BYTES_DEFAULT: i64 = 2 * 1024 * 1024 * 1024;

/// Serves what can be read of a member. What acts on it is answered before it gets here.
pub(crate) struct MaintenanceService(pub(crate) Arc<Serving>);

/// A size or log position in the message's signed or unsigned field; none comes near the bound.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[async_trait]
impl Maintenance for MaintenanceService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.0.admit(request.metadata(), true)?;
        let (raft, storage) = (self.0.backend.raft(), self.0.backend.storage());
        let errors = match raft.leader {
            Some(_) => Vec::new(),
            None => vec![EtcdError::NoLeader.text().to_owned()],
        };
        Ok(Response::new(StatusResponse {
            header: Some(self.0.header()),
            version: API_VERSION.to_owned(),
            db_size: signed(storage.size_bytes),
            leader: raft.leader.unwrap_or_default(),
            raft_index: raft.committed_index,
            raft_term: raft.term,
            raft_applied_index: raft.applied_index,
            errors,
            db_size_in_use: signed(storage.in_use_bytes),
            is_learner: raft.is_learner,
            storage_version: CLUSTER_VERSION.to_owned(),
            db_size_quota: QUOTA_BYTES_DEFAULT,
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    /// Nothing raises alarms yet, so there are none to tell of: what `etcdctl endpoint health` asks for.
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        self.0.admit(request.metadata(), true)?;
        if request.get_ref().action != AlarmAction::Get as i32 {
            return Err(Status::unimplemented("alarms cannot be raised or disarmed yet"));
        }
        Ok(Response::new(AlarmResponse { header: Some(self.0.header()), alarms: Vec::new() }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let mut response = self.0.blocking(Reader::hash).await?;
        self.0.fill(response.header.get_or_insert_default());
        Ok(Response::new(response))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let revision = request.get_ref().revision;
        let mut response = self.0.blocking(move |reader| reader.hash_kv(revision)).await?;
        self.0.fill(response.header.get_or_insert_default());
        Ok(Response::new(response))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        self.0.backend.move_leader(request.get_ref().target_id).await?;
        Ok(Response::new(MoveLeaderResponse { header: Some(self.0.header()) }))
    }
}
