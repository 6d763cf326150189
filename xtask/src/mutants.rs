//! `cargo xtask mutants`: each known bug is put back into the real code, and the simulator must see it.
//!
//! A mutant counts as caught only by a checker: an assertion that fails inside the code that was made wrong proves nothing about
//! the suite, so such a seed is passed over and the search goes on.
//!
//! Each engine is taken through all of them that it can have, those of storage, transport and state machine included: what is around an engine is
//! asked for other things by another one.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use xtask::{command, engine::Engine, workspace};

/// So many seeds are tried on a mutant.
const SEEDS: u64 = 4_000;
/// So many at a time.
const THREADS: u32 = 2;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only around this engine.
    #[arg(long, value_enum)]
    engine: Option<Engine>,
    /// Only the mutant of this name.
    #[arg(long)]
    only: Option<String>,
    /// So many seeds are tried on a mutant before it counts as surviving.
    #[arg(long, default_value_t = SEEDS)]
    seeds: u64,
    /// So many seeds at a time.
    #[arg(long, default_value_t = THREADS)]
    threads: u32,
}

/// What the simulator calls a violation that is an assertion of the code itself.
const ASSERTIONS: &[&str] = &["panic", "broken invariant of a core", "misused log"];

/// Bugs that the engine's own schedules show, and the simulator too seldom to wait for. A value that was replaced at its proposer, and said to be dropped, is chosen
/// after all in Paxos only if two elections in a row hear nobody who accepted the other; in Raft a drill makes just that of a truncated log.
const SHOWN_BY_THE_SUITE: &[(Engine, &str)] = &[(Engine::Paxos, "truncated-reported-dropped")];

/// How a mutant was seen.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    seed: u64,
    checker: String,
    what: String,
}

impl Default for Args {
    fn default() -> Self {
        Self { engine: None, only: None, seeds: SEEDS, threads: THREADS }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    command::run(&mut command::cargo([
        "build",
        "--release",
        "--locked",
        "--package",
        "conclave-sim",
        "--features",
        "mutants",
    ]))?;
    let simulator = workspace::target().join("release").join("conclave-sim");
    let (mut caught, mut survived) = (0, 0);
    for engine in Engine::ALL.into_iter().filter(|engine| args.engine.is_none_or(|only| only == *engine)) {
        let (seen, not_seen) = around(&simulator, engine, args)?;
        caught += seen;
        survived += not_seen;
    }
    ensure!(
        caught + survived > 0,
        "there is no such mutant; `conclave-sim --engine NAME --mutants` lists them"
    );
    println!("mutants: {caught} caught, {survived} survived");
    if survived > 0 {
        bail!("{survived} mutants survived");
    }
    Ok(())
}

/// Puts each bug in around an engine; says how many were seen, and how many were not.
fn around(simulator: &Path, engine: Engine, args: &Args) -> Result<(u32, u32)> {
    let simulate = || {
        let mut command = Command::new(simulator);
        command.args(["--engine", engine.name()]);
        command
    };
    let listed = output(simulate().arg("--mutants"))?;
    let names = listed.lines().filter(|name| args.only.as_ref().is_none_or(|only| only == name));
    // A suite that sees bugs everywhere sees none.
    let sound =
        output(simulate().args(["--once", "--seeds", "0..20", "--threads"]).arg(args.threads.to_string()))?;
    ensure!(seen(&sound).is_none(), "without a mutant the simulator finds a violation:\n{sound}");
    let (mut caught, mut survived) = (0, 0);
    for name in names {
        let began = Instant::now();
        let calm = output(simulate().args(["--mutant", name, "--calm", "--seeds", "0..3"]))?;
        ensure!(seen(&calm).is_none(), "{name} does not even work without faults:\n{calm}");
        if SHOWN_BY_THE_SUITE.contains(&(engine, name)) {
            suite(engine)?;
            caught += 1;
            println!("{:<6}{name:<46} caught by the schedules of its own suite", engine.name());
            continue;
        }
        let engine = engine.name();
        match hunt(&simulate, name, args)? {
            Some(Seen { seed, checker, what }) => {
                caught += 1;
                let seconds = began.elapsed().as_secs_f64();
                println!(
                    "{engine:<6}{name:<46} caught by {checker} after {} seeds, {seconds:.1} s",
                    seed + 1
                );
                println!("{:<52} {}", "", what.chars().take(150).collect::<String>());
            }
            None => {
                survived += 1;
                println!("{engine:<6}{name:<46} SURVIVED {} seeds", args.seeds);
            }
        }
    }
    Ok((caught, survived))
}

/// The engine's own tests put its bugs back and must see each.
fn suite(engine: Engine) -> Result<()> {
    let package = format!("conclave-{}", engine.name());
    let tests =
        ["test", "--locked", "--package", &package, "--features", "mutants", "--test", "suite", "mutants::"];
    command::run(&mut command::cargo(tests))
}

/// Tries seeds until a checker sees the mutant.
fn hunt(simulate: &dyn Fn() -> Command, name: &str, args: &Args) -> Result<Option<Seen>> {
    let mut from = 0;
    while from < args.seeds {
        let mut command = simulate();
        command.args(["--mutant", name, "--seeds", &format!("{from}..{}", args.seeds)]);
        let said = output(command.args(["--threads", &args.threads.to_string()]))?;
        match seen(&said) {
            None => return Ok(None),
            Some(seen) if ASSERTIONS.contains(&seen.checker.as_str()) => from = seen.seed + 1,
            Some(found) => {
                // What the seed shows without the bug is not the bug's.
                let sound = output(simulate().args(["--once", "--seeds", &found.seed.to_string()]))?;
                ensure!(seen(&sound).is_none(), "without a mutant the simulator finds a violation:\n{sound}");
                return Ok(Some(found));
            }
        }
        if command::interrupted() {
            bail!("interrupted");
        }
    }
    Ok(None)
}

/// The first violation that the simulator prints.
fn seen(said: &str) -> Option<Seen> {
    let mut lines = said.lines().skip_while(|line| !line.contains(": VIOLATION after "));
    let seed = lines.next()?.strip_prefix("seed ")?.split(':').next()?.parse().ok()?;
    let (checker, what) = lines.next()?.trim().split_once(": ")?;
    Some(Seen { seed, checker: checker.to_owned(), what: what.to_owned() })
}

/// What a command printed, whether or not it found fault.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(matches!(output.status.code(), Some(0 | 1)), "{command:?} failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_violation_is_read() {
        let said = "seed 3: 5 operations\nseed 4: 6 operations\nseed 4: VIOLATION after 7 ms\n  \
                    log matching: node 2: writes\n  again: cargo xtask sim\ntotal: 2 seeds\n";
        let expected = Seen { seed: 4, checker: "log matching".into(), what: "node 2: writes".into() };
        assert_eq!(seen(said), Some(expected));
        assert_eq!(seen("seed 3: 5 operations\ntotal: 1 seeds, 0 violated\n"), None);
    }
}
