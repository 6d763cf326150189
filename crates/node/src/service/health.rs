//! `grpc.health.v1.Health`: the protocol of gRPC's own load balancers and probes.

use conclave_api::grpc::health::v1::health_check_response::ServingStatus;
use conclave_api::grpc::health::v1::health_server::Health;
use conclave_api::grpc::health::v1::{HealthCheckRequest, HealthCheckResponse};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};

type Updates = BoxStream<'static, Result<HealthCheckResponse, Status>>;

/// Serves the health of the server as a whole, which has the empty name: it serves from the moment it can be
/// asked until it begins to stop.
pub(crate) struct HealthService {
    stopping: watch::Receiver<bool>,
}

impl HealthService {
    pub(crate) fn new(stopping: watch::Receiver<bool>) -> Self {
        Self { stopping }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn of_server(stopping: bool) -> HealthCheckResponse {
    response(if stopping { ServingStatus::NotServing } else { ServingStatus::Serving })
}

#[async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if request.get_ref().service.is_empty() {
            Ok(Response::new(of_server(*self.stopping.borrow())))
        } else {
            Err(Status::not_found("unknown service"))
        }
    }

    /// Tells the status now and when it changes; ends with the server. An unknown service stays unknown.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Updates>, Status> {
        let known = request.get_ref().service.is_empty();
        let mut stopping = self.stopping.clone();
        stopping.mark_changed();
        let updates = stream::unfold(Some(stopping), move |stopping| async move {
            let mut stopping = stopping?;
            stopping.changed().await.ok()?;
            let now = *stopping.borrow_and_update();
            let update = if known { of_server(now) } else { response(ServingStatus::ServiceUnknown) };
            Some((Ok(update), (!now).then_some(stopping)))
        });
        Ok(Response::new(updates.boxed()))
    }
}
