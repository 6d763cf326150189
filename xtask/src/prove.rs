//! `cargo xtask prove`: what needs hours, outside the gate. Each run prints the seeds it did, for `docs/reliability.md`.

use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use xtask::{command, engine::Engine};

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
        /// What replicates the data.
        #[arg(long, value_enum, default_value_t)]
        engine: Engine,
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
        /// What replicates the data; the engines take turns from scenario to scenario if none is named.
        #[arg(long, value_enum)]
        engine: Option<Engine>,
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
    /// Crash points, exploration, placement, all mutants, then five hundred simulated hours and ten rounds of all scenarios on each engine.
    All,
}

pub(crate) fn run(proof: &Proof) -> Result<()> {
    match proof {
        Proof::Sim { hours, engine, first_seed, args } => simulate(*hours, *engine, *first_seed, args),
        Proof::Cluster { rounds, scenario, engine } => scenarios(*rounds, scenario.as_deref(), *engine),
        Proof::CrashPoints => crash_points(),
        Proof::Explore { bounds } => explore(bounds),
        Proof::Placement { seeds } => placement(seeds),
        Proof::All => {
            crash_points()?;
            explore(&[])?;
            placement("100000..110000")?;
            mutants::run(&mutants::Args::default())?;
            for engine in Engine::ALL {
                simulate(SIMULATED_HOURS, engine, 1_000_000, &[])?;
            }
            Engine::ALL.into_iter().try_for_each(|engine| scenarios(10, None, Some(engine)))
        }
    }
}

/// Two cores simulate more than a thousand hours in one.
fn simulate(hours: u64, engine: Engine, first_seed: u64, args: &[String]) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).to_string();
    let hours = hours.to_string();
    let wanted = ["--once", "--brief", "--hours", &hours, "--threads", &threads, "--engine", engine.name()];
    let args = wanted.into_iter().map(str::to_owned).chain(args.iter().cloned()).collect();
    sim::run(&sim::Args { seeds: format!("{first_seed}..{}", u64::MAX), args })
}

fn scenarios(rounds: u32, scenario: Option<&str>, engine: Option<Engine>) -> Result<()> {
    for round in 1..=rounds {
        cluster::run(&cluster::Args { scenario: scenario.map(str::to_owned), list: false, engine })
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

fn placement(seeds: &str) -> Result<()> {
    let mut histories = command::cargo(["test", "--locked", "-p", "conclave-hashring", "--test", "suite"]);
    histories.args(["--", "--ignored", "--nocapture"]).env("HISTORIES", seeds);
    command::run(&mut histories)
}
