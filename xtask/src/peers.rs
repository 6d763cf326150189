//! `cargo xtask peers`: builds etcd and etcdctl, the peers in side-by-side runs, from the Go module in `benches/peers`.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};
use xtask::{command, workspace};

pub(crate) fn run() -> Result<()> {
    if workspace::on_path("go").is_none() {
        bail!("no Go on the PATH: install Go 1.26 or later, or put an etcd and etcdctl 3.7 on the PATH");
    }
    let out = workspace::target().join("peers");
    fs::create_dir_all(&out)?;
    let mut build = Command::new("go");
    build.current_dir(workspace::root().join("benches").join("peers")).env("CGO_ENABLED", "0");
    build.args(["build", "-trimpath", "-o"]).arg(&out).args(["./etcd", "./etcdctl"]);
    command::run(&mut build)?;
    println!("built {} and etcdctl", out.join("etcd").display());
    Ok(())
}
