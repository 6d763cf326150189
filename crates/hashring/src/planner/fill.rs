//! Gives vacant places to those that are to have more, and then what others have too much.
//!
//! Both by rendezvous: of the nodes that are still below their aim and fit into the row, the one with the best draw for the slot; but first those that
//! are [`pressing`](super::pressing).

use super::{
    Reason,
    pressing::{Pressing, Who},
    problem::Problem,
};
use crate::{
    hash::{draw, mix},
    rendezvous::{hopeless, score},
    table::VACANT,
};

/// So many of a row's best draws are looked at first, on average, and two more for each place that it has; what they do not fill is drawn among all.
const LISTED: usize = 6;
/// The list is made for another number of nodes once their weight is less than so much of what it was.
const WEIGHT_LEFT: f64 = 0.8;

/// The nodes below their aim, with what a draw needs, side by side.
///
/// Scores are exponentially distributed: of nodes that weigh `W` together, `W · t` score below `t` on average. So a row's best are among the few whose draws are beyond a
/// limit that depends on the node's weight alone, which costs a draw and a comparison for each node; only for those few is a logarithm taken.
struct Needy {
    nodes: Vec<usize>,
    seeds: Vec<u64>,
    weights: Vec<f64>,
    /// Draws whose complement is not below this score `horizon` or more.
    limits: Vec<u64>,
    horizon: f64,
    /// What all nodes weigh, and what they weighed when the limits were set.
    weight: f64,
    weight_then: f64,
    listed: f64,
    /// The nodes that score less than `horizon` for `row`, best first.
    list: Vec<(f64, usize)>,
    row: Option<usize>,
}

impl Needy {
    fn new(problem: &Problem) -> Self {
        let nodes: Vec<usize> =
            problem.takers().filter(|node| problem.load[*node] < problem.aim[*node]).collect();
        let weights: Vec<f64> = nodes.iter().map(|node| problem.weights[*node] as f64).collect();
        let mut needy = Self {
            seeds: nodes.iter().map(|node| problem.ids[*node].seed()).collect(),
            limits: vec![0; nodes.len()],
            horizon: 0.0,
            weight: weights.iter().sum(),
            weight_then: 0.0,
            listed: (LISTED + 2 * problem.replicas) as f64,
            list: Vec::new(),
            row: None,
            nodes,
            weights,
        };
        needy.set_limits();
        needy
    }

    fn set_limits(&mut self) {
        self.weight_then = self.weight;
        self.horizon = self.listed / self.weight;
        for (limit, weight) in self.limits.iter_mut().zip(&self.weights) {
            // A little more than 2⁶⁴ times that, so that rounding hides nobody; the conversion stops at the largest number.
            *limit = (self.horizon * weight * (1.000_001 * 18_446_744_073_709_551_616.0)) as u64;
        }
    }

    /// Forgets a node that has what it is to have.
    fn satisfied(&mut self, at: usize) {
        self.weight -= self.weights[at];
        self.nodes.remove(at);
        self.seeds.remove(at);
        self.weights.remove(at);
        self.limits.remove(at);
        if self.weight < WEIGHT_LEFT * self.weight_then {
            self.set_limits();
            self.row = None;
        }
    }

    /// Where the best draw is among those that may take the cell.
    fn best(&mut self, problem: &Problem, cell: usize) -> Option<usize> {
        self.best_of(problem, cell, |_| true)
    }

    /// The same among some of them.
    fn best_of(&mut self, problem: &Problem, cell: usize, among: impl Fn(usize) -> bool) -> Option<usize> {
        let row = cell / problem.replicas;
        if self.row != Some(row) {
            self.make_list(row);
        }
        let may = |node: usize| among(node) && problem.fits(cell, node);
        let listed = self.list.iter().filter(|(_, node)| may(*node));
        let at = listed.filter_map(|(_, node)| self.nodes.binary_search(node).ok()).next();
        at.or_else(|| self.best_of_all(row, may))
    }

