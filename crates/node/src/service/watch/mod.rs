//! `etcdserverpb.Watch`: changes as this member applies them.
//!
//! The hub of `conclave_kv::watch` decides; here are what it lacks: gRPC, a thread that reads, and time.
//!
//! ```text
//!   client ──requests──> Responses ──create, cancel──> ┌─────┐ <──pages── pump thread <──told── apply thread
//!          <──frames──── (polled by its connection) <──│ hub │                 │
//!                                                      └─────┘                 └──reads──> store
//! ```
//! A stream is no task: its connection polls it. Its next request is read only while its queue has room, so that a client that does not read what it is sent
//! costs no more than its queue.
//!
//! A stream ends with `NoLeader` if its client demanded a leader and there has been none for three election timeouts, as in etcd; with `Stopped` when the
//! member stops; and with an internal error if the store cannot be read. In each case, and when a member restarts, the client goes on elsewhere from the last
//! revision it saw. When a member takes in a snapshot its streams go on: what the snapshot contains is read as history, and a watch whose next change is
//! compacted there is told so.

mod codec;
mod pump;
mod responses;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::WatchRequest;
use http::Request;
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService};
use tonic::{Response, Status, Streaming};

use self::codec::{Reply, WatchCodec};
use self::responses::Responses;
use super::Serving;

pub(crate) use self::pump::Watches;

/// Serves watches.
#[derive(Clone)]
pub(crate) struct WatchService {
    serving: Arc<Serving>,
    stopping: watch::Receiver<bool>,
    message_bytes_max: usize,
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl WatchService {
    pub(crate) fn new(
        serving: Arc<Serving>,
        stopping: watch::Receiver<bool>,
        message_bytes_max: usize,
    ) -> Self {
        Self { serving, stopping, message_bytes_max }
    }

    /// Answers a request for a stream. Not through the generated server, which would encode every event anew for each watch.
    pub(crate) fn call(&self, request: Request<Incoming>) -> Answer {
        let service = self.clone();
        Box::pin(async move {
            let mut grpc =
                Grpc::new(WatchCodec).apply_max_message_size_config(Some(service.message_bytes_max), None);
            Ok(grpc.streaming(service, request).await)
        })
    }
}

impl StreamingService<WatchRequest> for WatchService {
    type Response = Reply;
    type ResponseStream = Responses;
    type Future = std::future::Ready<Result<Response<Responses>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<WatchRequest>>) -> Self::Future {
        let opened = self.serving.admit(request.metadata(), false).and_then(|()| {
            let demands_leader = Serving::demands_leader(request.metadata());
            let stream = self.serving.watches.open(demands_leader).ok_or(EtcdError::Stopped)?;
            let requests = request.into_inner();
            Ok(Response::new(Responses::new(
                Arc::clone(&self.serving),
                stream,
                requests,
                self.stopping.clone(),
            )))
        });
        std::future::ready(opened)
    }
}
