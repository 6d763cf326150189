//! Who answers a request: by its path, straight to the generated server of its service.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use conclave_api::etcdserverpb::cluster_server::ClusterServer;
use conclave_api::etcdserverpb::kv_server::KvServer;
use conclave_api::etcdserverpb::lease_server::LeaseServer;
use conclave_api::etcdserverpb::maintenance_server::MaintenanceServer;
use conclave_api::grpc::health::v1::health_server::HealthServer;
use conclave_api::v3electionpb::election_server::ElectionServer;
use conclave_api::v3lockpb::lock_server::LockServer;
use http::header::CONTENT_TYPE;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service;

use super::Offer;
use super::endpoints::Endpoints;
use crate::backend::Backend;
use crate::config::{Config, REQUEST_OVERHEAD_BYTES};
use crate::service::methods::{self, Calls, METHODS, Server};
use crate::service::{
    ClusterService, ElectionService, HealthService, KvService, LeaseService, LockService, MaintenanceService,
    Serving, WatchService,
};

/// Answers requests; a clone costs two reference counts.
#[derive(Clone)]
pub(super) struct Dispatch {
    servers: Arc<Servers>,
    offer: Offer,
}

struct Servers {
    serving: Arc<Serving>,
    calls: Arc<Calls>,
    kv: KvServer<KvService>,
    cluster: ClusterServer<ClusterService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    lease: LeaseServer<LeaseService>,
    lock: LockServer<LockService>,
    election: ElectionServer<ElectionService>,
    health: HealthServer<HealthService>,
    watch: WatchService,
    endpoints: Endpoints,
    message_bytes_max: usize,
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatch").field("offer", &self.offer).finish_non_exhaustive()
    }
}

impl Dispatch {
    pub(super) fn new(config: &Config, backend: Arc<dyn Backend>, stopping: watch::Receiver<bool>) -> Self {
        let serving = Arc::new(Serving::new(config, backend, stopping.clone()));
        let calls = Arc::new(Calls::default());
        // A request above its own bound is answered with etcd's error; only above this one by gRPC itself.
        let message_bytes_max = (config.max_request_bytes + REQUEST_OVERHEAD_BYTES) as usize;
        let servers = Servers {
            kv: KvServer::new(KvService(serving.clone())).max_decoding_message_size(message_bytes_max),
            cluster: ClusterServer::new(ClusterService(serving.clone())),
            maintenance: MaintenanceServer::new(MaintenanceService(serving.clone())),
            lease: LeaseServer::new(LeaseService(serving.clone())),
            lock: LockServer::new(LockService(serving.clone())).max_decoding_message_size(message_bytes_max),
            election: ElectionServer::new(ElectionService(serving.clone()))
                .max_decoding_message_size(message_bytes_max),
            watch: WatchService::new(serving.clone(), stopping.clone(), message_bytes_max),
            health: HealthServer::new(HealthService::new(stopping)),
            endpoints: Endpoints::new(serving.clone(), calls.clone()),
            serving,
            calls,
            message_bytes_max,
        };
        Self { servers: Arc::new(servers), offer: Offer::Everything }
    }

    pub(super) fn serving(&self) -> Arc<Serving> {
        self.servers.serving.clone()
    }

    /// The same, for a listener with another offer.
    pub(super) fn offering(self, offer: Offer) -> Self {
        Self { offer, ..self }
    }

    fn grpc(&self, request: Request<Incoming>) -> Answer {
        let servers = &self.servers;
        let Some(method) = methods::find(request.uri().path()) else {
            return Answer::ready(unknown(request.uri().path()));
        };
        servers.calls.started(method);
        // The clones are of a reference count and the server's few options.
        let future = match METHODS[method].server {
            Server::Kv => servers.kv.clone().call(request),
            Server::Cluster => servers.cluster.clone().call(request),
            Server::Maintenance => servers.maintenance.clone().call(request),
            Server::Lease => servers.lease.clone().call(request),
            Server::Lock => servers.lock.clone().call(request),
            Server::Election => servers.election.clone().call(request),
            Server::Health => servers.health.clone().call(request),
            Server::Watch => servers.watch.call(request),
            Server::Nobody => {
                let what = METHODS[method].path.trim_start_matches('/').replace('/', ".");
                servers.calls.handled(method, Code::Unimplemented as usize);
                return Answer::ready(Status::unimplemented(format!(
                    "{what} is known to etcd but not served by conclave yet"
                )));
            }
        };
        Answer { future, of: Some((method, servers.clone())) }
    }

    fn http(&self, request: Request<Incoming>) -> Answer {
        let servers = self.servers.clone();
        let metrics_only = self.offer == Offer::Metrics;
        let future =
            async move { Ok(servers.endpoints.answer(request.method(), request.uri(), metrics_only).await) };
        Answer { future: Box::pin(future), of: None }
    }
}

/// Go's words for a path that no service has.
fn unknown(path: &str) -> Status {
    let Some((service, method)) = path.trim_start_matches('/').rsplit_once('/') else {
        return Status::unimplemented(format!("malformed method name: {path:?}"));
    };
    let known = METHODS.iter().any(|known| known.path[1..].starts_with(&format!("{service}/")));
    Status::unimplemented(if known {
        format!("unknown method {method} for service {service}")
    } else {
        format!("unknown service {service}")
    })
}

impl hyper::service::Service<Request<Incoming>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let is_grpc = request.version() == Version::HTTP_2
            && request
                .headers()
                .get(CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        match (is_grpc, self.offer) {
            (true, Offer::Everything | Offer::Grpc) => self.grpc(request),
            (true, Offer::Http | Offer::Metrics) => {
                Answer::ready(Status::unimplemented("this address serves HTTP only"))
            }
            (false, Offer::Grpc) => {
                Answer { future: Box::pin(std::future::ready(Ok(Endpoints::grpc_only()))), of: None }
            }
            (false, _) => self.http(request),
        }
    }
}

/// An answer under way. Counts the call when it has ended and gives gRPC's own errors the form that Go gives them.
pub(super) struct Answer {
    future: Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>,
    of: Option<(usize, Arc<Servers>)>,
}

impl Answer {
    fn ready(status: Status) -> Self {
        Self { future: Box::pin(std::future::ready(Ok(status.into_http()))), of: None }
    }
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut response) = ready!(self.future.as_mut().poll(cx));
        if let Some((method, servers)) = self.of.take() {
            let status = response.extensions_mut().remove::<Status>();
            let code = status.as_ref().map_or(Code::Ok, Status::code);
            let oversized = status.filter(|status| code == Code::OutOfRange && is_oversized(status));
            if oversized.is_some() {
                response = Status::resource_exhausted(format!(
                    "grpc: received message larger than max ({} bytes)",
                    servers.message_bytes_max
                ))
                .into_http();
            }
            let code = if oversized.is_some() { Code::ResourceExhausted } else { code };
            servers.calls.handled(method, code as usize);
        }
        Poll::Ready(Ok(response))
    }
}

/// Whether tonic refused a message by its size. Its own code for it is that of etcd's revision errors, which
/// clients would mistake it for.
fn is_oversized(status: &Status) -> bool {
    status.message().starts_with("Error, decoded message length too large")
}
