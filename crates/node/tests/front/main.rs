//! The front as clients see it: a real listener, a real HTTP/2 client, and the real store behind a backend that has
//! no consensus and fails on demand.

mod backend;
mod connections;
mod grpc;
mod http;
mod unserved;
