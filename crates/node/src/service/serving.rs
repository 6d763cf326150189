//! What all services share: the node behind them, its limits, and how long a request may wait for it.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::{RangeRequest, ResponseHeader};
use conclave_kv::{KvError, Limits, Reader, Reply, RequestId, command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::backend::{Backend, BarrierError, ProposeError};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::service::Watches;

/// How long a request that certainly had no effect waits before it is tried again: a tenth of the shortest useful
/// election timeout, so that the first leader elected finds it soon.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The metadata by which a client names a request, so that it may repeat it, here or at another member.
const REQUEST_ID: &str = "conclave-request-id";

/// The name that the client gave its request, if it gave one.
pub(crate) fn request_id(metadata: &MetadataMap) -> Result<Option<RequestId>, Status> {
    let Some(text) = metadata.get(REQUEST_ID) else { return Ok(None) };
    let refuse = |why: &dyn Display| Status::invalid_argument(format!("{REQUEST_ID}: {why}"));
    if metadata.get_all(REQUEST_ID).iter().count() > 1 {
        return Err(refuse(&"given more than once"));
    }
    // What is no text is no id either.
    let id = text.to_str().unwrap_or_default().parse::<RequestId>();
    id.map(Some).map_err(|malformed| refuse(&malformed))
}

/// The node as its services see it. One a node, shared by all of them.
pub(crate) struct Serving {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Limits,
    pub(crate) request_timeout: Duration,
    /// The shortest time to live that a lease is granted, in seconds: one and a half election timeouts, as in etcd, so that a change of leader does not
    /// outlast it.
    pub(crate) lease_ttl_min_seconds: i64,
    stopping: watch::Receiver<bool>,
    pub(crate) watches: Watches,
}

impl Serving {
    pub(crate) fn new(config: &Config, backend: Arc<dyn Backend>, stopping: watch::Receiver<bool>) -> Self {
        let lease_ttl_min = config.election_timeout * 3 / 2;
        Self {
            watches: Watches::new(config, Arc::clone(&backend)),
            backend,
            metrics: Metrics::default(),
            limits: Limits {
                txn_ops_max: config.max_txn_ops as usize,
                request_bytes_max: config.max_request_bytes as usize,
            },
            request_timeout: config.request_timeout(),
            lease_ttl_min_seconds: i64::try_from(lease_ttl_min.as_millis().div_ceil(1_000))
                .unwrap_or(i64::MAX),
            stopping,
        }
    }

    /// Whether the client wants no answer from a member without a leader.
    pub(crate) fn demands_leader(metadata: &MetadataMap) -> bool {
        metadata.get("hasleader").is_some_and(|value| value == "true")
    }

    /// Refuses a request that this member cannot serve now: a learner serves only what is `local`; a client that
    /// demands a leader gets none without.
    pub(crate) fn admit(&self, metadata: &MetadataMap, local: bool) -> Result<(), Status> {
        let demands_leader = Self::demands_leader(metadata);
        if local && !demands_leader {
            return Ok(());
        }
        let raft = self.backend.raft();
        if raft.is_learner && !local {
            return Err(EtcdError::NotSupportedForLearner.into());
        }
        if demands_leader && raft.leader.is_none() {
            return Err(EtcdError::NoLeader.into());
        }
        Ok(())
    }

    /// Fills in what the store does not know.
    pub(crate) fn fill(&self, header: &mut ResponseHeader) {
        let identity = self.backend.identity();
        header.cluster_id = identity.cluster_id;
        header.member_id = identity.member_id;
        header.raft_term = self.backend.raft().term;
    }

    /// A header at the store's newest revision.
    pub(crate) fn header(&self) -> ResponseHeader {
        let mut header =
            ResponseHeader { revision: self.backend.reader().revision(), ..ResponseHeader::default() };
        self.fill(&mut header);
        header
    }

    /// Replicates a command and waits for its reply. What certainly had no effect is tried again for as long as
    /// the request's time lasts, as when a leader is being elected.
    pub(crate) async fn propose(&self, command: Bytes) -> Result<Bytes, EtcdError> {
        let deadline = Instant::now() + self.request_timeout;
        loop {
            let outcome = match timeout_at(deadline, self.backend.propose(command.clone())).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => error,
                Err(_) => return Err(self.timed_out()),
            };
            match outcome {
                ProposeError::TooLarge => return Err(EtcdError::RequestTooLarge),
                ProposeError::Overloaded => return Err(EtcdError::TooManyRequests),
                ProposeError::Unknown => return Err(EtcdError::TimeoutDueToLeaderFail),
                ProposeError::Stopped => return Err(EtcdError::Stopped),
                ProposeError::NoLeader | ProposeError::Dropped => {}
            }
            self.pause(deadline).await?;
        }
    }

    /// Replicates a command, by the name that its request may have, and reads the reply.
    pub(crate) async fn apply(&self, id: Option<RequestId>, command: Bytes) -> Result<Reply, Status> {
        let command = match id {
            Some(id) => command::identified(&command, id),
            None => command,
        };
        let reply = self.propose(command).await?;
        Reply::decode(reply).map_err(refusal)
    }

    /// Returns once the node stops.
    pub(crate) async fn stopped(&self) {
        // An error says that the front is gone.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await.map(|_| ());
    }

    /// Waits until this member's store shows everything acknowledged before the call.
    pub(crate) async fn read_barrier(&self) -> Result<(), EtcdError> {
        let deadline = Instant::now() + self.request_timeout;
        loop {
            let outcome = match timeout_at(deadline, self.backend.read_barrier()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => {
                    self.metrics.slow_read_barriers.increment();
                    return Err(self.timed_out());
                }
            };
            match outcome {
                BarrierError::Overloaded => return Err(EtcdError::TooManyRequests),
                BarrierError::Stopped => return Err(EtcdError::Stopped),
                BarrierError::NoLeader | BarrierError::LeaderChanged => {}
            }
            self.pause(deadline).await?;
        }
    }

    /// Runs a read that takes long on a thread that may wait.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, KvError> + Send + 'static,
    ) -> Result<T, Status> {
        let reader = self.backend.reader().clone();
        match tokio::task::spawn_blocking(move || read(&reader)).await {
            Ok(outcome) => outcome.map_err(refusal),
            Err(_) => Err(EtcdError::Stopped.into()),
        }
    }

    async fn pause(&self, deadline: Instant) -> Result<(), EtcdError> {
        if Instant::now() + RETRY_PAUSE >= deadline {
            return Err(self.timed_out());
        }
        sleep(RETRY_PAUSE).await;
        Ok(())
    }

    /// etcd tells a slow cluster from one that lost its quorum.
    fn timed_out(&self) -> EtcdError {
        match self.backend.raft().leader {
            Some(_) => EtcdError::Timeout,
            None => EtcdError::TimeoutDueToConnectionLost,
        }
    }
}

