//! `etcdserverpb.KV`: reads from this member's store, writes through consensus.

use std::sync::Arc;

use conclave_api::etcdserverpb::kv_server::Kv;
use conclave_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use conclave_kv::Reply;
use conclave_kv::command::{self, Revision};
use conclave_kv::validate::{
    validate_compaction, validate_delete_range, validate_put, validate_range, validate_range_stream,
    validate_txn,
};
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response, Status, async_trait};

use super::Serving;
use super::serving::{mismatched, refusal, request_id};

type Parts = BoxStream<'static, Result<RangeStreamResponse, Status>>;

/// Serves the key-value store.
pub(crate) struct KvService(pub(crate) Arc<Serving>);

impl KvService {
    fn fill(&self, header: &mut Option<ResponseHeader>) {
        self.0.fill(header.get_or_insert_default());
    }
}

/// A range of at most this many keys is read by the task that serves it.
const SHORT_RANGE_KEYS: i64 = 1_000;

/// Does a read that may take long where it keeps no other request waiting.
fn at_leisure<T>(request: &RangeRequest, read: impl FnOnce() -> T) -> T {
    let short = request.range_end.is_empty() || (1..=SHORT_RANGE_KEYS).contains(&request.limit);
    let threads = tokio::runtime::Handle::current().runtime_flavor();
    if short || threads != tokio::runtime::RuntimeFlavor::MultiThread {
        read()
    } else {
        tokio::task::block_in_place(read)
    }
}

#[async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        self.0.admit(request.metadata(), request.get_ref().serializable)?;
        let request = request.into_inner();
        validate_range(&request).map_err(refusal)?;
        if !request.serializable {
            self.0.read_barrier().await?;
        }
        let mut response =
            at_leisure(&request, || self.0.backend.reader().range(&request)).map_err(refusal)?;
        self.0.metrics.ranges.increment();
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Parts>, Status> {
        self.0.admit(request.metadata(), request.get_ref().serializable)?;
        let request = request.into_inner();
        validate_range_stream(&request).map_err(refusal)?;
        if !request.serializable {
            self.0.read_barrier().await?;
        }
        let parts = self.0.backend.reader().range_stream(&request).map_err(refusal)?;
        self.0.metrics.ranges.increment();
        let serving = self.0.clone();
        // A part is read when HTTP/2 has room for it, so a slow client holds no more than one.
        let parts = stream::iter(parts).map(move |part| {
            let mut part = part.map_err(refusal)?;
            if let Some(header) = &mut part.header {
                serving.fill(header);
            }
            Ok(RangeStreamResponse { range_response: Some(part) })
        });
        Ok(Response::new(parts.boxed()))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let id = request_id(request.metadata())?;
        let request = request.into_inner();
        validate_put(&request, &self.0.limits).map_err(refusal)?;
        match self.0.apply(id, command::put(Revision::Next, &request)).await? {
            Reply::Put(mut response) => {
                self.0.metrics.puts.increment();
                self.fill(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(mismatched(id)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let id = request_id(request.metadata())?;
        let request = request.into_inner();
        validate_delete_range(&request, &self.0.limits).map_err(refusal)?;
        match self.0.apply(id, command::delete_range(Revision::Next, &request)).await? {
            Reply::DeleteRange(mut response) => {
                self.0.metrics.deletes.increment();
                self.fill(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(mismatched(id)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let id = request_id(request.metadata())?;
        let request = request.into_inner();
        validate_txn(&request, &self.0.limits).map_err(refusal)?;
        let Reply::Txn(mut response) = self.0.apply(id, command::txn(Revision::Next, &request)).await? else {
            return Err(mismatched(id));
        };
        self.0.metrics.txns.increment();
        self.fill(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        self.0.admit(request.metadata(), false)?;
        let id = request_id(request.metadata())?;
        validate_compaction(request.get_ref(), &self.0.limits).map_err(refusal)?;
        match self.0.apply(id, command::compaction(request.get_ref())).await? {
            Reply::Compaction(mut response) => {
                self.fill(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(mismatched(id)),
        }
    }
}
