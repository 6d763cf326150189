//! The Conclave node: an etcd-compatible key-value and coordination server, as a library and a binary.

pub mod config;
pub mod datadir;
pub mod identity;
pub mod logging;
pub mod notify;
