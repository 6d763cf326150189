//! `cargo xtask mutants`: each known bug is put back into the real code, and the simulator must see it.
//!
//! A mutant counts as caught only by a checker: an assertion that fails inside the code that was made wrong proves nothing about
//! the suite, so such a seed is passed over and the search goes on.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use xtask::{command, workspace};

/// So many seeds are tried on a mutant.
const SEEDS: u64 = 4_000;
/// So many at a time.
const THREADS: u32 = 2;

#[derive(clap::Args)]
pub(crate) struct Args {
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

/// How a mutant was seen.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    seed: u64,
    checker: String,
    what: String,
}

impl Default for Args {
    fn default() -> Self {
        Self { only: None, seeds: SEEDS, threads: THREADS }
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
    let listed = output(Command::new(&simulator).arg("--mutants"))?;
    let names: Vec<&str> =
        listed.lines().filter(|name| args.only.as_ref().is_none_or(|only| only == name)).collect();
    ensure!(!names.is_empty(), "the simulator knows no such mutant; it knows:\n{listed}");
    // A suite that sees bugs everywhere sees none.
    let sound = output(
        Command::new(&simulator)
            .args(["--once", "--seeds", "0..20", "--threads"])
            .arg(args.threads.to_string()),
    )?;
    ensure!(seen(&sound).is_none(), "without a mutant the simulator finds a violation:\n{sound}");
    let (mut caught, mut survived) = (0, 0);
    for name in names {
        let began = Instant::now();
        let calm = output(Command::new(&simulator).args(["--mutant", name, "--calm", "--seeds", "0..3"]))?;
        ensure!(seen(&calm).is_none(), "{name} does not even work without faults:\n{calm}");
        match hunt(&simulator, name, args)? {
            Some(Seen { seed, checker, what }) => {
                caught += 1;
                let seconds = began.elapsed().as_secs_f64();
                println!("{name:<34} caught by {checker} after {} seeds, {seconds:.1} s", seed + 1);
                println!("{:<34} {}", "", what.chars().take(150).collect::<String>());
            }
            None => {
                survived += 1;
                println!("{name:<34} SURVIVED {} seeds", args.seeds);
            }
        }
    }
    println!("mutants: {caught} caught, {survived} survived");
    if survived > 0 {
        bail!("{survived} mutants survived");
    }
    Ok(())
}

/// Tries seeds until a checker sees the mutant.
fn hunt(simulator: &std::path::Path, name: &str, args: &Args) -> Result<Option<Seen>> {
    let mut from = 0;
    while from < args.seeds {
        let mut command = Command::new(simulator);
        command.args(["--mutant", name, "--seeds", &format!("{from}..{}", args.seeds)]);
        let said = output(command.args(["--threads", &args.threads.to_string()]))?;
        match seen(&said) {
            Some(seen) if ASSERTIONS.contains(&seen.checker.as_str()) => from = seen.seed + 1,
            other => return Ok(other),
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
