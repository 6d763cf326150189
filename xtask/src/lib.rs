//! The parts of xtask that the workspace's other programs use too: where things are, running commands, and
//! [starting servers](server) as processes on this machine.

#![forbid(unsafe_code)]

pub mod command;
pub mod engine;
pub mod server;
pub mod workspace;
