//! Every method of etcd's gRPC services, served or not.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::metrics::Exposition;

/// The program that answers a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Kv,
    Cluster,
    Maintenance,
    Lease,
    Lock,
    Election,
    Health,
    Watch,
    /// Nobody yet: the answer is Unimplemented.
    Nobody,
}

/// One gRPC method.
#[derive(Debug)]
pub(crate) struct Method {
    /// `/package.Service/Method`.
    pub(crate) path: &'static str,
    pub(crate) server: Server,
    /// gRPC's name of its form.
    form: &'static str,
}

const UNARY: &str = "unary";
const SERVER_STREAM: &str = "server_stream";
const BIDI_STREAM: &str = "bidi_stream";

const fn method(path: &'static str, server: Server, form: &'static str) -> Method {
    Method { path, server, form }
}

use Server::{Cluster, Election, Health, Kv, Lease, Lock, Maintenance, Nobody, Watch};

/// All methods, the busiest first.
pub(crate) static METHODS: [Method; 52] = [
    method("/etcdserverpb.KV/Put", Kv, UNARY),
    method("/etcdserverpb.KV/Range", Kv, UNARY),
    method("/etcdserverpb.KV/Txn", Kv, UNARY),
    method("/etcdserverpb.KV/DeleteRange", Kv, UNARY),
    method("/etcdserverpb.KV/RangeStream", Kv, SERVER_STREAM),
    method("/etcdserverpb.KV/Compact", Kv, UNARY),
    method("/etcdserverpb.Cluster/MemberList", Cluster, UNARY),
    method("/etcdserverpb.Cluster/MemberAdd", Cluster, UNARY),
    method("/etcdserverpb.Cluster/MemberRemove", Cluster, UNARY),
    method("/etcdserverpb.Cluster/MemberUpdate", Cluster, UNARY),
    method("/etcdserverpb.Cluster/MemberPromote", Cluster, UNARY),
    method("/etcdserverpb.Maintenance/Status", Maintenance, UNARY),
    method("/etcdserverpb.Maintenance/Hash", Maintenance, UNARY),
    method("/etcdserverpb.Maintenance/HashKV", Maintenance, UNARY),
    method("/etcdserverpb.Maintenance/Alarm", Maintenance, UNARY),
    method("/etcdserverpb.Maintenance/Defragment", Nobody, UNARY),
    method("/etcdserverpb.Maintenance/Snapshot", Nobody, SERVER_STREAM),
    method("/etcdserverpb.Maintenance/MoveLeader", Maintenance, UNARY),
    method("/etcdserverpb.Maintenance/Downgrade", Nobody, UNARY),
    method("/grpc.health.v1.Health/Check", Health, UNARY),
    method("/grpc.health.v1.Health/Watch", Health, SERVER_STREAM),
    method("/etcdserverpb.Watch/Watch", Watch, BIDI_STREAM),
    method("/etcdserverpb.Lease/LeaseGrant", Lease, UNARY),
    method("/etcdserverpb.Lease/LeaseRevoke", Lease, UNARY),
    method("/etcdserverpb.Lease/LeaseKeepAlive", Lease, BIDI_STREAM),
    method("/etcdserverpb.Lease/LeaseTimeToLive", Lease, UNARY),
    method("/etcdserverpb.Lease/LeaseLeases", Lease, UNARY),
    method("/etcdserverpb.Auth/AuthEnable", Nobody, UNARY),
    method("/etcdserverpb.Auth/AuthDisable", Nobody, UNARY),
    method("/etcdserverpb.Auth/AuthStatus", Nobody, UNARY),
    method("/etcdserverpb.Auth/Authenticate", Nobody, UNARY),
    method("/etcdserverpb.Auth/UserAdd", Nobody, UNARY),
    method("/etcdserverpb.Auth/UserGet", Nobody, UNARY),
    method("/etcdserverpb.Auth/UserList", Nobody, UNARY),
    method("/etcdserverpb.Auth/UserDelete", Nobody, UNARY),
    method("/etcdserverpb.Auth/UserChangePassword", Nobody, UNARY),
    method("/etcdserverpb.Auth/UserGrantRole", Nobody, UNARY),
    method("/etcdserverpb.Auth/UserRevokeRole", Nobody, UNARY),
    method("/etcdserverpb.Auth/RoleAdd", Nobody, UNARY),
    method("/etcdserverpb.Auth/RoleGet", Nobody, UNARY),
    method("/etcdserverpb.Auth/RoleList", Nobody, UNARY),
    method("/etcdserverpb.Auth/RoleDelete", Nobody, UNARY),
    method("/etcdserverpb.Auth/RoleGrantPermission", Nobody, UNARY),
    method("/etcdserverpb.Auth/RoleRevokePermission", Nobody, UNARY),
    method("/v3lockpb.Lock/Lock", Lock, UNARY),
    method("/v3lockpb.Lock/Unlock", Lock, UNARY),
    method("/v3electionpb.Election/Campaign", Election, UNARY),
    method("/v3electionpb.Election/Proclaim", Election, UNARY),
    method("/v3electionpb.Election/Leader", Election, UNARY),
    method("/v3electionpb.Election/Observe", Election, SERVER_STREAM),
    method("/v3electionpb.Election/Resign", Election, UNARY),
    method("/grpc.health.v1.Health/List", Nobody, UNARY),
];

