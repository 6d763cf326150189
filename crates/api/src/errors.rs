//! The errors that etcd's servers answer with: clients tell them apart by code and exact text, so both are copied to the letter.
//!
//! The table is that of etcd 3.7's `rpctypes`, and at its end what etcd has no word for.

use std::{error, fmt};

/// The gRPC status codes in use, with gRPC's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// The caller no longer wants the answer.
    Canceled = 1,
    /// The request is wrong whatever the state of the store.
    InvalidArgument = 3,
    /// The time ran out.
    DeadlineExceeded = 4,
    /// What was named does not exist.
    NotFound = 5,
    /// The caller may not do that.
    PermissionDenied = 7,
    /// A quota or a queue is full.
    ResourceExhausted = 8,
    /// The state of the store does not allow it.
    FailedPrecondition = 9,
    /// A revision or number lies outside what there is.
    OutOfRange = 11,
    /// The server cannot serve now; try again.
    Unavailable = 14,
    /// The data is damaged.
    DataLoss = 15,
    /// The caller did not prove who it is.
    Unauthenticated = 16,
}

macro_rules! errors {
    ($($name:ident = $number:literal, $code:ident, $text:literal;)*) => {
        /// An error of etcd's API. The number of each is stable: it is how a replica's answer names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum EtcdError {
            $(
                #[doc = concat!("`", stringify!($code), "`: \"", $text, "\".")]
                $name = $number,
            )*
        }

        impl EtcdError {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The gRPC status code.
            #[must_use]
            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            /// The exact text that clients compare.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

errors! {
    EmptyKey = 1, InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound = 2, InvalidArgument, "etcdserver: key not found";
    ValueProvided = 3, InvalidArgument, "etcdserver: value is provided";
    LeaseProvided = 4, InvalidArgument, "etcdserver: lease is provided";
    TooManyOps = 5, InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey = 6, InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidClientApiVersion = 7, InvalidArgument, "etcdserver: invalid client api version";
    InvalidSortOption = 8, InvalidArgument, "etcdserver: invalid sort option";
    Compacted = 9, OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRev = 10, OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    NoSpace = 11, ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    LeaseNotFound = 12, NotFound, "etcdserver: requested lease not found";
    LeaseExist = 13, FailedPrecondition, "etcdserver: lease already exists";
    LeaseTtlTooLarge = 14, OutOfRange, "etcdserver: too large lease TTL";
    WatchCanceled = 15, Canceled, "etcdserver: watch canceled";
    MemberExist = 16, FailedPrecondition, "etcdserver: member ID already exist";
    PeerUrlExist = 17, FailedPrecondition, "etcdserver: Peer URLs already exists";
    MemberNotEnoughStarted = 18, FailedPrecondition, "etcdserver: re-configuration failed due to not enough started members";
    MemberBadUrls = 19, InvalidArgument, "etcdserver: given member URLs are invalid";
    MemberNotFound = 20, NotFound, "etcdserver: member not found";
    MemberNotLearner = 21, FailedPrecondition, "etcdserver: can only promote a learner member";
    LearnerNotReady = 22, FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners = 23, FailedPrecondition, "etcdserver: too many learner members in cluster";
    ClusterIdMismatch = 24, FailedPrecondition, "etcdserver: cluster ID mismatch";
    RequestTooLarge = 25, InvalidArgument, "etcdserver: request is too large";
    TooManyRequests = 26, ResourceExhausted, "etcdserver: too many requests";
    RootUserNotExist = 27, FailedPrecondition, "etcdserver: root user does not exist";
    RootRoleNotExist = 28, FailedPrecondition, "etcdserver: root user does not have root role";
    UserAlreadyExist = 29, FailedPrecondition, "etcdserver: user name already exists";
    UserEmpty = 30, InvalidArgument, "etcdserver: user name is empty";
    UserNotFound = 31, FailedPrecondition, "etcdserver: user name not found";
    RoleAlreadyExist = 32, FailedPrecondition, "etcdserver: role name already exists";
    RoleNotFound = 33, FailedPrecondition, "etcdserver: role name not found";
    RoleEmpty = 34, InvalidArgument, "etcdserver: role name is empty";
    AuthFailed = 35, InvalidArgument, "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven = 36, InvalidArgument, "etcdserver: permission not given";
    PermissionDenied = 37, PermissionDenied, "etcdserver: permission denied";
    RoleNotGranted = 38, FailedPrecondition, "etcdserver: role is not granted to the user";
    PermissionNotGranted = 39, FailedPrecondition, "etcdserver: permission is not granted to the role";
    AuthNotEnabled = 40, FailedPrecondition, "etcdserver: authentication is not enabled";
    InvalidAuthToken = 41, Unauthenticated, "etcdserver: invalid auth token";
    InvalidAuthMgmt = 42, InvalidArgument, "etcdserver: invalid auth management";
    AuthOldRevision = 43, InvalidArgument, "etcdserver: revision of auth store is old";
    NoLeader = 44, Unavailable, "etcdserver: no leader";
    NotLeader = 45, FailedPrecondition, "etcdserver: not leader";
    LeaderChanged = 46, Unavailable, "etcdserver: leader changed";
    NotCapable = 47, FailedPrecondition, "etcdserver: not capable";
    Stopped = 48, Unavailable, "etcdserver: server stopped";
    Timeout = 49, Unavailable, "etcdserver: request timed out";
    TimeoutDueToLeaderFail = 50, Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutDueToConnectionLost = 51, Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    TimeoutWaitAppliedIndex = 52, Unavailable, "etcdserver: request timed out, waiting for the applied index took too long";
    Unhealthy = 53, Unavailable, "etcdserver: unhealthy cluster";
    Corrupt = 54, DataLoss, "etcdserver: corrupt cluster";
    NotSupportedForLearner = 55, FailedPrecondition, "etcdserver: rpc not supported for learner";
    BadLeaderTransferee = 56, FailedPrecondition, "etcdserver: bad leader transferee";
    WrongDowngradeVersionFormat = 57, InvalidArgument, "etcdserver: wrong downgrade target version format";
    InvalidDowngradeTargetVersion = 58, InvalidArgument, "etcdserver: invalid downgrade target version";
    ClusterVersionUnavailable = 59, FailedPrecondition, "etcdserver: cluster version not found during downgrade";
    DowngradeInProcess = 60, FailedPrecondition, "etcdserver: cluster has a downgrade job in progress";
    NoInflightDowngrade = 61, FailedPrecondition, "etcdserver: no inflight downgrade job";
    Canceled = 62, Canceled, "etcdserver: request canceled";
    DeadlineExceeded = 63, DeadlineExceeded, "etcdserver: context deadline exceeded";
    QuorumsDoNotFit = 64, FailedPrecondition, "etcdserver: re-configuration failed: --elect-quorum and --commit-quorum of this cluster do not fit the number of voters it would have";
}

impl EtcdError {
    /// Its stable number.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The error with that number, if any.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|error| error.number() == number)
    }

    /// The error with that text, if any: how a client recognises one.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|error| error.text() == text)
    }
}

