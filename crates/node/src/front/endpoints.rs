//! etcd's HTTP endpoints: health, version and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use conclave_api::errors::EtcdError;
use conclave_kv::KvError;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use http_body_util::Full;
use serde_json::json;
use tonic::body::Body;

use super::exposition;
use crate::config::{API_VERSION, CLUSTER_VERSION};
use crate::service::methods::Calls;
use crate::service::{Serving, check_read};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const PROMETHEUS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// One part of a health check that has a path of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

/// The process serves reads from what it has.
const LIVEZ: &[Check] = &[Check::SerializableRead];

/// The member takes part in the cluster.
const READYZ: &[Check] =
    &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

enum Page {
    Checks(&'static str, &'static [Check]),
    Health,
    Version,
    Metrics,
}

/// Kind and part of each check, as their figures are labelled.
pub(super) const CHECKS: [(&str, Check); 5] = [
    ("livez", Check::SerializableRead),
    ("readyz", Check::DataCorruption),
    ("readyz", Check::SerializableRead),
    ("readyz", Check::LinearizableRead),
    ("readyz", Check::NonLearner),
];

/// How often one check passed and failed, and how it ended last.
#[derive(Debug, Default)]
pub(super) struct CheckCounts {
    pub(super) passed: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) passes: AtomicU64,
}

impl Check {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn run(self, serving: &Serving) -> Result<(), KvError> {
        match self {
            // A node that finds its data damaged halts instead of raising an alarm.
            Self::DataCorruption => Ok(()),
            Self::SerializableRead => check_read(serving, true).await,
            Self::LinearizableRead => check_read(serving, false).await,
            Self::NonLearner if serving.backend.raft().is_learner => {
                Err(EtcdError::NotSupportedForLearner.into())
            }
            Self::NonLearner => Ok(()),
        }
    }
}

/// Answers HTTP requests that are not gRPC.
pub(super) struct Endpoints {
    serving: Arc<Serving>,
    calls: Arc<Calls>,
    checks: [CheckCounts; CHECKS.len()],
}

impl Endpoints {
    pub(super) fn new(serving: Arc<Serving>, calls: Arc<Calls>) -> Self {
        Self { serving, calls, checks: std::array::from_fn(|_| CheckCounts::default()) }
    }

    /// What an address that serves gRPC alone says to a browser.
    pub(super) fn grpc_only() -> Response<Body> {
        text(StatusCode::UNSUPPORTED_MEDIA_TYPE, TEXT, "this address serves gRPC only\n")
    }

    /// Answers a request by its path.
    pub(super) async fn answer(&self, method: &Method, uri: &Uri, metrics_only: bool) -> Response<Body> {
        let path = uri.path().trim_start_matches('/');
        if let Some(gateway) = path.strip_prefix("v3/").filter(|_| !metrics_only) {
            let error =
                format!("the JSON gateway (/v3/{gateway}) is known to etcd but not served by conclave yet");
            let body = json!({"error": error, "code": 12, "message": error});
            return text(StatusCode::NOT_IMPLEMENTED, JSON, body.to_string());
        }
        let page = match path.split_once('/').map_or((path, None), |(root, check)| (root, Some(check))) {
            ("livez", None) => Some(Page::Checks("livez", LIVEZ)),
            ("readyz", None) => Some(Page::Checks("readyz", READYZ)),
            ("livez", Some(name)) => one(LIVEZ, name).map(|check| Page::Checks("livez", check)),
            ("readyz", Some(name)) => one(READYZ, name).map(|check| Page::Checks("readyz", check)),
            ("health", None) => Some(Page::Health),
            ("metrics", None) => Some(Page::Metrics),
            ("version", None) if !metrics_only => Some(Page::Version),
            _ => None,
        };
        let Some(page) = page else {
            return text(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
        };
        // HEAD is GET without the body, which hyper leaves out.
        if method != Method::GET && method != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return response;
        }
        match page {
            Page::Checks(kind, checks) => self.checks(kind, checks, uri).await,
            Page::Health => self.health(uri).await,
            Page::Version => {
                let body = json!({
                    "etcdserver": API_VERSION, "etcdcluster": CLUSTER_VERSION, "storage": CLUSTER_VERSION,
                });
                text(StatusCode::OK, JSON, body.to_string())
            }
            Page::Metrics => {
                text(StatusCode::OK, PROMETHEUS, exposition::text(&self.serving, &self.calls, &self.checks))
            }
        }
    }

    /// Whether the cluster serves, or with `serializable=true` whether this member answers.
    async fn health(&self, uri: &Uri) -> Response<Body> {
        let serializable = parameters(uri, "serializable").next() == Some("true");
        let reason = if !serializable && self.serving.backend.raft().leader.is_none() {
            Some("RAFT NO LEADER".to_owned())
        } else {
            check_read(&self.serving, serializable).await.err().map(|error| format!("RANGE ERROR:{error}"))
        };
        match reason {
            None => {
                self.serving.metrics.health_successes.increment();
                text(StatusCode::OK, JSON, json!({"health": "true", "reason": ""}).to_string())
            }
            Some(reason) => {
                self.serving.metrics.health_failures.increment();
                tracing::warn!(reason, "/health error");
                let body = json!({"health": "false", "reason": reason});
                text(StatusCode::SERVICE_UNAVAILABLE, JSON, body.to_string())
            }
        }
    }

    async fn checks(&self, kind: &str, checks: &[Check], uri: &Uri) -> Response<Body> {
        let mut report = String::new();
        let mut passes = true;
        for &check in checks {
            let excluded = parameters(uri, "exclude").any(|name| name == check.name());
            if excluded && checks.len() > 1 {
                continue;
            }
            let outcome = check.run(&self.serving).await;
            self.count(kind, check, outcome.is_ok());
            match outcome {
                Ok(()) => report.push_str(&format!("[+]{} ok\n", check.name())),
                Err(error) => {
                    passes = false;
                    report.push_str(&format!("[-]{} failed: {error}\n", check.name()));
                }
            }
        }
        if !passes {
            tracing::warn!(path = uri.path(), reason = report, "health check error");
            return text(StatusCode::SERVICE_UNAVAILABLE, TEXT, report);
        }
        if parameters(uri, "verbose").next().is_none() {
            report.clear();
        }
        report.push_str("ok\n");
        text(StatusCode::OK, TEXT, report)
    }

    fn count(&self, kind: &str, check: Check, passed: bool) {
        if let Some(i) = CHECKS.iter().position(|&known| known == (kind, check)) {
            let counts = &self.checks[i];
            if passed { &counts.passed } else { &counts.failed }.fetch_add(1, Relaxed);
            counts.passes.store(passed.into(), Relaxed);
        }
    }
}

/// The check of that name, as a list.
fn one(checks: &'static [Check], name: &str) -> Option<&'static [Check]> {
    checks.iter().position(|check| check.name() == name).map(|i| &checks[i..=i])
}

/// The values of a query parameter; empty for one without a value. Names and values of health checks need no
/// decoding.
fn parameters<'a>(uri: &'a Uri, name: &str) -> impl Iterator<Item = &'a str> {
    uri.query().unwrap_or_default().split('&').filter_map(move |pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        (found == name).then_some(value)
    })
}

fn text(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