/// The number of a method in [`METHODS`].
pub(crate) fn find(path: &str) -> Option<usize> {
    METHODS.iter().position(|method| method.path == path)
}

impl Method {
    fn service_and_name(&self) -> (&'static str, &'static str) {
        self.path[1..].split_once('/').unwrap_or((self.path, ""))
    }
}

/// gRPC's names of its status codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// How often each method was called and how it ended.
#[derive(Debug)]
pub(crate) struct Calls {
    methods: [MethodCalls; METHODS.len()],
}

#[derive(Debug, Default)]
struct MethodCalls {
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

impl Default for Calls {
    fn default() -> Self {
        Self { methods: std::array::from_fn(|_| MethodCalls::default()) }
    }
}

impl Calls {
    pub(crate) fn started(&self, method: usize) {
        self.methods[method].started.fetch_add(1, Relaxed);
    }

    pub(crate) fn handled(&self, method: usize, code: usize) {
        self.methods[method].handled[code.min(CODES.len() - 1)].fetch_add(1, Relaxed);
    }

    /// Methods that were called at least once, as etcd's interceptor counts them.
    pub(crate) fn expose(&self, out: &mut Exposition) {
        let called =
            || METHODS.iter().zip(&self.methods).filter(|(_, calls)| calls.started.load(Relaxed) > 0);
        let started = "grpc_server_started_total";
        out.family(started, "counter", "Total number of RPCs started on the server.");
        for (method, calls) in called() {
            let (service, name) = method.service_and_name();
            let labels: [(&str, &dyn std::fmt::Display); 3] =
                [("grpc_method", &name), ("grpc_service", &service), ("grpc_type", &method.form)];
            out.sample(started, &labels, calls.started.load(Relaxed));
        }
        let handled = "grpc_server_handled_total";
        out.family(
            handled,
            "counter",
            "Total number of RPCs completed on the server, regardless of success or failure.",
        );
        for (method, calls) in called() {
            let (service, name) = method.service_and_name();
            for (code, count) in CODES.iter().zip(&calls.handled) {
                let count = count.load(Relaxed);
                if count > 0 {
                    let labels: [(&str, &dyn std::fmt::Display); 4] = [
                        ("grpc_code", code),
                        ("grpc_method", &name),
                        ("grpc_service", &service),
                        ("grpc_type", &method.form),
                    ];
                    out.sample(handled, &labels, count);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_there_once() {
        for (i, method) in METHODS.iter().enumerate() {
            assert_eq!(find(method.path), Some(i));
            assert_eq!(method.path.matches('/').count(), 2);
        }
    }
}
