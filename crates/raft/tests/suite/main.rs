//! The engine against the paper, against what went wrong elsewhere, and against chance.

mod cluster;
mod garbage;
mod golden;
mod paper;
mod replication;
mod schedules;
mod snapshots;
mod wounds;
