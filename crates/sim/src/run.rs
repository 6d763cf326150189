//! One seed, from the first boot to the verdict.
//!
//! 1. *Safety*: load and faults; the checkers that can, watch while it goes on.
//! 2. *Heal*: the faults end.
//! 3. *Liveness*: a write through every node is acknowledged within [`LIVENESS_ELECTIONS`] election timeouts.
//! 4. *Drill*: one thing goes wrong with a majority well, and the others go on; and leaders that rely on leases are cut off. See
//!    [`world`](crate::world).
//! 5. *Durability*: power is cut on all nodes once more; afterwards each holds exactly what was acknowledged, and all hold the same.
//!
//! Then the history as a whole is judged.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;

use crate::{
    check::{
        DurableLog, Violation, agree, check_dense_revisions, check_durability, check_linearizability,
        check_replay,
    },
    clock::{SECOND, SimTime},
    engine::Engine,
    model::Model,
    options::Options,
    rng::Rng,
    world::{Counters, Drill, PROBE_KEYS, World},
};

/// Within how many election timeouts after the heal a write must succeed.
pub const LIVENESS_ELECTIONS: u32 = 5;

/// How long after the end of the faults what they had begun may go on: a stalled sync, a clogged packet.
const SETTLE: SimTime = 8 * SECOND;

/// How long the judge of linearizability may think about one key, in real time.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What decides everything.
    pub seed: u64,
    /// What replicates.
    pub engine: Engine,
    /// How long the phase of faults lasts.
    pub duration: SimTime,
    /// A bug, if the checkers are to be tested.
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
    /// Without any fault, drill or blackout, and judged by what clients saw alone: whatever works at all passes.
    pub calm: bool,
    /// Leaders keep leases and take this for the bound on the drift of clocks, which drift by as much as any may.
    pub lease_bound_ppm: Option<u32>,
    /// Whether to print every event.
    pub print: bool,
}

impl Plan {
    /// A run of a seed on Raft with faults for 60 simulated seconds.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self {
            seed,
            engine: Engine::Raft,
            duration: 60 * SECOND,
            #[cfg(feature = "mutants")]
            mutant: None,
            calm: false,
            lease_bound_ppm: None,
            print: false,
        }
    }

    /// The command that runs it again.
    #[must_use]
    pub fn command(&self) -> String {
        let mutant = String::new();
        #[cfg(feature = "mutants")]
        let mutant = self.mutant.map(|mutant| format!(" --mutant {}", mutant.name())).unwrap_or(mutant);
        let seconds = self.duration / SECOND;
        let calm = if self.calm { " --calm" } else { "" };
        let bound = self.lease_bound_ppm.map(|ppm| format!(" --lease-bound-ppm {ppm}")).unwrap_or_default();
        let (seed, engine) = (self.seed, self.engine.name());
        format!(
            "cargo xtask sim --seeds {seed} -- --engine {engine} --seconds {seconds}{mutant}{calm}{bound}"
        )
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The hash over everything that happened.
    pub trace: u64,
    /// What was counted.
    pub counters: Counters,
    /// How much time was simulated.
    pub simulated: SimTime,
    /// What was broken, if anything.
    pub violation: Option<Violation>,
}

/// Runs a seed once.
#[must_use]
pub fn run(plan: &Plan) -> Report {
    let mut seen = Report { trace: 0, counters: Counters::default(), simulated: 0, violation: None };
    #[cfg(feature = "mutants")]
    Mutant::choose_here(plan.mutant);
    let outcome = catch_unwind(AssertUnwindSafe(|| phases(plan, &mut seen)));
    #[cfg(feature = "mutants")]
    Mutant::choose_here(None);
    seen.violation = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(Violation::new("panic", text.unwrap_or_default()))
        }
    };
    seen
}

/// Runs a seed twice: the same seed must do the same things.
#[must_use]
pub fn run_twice(plan: &Plan) -> Report {
    let first = run(plan);
    if first.violation.is_some() {
        return first;
    }
    let second = run(&Plan { print: false, ..plan.clone() });
    if first == second {
        return first;
    }
    let what = format!("the first run hashes to {:016x}, the second to {:016x}", first.trace, second.trace);
    Report { violation: Some(Violation::new("determinism", what)), ..first }
}

