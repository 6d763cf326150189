//! Explores a small group of replicas exhaustively and says what was found.

#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Instant};

use conclave_sim::explore::{Bounds, Bug, explore};

const USAGE: &str = "\
Walks every schedule of a small group of Raft cores within bounds, and checks every state.

Usage: conclave-explore [--replicas N] [--terms N] [--proposals N] [--in-flight N] [--writes N] [--crashes N]
                        [--repetitions N] [--changes N] [--spare 1] [--led 1] [--states-max N] [--bug NAME] [--mutant NAME]

  --changes N    so many changes of membership
  --spare 1      the last replica is no member at first
  --led 1        begin when the first replica leads
  --bug NAME     put a bug in around the cores: acknowledges-early, stale-record, forgets-changes
  --mutant NAME  put a known bug in, in a build with the feature `mutants`
Exit code 1 if anything was violated.";

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(Bounds, Option<Bug>), String> {
    let (mut bounds, mut bug) = (Bounds::small(), None);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        let number = || value.parse::<usize>().map_err(|_| format!("{argument} wants a number, not {value}"));
        let small =
            || value.parse::<u8>().map_err(|_| format!("{argument} wants a small number, not {value}"));
        match argument.as_str() {
            "--replicas" => bounds.replicas = number()?,
            "--terms" => bounds.terms = number()? as u64,
            "--proposals" => bounds.proposals = small()?,
            "--in-flight" => bounds.in_flight = number()?,
            "--writes" => bounds.writes = number()?,
            "--crashes" => bounds.crashes = small()?,
            "--repetitions" => bounds.repetitions = small()?,
            "--changes" => bounds.changes = small()?,
            "--spare" => bounds.spare = number()? > 0,
            "--led" => bounds.led = number()? > 0,
            "--states-max" => bounds.states_max = number()?,
            "--bug" => {
                let named = Bug::NAMED.iter().find(|(name, _)| *name == value);
                bug = Some(named.ok_or_else(|| format!("no bug {value}"))?.1);
            }
            #[cfg(feature = "mutants")]
            "--mutant" => {
                let named = conclave_consensus::Mutant::named(&value);
                conclave_consensus::Mutant::choose_here(Some(
                    named.ok_or_else(|| format!("no mutant {value}"))?,
                ));
            }
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok((bounds, bug))
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let (bounds, bug) = match parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(why) => {
            eprintln!("{why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    println!("{bounds:?}");
    let report = explore(bounds, bug);
    println!("{report}\n{:.1} s", started.elapsed().as_secs_f64());
    ExitCode::from(u8::from(report.violation.is_some()))
}
