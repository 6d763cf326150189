//! What can go wrong, and what to do about it.

use std::time::Duration;

use conclave_api::errors::EtcdError;
use tonic::{Code, Status};

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused, as it will again. Nothing took place. Change the request.
    #[error("refused: {0}")]
    Refused(#[source] EtcdError),
    /// The server refused with words that are not etcd's. Nothing took place.
    #[error("refused: {message} ({code:?})")]
    Answered {
        /// gRPC's code.
        code: Code,
        /// The server's words.
        message: String,
    },
    /// No endpoint could serve within the request's time. Nothing took place: ask again later.
    #[error("no endpoint could serve within {waited:?}")]
    Unavailable {
        /// How long was tried.
        waited: Duration,
        /// What the last endpoint said.
        #[source]
        last: Option<Box<Status>>,
    },
    /// A read found no answer within its time. Ask again.
    #[error("no answer within {waited:?}")]
    NoAnswer {
        /// How long was tried.
        waited: Duration,
        /// What the last endpoint said.
        #[source]
        last: Option<Box<Status>>,
    },
    /// It is not known whether the request took place, nor whether it still will. Read what it was to change before anything is sent again.
    #[error("it is not known whether the request took place")]
    OutcomeUnknown {
        /// What the last endpoint said.
        #[source]
        last: Option<Box<Status>>,
    },
    /// The request took place once, and its answer was lost and is too large to be kept by the server. Do not send it again.
    #[error("the request took place, but its answer is lost: {0}")]
    AnswerLost(String),
    /// The server's answer lacks what the protocol demands. The server, or something on the way, is faulty.
    #[error("a malformed answer: {0}")]
    Malformed(&'static str),
}

impl Error {
    /// Whether the same request may succeed later, and sending it again does no harm: nothing took place.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::NoAnswer { .. })
    }

    /// Whether etcd's error is this one.
    #[must_use]
    pub fn is(&self, error: EtcdError) -> bool {
        matches!(self, Self::Refused(refusal) if *refusal == error)
    }
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is no endpoint.
    #[error("no endpoint is given")]
    NoEndpoints,
    /// An endpoint that is no address.
    #[error("`{0}` is no endpoint: give `http://host:port`")]
    Endpoint(String),
    /// An endpoint that wants TLS, which is not served.
    #[error("`{0}`: TLS is not served; give `http://host:port` on a network that is trusted")]
    Tls(String),
    /// A time that must not be zero.
    #[error("{0} is zero")]
    Zero(&'static str),
}
