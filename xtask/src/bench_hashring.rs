//! `cargo xtask bench-hashring`: hashing crates side by side in one process. A package of its own, so that nobody else compiles them.

use anyhow::Result;
use xtask::{command, workspace};

pub(crate) fn run() -> Result<()> {
    let manifest = workspace::root().join("benches").join("peers-hashring").join("Cargo.toml");
    let mut bench = command::cargo(["run", "--locked", "--release", "--manifest-path"]);
    bench.arg(manifest).env("CARGO_TARGET_DIR", workspace::target());
    command::run(&mut bench)
}
