//! `etcdserverpb.Cluster`: who the members are, and how that changes.

use std::sync::Arc;

use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::cluster_server::Cluster;
use conclave_api::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse,
};
use tonic::{Request, Response, Status, async_trait};

use super::Serving;
use crate::membership::{Add, Change, Update};

/// Serves the list of members and its changes.
pub(crate) struct ClusterService(pub(crate) Arc<Serving>);

impl ClusterService {
    /// Has a change made, and gives the list that shows it.
    async fn change(&self, change: Change) -> Result<(u64, Vec<Member>), Status> {
        let id = self.0.backend.change_members(change).await?;
        Ok((id, self.0.backend.members()))
    }
}

#[async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        if request.get_ref().linearizable {
            self.0.read_barrier().await?;
        }
        let header = Some(self.0.header());
        Ok(Response::new(MemberListResponse { header, members: self.0.backend.members() }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let MemberAddRequest { peer_ur_ls: peer_urls, is_learner: learner } = request.into_inner();
        let (id, members) = self.change(Change::Add(Add { peer_urls, learner })).await?;
        let member = members.iter().find(|member| member.id == id).cloned();
        // Removed again by another in between.
        let member = Some(member.ok_or(EtcdError::MemberNotFound)?);
        Ok(Response::new(MemberAddResponse { header: Some(self.0.header()), member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let (_, members) = self.change(Change::Remove(request.get_ref().id)).await?;
        Ok(Response::new(MemberRemoveResponse { header: Some(self.0.header()), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let MemberUpdateRequest { id, peer_ur_ls: peer_urls } = request.into_inner();
        let (_, members) = self.change(Change::Update(Update { id, peer_urls })).await?;
        Ok(Response::new(MemberUpdateResponse { header: Some(self.0.header()), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let (_, members) = self.change(Change::Promote(request.get_ref().id)).await?;
        Ok(Response::new(MemberPromoteResponse { header: Some(self.0.header()), members }))
    }
}
