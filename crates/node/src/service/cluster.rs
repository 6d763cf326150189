//! `etcdserverpb.Cluster`: who the members are.

use std::sync::Arc;

use conclave_api::etcdserverpb::cluster_server::Cluster;
use conclave_api::etcdserverpb::{MemberListRequest, MemberListResponse};
use tonic::{Request, Response, Status, async_trait};

use super::Serving;

/// Serves the list of members. The changes of membership are answered before they get here.
pub(crate) struct ClusterService(pub(crate) Arc<Serving>);

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
}
