//! `cargo xtask sim`: the simulator on a range of seeds.

use anyhow::Result;
use xtask::command;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The seeds: A..B runs A up to but without B; a single number runs that seed.
    #[arg(long, default_value = "0..20")]
    pub(crate) seeds: String,
    /// Further arguments for the simulator; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut run = command::cargo(["run", "--release", "-p", "conclave-sim", "--bin", "conclave-sim", "--"]);
    command::run(run.args(["--seeds", &args.seeds]).args(&args.args))
}
