//! How long writes stand still when links or the leader are lost, and what a write waits for.
//!
//! Five nodes in good health run under one seed, with the node's own timing: election timeout 1 s, heartbeats of 100 ms. Then something is lost for
//! good, and from that moment on every node is asked to write, again and again, until one write is acknowledged that was asked for after it.
//!
//! The partitions are those of Ng, Haridi and Carbone, *Omni-Paxos* (2023), section 2: none of them is clean, and in each some node and a quorum
//! hear each other. [`Case`] draws them.

use std::fmt;

use conclave_consensus::Quorums;

use crate::{
    check::Violation,
    clock::{MS, SimTime},
    engine::Engine,
    history::Ending,
    options::{NetworkOptions, Options},
    rng::Rng,
    world::World,
};

/// How many nodes.
pub const NODES: u64 = 5;

/// After so many election timeouts without a write it is not waited for any longer.
pub const PATIENCE_ELECTIONS: u32 = 20;

/// For so many election timeouts it is counted afterwards who leads.
const REST_ELECTIONS: u32 = 20;

/// A node is asked so often in an election timeout.
const ASKED: SimTime = 20;

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Node 1 hears everyone, and nobody else hears anyone but node 1. Node 5 leads: it lives, and node 1 hears it, but it has no quorum.
    QuorumLoss,
    /// Node 1 hears nodes 2, 3 and 4, which hear nobody else, and node 5, which led, is gone; node 1 was away while much was chosen, and
    /// lacks it.
    ConstrainedElection,
    /// Each node hears the one before and the one after: 1 – 2 – 3 – 4 – 5. One at an end led; the three in the middle hear a quorum.
    Chained,
    /// The leader is gone.
    LeaderLost,
    /// The leader is gone, and another with it.
    TwoLost,
}

impl Case {
    /// Those of the paper.
    pub const PARTITIONS: [Self; 3] = [Self::QuorumLoss, Self::ConstrainedElection, Self::Chained];
    /// Plain losses, of as many nodes as majorities of five can do without.
    pub const LOSSES: [Self; 2] = [Self::LeaderLost, Self::TwoLost];

    /// Who leads before.
    fn leader(self, seed: u64) -> u64 {
        if self == Self::Chained && seed.is_multiple_of(2) { 1 } else { NODES }
    }

