//! The write-ahead log's own code on the simulated disk, with the power cut at every operation and every byte damaged.
//!
//! [`sweep`] cuts the power inside each operation of a small log's life and tries every way in which what was pending may fare.
//! [`damage`] changes each bit and each length of a log that is at rest. `cargo test` does a part of the sweep, `cargo xtask prove
//! crash-points` the whole.

#![allow(clippy::unwrap_used, reason = "tests")]

mod damage;
mod sweep;
mod workload;
