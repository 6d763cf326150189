//! Runs seeds and says what they came to.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    ops::Range,
    process::ExitCode,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Instant,
};

use conclave_sim::{
    clock::{SECOND, SimTime},
    engine::Engine,
    run::{Plan, Report, run, run_twice},
    world::Counters,
};

const USAGE: &str = "\
Runs a simulated cluster under faults, seed by seed, and checks everything it did.

Usage: conclave-sim --seeds A..B [--engine NAME] [--hours N] [--seconds N] [--once] [--threads N] [--mutant NAME] [--calm]
                    [--lease-bound-ppm N] [--brief | --verbose]

  --seeds A..B    the seeds A up to, not including, B; or a single one
  --engine NAME   what replicates: raft (the default) or paxos
  --hours N       stop after so many simulated hours, if the seeds last so long
  --seconds N     simulated seconds of faults a seed (default 60)
  --calm          no faults, and only what clients saw is judged: what even a mutant must pass
  --lease-bound-ppm N
                  leaders keep leases and rely on clocks that drift by no more than N parts in a million; they drift by 100,000
  --once          run each seed once instead of twice
  --threads N     run so many seeds at a time (default 1)
  --mutant NAME   put a bug in (in a build with the feature `mutants`) and stop at the first seed in which it is seen
  --mutants       list the bugs that can be put in around the engine
  --brief         say nothing of a seed unless it is violated, and what all came to now and then
  --verbose       print the seed's options and every event
Exit code 1 if anything was violated.";

/// A brief run says after so many seeds what they came to.
const SEEDS_A_WORD: u64 = 2_000;

struct Arguments {
    seeds: Range<u64>,
    /// Simulated, at most.
    limit: SimTime,
    once: bool,
    brief: bool,
    /// Say what can be put in, and do nothing.
    lists_mutants: bool,
    threads: NonZeroUsize,
    plan: Plan,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        seeds: 0..0,
        limit: SimTime::MAX,
        once: false,
        brief: false,
        lists_mutants: false,
        threads: NonZeroUsize::MIN,
        plan: Plan::of(0),
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--seeds" => {
                let value = value()?;
                parsed.seeds =
                    seeds(&value).ok_or_else(|| format!("--seeds wants A..B or A, not {value}"))?;
            }
            "--seconds" => {
                let seconds: u64 = value()?.parse().map_err(|_| "--seconds wants a number")?;
                parsed.plan.duration = seconds * SECOND;
            }
            "--engine" => {
                let value = value()?;
                parsed.plan.engine = Engine::named(&value)
                    .ok_or_else(|| format!("--engine wants raft or paxos, not {value}"))?;
            }
            "--hours" => {
                let hours: u64 = value()?.parse().map_err(|_| "--hours wants a number")?;
                parsed.limit = hours.saturating_mul(3600 * SECOND);
            }
            "--threads" => {
                parsed.threads = value()?.parse().map_err(|_| "--threads wants a number, not 0")?;
            }
            "--mutant" => put_in(&mut parsed, &value()?)?,
            "--calm" => parsed.plan.calm = true,
            "--lease-bound-ppm" => {
                let bound = value()?.parse().map_err(|_| "--lease-bound-ppm wants a number")?;
                parsed.plan.lease_bound_ppm = Some(bound);
            }
            "--once" => parsed.once = true,
            "--brief" => parsed.brief = true,
            "--mutants" => parsed.lists_mutants = true,
            "--verbose" => parsed.plan.print = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    if parsed.seeds.is_empty() && !parsed.lists_mutants {
        return Err("--seeds A..B names no seed".to_owned());
    }
    Ok(parsed)
}

#[cfg(feature = "mutants")]
fn put_in(arguments: &mut Arguments, name: &str) -> Result<(), String> {
    let mutant = conclave_consensus::Mutant::named(name).ok_or_else(|| format!("no mutant {name}"))?;
    (arguments.plan.mutant, arguments.once) = (Some(mutant), true);
    Ok(())
}

#[cfg(not(feature = "mutants"))]
fn put_in(_: &mut Arguments, _: &str) -> Result<(), String> {
    Err("this build has no mutants: build it with the feature `mutants`".to_owned())
}

fn list_mutants(engine: Engine) {
    #[cfg(feature = "mutants")]
    engine.mutants().for_each(|mutant| println!("{}", mutant.name()));
    #[cfg(not(feature = "mutants"))]
    let _ = engine;
}

