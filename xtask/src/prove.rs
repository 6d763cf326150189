//! `cargo xtask prove`: what needs hours, outside the gate. Each run prints the seeds it did, for `docs/reliability.md`.

use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use xtask::command;

use crate::{cluster, mutants, sim};

/// What counts as a proof, of hours as busy as the run's last line demands.
const SIMULATED_HOURS: u64 = 500;

/// Bounds for the explorer: those within which it walks everything, then a look beyond.
const BOUNDS: &[&str] = &[
    "--replicas 2 --in-flight 3",
    "--replicas 3 --in-flight 2 --writes 1 --crashes 0",
    "--spare 1 --led 1 --changes 1 --in-flight 2 --writes 1 --crashes 0 --proposals 0",
    "--replicas 2 --spare 1 --led 1 --changes 2 --in-flight 2 --writes 1",
    "--replicas 3 --in-flight 2 --writes 1 --proposals 0 --states-max 40000000",
    "--replicas 3 --in-flight 4 --terms 2 --proposals 2 --repetitions 1 --states-max 40000000",
    "--spare 1 --led 1 --changes 1 --terms 2 --in-flight 2 --writes 1 --proposals 0 --states-max 40000000",
];

#[derive(clap::Subcommand)]
pub(crate) enum Proof {
    /// Simulate seed after seed, each once.
    Sim {
        /// How many simulated hours.
        #[arg(long, default_value_t = SIMULATED_HOURS)]
        hours: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1_000_000)]
        first_seed: u64,
        /// Further arguments for the simulator.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run all scenarios on real processes again and again.
    Cluster {
        /// How often.
        #[arg(long, default_value_t = 20)]
        rounds: u32,
        /// Only scenarios whose name contains this.
        scenario: Option<String>,
    },
    /// Cut the power at every operation of a small log's life, with every outcome for what was pending.
    CrashPoints,
    /// Walk every schedule of two and three Raft cores within bounds, and a part of what lies beyond.
    Explore {
        /// Explore within these bounds only; `-- --help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        bounds: Vec<String>,
    },
    /// Crash points, exploration, all mutants, five hundred simulated hours, then ten rounds of all scenarios.
    All,
}

pub(crate) fn run(proof: &Proof) -> Result<()> {
    match proof {
        Proof::Sim { hours, first_seed, args } => simulate(*hours, *first_seed, args),
        Proof::Cluster { rounds, scenario } => scenarios(*rounds, scenario.as_deref()),
        Proof::CrashPoints => crash_points(),
        Proof::Explore { bounds } => explore(bounds),
        Proof::All => {
            crash_points()?;
            explore(&[])?;
            mutants::run(&mutants::Args::default())?;
            simulate(SIMULATED_HOURS, 1_000_000, &[])?;
            scenarios(10, None)
        }
    }
}

/// Two cores simulate more than a thousand hours in one.
fn simulate(hours: u64, first_seed: u64, args: &[String]) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).to_string();
    let hours = hours.to_string();
    let wanted = ["--once", "--brief", "--hours", &hours, "--threads", &threads];
    let args = wanted.into_iter().map(str::to_owned).chain(args.iter().cloned()).collect();
    sim::run(&sim::Args { seeds: format!("{first_seed}..{}", u64::MAX), args })
}

fn scenarios(rounds: u32, scenario: Option<&str>) -> Result<()> {
    for round in 1..=rounds {
        cluster::run(&cluster::Args { scenario: scenario.map(str::to_owned), list: false })
            .with_context(|| format!("in round {round}"))?;
        println!("prove cluster: round {round} of {rounds} passed");
    }
    Ok(())
}

fn crash_points() -> Result<()> {
    let mut sweep = command::cargo(["test", "--locked", "-p", "conclave-sim", "--test", "crash_points"]);
    command::run(sweep.args(["--", "--ignored", "--nocapture"]))
}

fn explore(bounds: &[String]) -> Result<()> {
    let given = bounds.join(" ");
    let all = if bounds.is_empty() { BOUNDS } else { &[given.as_str()] };
    for bounds in all {
        let mut explore =
            command::cargo(["run", "--locked", "-p", "conclave-sim", "--bin", "conclave-explore", "--"]);
        command::run(explore.args(bounds.split_whitespace())).with_context(|| format!("within {bounds}"))?;
    }
    if bounds.is_empty() {
        // Bugs put around the cores, and into them: an exploration that sees none proves nothing.
        let tests = ["test", "--locked", "-p", "conclave-sim", "--features", "mutants", "--test", "explore"];
        command::run(&mut command::cargo(tests))?;
    }
    Ok(())
}