/// Reads one key, as etcd's health checks do: shows that the store answers and, where not `serializable`, that
/// there is a quorum.
pub(crate) async fn check_read(serving: &Serving, serializable: bool) -> Result<(), KvError> {
    if !serializable {
        serving.read_barrier().await?;
    }
    let key = Bytes::from_static(&[0]);
    let request = RangeRequest { key, limit: 1, keys_only: true, serializable, ..RangeRequest::default() };
    serving.backend.reader().range(&request).map(drop)
}

/// The reply to a command of another kind: the client named two requests alike, or an invariant of the state machine is broken.
pub(crate) fn mismatched(id: Option<RequestId>) -> Status {
    match id {
        Some(id) => Status::invalid_argument(format!("{id} names a request of another kind")),
        None => refusal(KvError::Malformed),
    }
}

/// What a client is told of an error of the store's.
pub(crate) fn refusal(error: KvError) -> Status {
    match error {
        KvError::Etcd(error) => error.into(),
        KvError::Unimplemented(what) => Status::unimplemented(what),
        KvError::TooManyNodes | KvError::RequestTooOld => Status::failed_precondition(error.to_string()),
        // Sets it apart from all that leaves open whether the request was applied.
        KvError::AnswerNotKept { .. } => Status::already_exists(error.to_string()),
        KvError::TooManyLeases => Status::resource_exhausted(error.to_string()),
        KvError::NodeTooLarge => Status::invalid_argument(error.to_string()),
        // Another attempt mints another revision.
        KvError::RevisionPassed => Status::unavailable(error.to_string()),
        KvError::Malformed | KvError::Engine(_) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
            Status::internal(error.to_string())
        }
    }
}
