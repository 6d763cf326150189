//! `cargo xtask bench-raft` and `bench-paxos`: consensus libraries side by side in one process. A package of its own, so that nobody else
//! compiles them.

use anyhow::Result;
use xtask::{command, engine::Engine, workspace};

/// Our engine beside the libraries of its protocol.
pub(crate) fn run(engine: Engine) -> Result<()> {
    let manifest = workspace::root().join("benches").join("peers-consensus").join("Cargo.toml");
    let mut bench = command::cargo(["run", "--locked", "--release", "--manifest-path"]);
    bench.arg(manifest).args(["--", engine.name()]).env("CARGO_TARGET_DIR", workspace::target());
    command::run(&mut bench)
}
