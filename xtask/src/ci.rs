//! `cargo xtask ci`: the gate. Its stages share one build profile, so that nothing but clippy's check compiles twice.
//!
//! Every stage has a limit far above what it needs on two cores; one that is beyond it hangs, and is ended. The summary
//! shows the minutes each took.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use xtask::{command, engine::Engine, workspace};

use crate::{cluster, tidy};

/// The seeds that every change runs on each engine; `cargo xtask sim` and `prove` run others.
const SEEDS: [(Engine, &str); 2] = [(Engine::Raft, "0..100"), (Engine::Paxos, "100..200")];

struct Stage {
    name: &'static str,
    limit_minutes: u64,
    work: Work,
}

enum Work {
    Run(Command),
    Check(fn() -> Result<()>),
}

impl Stage {
    fn cargo(name: &'static str, limit_minutes: u64, args: &[&str]) -> Stage {
        Stage { name, limit_minutes, work: Work::Run(command::cargo(args)) }
    }

    fn run(&mut self) -> Result<()> {
        let limit = Duration::from_secs(self.limit_minutes * 60);
        match &mut self.work {
            Work::Run(command) => command::run_within(command, limit),
            Work::Check(check) => check(),
        }
    }
}

fn stages() -> Vec<Stage> {
    let mut docs = command::cargo(["doc", "--locked", "--no-deps", "--workspace"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    let simulator = |(engine, seeds): (Engine, &str)| {
        let mut simulator = built("conclave-sim");
        simulator.args(["--engine", engine.name(), "--seeds", seeds]);
        Work::Run(simulator)
    };
    let [on_raft, on_paxos] = SEEDS.map(simulator);
    vec![
        Stage::cargo("fmt", 1, &["fmt", "--all", "--check"]),
        Stage::cargo(
            "fmt of tests/etcd-client",
            1,
            &["fmt", "--manifest-path", "tests/etcd-client/Cargo.toml", "--check"],
        ),
        Stage::cargo(
            "fmt of benches/peers-consensus",
            1,
            &["fmt", "--manifest-path", "benches/peers-consensus/Cargo.toml", "--check"],
        ),
        Stage::cargo(
            "fmt of benches/peers-hashring",
            1,
            &["fmt", "--manifest-path", "benches/peers-hashring/Cargo.toml", "--check"],
        ),
        Stage::cargo("fmt of fuzz", 1, &["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]),
        Stage { name: "tidy", limit_minutes: 1, work: Work::Check(tidy::run) },
        Stage::cargo("build", 12, &["build", "--locked", "--workspace", "--all-targets"]),
        Stage::cargo(
            "clippy",
            6,
            &["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
        ),
        Stage::cargo(
            "clippy of the scenarios",
            3,
            &["clippy", "--locked", "--workspace", "--test", "cluster", "--", "-D", "warnings"],
        ),
        Stage { name: "docs", limit_minutes: 4, work: Work::Run(docs) },
        Stage { name: "package", limit_minutes: 2, work: Work::Run(package()) },
        Stage::cargo("tests", 6, &["test", "--locked", "--workspace"]),
        Stage { name: "example counter", limit_minutes: 1, work: Work::Run(built("examples/counter")) },
        Stage { name: "example register", limit_minutes: 1, work: Work::Run(built("examples/register")) },
        Stage { name: "simulator on Raft", limit_minutes: 5, work: on_raft },
        Stage { name: "simulator on Multi-Paxos", limit_minutes: 5, work: on_paxos },
        Stage {
            name: "processes",
            limit_minutes: cluster::LIMIT.as_secs() / 60,
            work: Work::Check(processes),
        },
    ]
}

/// A program that the stage `build` made.
fn built(program: &str) -> Command {
    let mut command = Command::new(workspace::target().join("debug").join(program));
    command.current_dir(workspace::root());
    command
}

/// Packs every crate that is shipped, without building it again.
fn package() -> Command {
    let mut package = command::cargo(["package", "--locked", "--workspace", "--no-verify", "--allow-dirty"]);
    for ours_alone in ["xtask", "conclave-tests", "conclave-benches"] {
        package.args(["--exclude", ours_alone]);
    }
    package
}

fn processes() -> Result<()> {
    cluster::run(&cluster::Args { scenario: None, list: false, engine: None })
}

pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    let mut took = Vec::new();
    let mut outcome = Ok(());
    for mut stage in stages() {
        println!("== {}", stage.name);
        let stage_started = Instant::now();
        outcome = stage.run();
        let minutes = stage_started.elapsed().as_secs_f64() / 60.0;
        took.push((stage.name, minutes, stage.limit_minutes, outcome.is_ok()));
        if outcome.is_err() {
            break;
        }
    }
    println!("== summary\n{:<32}{:>9}{:>9}", "stage", "minutes", "limit");
    for (name, minutes, limit, passed) in took {
        println!("{name:<32}{minutes:>9.1}{limit:>9}{}", if passed { "" } else { "  FAILED" });
    }
    println!("{:<32}{:>9.1}", "all", started.elapsed().as_secs_f64() / 60.0);
    outcome
}
