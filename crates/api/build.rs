//! Compiles the `.proto` files with protox, so that no protoc is needed.

use std::{env, error::Error};

const FILES: [&str; 13] = [
    "mvccpb/kv.proto",
    "authpb/auth.proto",
    "etcdserverpb/header.proto",
    "etcdserverpb/kv.proto",
    "etcdserverpb/watch.proto",
    "etcdserverpb/lease.proto",
    "etcdserverpb/cluster.proto",
    "etcdserverpb/maintenance.proto",
    "etcdserverpb/auth.proto",
    "v3lockpb/v3lock.proto",
    "v3electionpb/v3election.proto",
    "grpc/health/v1/health.proto",
    "conclave/kv.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build.rs");
    let files = protox::compile(FILES, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    #[cfg(any(feature = "services", feature = "clients"))]
    config.service_generator(
        tonic_prost_build::configure()
            .build_server(cfg!(feature = "services"))
            .build_client(cfg!(feature = "clients"))
            .generate_default_stubs(true)
            .codec_path("crate::codec::ExactCodec")
            .service_generator(),
    );
    config.out_dir(env::var("OUT_DIR")?);
    config.compile_fds(files)?;
    Ok(())
}
