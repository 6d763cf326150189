//! One stream as its connection polls it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::watch_request::RequestUnion;
use conclave_api::etcdserverpb::{ResponseHeader, WatchRequest};
use futures::Stream;
use tokio::sync::watch;
use tonic::{Status, Streaming};

use super::codec::Reply;
use super::pump::{Next, OpenStream};
use crate::service::Serving;

/// So many requests are looked at before what they are answered is sent.
const REQUESTS_MAX: usize = 64;

/// The responses of a stream. Polled, it looks at requests too.
pub(crate) struct Responses {
    serving: Arc<Serving>,
    stream: OpenStream,
    /// `None` once the client has said all it wants to; its watches go on.
    requests: Option<Streaming<WatchRequest>>,
    stops: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

impl Responses {
    pub(super) fn new(
        serving: Arc<Serving>,
        stream: OpenStream,
        requests: Streaming<WatchRequest>,
        mut stopping: watch::Receiver<bool>,
    ) -> Self {
        let stops = async move {
            // An error says that whoever would stop is gone.
            let _ = stopping.wait_for(|stopping| *stopping).await.map(|_| ());
        };
        Self { serving, stream, requests: Some(requests), stops: Box::pin(stops), ended: false }
    }

    /// Looks at the requests that have come, as far as there is room for answers.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        for _ in 0..REQUESTS_MAX {
            let Some(requests) = &mut self.requests else { return Ok(()) };
            if !self.stream.has_room() {
                // It is polled again once something was sent.
                return Ok(());
            }
            match pin!(requests).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(request)) => self.handle(request?),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn handle(&self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.stream.create(&create),
            Some(RequestUnion::CancelRequest(cancel)) => self.stream.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.stream.ask_progress(),
            // Of a later version, or nothing: no reason to end everybody's watches.
            None => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, Status>> {
        if self.stops.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(EtcdError::Stopped.into()));
        }
        if let Err(status) = self.poll_requests(cx) {
            return Poll::Ready(Err(match status.code() {
                tonic::Code::Cancelled => EtcdError::WatchCanceled.into(),
                _ => status,
            }));
        }
        match self.stream.next(cx) {
            Next::Frame(frame) => {
                let mut header = ResponseHeader::default();
                self.serving.fill(&mut header);
                Poll::Ready(Ok(Reply { header, frame }))
            }
            Next::Ended(end) => Poll::Ready(Err(end.into())),
            Next::Nothing => Poll::Pending,
        }
    }
}

impl Stream for Responses {
    type Item = Result<Reply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let reply = ready!(self.poll(cx));
        self.ended = reply.is_err();
        Poll::Ready(Some(reply))
    }
}
