//! What an error that ends an attempt says about the request: judged the same for all methods.

use std::error::Error as _;

use conclave_api::errors::EtcdError;
use tonic::{Code, ConnectError, Status};

use crate::error::Error;

/// How the words of a server begin that applied a request and did not keep its answer.
const APPLIED: &str = "etcdserver: request was applied at revision";
/// The words of a server that no longer knows what became of a request.
const FORGOTTEN: &str = "etcdserver: request is older than the outcomes kept for this client";

/// What is known after an attempt that failed.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The server has spoken: another attempt would hear the same.
    Final(Error),
    /// Nothing took place, and another attempt or endpoint may succeed.
    NoEffect,
    /// It may have taken place, or still will.
    Unknown,
}

/// Judges an attempt's error.
pub(crate) fn judge(status: &Status) -> Verdict {
    if was_never_sent(status) {
        return Verdict::NoEffect;
    }
    // A status with a source was made here, of an error of the connection; those that came over the wire have none.
    if status.source().is_some() {
        return Verdict::Unknown;
    }
    if let Some(error) = EtcdError::from_text(status.message()) {
        return match error {
            EtcdError::NoLeader | EtcdError::TooManyRequests | EtcdError::NotSupportedForLearner => {
                Verdict::NoEffect
            }
            _ if is_open(status.code()) => Verdict::Unknown,
            _ => Verdict::Final(Error::Refused(error)),
        };
    }
    match status.code() {
        code if is_open(code) => Verdict::Unknown,
        Code::AlreadyExists if status.message().starts_with(APPLIED) => {
            Verdict::Final(Error::AnswerLost(status.message().to_owned()))
        }
        Code::FailedPrecondition if status.message() == FORGOTTEN => {
            Verdict::Final(Error::OutcomeUnknown { last: Some(Box::new(status.clone())) })
        }
        code => Verdict::Final(Error::Answered { code, message: status.message().to_owned() }),
    }
}

/// Codes by which a server, or gRPC in its name, says that a request went wrong on its way.
fn is_open(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::Aborted
    )
}

/// Whether there was no connection to send the request on.
fn was_never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(status: &Status) -> String {
        match judge(status) {
            Verdict::Final(error) => error.to_string(),
            Verdict::NoEffect => "no effect".to_owned(),
            Verdict::Unknown => "unknown".to_owned(),
        }
    }

    #[test]
    fn what_a_server_refuses_is_final() {
        assert_eq!(word(&EtcdError::EmptyKey.into()), "refused: etcdserver: key is not provided");
        assert_eq!(word(&Status::unimplemented("")), "refused:  (Unimplemented)");
        assert_eq!(word(&EtcdError::NoSpace.into()), format!("refused: {}", EtcdError::NoSpace));
    }

    #[test]
    fn what_was_refused_before_it_could_have_an_effect_is_tried_elsewhere() {
        for error in [EtcdError::NoLeader, EtcdError::TooManyRequests, EtcdError::NotSupportedForLearner] {
            assert_eq!(word(&error.into()), "no effect");
        }
        let mut never_sent = Status::unavailable("tcp connect error");
        never_sent.set_source(std::sync::Arc::new(ConnectError("refused".into())));
        assert_eq!(word(&never_sent), "no effect");
    }

    #[test]
    fn whatever_ends_on_the_way_is_unknown() {
        for error in [
            EtcdError::Timeout,
            EtcdError::TimeoutDueToLeaderFail,
            EtcdError::Stopped,
            EtcdError::LeaderChanged,
            EtcdError::Canceled,
            EtcdError::DeadlineExceeded,
        ] {
            assert_eq!(word(&error.into()), "unknown", "{error}");
        }
        // A connection that broke, whatever code it is given.
        let mut broken = Status::new(Code::InvalidArgument, "");
        broken.set_source(std::sync::Arc::new(std::fmt::Error));
        assert_eq!(word(&broken), "unknown");
        assert_eq!(word(&Status::unknown("raft proposal dropped")), "unknown");
    }

    #[test]
    fn what_a_server_says_of_repeated_requests() {
        let kept = Status::already_exists(format!("{APPLIED} 7, but its answer was too large to keep"));
        assert!(matches!(judge(&kept), Verdict::Final(Error::AnswerLost(_))));
        let forgotten = Status::failed_precondition(FORGOTTEN);
        assert!(matches!(judge(&forgotten), Verdict::Final(Error::OutcomeUnknown { .. })));
    }
}
