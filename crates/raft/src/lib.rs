//! Raft as a pure state machine: no I/O, no clock, no thread, no global randomness.
