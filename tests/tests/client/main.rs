//! The client against real servers: one for each test, or three where one is to fail.
//!
//! `CONCLAVE_BIN` names the program, else it is the node that a debug build leaves. etcd takes the same flags and serves the same API, so the
//! same tests run against both.

mod elections;
mod failover;
mod keys;
mod leases;
mod locks;
mod servers;
mod watches;
