//! Protobuf messages, service stubs and error texts of the etcd v3 API.
//!
//! The messages have etcd's packages, names and numbers; a module here is a protobuf package there. All `bytes` fields are
//! [`bytes::Bytes`]: a message decoded from a [`Bytes`](bytes::Bytes) shares its memory. Without features the crate
//! has messages and nothing that does I/O; feature `services` adds tonic's server stubs, feature `clients` its client stubs.
//!
//! ```
//! use conclave_api::{etcdserverpb::PutRequest, prost::Message};
//!
//! let put = PutRequest { key: "lamp".into(), value: "on".into(), ..PutRequest::default() };
//! assert_eq!(PutRequest::decode(put.encode_to_vec().as_slice()), Ok(put));
//! ```

#![forbid(unsafe_code)]

#[cfg(any(feature = "services", feature = "clients"))]
pub mod codec;
pub mod errors;

pub use bytes;
pub use prost;

/// Keys, their generations, and events.
pub mod mvccpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
}

/// Users, roles and permissions as they are stored.
pub mod authpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
}

/// The services KV, Watch, Lease, Cluster, Maintenance and Auth.
pub mod etcdserverpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

/// The service Lock.
pub mod v3lockpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
}

/// The service Election.
pub mod v3electionpb {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
}

/// gRPC's own protocols.
pub mod grpc {
    /// The health protocol.
    pub mod health {
        /// Its only version.
        pub mod v1 {
            #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
            include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
        }
    }
}

/// What Conclave's own replicas agree on and keep.
pub mod conclave {
    /// The key-value groups.
    pub mod kv {
        /// The first version, extended by adding fields.
        pub mod v1 {
            #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
            include!(concat!(env!("OUT_DIR"), "/conclave.kv.v1.rs"));
        }
    }
}
