//! `v3electionpb.Election`: leaders by name. The first of a queue leads; what it proclaims is its key's value.

use std::sync::Arc;

use bytes::Bytes;
use conclave_api::etcdserverpb::{PutRequest, RequestOp, ResponseHeader, TxnRequest, request_op};
use conclave_api::v3electionpb::election_server::Election;
use conclave_api::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response, Status, async_trait};

use super::Serving;
use super::queue::{Queue, created_at, deletion, fenced};
use crate::awaited::{Awaited, Waiting};

/// In etcd's manner of saying it; etcd itself does not look.
const LOST: &str = "election: session is expired";
/// etcd's words.
const NOT_LEADER: &str = "election: not leader";
const NO_LEADER: &str = "election: no leader";
const NO_KEY: &str = "\"leader\" field must be provided";

type Leaders = BoxStream<'static, Result<LeaderResponse, Status>>;

/// Serves elections.
pub(crate) struct ElectionService(pub(crate) Arc<Serving>);

impl ElectionService {
    /// Replaces what the owner of a key proclaims, if it still is.
    async fn proclaim_here(
        &self,
        LeaderKey { key, rev, lease, .. }: LeaderKey,
        value: Bytes,
    ) -> Result<Option<ResponseHeader>, Status> {
        // Without a lease the key keeps the one that it has.
        let put =
            PutRequest { key: key.clone(), value, lease, ignore_lease: lease == 0, ..PutRequest::default() };
        let response = self
            .0
            .transact(&TxnRequest {
                compare: vec![created_at(key, rev)],
                success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
                failure: Vec::new(),
            })
            .await?;
        if response.succeeded { Ok(response.header) } else { Err(Status::unknown(NOT_LEADER)) }
    }
}

/// One who observes an election.
struct Observer {
    serving: Arc<Serving>,
    queue: Queue,
    changes: Waiting,
    /// The creation revision, and that of the last change, of what was told last.
    told: Option<(i64, i64)>,
}

impl Observer {
    /// The next leader, or the next that one proclaims; nothing when the node stops.
    async fn next(&mut self) -> Option<Result<LeaderResponse, Status>> {
        loop {
            match self.queue.first() {
                Err(status) => return Some(Err(status)),
                Ok((Some(kv), revision)) if self.told != Some((kv.create_revision, kv.mod_revision)) => {
                    self.told = Some((kv.create_revision, kv.mod_revision));
                    let mut header = ResponseHeader { revision, ..ResponseHeader::default() };
                    self.serving.fill(&mut header);
                    return Some(Ok(LeaderResponse { header: Some(header), kv: Some(kv) }));
                }
                Ok(_) => {}
            }
            tokio::select! {
                () = self.changes.changed() => {}
                () = self.serving.stopped() => return None,
            }
        }
    }
}

#[async_trait]
impl Election for ElectionService {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let CampaignRequest { name, lease, value } = request.into_inner();
        let queue = Queue::new(&self.0, &name);
        let place = queue.enter(lease, value.clone()).await?;
        let leader = LeaderKey { name, key: place.key.clone(), rev: place.created, lease: place.lease };
        if place.found.as_ref().is_some_and(|found| found.value != value) {
            self.proclaim_here(leader.clone(), value).await?;
        }
        let header = queue.wait(&place, LOST).await?;
        let response = fenced(CampaignResponse { header, leader: Some(leader) }, place.created);
        place.stay();
        Ok(response)
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(|| Status::unknown(NO_KEY))?;
        let header = self.proclaim_here(leader, value).await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        self.0.read_barrier().await?;
        let (kv, revision) = Queue::new(&self.0, &request.get_ref().name).first()?;
        let kv = Some(kv.ok_or_else(|| Status::unknown(NO_LEADER))?);
        let mut header = ResponseHeader { revision, ..ResponseHeader::default() };
        self.0.fill(&mut header);
        Ok(Response::new(LeaderResponse { header: Some(header), kv }))
    }

    /// Tells of each leader and of what it proclaims, in order. As in etcd, of what follows each other closely only the last may be told.
    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Leaders>, Status> {
        self.0.admit(request.metadata(), false)?;
        let queue = Queue::new(&self.0, &request.get_ref().name);
        let changes = self.0.begin_waiting(Awaited::Folder((**queue.folder()).into()))?;
        self.0.read_barrier().await?;
        let observer = Observer { serving: self.0.clone(), queue, changes, told: None };
        let leaders = stream::unfold(observer, |mut observer| async move {
            let next = observer.next().await?;
            Some((next, observer))
        });
        Ok(Response::new(leaders.boxed()))
    }

    /// Deletes the key if it is still the one that is named; who does not lead any more has nothing to give up.
    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let leader = request.into_inner().leader.ok_or_else(|| Status::unknown(NO_KEY))?;
        let response = self.0.transact(&deletion(leader.key, leader.rev)).await?;
        Ok(Response::new(ResignResponse { header: response.header }))
    }
}
