//! One request, as many attempts as it takes: which endpoint, how long, and whether to try again.
//!
//! What is decided is decided elsewhere: [`Endpoints`] says whom to ask, [`judge`] what an error means, [`Repeat`] whether an attempt
//! whose outcome is unknown may be followed by another. Here it is waited for.

use std::{fmt, sync::Arc, time::Duration};

use conclave_api::etcdserverpb::{TxnRequest, kv_client::KvClient};
use parking_lot::Mutex;
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout_at},
};
use tonic::{Request, Response, Status, metadata::AsciiMetadataValue, transport::Channel};

use crate::{
    backoff::random_bits,
    config::{Config, RequestIds},
    endpoint::Endpoints,
    error::{ConfigError, Error},
    moment::Moment,
    outcome::{Verdict, judge},
    request_id::{Numbering, RequestId},
};

/// The metadata by which a request names itself.
const REQUEST_ID: &str = "conclave-request-id";

/// What may be done with a request whose outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It reads: sent again at will.
    Read,
    /// It modifies, and twice is as good as once.
    Same,
    /// It modifies: sent again only under its name, and only where names are honoured.
    Named,
}

/// What all handles of a client share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    ways: Vec<Channel>,
    endpoints: Mutex<Endpoints>,
    numbering: Numbering,
    honours_ids: OnceCell<bool>,
}

