//! Takes moves back that zones made the planner add, where others spare them: negative cycles, as in a minimum-cost flow.
//!
//! Each pair of nodes is an edge if some slot may go from the one to the other. It costs one if the slot thereby leaves the table's row for
//! a node that is not in it, nothing if it was to change anyway, and it gains one if the slot comes back. Bounds leave room: a node that may give one more
//! and one that may take one more are joined through a vertex of their own. As long as a cycle gains something, its moves are made.
//!
//! It runs only where a plan has more moves than the bounds alone demand, and its work is bounded: with zones as they are in practice, it has nothing to do.

use super::{Reason, problem::Problem};

/// Edges looked at in all before the plan is taken as it is.
const EDGES_MAX: u64 = 20_000_000;
/// Cycles that are given up since two of their moves are in each other's way.
const CONFLICTS_MAX: u32 = 32;

/// Most vertices: with more, the first rounds would use up the edges. It bounds the memory too, to 12 bytes for each pair.
const VERTICES_MAX: usize = 1_100;
/// No cell: an edge from or to the vertex that joins those with room.
const NO_CELL: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Edge {
    cost: i8,
    cell: u32,
}

/// All edges, row by row; the last vertex is the one that joins those with room.
struct Graph {
    vertices: usize,
    edges: Vec<Option<Edge>>,
    work: u64,
}

pub(super) fn improve(problem: &mut Problem) {
    if problem.ids.len() >= VERTICES_MAX {
        return;
    }
    let mut work = 0;
    let mut conflicts = 0;
    let mut banned: Vec<(usize, usize)> = Vec::new();
    while problem.changes() > problem.changes_least {
        let mut graph = Graph::new(problem, &banned);
        let cycle = graph.gaining_cycle(EDGES_MAX.saturating_sub(work));
        work += graph.work;
        let Some(cycle) = cycle else { return };
        match carry_out(problem, &cycle) {
            Ok(()) => banned.clear(),
            Err(link) if conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                banned.push(link);
            }
            Err(_) => return,
        }
    }
}

/// What a move costs: whether the slot leaves its row's nodes of before, less whether it had left them.
fn cost(problem: &Problem, cell: usize, from: usize, to: usize) -> i8 {
    let row = &problem.before[problem.places(cell / problem.replicas)];
    i8::from(!row.contains(&(to as u16))) - i8::from(!row.contains(&(from as u16)))
}

impl Graph {
    fn new(problem: &Problem, banned: &[(usize, usize)]) -> Self {
        let nodes = problem.ids.len();
        let vertices = nodes + 1;
        let mut graph =
            Graph { vertices, edges: vec![None; vertices * vertices], work: (vertices * vertices) as u64 };
        let mut settled = vec![Vec::new(); nodes];
        for (cell, node) in problem.cells.iter().enumerate() {
            let node = usize::from(*node);
            if node >= nodes || problem.fixed[cell] {
                continue;
            }
            if problem.before[problem.places(cell / problem.replicas)]
                == problem.cells[problem.places(cell / problem.replicas)]
            {
                settled[node].push(cell);
                continue;
            }
            for to in problem.takers() {
                graph.work += 1;
                if problem.fits(cell, to) && !banned.contains(&(cell, to)) {
                    graph.offer(node, to, Edge { cost: cost(problem, cell, node, to), cell: cell as u32 });
                }
            }
        }
        // All that is in unchanged rows costs one, so one slot is enough for each pair.
        for (node, cells) in settled.iter().enumerate() {
            let mut open: Vec<usize> =
                problem.takers().filter(|to| graph.edges[node * vertices + to].is_none()).collect();
            for cell in cells {
                graph.work += open.len() as u64;
                open.retain(|to| {
                    let found = problem.fits(*cell, *to) && !banned.contains(&(*cell, *to));
                    if found {
                        graph.offer(node, *to, Edge { cost: 1, cell: *cell as u32 });
                    }
                    !found
                });
                if open.is_empty() {
                    break;
                }
            }
        }
        for node in problem.takers() {
            let free = Edge { cost: 0, cell: NO_CELL };
            if problem.load[node] > problem.bounds[node].least {
                graph.offer(nodes, node, free);
            }
            if problem.load[node] < problem.bounds[node].most {
                graph.offer(node, nodes, free);
            }
        }
        graph
    }

    fn offer(&mut self, from: usize, to: usize, edge: Edge) {
        let known = &mut self.edges[from * self.vertices + to];
        if known.is_none_or(|known| edge.cost < known.cost) {
            *known = Some(edge);
        }
    }

    /// The moves of a cycle that costs less than nothing (Bellman and Ford, from all vertices at once).
    fn gaining_cycle(&mut self, work_max: u64) -> Option<Vec<(usize, usize, usize)>> {
        let vertices = self.vertices;
        let mut distance = vec![0_i32; vertices];
        let mut before: Vec<Option<usize>> = vec![None; vertices];
        loop {
            let mut changed = false;
            for from in 0..vertices {
                for to in 0..vertices {
                    let Some(edge) = self.edges[from * vertices + to] else { continue };
                    let reached = distance[from] + i32::from(edge.cost);
                    if reached < distance[to] {
                        distance[to] = reached;
                        before[to] = Some(from);
                        changed = true;
                    }
                }
            }
            self.work += (vertices * vertices) as u64;
            if !changed || self.work > work_max {
                return None;
            }
            if let Some(cycle) = cycle(&before) {
                let moves = cycle.windows(2).filter_map(|pair| {
                    let edge = self.edges[pair[0] * vertices + pair[1]]?;
                    (edge.cell != NO_CELL).then_some((edge.cell as usize, pair[0], pair[1]))
                });
                return Some(moves.collect());
            }
        }
    }
}

/// A cycle among "came from" links, if there is one: its vertices in order, the first once more at the end.
fn cycle(before: &[Option<usize>]) -> Option<Vec<usize>> {
    let mut seen = vec![usize::MAX; before.len()];
    for start in 0..before.len() {
        let mut at = start;
        while seen[at] == usize::MAX {
            seen[at] = start;
            match before[at] {
                Some(next) => at = next,
                None => break,
            }
        }
        if seen[at] == start && before[at].is_some() {
            let mut around = vec![at];
            let mut next = before[at]?;
            while next != at {
                around.push(next);
                next = before[next]?;
            }
            around.push(at);
            around.reverse();
            return Some(around);
        }
    }
    None
}

/// Makes the moves of a cycle, all or none. Two of one row may be in each other's way: then says which did not fit.
fn carry_out(problem: &mut Problem, cycle: &[(usize, usize, usize)]) -> Result<(), (usize, usize)> {
    for (done, (cell, _, to)) in cycle.iter().enumerate() {
        if problem.fits(*cell, *to) {
            problem.vacate(*cell, Reason::MakesRoom);
            problem.put(*cell, *to);
            continue;
        }
        for (cell, from, _) in cycle[..done].iter().rev() {
            problem.vacate(*cell, Reason::MakesRoom);
            problem.put(*cell, *from);
        }
        return Err((*cell, *to));
    }
    Ok(())
}
