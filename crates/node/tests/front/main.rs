//! The front as clients see it: a real listener, a real HTTP/2 client, and the real store behind a backend that has
//! no consensus and fails on demand.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic as its tests do")]

mod backend;
mod connections;
mod elections;
mod grpc;
mod http;
mod kept;
mod leases;
mod locks;
mod retries;
mod unserved;
mod watch;
