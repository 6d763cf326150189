//! Gives vacant places to those that are to have more, and then what others have too much.
//!
//! Both by rendezvous: of the nodes that are still below their aim and fit into the row, the one with the best draw for the slot.

use super::{Reason, problem::Problem};
use crate::{
    hash::{draw, mix},
    rendezvous::{hopeless, score},
    table::VACANT,
};

/// The nodes below their aim, with what a draw needs, side by side.
struct Needy {
    nodes: Vec<usize>,
    seeds: Vec<u64>,
    weights: Vec<f64>,
}

impl Needy {
    fn new(problem: &Problem) -> Self {
        let nodes: Vec<usize> =
            problem.takers().filter(|node| problem.load[*node] < problem.aim[*node]).collect();
        Self {
            seeds: nodes.iter().map(|node| problem.ids[*node].seed()).collect(),
            weights: nodes.iter().map(|node| problem.weights[*node] as f64).collect(),
            nodes,
        }
    }

    /// Forgets a node that has what it is to have.
    fn satisfied(&mut self, at: usize) {
        self.nodes.remove(at);
        self.seeds.remove(at);
        self.weights.remove(at);
    }

    /// Those with the best draws for a row, best first.
    fn several(&self, row: usize, count: usize) -> Vec<usize> {
        let key = mix(row as u64);
        let mut best: Vec<(f64, usize)> = Vec::with_capacity(count + 1);
        let mut worst = f64::INFINITY;
        for (at, (seed, weight)) in self.seeds.iter().zip(&self.weights).enumerate() {
            let drawn = draw(key, *seed);
            if hopeless(drawn, *weight, worst) {
                continue;
            }
            let scored = score(drawn, *weight);
            let place = best.partition_point(|(other, _)| *other <= scored);
            best.insert(place, (scored, self.nodes[at]));
            best.truncate(count);
            if best.len() == count {
                worst = best[count - 1].0;
            }
        }
        best.into_iter().map(|(_, node)| node).collect()
    }

    /// Where the best draw is among those that may take the cell.
    fn best(&self, problem: &Problem, cell: usize) -> Option<usize> {
        let key = mix((cell / problem.replicas) as u64);
        let mut best = (f64::INFINITY, None);
        for (at, (seed, weight)) in self.seeds.iter().zip(&self.weights).enumerate() {
            let drawn = draw(key, *seed);
            if hopeless(drawn, *weight, best.0) {
                continue;
            }
            let scored = score(drawn, *weight);
            if scored < best.0 && problem.fits(cell, self.nodes[at]) {
                best = (scored, Some(at));
            }
        }
        best.1
    }
}

/// Fills vacant places as far as zones allow.
pub(super) fn vacant(problem: &mut Problem) {
    let mut needy = Needy::new(problem);
    for row in 0..problem.rows {
        let empty = problem.places(row).filter(|cell| problem.cells[*cell] == VACANT).count();
        // One walk finds candidates for all places of the row; only where zones refuse them all is there another.
        let candidates = if empty > 1 { needy.several(row, 2 * empty) } else { Vec::new() };
        for cell in problem.places(row).filter(|_| empty > 0) {
            if problem.cells[cell] != VACANT {
                continue;
            }
            let listed = candidates.iter().find(|node| problem.fits(cell, **node));
            let at = match listed {
                Some(node) => needy.nodes.binary_search(node).ok(),
                None => needy.best(problem, cell),
            };
            let Some(at) = at else { continue };
            let node = needy.nodes[at];
            problem.put(cell, node);
            if problem.load[node] == problem.aim[node] {
                needy.satisfied(at);
            }
        }
    }
}

/// Moves from those above their aim to those below, as far as zones allow.
pub(super) fn take_from_those_above(problem: &mut Problem) {
    let mut needy = Needy::new(problem);
    if needy.nodes.is_empty() {
        return;
    }
    let had = problem.load.clone();
    for cell in 0..problem.cells.len() {
        let from = usize::from(problem.cells[cell]);
        if from >= problem.ids.len() || problem.load[from] <= problem.aim[from] || problem.fixed[cell] {
            continue;
        }
        let Some(at) = needy.best(problem, cell) else { continue };
        let node = needy.nodes[at];
        problem.vacate(cell, why(problem, &had, from, node));
        problem.put(cell, node);
        if problem.load[node] == problem.aim[node] {
            needy.satisfied(at);
            if needy.nodes.is_empty() {
                return;
            }
        }
    }
}

/// Why a place goes from one to the other, with what both had.
pub(super) fn why(problem: &Problem, had: &[u32], from: usize, to: usize) -> Reason {
    let bound = problem.bounds[from].most;
    if had[from] > bound {
        Reason::AboveBound { load: had[from], bound }
    } else {
        Reason::BelowBound { load: had[to], aim: problem.aim[to] }
    }
}
