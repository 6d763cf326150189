//! The order of the moves: steps, each of which leaves a table that may stay as it is.

use std::collections::{BTreeMap, VecDeque};

use super::{Move, PlanError, Reason, problem::Problem};
use crate::{key::Slot, node::NodeId, table::TableError};

/// Changes that are made together: a new version of the table. After each step of a plan
///
/// - no slot has fewer replicas than before, and none was changed in more than one place, unless nobody had it;
/// - no slot has more replicas in one zone than before the plan, or than anti-affinity allows;
/// - no node has more than its upper bound or than it had before the plan; where every node that is left to take something is full, and
///   they would have to exchange, one more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The version of the table that it changes.
    pub version: u64,
    /// What changes.
    pub moves: Vec<Move>,
}

impl Step {
    /// What goes over the wire.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.moves.iter().fold(0, |sum, change| sum.saturating_add(change.bytes))
    }
}

/// How much is moved at a time. A place that nobody had is filled without being counted: there is nothing to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// Most moves of a step; at least 1. Default 64.
    pub moves_max: u32,
    /// Most moves of a step that one node is part of, giving or taking; at least 1. Default 8.
    pub node_moves_max: u32,
    /// Most bytes of a step, but for a single move that is larger. Default unbounded.
    pub bytes_max: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { moves_max: 64, node_moves_max: 8, bytes_max: u64::MAX }
    }
}

impl Throttle {
    /// Everything in as few steps as safety allows.
    pub const NONE: Throttle =
        Throttle { moves_max: u32::MAX, node_moves_max: u32::MAX, bytes_max: u64::MAX };
}

/// What comes first: slots without a node, then those whose node goes.
fn urgency(reason: Reason) -> u8 {
    match reason {
        Reason::Vacant => 0,
        Reason::Gone => 1,
        Reason::Drains => 2,
        Reason::ZoneShared => 3,
        Reason::Pinned | Reason::MakesRoom | Reason::AboveBound { .. } | Reason::BelowBound { .. } => 4,
    }
}

/// A move that waits, with its ends as indices.
struct Waiting {
    change: Move,
    from: Option<usize>,
    to: usize,
}

/// What a step has taken up so far.
struct Filling {
    /// Steps are numbered from 1; a row was last changed in that one.
    row_changed: Vec<u32>,
    node_changed: Vec<(u32, u32)>,
    moves: u32,
    bytes: u64,
}

impl Filling {
    fn node_moves(&self, step: u32, node: usize) -> u32 {
        let (in_step, moves) = self.node_changed[node];
        if in_step == step { moves } else { 0 }
    }

    fn count(&mut self, step: u32, node: usize) {
        self.node_changed[node] = (step, self.node_moves(step, node) + 1);
    }
}

pub(super) fn schedule(
    problem: &Problem,
    version: u64,
    sizes: &[u64],
    throttle: &Throttle,
) -> Result<Vec<Step>, PlanError> {
    let index: BTreeMap<NodeId, usize> = problem.ids.iter().copied().zip(0..).collect();
    let mut moves = problem.moves();
    moves.sort_by_key(|change| urgency(change.reason));
    let mut waiting: VecDeque<Waiting> = moves
        .into_iter()
        .map(|mut change| {
            if change.from.is_some() {
                change.bytes = sizes.get(change.slot.0 as usize).copied().unwrap_or(0);
            }
            Waiting { from: change.from.map(|from| index[&from]), to: index[&change.to], change }
        })
        .collect();
    let mut load = vec![0_u32; problem.ids.len()];
    for node in &problem.before {
        if let Some(load) = load.get_mut(usize::from(*node)) {
            *load += 1;
        }
    }
    let limit: Vec<u32> =
        problem.bounds.iter().zip(&load).map(|(bounds, load)| bounds.most.max(*load)).collect();
    let mut filling = Filling {
        row_changed: vec![0; problem.rows],
        node_changed: vec![(0, 0); problem.ids.len()],
        moves: 0,
        bytes: 0,
    };
    let mut steps = Vec::new();
    while !waiting.is_empty() {
        let number = steps.len() as u32 + 1;
        (filling.moves, filling.bytes) = (0, 0);
        let mut taken = Vec::new();
        let mut blocked = VecDeque::new();
        let mut leaving = Vec::new();
        while let Some(next) = waiting.pop_front() {
            if filling.moves >= throttle.moves_max.max(1) && next.from.is_some() {
                waiting.push_front(next);
                break;
            }
            if fits(problem, &filling, throttle, number, &next) && load[next.to] < limit[next.to] {
                take(&mut filling, number, &next, &mut load, &mut leaving);
                taken.push(next.change);
            } else {
                blocked.push_back(next);
            }
        }
        blocked.append(&mut waiting);
        waiting = blocked;
        if taken.is_empty() {
            // All that could take something are full and wait for each other.
            let Some(next) = waiting.pop_front() else { break };
            take(&mut filling, number, &next, &mut load, &mut leaving);
            taken.push(next.change);
        }
        for node in leaving {
            load[node] -= 1;
        }
        let version = version.checked_add(u64::from(number) - 1).ok_or(TableError::Exhausted)?;
        steps.push(Step { version, moves: taken });
    }
    Ok(steps)
}

/// Whether the step has room for a move, apart from loads.
fn fits(problem: &Problem, filling: &Filling, throttle: &Throttle, step: u32, next: &Waiting) -> bool {
    let Slot(row) = next.change.slot;
    let row_changed = filling.row_changed[row as usize] == step;
    let Some(from) = next.from else {
        // Nothing is copied; but a set that somebody had a part of grows one by one.
        return !row_changed
            || problem.before[problem.places(row as usize)].iter().all(|node| *node == crate::table::VACANT);
    };
    let node_max = throttle.node_moves_max.max(1);
    !row_changed
        && filling.node_moves(step, from) < node_max
        && filling.node_moves(step, next.to) < node_max
        && (filling.moves == 0 || filling.bytes.saturating_add(next.change.bytes) <= throttle.bytes_max)
}

fn take(filling: &mut Filling, step: u32, next: &Waiting, load: &mut [u32], leaving: &mut Vec<usize>) {
    filling.row_changed[next.change.slot.0 as usize] = step;
    // What leaves counts until the step is over: the copy is there before the original goes.
    load[next.to] += 1;
    if let Some(from) = next.from {
        filling.moves += 1;
        filling.bytes = filling.bytes.saturating_add(next.change.bytes);
        filling.count(step, from);
        filling.count(step, next.to);
        leaving.push(from);
    }
}
