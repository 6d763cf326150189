//! The simulator on itself: seeds hold and repeat, and bugs put in on purpose are seen.

use conclave_sim::{
    clock::SECOND,
    engine::Engine,
    run::{Plan, run, run_twice},
};

fn holds(engine: Engine, seed: u64, seconds: u64) {
    let plan = Plan { engine, duration: seconds * SECOND, ..Plan::of(seed) };
    let report = run_twice(&plan);
    if let Some(violation) = report.violation {
        panic!("seed {seed}: {violation}\nagain: {}", plan.command());
    }
    assert!(report.counters.answered > 0, "seed {seed} did nothing");
}

#[test]
fn fresh_seeds_hold_and_repeat() {
    for engine in Engine::ALL {
        for seed in 1000..1006 {
            holds(engine, seed, 20);
        }
    }
}

#[test]
fn kept_seeds_hold() {
    let kept = include_str!("../../seeds.txt");
    for line in kept.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("seed and seconds");
        let (seed, seconds) = (number(), number());
        let engine = words.next().and_then(Engine::named).expect("a kept seed says on which engine");
        assert!(words.next().is_some(), "a kept seed says why: {line}");
        holds(engine, seed, seconds);
    }
}

/// The bound on the clocks' drift is what makes reads under a lease safe: relied on where it does not hold, some are stale.
#[test]
fn lease_reads_are_fresh_within_the_stated_bound_and_stale_beyond_it() {
    let drift_ppm = 100_000;
    for engine in Engine::ALL {
        let mut stale = 0;
        for seed in 3015..3021 {
            let plan =
                |bound| Plan { engine, lease_bound_ppm: Some(bound), duration: 5 * SECOND, ..Plan::of(seed) };
            assert_eq!(run(&plan(drift_ppm)).violation, None, "{}", plan(drift_ppm).command());
            if let Some(violation) = run(&plan(0)).violation {
                assert_eq!(violation.invariant, "read freshness", "{violation}");
                stale += 1;
            }
        }
        assert!(stale > 0, "no lease outlasted the others' patience on {engine:?}");
    }
}

#[cfg(feature = "mutants")]
mod mutants {
    use conclave_consensus::Mutant;
    use conclave_sim::{
        engine::Engine,
        run::{Plan, run},
    };

    fn caught(mutant: Mutant, seeds: std::ops::Range<u64>) {
        for engine in Engine::ALL {
            let seen = seeds.clone().find_map(|seed| {
                let violation = run(&Plan { engine, mutant: Some(mutant), ..Plan::of(seed) }).violation?;
                Some((seed, violation))
            });
            let (seed, violation) =
                seen.unwrap_or_else(|| panic!("{mutant:?} on {engine:?} survived the seeds {seeds:?}"));
            println!("{engine:?}: caught in seed {seed}: {violation}");
        }
    }

    #[test]
    fn a_sync_that_does_nothing_is_caught() {
        caught(Mutant::LogSyncDoesNothing, 0..10);
    }

    #[test]
    fn a_lease_that_ignores_the_drift_of_clocks_is_caught() {
        caught(Mutant::LeaseIgnoresDrift, 12..20);
    }

    #[test]
    fn an_acknowledgement_before_it_is_durable_is_caught() {
        caught(Mutant::AcknowledgedBeforeDurable, 0..10);
    }
}

#[test]
fn a_run_is_busy() {
    let mut total = conclave_sim::world::Counters::default();
    for (seed, engine) in (2000..2006).zip(Engine::ALL.into_iter().cycle()) {
        total.add(&run(&Plan { engine, ..Plan::of(seed) }).counters);
    }
    // An hour of simulation counts only if it has 100,000 operations, 200 faults, 20 crashes, 20 elections and 10 snapshots;
    // these are six minutes and a little.
    assert!(total.operations() > 10_000, "{total:?}");
    assert!(
        total.faults() > 20 && total.crashes > 2 && total.elections > 2 && total.checkpoints > 10,
        "{total:?}"
    );
}
