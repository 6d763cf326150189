//! What etcd serves and this node does not yet: a clear Unimplemented, never a hang.

use conclave_api::etcdserverpb::auth_client::AuthClient;
use conclave_api::etcdserverpb::maintenance_client::MaintenanceClient;
use conclave_api::etcdserverpb::{AuthEnableRequest, DefragmentRequest, SnapshotRequest};
use expect_test::expect;
use tonic::codegen::http::uri::PathAndQuery;

use crate::backend::{Running, lines, start, told};

#[tokio::test]
async fn every_missing_service_says_so() {
    let running = start(|_| {});
    let channel = || running.channel();
    let told_of = [
        told(AuthClient::new(channel()).auth_enable(AuthEnableRequest::default()).await),
        told(MaintenanceClient::new(channel()).defragment(DefragmentRequest::default()).await),
        told(MaintenanceClient::new(channel()).snapshot(SnapshotRequest::default()).await),
        told(call(&running, "/etcdserverpb.KV/Fly").await),
        told(call(&running, "/other.Service/Method").await),
    ];
    expect![[r#"
        Unimplemented: etcdserverpb.Auth.AuthEnable is known to etcd but not served by conclave yet
        Unimplemented: etcdserverpb.Maintenance.Defragment is known to etcd but not served by conclave yet
        Unimplemented: etcdserverpb.Maintenance.Snapshot is known to etcd but not served by conclave yet
        Unimplemented: unknown method Fly for service etcdserverpb.KV
        Unimplemented: unknown service other.Service
    "#]]
    .assert_eq(&lines(told_of));
    running.front.shutdown().await;
}

async fn call(running: &Running, path: &'static str) -> Result<(), tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(running.channel());
    grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let codec: tonic_prost::ProstCodec<SnapshotRequest, SnapshotRequest> = tonic_prost::ProstCodec::default();
    let request = tonic::Request::new(SnapshotRequest::default());
    grpc.unary(request, PathAndQuery::from_static(path), codec).await.map(drop)
}
