//! The replicated etcd data model: revisions, MVCC, ranges and transactions as a deterministic state machine.
