//! Protobuf messages, service stubs and error texts of the etcd v3 API.
