//! The Conclave node: an etcd-compatible key-value and coordination server, as a library and a binary.
