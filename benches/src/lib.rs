//! The load generator and the figures of Conclave.
//!
//! A [`subject`] is a kind of server under test, three nodes each. [`load`] drives one with a [`workload`] over
//! [`connection`]s and [`process`] reads what that cost the server's processes. [`side_by_side`] runs subjects in turn and
//! [`report`] prints them beside each other. [`memory`] compares what a big store costs and how fast it restarts.
//! [`demo`] shows a person that a killed leader loses nothing.

#![forbid(unsafe_code)]

pub mod connection;
pub mod demo;
pub mod load;
pub mod memory;
pub mod process;
pub mod report;
pub mod side_by_side;
pub mod subject;
pub mod workload;