    fn make_list(&mut self, row: usize) {
        let key = mix(row as u64);
        self.row = Some(row);
        self.list.clear();
        for (at, (seed, limit)) in self.seeds.iter().zip(&self.limits).enumerate() {
            let drawn = draw(key, *seed);
            if !drawn < *limit {
                let scored = score(drawn, self.weights[at]);
                if scored < self.horizon {
                    self.list.push((scored, self.nodes[at]));
                }
            }
        }
        self.list.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    }

    fn best_of_all(&self, row: usize, may: impl Fn(usize) -> bool) -> Option<usize> {
        let key = mix(row as u64);
        let mut best = (f64::INFINITY, None);
        for (at, (seed, weight)) in self.seeds.iter().zip(&self.weights).enumerate() {
            let drawn = draw(key, *seed);
            if hopeless(drawn, *weight, best.0) {
                continue;
            }
            let scored = score(drawn, *weight);
            if scored < best.0 && may(self.nodes[at]) {
                best = (scored, Some(at));
            }
        }
        best.1
    }
}

/// Fills vacant places as far as zones allow.
pub(super) fn vacant(problem: &mut Problem) {
    let mut needy = Needy::new(problem);
    let mut pressing = Pressing::new(problem);
    let mut demands = Vec::new();
    for row in 0..problem.rows {
        let empty = |problem: &Problem| problem.places(row).find(|cell| problem.cells[*cell] == VACANT);
        if empty(problem).is_none() {
            continue;
        }
        pressing.next(problem, row, &mut demands);
        // Nodes come first: what they take counts for their zones too.
        demands.sort_unstable();
        let mut given = 0;
        while let Some(cell) = empty(problem) {
            let at = match demands.get(given) {
                Some((_, 0)) => {
                    given += 1;
                    continue;
                }
                Some((Who::Node(node), _)) => {
                    given += 1;
                    needy.nodes.binary_search(node).ok().filter(|_| problem.fits(cell, *node))
                }
                Some((Who::Zone(zone), _)) => {
                    let at = needy.best_of(problem, cell, |node| problem.zone[node] == *zone);
                    given += usize::from(at.is_none());
                    at
                }
                None => match needy.best(problem, cell) {
                    Some(at) => Some(at),
                    None => break,
                },
            };
            let Some(at) = at else { continue };
            let node = needy.nodes[at];
            problem.put(cell, node);
            pressing.placed(problem, node);
            let of_zone = Who::Zone(problem.zone[node]);
            if let Some((_, count)) = demands.iter_mut().find(|(who, _)| *who == of_zone) {
                *count = (*count - 1).max(0);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        node::Weight,
        planner::{Cluster, Member, aim, share},
        table::Table,
    };

    /// Weights far apart in few zones: whoever is passed over for a while does not fit any more. From nothing, no place is left to chains.
    #[test]
    fn vacant_rows_are_filled_whatever_the_weights() {
        for (count, zones, replicas) in
            [(3, 3, 3), (9, 4, 3), (40, 3, 2), (40, 4, 3), (100, 5, 3), (60, 60, 5), (30, 7, 7)]
        {
            let member = |n: usize| {
                let weight = Weight::new(1.0 + 1_000.0 / (1 + n) as f64).unwrap();
                Member::new(&format!("n{n}")).in_zone(&format!("z{}", n % zones)).weighing(weight)
            };
            let cluster = Cluster { members: (0..count).map(member).collect(), ..Cluster::default() };
            let table = Table::vacant(512, replicas).unwrap();
            let mut problem = Problem::new(&table, &cluster).unwrap();
            (problem.shares, problem.bounds) = share::compute(&problem);
            problem.aim = aim::compute(&problem);
            vacant(&mut problem);
            assert!(problem.cells.iter().all(|cell| *cell != VACANT), "{count} nodes, {zones} zones");
            assert_eq!(problem.load, problem.aim);
        }
    }
}