fn seeds(text: &str) -> Option<Range<u64>> {
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
    match parse(std::env::args().skip(1)) {
        Ok(arguments) if arguments.lists_mutants => {
            list_mutants(arguments.plan.engine);
            ExitCode::SUCCESS
        }
        Ok(arguments) => ExitCode::from(u8::from(run_all(&arguments).failed > 0)),
        Err(why) => {
            eprintln!("{why}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// What all seeds came to.
#[derive(Default)]
struct Total {
    counters: Counters,
    /// Simulated, each seed counted once.
    simulated: SimTime,
    seeds: u64,
    failed: u64,
}

/// Runs the seeds, several at a time, and prints what each came to in their order. Says the same for any number of threads.
fn run_all(arguments: &Arguments) -> Total {
    let began = Instant::now();
    let times = if arguments.once { 1 } else { 2 };
    let (next, end) = (AtomicU64::new(arguments.seeds.start), arguments.seeds.end);
    let (done, reports) = mpsc::channel();
    let mut total = Total::default();
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.get() {
            let (done, next) = (done.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let plan = Plan { seed, ..arguments.plan.clone() };
                    let ran =
                        (seed < end).then(|| if arguments.once { run(&plan) } else { run_twice(&plan) });
                    if ran.is_none_or(|report| done.send((plan, report)).is_err()) {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut early: BTreeMap<u64, (Plan, Report)> = BTreeMap::new();
        let mut due = arguments.seeds.start;
        for (plan, report) in reports {
            early.insert(plan.seed, (plan, report));
            while let Some((plan, report)) = early.remove(&due) {
                due += 1;
                total.take(&plan, &report, arguments.brief);
                if arguments.brief && total.seeds % SEEDS_A_WORD == 0 {
                    total.say(began.elapsed().as_secs_f64(), times);
                }
                if (total.failed > 0 && stops_at_the_first(&plan)) || total.simulated >= arguments.limit {
                    next.store(end, Ordering::Relaxed);
                    return;
                }
            }
        }
    });
    total.say(began.elapsed().as_secs_f64(), times);
    total
}

/// A mutant is seen once.
fn stops_at_the_first(plan: &Plan) -> bool {
    #[cfg(feature = "mutants")]
    return plan.mutant.is_some();
    #[cfg(not(feature = "mutants"))]
    {
        let _ = plan;
        false
    }
}

impl Total {
    fn take(&mut self, plan: &Plan, report: &Report, brief: bool) {
        self.seeds += 1;
        self.simulated += report.simulated;
        self.counters.add(&report.counters);
        if !brief || report.violation.is_some() {
            println!("seed {}: {}, trace {:016x}", plan.seed, line(&report.counters), report.trace);
        }
        if let Some(violation) = &report.violation {
            self.failed += 1;
            let after = report.simulated / (SECOND / 1000);
            println!("seed {}: VIOLATION after {after} ms\n  {violation}", plan.seed);
            println!("  again: {}", plan.command());
        }
    }

    fn say(&self, took: f64, times: u64) {
        let Self { seeds, failed, .. } = self;
        let hours = self.simulated as f64 / SECOND as f64 / 3600.0;
        let speed = (self.simulated * times) as f64 / SECOND as f64 / took;
        println!(
            "total: {seeds} seeds, {hours:.2} simulated hours, at {speed:.0} x real time, {failed} violated"
        );
        println!("       {}", line(&self.counters));
        let density = self.counters.density();
        let rates: Vec<String> =
            density.iter().map(|(what, count, _)| format!("{:.0} {what}", *count as f64 / hours)).collect();
        let thin: Vec<&str> = density
            .iter()
            .filter(|(_, count, least)| (*count as f64) < *least as f64 * hours)
            .map(|(what, ..)| *what)
            .collect();
        let verdict =
            if thin.is_empty() { "busy".to_owned() } else { format!("too few {}", thin.join(", ")) };
        println!("an hour: {}: {verdict}", rates.join(", "));
    }
}

fn line(c: &Counters) -> String {
    format!(
        "{} operations ({} answered, {} refused, {} unknown), {} entries, {} faults \
         ({} crashes, {} of them inside a disk operation, {} blackouts, {} kills, {} partitions, {} pauses, {} jumps, {} transfers, \
         {} of disks), {} damaged logs found, {} nodes lost, {} elections, {} checkpoints, {} snapshots ({} transfers resumed, {} begun anew), {} membership changes asked, {} configurations chosen, {} nodes wiped, {} naps",
        c.operations(),
        c.answered,
        c.refused,
        c.unknown,
        c.entries,
        c.faults(),
        c.crashes,
        c.disk_crashes,
        c.blackouts,
        c.kills,
        c.partitions,
        c.pauses,
        c.jumps,
        c.transfers,
        c.disk_faults,
        c.damages_found,
        c.lost,
        c.elections,
        c.checkpoints,
        c.snapshots,
        c.resumed,
        c.begun_anew,
        c.changes,
        c.memberships,
        c.retired,
        c.naps
    )
}
