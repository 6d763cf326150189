//! The runner that glues the workspace: `cargo xtask help`.
//!
//! It builds, starts, tests, measures and proves Conclave by running cargo and the workspace's own programs. It is a plain
//! program without gRPC in it, so that it compiles in seconds; whatever speaks the API lives in `benches` and `tests`.

#![forbid(unsafe_code)]

mod bench;
mod bench_consensus;
mod bench_hashring;
mod bless;
mod ci;
mod cluster;
mod fuzz;
mod mutants;
mod peers;
mod prove;
mod recovery;
mod sim;
mod tidy;
mod up;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{command, engine::Engine};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, runs, tests and measures Conclave."
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start a cluster on this machine and keep it until Ctrl-C.
    Up(up::Args),
    /// Write to three nodes, kill the leader, and show that nothing acknowledged is lost (under a minute).
    Demo(bench::DemoArgs),
    /// Run the tests of the workspace, without the real-process scenarios; arguments go to `cargo test`.
    Test {
        /// Arguments for `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Write golden transcripts, and whatever else tests expect word for word, anew; look at the differences before you commit them.
    Bless,
    /// Run the fault scenarios on real processes: all of them, or those whose name contains SCENARIO.
    Cluster(cluster::Args),
    /// Run the simulator on a range of seeds.
    Sim(sim::Args),
    /// Put each known bug back and show that the simulator sees it; fails if one survives.
    Mutants(mutants::Args),
    /// Build the etcd server and etcdctl into target/peers (needs Go).
    Peers,
    /// Measure Conclave and etcd side by side under the same load.
    Bench(bench::Args),
    /// Measure the Raft core beside other Raft libraries, in one process.
    BenchRaft,
    /// Measure the Multi-Paxos core beside another Multi-Paxos library, in one process.
    BenchPaxos,
    /// Measure placement's lookups beside other hashing crates, in one process.
    BenchHashring,
    /// Lose links and leaders in the simulator, on both engines, and say how long writes stand still; draws docs/partitions.svg.
    Recovery(recovery::Args),
    /// Feed every decoder with what a fuzzer thinks of (needs a nightly compiler and cargo-fuzz).
    Fuzz(fuzz::Args),
    /// Check what the compiler does not: forbidden edges, manifests, licences, leftovers.
    Tidy,
    /// The gate: everything a change has to pass, timed.
    Ci,
    /// The long runs outside the gate: many seeds, scenarios again and again.
    #[command(subcommand)]
    Prove(prove::Proof),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Up(args) => up::run(&args),
        Task::Demo(args) => bench::demo(&args),
        Task::Test { args } => command::run(command::cargo(["test", "--workspace"]).args(args)),
        Task::Bless => bless::run(),
        Task::Cluster(args) => cluster::run(&args),
        Task::Sim(args) => sim::run(&args),
        Task::Mutants(args) => mutants::run(&args),
        Task::Peers => peers::run(),
        Task::Bench(args) => bench::run(&args),
        Task::BenchRaft => bench_consensus::run(Engine::Raft),
        Task::BenchPaxos => bench_consensus::run(Engine::Paxos),
        Task::BenchHashring => bench_hashring::run(),
        Task::Recovery(args) => recovery::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Tidy => tidy::run(),
        Task::Ci => ci::run(),
        Task::Prove(proof) => prove::run(&proof),
    }
}
