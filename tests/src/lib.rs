//! Helpers shared by the real-process tests.
