//! Kills the leader of three nodes under load and shows that nothing acknowledged is lost; `cargo xtask demo` runs it.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use xtask::engine::Engine;

#[derive(Parser)]
#[command(name = "conclave-demo")]
struct Cli {
    /// The program `conclave`.
    #[arg(long, value_name = "PATH")]
    conclave: PathBuf,
    /// What replicates the data.
    #[arg(long, value_enum, default_value_t)]
    engine: Engine,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(conclave_benches::demo::run(cli.conclave, cli.engine))
}
