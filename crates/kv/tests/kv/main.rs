//! The store against a deliberately dumb twin, and etcd's facts one by one.

#![allow(clippy::unwrap_used, reason = "tests")]

mod durability;
mod facts;
mod garbage;
mod harness;
mod install;
mod leases;
mod lessor;
mod model;
mod properties;
mod registry;
mod retries;
mod watch;
mod watch_model;
