//! `cargo xtask bench` and `demo`: programs of the package `benches`, given the servers to run.

use anyhow::Result;
use xtask::engine::Engine;
use xtask::{command, workspace};

use crate::peers;

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments for the load generator; `cargo xtask bench --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let node = workspace::release_node()?;
    let mut bench =
        command::cargo(["run", "--release", "-p", "conclave-benches", "--bin", "conclave-benches"]);
    bench.arg("--").arg("--conclave").arg(node);
    if workspace::peer("etcd").is_err() && workspace::on_path("go").is_some() {
        peers::run()?;
    }
    match workspace::peer("etcd") {
        Ok(etcd) => {
            bench.arg("--etcd").arg(etcd);
        }
        Err(reason) => eprintln!("xtask: Conclave alone is measured: {reason:#}"),
    }
    command::run(bench.args(&args.args))
}

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// What replicates the data.
    #[arg(long, value_enum, default_value_t)]
    engine: Engine,
}

pub(crate) fn demo(args: &DemoArgs) -> Result<()> {
    let node = workspace::release_node()?;
    let mut demo = command::cargo(["run", "--release", "-p", "conclave-benches", "--bin", "conclave-demo"]);
    command::run(demo.arg("--").arg("--conclave").arg(node).arg(args.engine.flag()))
}
