//! Where zones stand in the way: chains of moves.
//!
//! A place that no node below its aim may take goes to one that is at its aim, and that one gives another of its slots away, and so on to a node that is
//! below: an augmenting path, as in a flow from slots through zones to nodes. The search prefers chains that change the fewest places
//! of the table; a place that is changed anyway costs nothing more.

use std::collections::VecDeque;

use super::{PlanError, Reason, fill, problem::Problem};
use crate::{key::Slot, table::VACANT};

/// So many chains are tried for one place before it is given up: each gets nearer to a node with room.
const TRIES_MAX: u32 = 64;

/// One link: a cell goes to a node, from whom it had before, if anybody.
#[derive(Clone, Copy)]
struct Link {
    cell: usize,
    to: usize,
}

/// Where a chain begins.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    /// A vacant place.
    Vacant(usize),
    /// A node above its aim.
    Above(usize),
}

/// Places what is left over.
pub(super) fn finish(problem: &mut Problem) -> Result<(), PlanError> {
    let vacant: Vec<usize> = (0..problem.cells.len()).filter(|cell| problem.cells[*cell] == VACANT).collect();
    let above = |problem: &Problem, node: usize| problem.load[node] > problem.aim[node];
    if vacant.is_empty() && !problem.takers().any(|node| above(problem, node)) {
        return Ok(());
    }
    let mut search = Search::new(problem);
    for cell in vacant {
        // Who is to have more comes first, then whoever has room below the bound; pins may leave only what is above it.
        let limits: [fn(&Problem, usize) -> u32; 3] =
            [|p, node| p.aim[node], |p, node| p.bounds[node].most, |p, _| p.rows as u32];
        if !limits.iter().any(|limit| search.extend(problem, Start::Vacant(cell), limit)) {
            return Err(PlanError::Unplaceable(Slot((cell / problem.replicas) as u32)));
        }
    }
    for node in 0..problem.ids.len() {
        while problem.taker[node] && above(problem, node) {
            if !search.extend(problem, Start::Above(node), |p, node| p.aim[node]) {
                break; // Pins hold it, or zones do: it stays above its aim.
            }
        }
    }
    search.keep_to_bounds(problem);
    Ok(())
}

struct Search {
    /// For each node the cells it has.
    held: Vec<Vec<usize>>,
    cost: Vec<u32>,
    link: Vec<Option<Link>>,
    had: Vec<u32>,
}

impl Search {
    fn new(problem: &Problem) -> Self {
        let mut held = vec![Vec::new(); problem.ids.len()];
        for (cell, node) in problem.cells.iter().enumerate() {
            if let Some(held) = held.get_mut(usize::from(*node)) {
                held.push(cell);
            }
        }
        let nodes = problem.ids.len();
        Self { held, cost: vec![0; nodes], link: vec![None; nodes], had: problem.load.clone() }
    }

    /// Where aims were out of reach, bounds may be within it: from those above them to whoever has room, and to those below them from
    /// whoever may give. What fails for a node fails for it later too.
    fn keep_to_bounds(&mut self, problem: &mut Problem) {
        for node in 0..problem.ids.len() {
            while problem.taker[node]
                && problem.load[node] > problem.bounds[node].most
                && self.extend(problem, Start::Above(node), |p, node| p.bounds[node].most)
            {}
        }
        let below =
            |problem: &Problem| problem.takers().any(|node| problem.load[node] < problem.bounds[node].least);
        for node in 0..problem.ids.len() {
            while problem.taker[node]
                && problem.load[node] > problem.bounds[node].least
                && below(problem)
                && self.extend(problem, Start::Above(node), |p, node| p.bounds[node].least)
            {}
        }
    }

    /// Finds a chain from `start` to a node below `limit` and carries it out. Says whether the start is satisfied.
    fn extend(
        &mut self,
        problem: &mut Problem,
        start: Start,
        limit: impl Fn(&Problem, usize) -> u32,
    ) -> bool {
        for _ in 0..TRIES_MAX {
            let Some(end) = self.shortest(problem, start, &limit) else { return false };
            if self.carry_out(problem, end) {
                return true;
            }
        }
        false
    }

    /// The nearest node with room, with links back to the start.
    fn shortest(
        &mut self,
        problem: &Problem,
        start: Start,
        limit: &impl Fn(&Problem, usize) -> u32,
    ) -> Option<usize> {
        self.cost.fill(u32::MAX);
        self.link.fill(None);
        let mut open: Vec<usize> = problem.takers().collect();
        let mut queue = VecDeque::new();
        match start {
            Start::Vacant(cell) => {
                open.retain(|node| {
                    let fits = problem.fits(cell, *node);
                    if fits {
                        self.cost[*node] = 0;
                        self.link[*node] = Some(Link { cell, to: *node });
                        queue.push_back((*node, 0));
                    }
                    !fits
                });
            }
            Start::Above(node) => {
                self.cost[node] = 0;
                queue.push_back((node, 0));
            }
        }
        // Nodes with costs of the front's class are all there before one is taken: the first with room is the cheapest.
        while let Some((node, cost)) = queue.pop_front() {
            if cost > self.cost[node] {
                continue;
            }
            if start != Start::Above(node) && problem.load[node] < limit(problem, node) {
                return Some(node);
            }
            // Whoever is reached for nothing more is as near as this node.
            let reached = self.relax(problem, node, 0, &mut queue);
            if let Some(end) = reached.into_iter().find(|end| problem.load[*end] < limit(problem, *end)) {
                return Some(end);
            }
            self.relax(problem, node, 1, &mut queue);
        }
        None
    }

    /// Reaches from a node whom its cells may go to; first by those that are changed anyway, then by the others.
    /// Returns those that were.
    fn relax(
        &mut self,
        problem: &Problem,
        node: usize,
        more: u32,
        queue: &mut VecDeque<(usize, u32)>,
    ) -> Vec<usize> {
        let mut found = Vec::new();
        let reached = self.cost[node] + more;
        let mut open: Vec<usize> = problem.takers().filter(|to| self.cost[*to] > reached).collect();
        for cell in &self.held[node] {
            if open.is_empty() {
                break;
            }
            let row = cell / problem.replicas;
            let settled = problem.before[problem.places(row)].contains(&(node as u16));
            if problem.fixed[*cell] || u32::from(settled) != more {
                continue;
            }
            open.retain(|to| {
                let fits = problem.fits(*cell, *to);
                if fits {
                    self.cost[*to] = reached;
                    self.link[*to] = Some(Link { cell: *cell, to: *to });
                    found.push(*to);
                    if more == 0 {
                        queue.push_front((*to, reached));
                    } else {
                        queue.push_back((*to, reached));
                    }
                }
                !fits
            });
        }
        found
    }

    /// Carries out a chain from its end, so that each link goes where room is. Says whether it came to the start: two links of one row
    /// may be in each other's way, and then the room has come nearer at least.
    fn carry_out(&mut self, problem: &mut Problem, end: usize) -> bool {
        let mut at = end;
        while let Some(Link { cell, to }) = self.link[at] {
            if !problem.fits(cell, to) {
                return false;
            }
            let from = usize::from(problem.cells[cell]);
            let last = from >= self.held.len() || self.link[from].is_none();
            if from < self.held.len() {
                let reason = if last { fill::why(problem, &self.had, from, to) } else { Reason::MakesRoom };
                problem.vacate(cell, reason);
                self.held[from].retain(|held| *held != cell);
            }
            problem.put(cell, to);
            self.held[to].push(cell);
            if last {
                return true;
            }
            at = from;
        }
        true
    }
}
