//! Runs seeds and says what they came to.

#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Instant};

use conclave_sim::{
    clock::SECOND,
    options::Mutant,
    run::{Plan, Report, run, run_twice},
    world::Counters,
};

const USAGE: &str = "\
Runs a simulated cluster under faults, seed by seed, and checks everything it did.

Usage: conclave-sim --seeds A..B [--seconds N] [--once] [--mutant NAME] [--verbose]

  --seeds A..B    the seeds A up to, not including, B; or a single one
  --seconds N     simulated seconds of faults a seed (default 60)
  --once          run each seed once instead of twice
  --mutant NAME   put a bug in: sync-does-nothing, cut-before-state
  --verbose       print the seed's options and every event
Exit code 1 if anything was violated.";

struct Arguments {
    seeds: std::ops::Range<u64>,
    seconds: u64,
    once: bool,
    mutant: Option<Mutant>,
    verbose: bool,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments { seeds: 0..0, seconds: 60, once: false, mutant: None, verbose: false };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--seeds" => {
                let value = value()?;
                parsed.seeds =
                    seeds(&value).ok_or_else(|| format!("--seeds wants A..B or A, not {value}"))?;
            }
            "--seconds" => parsed.seconds = value()?.parse().map_err(|_| "--seconds wants a number")?,
            "--mutant" => {
                let name = value()?;
                parsed.mutant = Some(Mutant::named(&name).ok_or_else(|| format!("no mutant {name}"))?);
            }
            "--once" => parsed.once = true,
            "--verbose" => parsed.verbose = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    if parsed.seeds.is_empty() {
        return Err("--seeds A..B names no seed".to_owned());
    }
    Ok(parsed)
}

fn seeds(text: &str) -> Option<std::ops::Range<u64>> {
    let (from, to) = match text.split_once("..") {
        Some((from, to)) => (from.parse().ok()?, to.parse().ok()?),
        None => (text.parse().ok()?, text.parse::<u64>().ok()?.checked_add(1)?),
    };
    Some(from..to)
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("{why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    let mut total = Counters::default();
    let (mut simulated, mut runs, mut failed) = (0, 0, 0);
    for seed in arguments.seeds.clone() {
        let plan = Plan {
            seed,
            duration: arguments.seconds * SECOND,
            mutant: arguments.mutant,
            print: arguments.verbose,
        };
        let report = if arguments.once { run(&plan) } else { run_twice(&plan) };
        runs += 1;
        simulated += report.simulated * if arguments.once { 1 } else { 2 };
        total.add(&report.counters);
        println!("seed {seed}: {}", line(&report.counters, report.trace));
        failed += u64::from(say_violation(&plan, &report));
    }
    let hours = simulated as f64 / SECOND as f64 / 3600.0;
    let speed = simulated as f64 / SECOND as f64 / began.elapsed().as_secs_f64();
    println!("total: {runs} seeds, {hours:.2} simulated hours at {speed:.0} x real time, {failed} violated");
    println!("       {}", line(&total, 0));
    ExitCode::from(u8::from(failed > 0))
}

fn line(c: &Counters, trace: u64) -> String {
    let mut line = format!(
        "{} operations ({} answered, {} refused, {} unknown), {} entries, {} faults \
         ({} crashes, {} of them inside a disk operation, {} blackouts, {} partitions, {} pauses, {} jumps, {} transfers), \
         {} elections, {} checkpoints, {} snapshots",
        c.operations(),
        c.answered,
        c.refused,
        c.unknown,
        c.entries,
        c.faults(),
        c.crashes,
        c.disk_crashes,
        c.blackouts,
        c.partitions,
        c.pauses,
        c.jumps,
        c.transfers,
        c.elections,
        c.checkpoints,
        c.snapshots
    );
    if trace != 0 {
        line.push_str(&format!(", trace {trace:016x}"));
    }
    line
}

fn say_violation(plan: &Plan, report: &Report) -> bool {
    let Some(violation) = &report.violation else { return false };
    println!("seed {}: VIOLATION after {} ms\n  {violation}", plan.seed, report.simulated / (SECOND / 1000));
    println!("  again: {}", plan.command());
    true
}
