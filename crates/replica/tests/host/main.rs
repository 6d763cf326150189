//! The host on its own, around a core that does as it is told.

mod addresses;
mod changes;
mod fixture;
mod proposals;
mod snapshots;