impl fmt::Display for EtcdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl error::Error for EtcdError {}

#[cfg(any(feature = "services", feature = "clients"))]
impl From<EtcdError> for tonic::Status {
    fn from(error: EtcdError) -> Self {
        Self::new(tonic::Code::from_i32(error.code() as i32), error.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_and_texts_name_one_error_each() {
        for &error in EtcdError::ALL {
            assert_eq!(EtcdError::from_number(error.number()), Some(error));
            assert_eq!(EtcdError::from_text(error.text()), Some(error));
        }
        let texts: BTreeSet<_> = EtcdError::ALL.iter().map(|error| error.text()).collect();
        assert_eq!(texts.len(), EtcdError::ALL.len());
        assert_eq!(EtcdError::from_number(0), None);
    }

    #[test]
    fn texts_that_clients_depend_on() {
        for (error, code, text) in [
            (EtcdError::EmptyKey, Code::InvalidArgument, "etcdserver: key is not provided"),
            (
                EtcdError::Compacted,
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                EtcdError::FutureRev,
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            (EtcdError::TooManyRequests, Code::ResourceExhausted, "etcdserver: too many requests"),
            (EtcdError::LeaseNotFound, Code::NotFound, "etcdserver: requested lease not found"),
            (EtcdError::NoLeader, Code::Unavailable, "etcdserver: no leader"),
            (EtcdError::InvalidAuthToken, Code::Unauthenticated, "etcdserver: invalid auth token"),
            (EtcdError::Corrupt, Code::DataLoss, "etcdserver: corrupt cluster"),
        ] {
            assert_eq!((error.code(), error.text()), (code, text));
        }
    }

    #[cfg(feature = "services")]
    #[test]
    fn codes_are_those_of_grpc() {
        for &error in EtcdError::ALL {
            let status = tonic::Status::from(error);
            assert_eq!(status.message(), error.text());
            assert_eq!(
                format!("{:?}", status.code()).replace("Cancelled", "Canceled"),
                format!("{:?}", error.code())
            );
        }
    }
}
