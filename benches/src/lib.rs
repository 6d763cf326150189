//! The load generator and the figures of Conclave.

#![forbid(unsafe_code)]
