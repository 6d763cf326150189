//! Measures Conclave and etcd under the same load; `cargo xtask bench` builds both and runs this.

#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use conclave_benches::side_by_side::{self, Course};
use conclave_benches::subject::Programs;
use conclave_benches::workload::Workload;
use conclave_benches::{memory, report};

#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    about = "The same closed-loop load against Conclave and etcd, three nodes each, in turn."
)]
struct Cli {
    #[command(flatten)]
    programs: Programs,
    /// Only these workloads.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Workload>,
    /// The numbers of clients.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1, 512])]
    clients: Vec<usize>,
    /// How long each measurement lasts.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// How long it runs before it is measured.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// How often all is repeated; the medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many keys are written before, and used.
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Connections to each node; by default one for about 32 clients.
    #[arg(long)]
    connections: Option<usize>,
    /// Threads of the load generator.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Instead of load: fill so many keys, show memory, kill, restart.
    #[arg(long, value_name = "KEYS")]
    fill_keys: Option<u64>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cli.threads.max(1))
        .enable_all()
        .build()?;
    runtime.block_on(run(cli))
}

async fn run(cli: Cli) -> Result<()> {
    let subjects = cli.programs.subjects()?;
    if let Some(keys) = cli.fill_keys {
        return memory::run(&subjects, keys).await;
    }
    let course = Course {
        workloads: if cli.only.is_empty() { Workload::ALL.to_vec() } else { cli.only },
        clients: cli.clients,
        keys: cli.keys,
        duration: Duration::try_from_secs_f64(cli.seconds)?,
        warm_up: Duration::try_from_secs_f64(cli.warm_up)?,
        rounds: cli.rounds,
        connections: cli.connections,
    };
    let points = side_by_side::run(&subjects, &course).await?;
    println!("{}", report::table(&points));
    for subject in &subjects {
        println!("{}", report::breakdown(&points, subject.name, Workload::Put));
    }
    Ok(())
}
