//! Where things are in this workspace.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command;

/// The workspace's root folder: the one above xtask's manifest.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Cargo's target folder, `CARGO_TARGET_DIR` respected.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Builds the release binary `conclave` and returns its path.
///
/// # Errors
/// When the build fails.
pub fn release_node() -> Result<PathBuf> {
    command::run(&mut command::cargo(["build", "--release", "-p", "conclave-node", "--bin", "conclave"]))
        .context("building the node")?;
    Ok(target().join("release").join("conclave"))
}

/// The path of a peer program, `etcd` or `etcdctl`: as `cargo xtask peers` built it, else from the PATH.
///
/// # Errors
/// When there is neither; the message says how to get one.
pub fn peer(name: &str) -> Result<PathBuf> {
    let built = target().join("peers").join(name);
    if built.is_file() {
        return Ok(built);
    }
    match on_path(name) {
        Some(found) => Ok(found),
        None => {
            bail!("no {name}: neither target/peers/{name} (made by `cargo xtask peers`) nor one on the PATH")
        }
    }
}

/// Finds a program on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| candidate.is_file())
}
