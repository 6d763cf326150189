//! The order of the moves: steps, each of which leaves a table that may stay as it is.

use std::collections::VecDeque;

use super::{
    Move, PlanError, Reason,
    problem::{Change, Problem},
};
use crate::table::{TableError, VACANT};

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

/// What a step has taken up so far.
struct Filling {
    /// Steps are numbered from 1; a row was first changed in that one.
    row_begun: Vec<u32>,
    /// And last in that one.
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

    /// Whether the step has room for a change, apart from loads.
    fn has_room(&self, problem: &Problem, throttle: &Throttle, step: u32, next: &Change, bytes: u64) -> bool {
        let row = next.row as usize;
        let row_changed = self.row_changed[row] == step;
        let Some(from) = next.from else {
            // Nothing is copied; but a set that somebody has a part of, if only by an earlier step, grows one by one.
            let vacant = self.row_begun[row] == step
                && problem.before[problem.places(row)].iter().all(|node| *node == VACANT);
            return !row_changed || vacant;
        };
        let node_max = throttle.node_moves_max.max(1);
        !row_changed
            && self.node_moves(step, usize::from(from)) < node_max
            && self.node_moves(step, usize::from(next.to)) < node_max
            && (self.moves == 0 || self.bytes.saturating_add(bytes) <= throttle.bytes_max)
    }

    fn take(&mut self, step: u32, next: &Change, bytes: u64, load: &mut [u32], leaving: &mut Vec<usize>) {
        let row = next.row as usize;
        if self.row_begun[row] == 0 {
            self.row_begun[row] = step;
        }
        self.row_changed[row] = step;
        // What leaves counts until the step is over: the copy is there before the original goes.
        load[usize::from(next.to)] += 1;
        if let Some(from) = next.from {
            self.moves += 1;
            self.bytes = self.bytes.saturating_add(bytes);
            self.count(step, usize::from(from));
            self.count(step, usize::from(next.to));
            leaving.push(usize::from(from));
        }
    }
}

pub(super) fn schedule(
    problem: &Problem,
    version: u64,
    sizes: &[u64],
    throttle: &Throttle,
) -> Result<Vec<Step>, PlanError> {
    let mut changes = problem.differences();
    changes.sort_by_key(|change| urgency(change.reason));
    let mut waiting = VecDeque::from(changes);
    // What is copied; where nobody had it there is nothing to copy.
    let bytes = |change: &Change| match change.from {
        Some(_) => sizes.get(change.row as usize).copied().unwrap_or(0),
        None => 0,
    };
    let mut load = vec![0_u32; problem.ids.len()];
    for node in &problem.before {
        if let Some(load) = load.get_mut(usize::from(*node)) {
            *load += 1;
        }
    }
    let limit: Vec<u32> =
        problem.bounds.iter().zip(&load).map(|(bounds, load)| bounds.most.max(*load)).collect();
    let mut filling = Filling {
        row_begun: vec![0; problem.rows],
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
            let (to, bytes) = (usize::from(next.to), bytes(&next));
            if filling.has_room(problem, throttle, number, &next, bytes) && load[to] < limit[to] {
                filling.take(number, &next, bytes, &mut load, &mut leaving);
                taken.push(problem.as_move(&next, bytes));
            } else {
                blocked.push_back(next);
            }
        }
        blocked.append(&mut waiting);
        waiting = blocked;
        if taken.is_empty() {
            // All that could take something are full and wait for each other. Not all of them are above their limits: those would have more to
            // give than all together are to take.
            let at =
                waiting.iter().position(|next| load[usize::from(next.to)] <= limit[usize::from(next.to)]);
            let Some(next) = waiting.remove(at.unwrap_or(0)) else { break };
            let bytes = bytes(&next);
            filling.take(number, &next, bytes, &mut load, &mut leaving);
            taken.push(problem.as_move(&next, bytes));
        }
        for node in leaving {
            load[node] -= 1;
        }
        let version = version.checked_add(u64::from(number) - 1).ok_or(TableError::Exhausted)?;
        steps.push(Step { version, moves: taken });
    }
    Ok(steps)
}