    /// The pairs that hear each other from then on.
    fn links(self) -> Vec<(u64, u64)> {
        let among = |nodes: u64| {
            (1..=nodes).flat_map(move |one| (one + 1..=nodes).map(move |other| (one, other))).collect()
        };
        match self {
            Self::QuorumLoss => (2..=NODES).map(|other| (1, other)).collect(),
            Self::ConstrainedElection => (2..NODES).map(|other| (1, other)).collect(),
            Self::Chained => (1..NODES).map(|one| (one, one + 1)).collect(),
            Self::LeaderLost => among(NODES - 1),
            Self::TwoLost => among(NODES - 2),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QuorumLoss => "quorum loss",
            Self::ConstrainedElection => "constrained election",
            Self::Chained => "chained",
            Self::LeaderLost => "leader lost",
            Self::TwoLost => "leader and one more lost",
        })
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recovery {
    /// After how many election timeouts a write was acknowledged; `None` if none was in [`PATIENCE_ELECTIONS`].
    pub after: Option<f64>,
    /// In how many ballots somebody led from the loss on: one is best.
    pub ballots: u64,
}

/// Loses what the case loses and waits until writes go on.
///
/// # Errors
/// What a checker says, or that there was no leader to begin with.
pub fn recover(
    engine: Engine,
    case: Case,
    quorums: Option<Quorums>,
    seed: u64,
) -> Result<Recovery, Violation> {
    let (mut world, election) = led_by(engine, quorums, case.leader(seed), seed)?;
    if case == Case::ConstrainedElection {
        isolate(&mut world, 1);
        for _ in 0..20 {
            world.probe(&[NODES], election);
            world.run_until(world.context.now + election / 10)?;
        }
        world.context.net.heal(NetworkOptions::healthy());
    }
    let links = case.links();
    leave(&mut world, &links);
    let (begun, before) = (world.context.now, world.counters().elections);
    let nodes: Vec<u64> = (1..=NODES).collect();
    let mut asked = Vec::new();
    while world.context.now < begun + election * SimTime::from(PATIENCE_ELECTIONS) {
        asked.extend(world.probe(&nodes, election * SimTime::from(PATIENCE_ELECTIONS)));
        world.run_until(world.context.now + election / ASKED)?;
        if asked.iter().any(|op| world.is_answered(*op)) {
            break;
        }
    }
    let answers = asked.iter().filter_map(|op| match world.context.history.get(*op)?.ending {
        Ending::Answered { at, .. } => Some(at),
        _ => None,
    });
    let after = answers.min().map(|at| (at - begun) as f64 / election as f64);
    world.run_until(world.context.now + election * SimTime::from(REST_ELECTIONS))?;
    Ok(Recovery { after, ballots: world.counters().elections - before })
}

/// How long a write at the leader takes while all is well, in milliseconds, from its client and back: one after the other.
///
/// # Errors
/// What a checker says, or that a write was not acknowledged.
pub fn latencies_ms(
    engine: Engine,
    quorums: Option<Quorums>,
    writes: u32,
    seed: u64,
) -> Result<Vec<f64>, Violation> {
    let (mut world, election) = led_by(engine, quorums, NODES, seed)?;
    let mut latencies = Vec::new();
    for _ in 0..writes {
        let begun = world.context.now;
        let op = world.probe(&[NODES], election)[0];
        while !world.is_answered(op) {
            if world.context.now > begun + election {
                return Err(Violation::new("liveness", "a write is not acknowledged although all is well"));
            }
            world.run_until(world.context.now + MS)?;
        }
        if let Some(Ending::Answered { at, .. }) = world.context.history.get(op).map(|op| &op.ending) {
            latencies.push((at - begun) as f64 / MS as f64);
        }
    }
    Ok(latencies)
}

/// A cluster led by that node, in which everyone knows it; and its election timeout.
fn led_by(
    engine: Engine,
    quorums: Option<Quorums>,
    leader: u64,
    seed: u64,
) -> Result<(World, SimTime), Violation> {
    let options = Options { quorums, ..Options::steady(NODES) };
    let mut world = World::new(Rng::new(seed), options, engine, false)?;
    let election = world.elections(1);
    for _ in 0..10 {
        world.run_until(world.context.now + 3 * election)?;
        if world.leader() == Some(leader) {
            let nodes: Vec<u64> = (1..=NODES).collect();
            world.must_write(&nodes, election, 2, "before anything was lost")?;
            // Somewhere between two heartbeats.
            let moment = world.context.rng.below(election);
            world.run_until(world.context.now + election + moment)?;
            return Ok((world, election));
        }
        world.hand_over(leader)?;
    }
    Err(Violation::new("transfer", format!("node {leader} does not lead")))
}

fn isolate(world: &mut World, node: u64) {
    let others = (1..=NODES).filter(|other| *other != node);
    let links = others.flat_map(|other| [(node, other), (other, node)]).collect();
    world.context.net.cut_links(links, SimTime::MAX);
}

/// Cuts all links but these, both ways each.
fn leave(world: &mut World, links: &[(u64, u64)]) {
    let all = (1..=NODES).flat_map(|from| (1..=NODES).map(move |to| (from, to)));
    let is_left = |from: u64, to: u64| from == to || links.contains(&(from.min(to), from.max(to)));
    let cut = all.filter(|(from, to)| !is_left(*from, *to)).collect();
    world.context.net.cut_links(cut, SimTime::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The aim, in election timeouts.
    const WITHIN: f64 = 4.0;

    #[test]
    fn paxos_writes_on_in_every_partition_that_leaves_a_leader_and_then_leadership_rests() {
        for case in Case::PARTITIONS {
            for seed in 0..10 {
                let seen = recover(Engine::Paxos, case, None, seed).unwrap();
                assert!(seen.after.is_some_and(|after| after <= WITHIN), "{case}, seed {seed}: {seen:?}");
                assert!(seen.ballots <= 2, "{case}, seed {seed}: leadership goes round: {seen:?}");
            }
        }
    }

    /// Whoever could lead lacks what was chosen, and whoever has it hears no quorum.
    #[test]
    fn raft_elects_nobody_who_lacks_what_was_chosen() {
        let seen = recover(Engine::Raft, Case::ConstrainedElection, None, 0).unwrap();
        assert_eq!(seen, Recovery { after: None, ballots: 0 });
    }

    #[test]
    fn small_commit_quorums_make_writes_quicker_and_elections_need_more() {
        let sizes = |elect, commit| Some(Quorums { elect, commit });
        let mean = |quorums| {
            let all = latencies_ms(Engine::Paxos, quorums, 200, 1).unwrap();
            all.iter().sum::<f64>() / all.len() as f64
        };
        assert!(mean(sizes(4, 2)) < mean(sizes(3, 3)));
        let two_lost = |quorums| recover(Engine::Paxos, Case::TwoLost, quorums, 1).unwrap().after;
        assert!(two_lost(sizes(3, 3)).is_some_and(|after| after <= WITHIN));
        assert_eq!(two_lost(sizes(4, 2)), None, "three are left, and four elect");
    }
}