/// One attempt: the way to an endpoint and the time at which it is asked.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) way: Channel,
    pub(crate) endpoint: usize,
    pub(crate) asked: Moment,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Result<Arc<Self>, ConfigError> {
        let ways: Vec<Channel> = config.endpoints()?.iter().map(|endpoint| endpoint.connect_lazy()).collect();
        let endpoints = Endpoints::new(ways.len(), config.backoff_min, config.backoff_max, random_bits());
        let honours_ids = match config.request_ids {
            RequestIds::Detect => OnceCell::new(),
            RequestIds::Honoured => OnceCell::new_with(Some(true)),
            RequestIds::Ignored => OnceCell::new_with(Some(false)),
        };
        let numbering = Numbering::new();
        Ok(Arc::new(Self { config, ways, endpoints: Mutex::new(endpoints), numbering, honours_ids }))
    }

    /// The next endpoint, once its pause is over; `None` if that is not before `deadline`.
    pub(crate) async fn attempt(&self, deadline: Option<Instant>) -> Option<Attempt> {
        let choice = self.endpoints.lock().choose(Moment::now());
        if deadline.is_some_and(|deadline| Instant::now() + choice.pause >= deadline) {
            return None;
        }
        if !choice.pause.is_zero() {
            sleep(choice.pause).await;
        }
        let way = self.ways.get(choice.endpoint)?.clone();
        Some(Attempt { way, endpoint: choice.endpoint, asked: Moment::now() })
    }

    pub(crate) fn answered(&self, attempt: &Attempt) {
        self.endpoints.lock().answered(attempt.endpoint);
    }

    pub(crate) fn failed(&self, attempt: &Attempt, why: &dyn fmt::Display) {
        tracing::debug!(endpoint = self.config.endpoints.get(attempt.endpoint), %why, "an attempt failed");
        self.endpoints.lock().failed(attempt.endpoint, attempt.asked, Moment::now());
    }

    /// Sends a request until it is answered, refused, its outcome is unknown for good, or `timeout` is over.
    ///
    /// # Errors
    /// How it ended, if not with an answer.
    pub(crate) async fn unary<Q, A, F, C>(
        &self,
        timeout: Duration,
        repeat: Repeat,
        request: &Q,
        call: C,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
        C: Fn(Channel, Request<Q>) -> F,
    {
        let began = Instant::now();
        let deadline = began + timeout;
        if repeat != Repeat::Named {
            return self.attempts(deadline, repeat, true, || Request::new(request.clone()), call).await;
        }
        let honoured = self.honours_ids(deadline).await?;
        let Ok(issued) = timeout_at(deadline, self.numbering.issue()).await else {
            return Err(Error::Unavailable { waited: began.elapsed(), last: None });
        };
        let named = || with_name(Request::new(request.clone()), issued.id());
        self.attempts(deadline, repeat, honoured, named, call).await
    }

    async fn attempts<Q, A, F, C>(
        &self,
        deadline: Instant,
        repeat: Repeat,
        may_repeat: bool,
        request: impl Fn() -> Request<Q>,
        call: C,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
        C: Fn(Channel, Request<Q>) -> F,
    {
        let began = Instant::now();
        let mut progress = Progress { repeat, unknown: false, last: None };
        loop {
            let Some(attempt) = self.attempt(Some(deadline)).await else {
                return Err(progress.give_up(began.elapsed()));
            };
            let attempt_end = Instant::now() + self.config.attempt_timeout;
            let until = if may_repeat { deadline.min(attempt_end) } else { deadline };
            let status = match timeout_at(until, call(attempt.way.clone(), request())).await {
                Ok(Ok(answer)) => {
                    self.answered(&attempt);
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer to an attempt within its time"),
            };
            match judge(&status) {
                Verdict::Final(error) => {
                    self.answered(&attempt);
                    return Err(error);
                }
                Verdict::NoEffect => {}
                Verdict::Unknown => progress.unknown = true,
            }
            self.failed(&attempt, &status.message());
            progress.last = Some(Box::new(status));
            if progress.unknown && !may_repeat {
                return Err(progress.give_up(began.elapsed()));
            }
        }
    }

    /// Whether servers apply a request once that names itself. Asked by a transaction of nothing whose name is malformed: who knows
    /// names refuses it, and who does not does nothing.
    async fn honours_ids(&self, deadline: Instant) -> Result<bool, Error> {
        let ask = || async {
            let probe = || {
                let mut request = Request::new(TxnRequest::default());
                request.metadata_mut().insert(REQUEST_ID, AsciiMetadataValue::from_static("?"));
                request
            };
            let call = |way, request| async move { KvClient::new(way).txn(request).await };
            match self.attempts(deadline, Repeat::Read, true, probe, call).await {
                Ok(_) => Ok(false),
                Err(Error::Answered { message, .. }) if message.starts_with(REQUEST_ID) => Ok(true),
                // It refuses something else: then what is to be sent will be refused, too.
                Err(Error::Refused(_) | Error::Answered { .. }) => Ok(false),
                // Of what was to be sent, nothing was.
                Err(Error::NoAnswer { waited, last }) => Err(Error::Unavailable { waited, last }),
                Err(error) => Err(error),
            }
        };
        self.honours_ids.get_or_try_init(ask).await.copied()
    }
}

/// What is known of a request after some attempts.
struct Progress {
    repeat: Repeat,
    unknown: bool,
    last: Option<Box<Status>>,
}

impl Progress {
    fn give_up(self, waited: Duration) -> Error {
        let Self { repeat, unknown, last } = self;
        match (unknown, repeat) {
            (false, _) => Error::Unavailable { waited, last },
            (true, Repeat::Read) => Error::NoAnswer { waited, last },
            (true, _) => Error::OutcomeUnknown { last },
        }
    }
}

/// A modifying request under its name.
fn with_name<Q>(mut request: Request<Q>, name: RequestId) -> Request<Q> {
    // Hexadecimal digits, a hyphen and a number are always a metadata value.
    if let Ok(value) = AsciiMetadataValue::try_from(name.to_string()) {
        request.metadata_mut().insert(REQUEST_ID, value);
    }
    request
}

/// A request of a stream: the server ends it when it loses its leader, so that another endpoint can go on.
pub(crate) fn demanding_leader<Q>(message: Q) -> Request<Q> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given_up(repeat: Repeat, unknown: bool) -> Error {
        Progress { repeat, unknown, last: None }.give_up(Duration::from_secs(1))
    }

    #[test]
    fn what_was_never_sent_took_no_place_whatever_it_is() {
        for repeat in [Repeat::Read, Repeat::Same, Repeat::Named] {
            assert!(matches!(given_up(repeat, false), Error::Unavailable { .. }));
        }
    }

    #[test]
    fn only_what_modifies_has_an_unknown_outcome() {
        assert!(matches!(given_up(Repeat::Read, true), Error::NoAnswer { .. }));
        assert!(matches!(given_up(Repeat::Same, true), Error::OutcomeUnknown { .. }));
        assert!(matches!(given_up(Repeat::Named, true), Error::OutcomeUnknown { .. }));
    }
}
