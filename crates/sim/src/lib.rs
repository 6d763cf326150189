//! A deterministic simulator, fault models and history checkers for consensus systems.

#![forbid(unsafe_code)]

pub mod check;
pub mod clock;
pub mod disk;
pub mod history;
pub mod model;
pub mod net;
pub mod options;
pub mod rng;
pub mod run;
pub mod trace;
pub mod world;