fn phases(plan: &Plan, seen: &mut Report) -> Result<(), Violation> {
    let mut rng = Rng::new(plan.seed);
    let mut options = Options::draw(&mut rng, plan.duration);
    if plan.calm {
        options.calm_down();
    }
    if let Some(bound) = plan.lease_bound_ppm {
        options.rely_on(bound);
    }
    let drift_ppm = options.faults.drift_ppm;
    let drill = *rng.pick(&Drill::ALL);
    if plan.print {
        eprintln!("{options:#?}");
    }
    let mut world = World::new(rng, options, plan.engine, plan.print)?;
    if plan.calm {
        world.context.checks.durable = DurableLog::asleep();
    }
    let result = live(&mut world, plan, drill, drift_ppm);
    if plan.print && result.is_err() {
        world.describe().iter().for_each(|line| eprintln!("{line}"));
    }
    seen.trace = world.context.trace.hash();
    seen.counters = world.counters();
    seen.simulated = world.context.now;
    result
}

fn live(world: &mut World, plan: &Plan, drill: Drill, drift_ppm: u64) -> Result<(), Violation> {
    world.begin();
    world.run_until(plan.duration)?;
    if plan.calm {
        world.stop_load();
        liveness(world)?;
        catch_up(world)?;
        return judge(world);
    }
    world.heal()?;
    world.run_until(world.context.now + SETTLE)?;
    world.settle_members()?;
    world.stop_load();
    liveness(world)?;
    catch_up(world)?;
    world.drill(drill)?;
    catch_up(world)?;
    world.drill_leases(drift_ppm)?;
    catch_up(world)?;
    for node in world.healthy() {
        world.crash(node);
    }
    world.run_until(world.context.now + SECOND)?;
    liveness(world)?;
    catch_up(world)?;
    judge(world)
}

/// Every node that was not lost gets a write through in time.
fn liveness(world: &mut World) -> Result<(), Violation> {
    let patience = world.elections(LIVENESS_ELECTIONS);
    world.must_write(&world.healthy(), patience, 1, "after the heal")
}

/// Waits until all nodes applied the same, and compares what they hold.
fn catch_up(world: &mut World) -> Result<(), Violation> {
    let until = world.context.now + world.elections(20) + 20 * SECOND;
    loop {
        let states = world.states();
        let even =
            states.as_ref().is_some_and(|states| states.iter().all(|s| s.applied == states[0].applied));
        if let (true, Some(states)) = (even, &states) {
            let hashes: Vec<(u64, u64)> = states.iter().map(|s| (s.node, s.hash)).collect();
            let revisions: Vec<(u64, u64)> = states.iter().map(|s| (s.node, s.revision as u64)).collect();
            agree(&revisions)?;
            return agree(&hashes);
        }
        if world.context.now >= until {
            let what = format!("nodes do not catch up after the heal: {states:?}");
            return Err(Violation::new("liveness", what));
        }
        world.run_until(world.context.now + SECOND / 2)?;
    }
}

/// Judges the history as a whole, and what every node holds in the end.
fn judge(world: &mut World) -> Result<(), Violation> {
    let history = &world.context.history;
    let chosen = || world.context.checks.machines.chosen();
    world.context.checks.changes.end()?;
    check_durability(history, chosen())?;
    let model = check_replay(history, chosen())?;
    check_dense_revisions(history, model.revision())?;
    check_linearizability(history, PATIENCE)?;
    for node in world.healthy() {
        scan(world, node, &model)?;
    }
    Ok(())
}

fn scan(world: &World, node: u64, model: &Model) -> Result<(), Violation> {
    let held = world.read(node, 0, PROBE_KEYS + 1000)?;
    let expected = model.read(0, PROBE_KEYS + 1000);
    if held.seen == expected && held.revision == model.revision() {
        return Ok(());
    }
    let differs = |key| held.seen.iter().find(|s| s.key == key) != expected.iter().find(|s| s.key == key);
    let keys = held.seen.iter().chain(&expected).map(|seen| seen.key).filter(|key| differs(*key));
    let what = format!(
        "node {node} ends at revision {} with {} keys, the model at {} with {}; different: {:?}",
        held.revision,
        held.seen.len(),
        model.revision(),
        expected.len(),
        keys.take(8).collect::<Vec<_>>()
    );
    Err(Violation::new("durability", what))
}
