//! `cargo xtask prove`: what needs hours, outside the gate. Each run prints the seeds it did, for `docs/reliability.md`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xtask::command;

use crate::{cluster, mutants, sim};

/// So many seeds are handed to the simulator at a time.
const SEEDS_A_RUN: u64 = 50;

/// Bounds for the explorer: those within which it walks everything, then a look beyond.
const BOUNDS: &[&str] = &[
    "--replicas 2 --in-flight 3",
    "--replicas 3 --in-flight 2 --writes 1 --crashes 0",
    "--replicas 3 --in-flight 2 --writes 1 --proposals 0 --states-max 40000000",
    "--replicas 3 --in-flight 4 --terms 2 --proposals 2 --repetitions 1 --states-max 40000000",
];

#[derive(clap::Subcommand)]
pub(crate) enum Proof {
    /// Simulate seed after seed for some hours.
    Sim {
        /// How long; fractions are fine.
        #[arg(long, default_value_t = 1.0)]
        hours: f64,
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
    /// Plan over ten thousand random histories of clusters, and hold each plan against the fewest moves there can be.
    Placement {
        /// Which seeds.
        #[arg(long, default_value = "100000..110000")]
        seeds: String,
    },
    /// Crash points, exploration, placement, all mutants, one hour of simulation, then ten rounds of all scenarios.
    All,
}

pub(crate) fn run(proof: &Proof) -> Result<()> {
    match proof {
        Proof::Sim { hours, first_seed, args } => simulate(*hours, *first_seed, args),
        Proof::Cluster { rounds, scenario } => scenarios(*rounds, scenario.as_deref()),
        Proof::CrashPoints => crash_points(),
        Proof::Explore { bounds } => explore(bounds),
        Proof::Placement { seeds } => placement(seeds),
        Proof::All => {
            crash_points()?;
            explore(&[])?;
            placement("100000..110000")?;
            mutants::run(&mutants::Args::default())?;
            simulate(1.0, 1_000_000, &[])?;
            scenarios(10, None)
        }
    }
}

fn simulate(hours: f64, first_seed: u64, args: &[String]) -> Result<()> {
    let limit = Duration::try_from_secs_f64(hours * 3600.0).context("--hours")?;
    let started = Instant::now();
    let mut next = first_seed;
    while started.elapsed() < limit {
        let end = next.checked_add(SEEDS_A_RUN).context("the seeds are used up")?;
        sim::run(&sim::Args { seeds: format!("{next}..{end}"), args: args.to_vec() })
            .with_context(|| format!("in seeds {next}..{end}"))?;
        next = end;
        let minutes = started.elapsed().as_secs_f64() / 60.0;
        println!("prove sim: seeds {first_seed}..{next} passed in {minutes:.1} minutes");
        if command::interrupted() {
            bail!("interrupted after seeds {first_seed}..{next}");
        }
    }
    Ok(())
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
    Ok(())
}

fn placement(seeds: &str) -> Result<()> {
    let mut histories = command::cargo(["test", "--locked", "-p", "conclave-hashring", "--test", "suite"]);
    histories.args(["--", "--ignored", "--nocapture"]).env("HISTORIES", seeds);
    command::run(&mut histories)
}
