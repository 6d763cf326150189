//! The gRPC services: they check a request, hand it to the [`Backend`](crate::Backend) and fill the answer's header.

mod cluster;
mod election;
mod health;
mod kv;
mod lease;
mod lock;
mod maintenance;
pub(crate) mod methods;
mod queue;
mod serving;
mod watch;

pub(crate) use cluster::ClusterService;
pub(crate) use election::ElectionService;
pub(crate) use health::HealthService;
pub(crate) use kv::KvService;
pub(crate) use lease::LeaseService;
pub(crate) use lock::LockService;
pub(crate) use maintenance::MaintenanceService;
pub(crate) use serving::{Serving, check_read};
pub(crate) use watch::{WatchService, Watches};
