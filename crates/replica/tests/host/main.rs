//! The host on its own, around a core that does as it is told.

mod addresses;
mod changes;
#[path = "../support/cluster.rs"]
mod cluster;
mod fixture;
mod liveness;
mod many;
mod proposals;
mod snapshots;
