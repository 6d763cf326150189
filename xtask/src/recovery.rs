//! `cargo xtask recovery`: how long writes stand still when links or the leader are lost, in the simulator, and the chart in `docs`.

use anyhow::Result;
use xtask::{command, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// So many seeds a row.
    #[arg(long, default_value_t = 100)]
    seeds: u32,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let chart = workspace::root().join("docs").join("partitions.svg");
    let mut run =
        command::cargo(["run", "--release", "-p", "conclave-sim", "--bin", "conclave-recovery", "--"]);
    command::run(run.args(["--seeds", &args.seeds.to_string()]).arg("--svg").arg(chart))
}
