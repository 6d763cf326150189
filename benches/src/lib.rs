//! The load generator and the figures of Conclave.
