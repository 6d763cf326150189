//! Who may not be passed over while vacant places are filled.
//!
//! A node takes one place of a row at most, and a zone as many as its limit. Once a zone is to take as many places as the rows that are left have for it, each of
//! them must go there: were a row given to others, the rest would not be placed without taking something back. The same holds for a node. Looking after these
//! first is enough where all rows that are filled are empty: what is left to each then always fits into the rows that are left, since limits on nodes within zones within
//! rows are nested. Where rows have something already, it is a rule of thumb, and [`chain`](super::chain) places what remains.
//!
//! A zone's room shrinks by its limit with each row at most, so that nobody is looked at before it can be pressing.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::problem::Problem;
use crate::table::VACANT;

/// Who may be pressing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Node(usize),
    Zone(usize),
}

/// What is to be placed, and what room the rows that are left have for it.
pub(super) struct Pressing {
    /// How many of the rows that are left have so many vacant places.
    rows_left: Vec<i64>,
    /// What those rows have less for each, since they hold something of it.
    node_taken: Vec<i64>,
    zone_taken: Vec<i64>,
    zone_need: Vec<i64>,
    due: BinaryHeap<Reverse<(usize, Who)>>,
}

impl Pressing {
    pub(super) fn new(problem: &Problem) -> Self {
        let mut pressing = Self {
            rows_left: vec![0; problem.replicas + 1],
            node_taken: vec![0; problem.ids.len()],
            zone_taken: vec![0; problem.zone_limits.len()],
            zone_need: vec![0; problem.zone_limits.len()],
            due: BinaryHeap::new(),
        };
        // With one place in each row nobody is in the way of another.
        if problem.replicas == 1 {
            return pressing;
        }
        for row in 0..problem.rows {
            pressing.count(problem, row, 1);
        }
        for node in problem.takers().filter(|node| need(problem, *node) > 0) {
            pressing.zone_need[problem.zone[node]] += need(problem, node);
            pressing.due.push(Reverse((0, Who::Node(node))));
        }
        for zone in (0..problem.zone_limits.len()).filter(|zone| pressing.zone_need[*zone] > 0) {
            pressing.due.push(Reverse((0, Who::Zone(zone))));
        }
        pressing
    }

    /// Counts a row with its vacant places among those that are left, or no longer.
    fn count(&mut self, problem: &Problem, row: usize, times: i64) {
        let vacant = vacant(problem, row);
        self.rows_left[vacant] += times;
        if vacant == 0 || vacant == problem.replicas {
            return;
        }
        for cell in problem.places(row) {
            let Some(zone) = problem.zone_of(cell) else { continue };
            self.node_taken[usize::from(problem.cells[cell])] += times;
            let first = problem.places(row).find(|other| problem.zone_of(*other) == Some(zone));
            if first == Some(cell) {
                let limit = problem.zone_limits[zone] as usize;
                let room = limit.saturating_sub(problem.in_zone(row, zone) as usize);
                self.zone_taken[zone] += times * (limit.min(vacant) - room.min(vacant)) as i64;
            }
        }
    }

    /// Whom the row, which is the next, must give how many places; it is then no longer among those that are left.
    pub(super) fn next(&mut self, problem: &Problem, row: usize, demands: &mut Vec<(Who, i64)>) {
        demands.clear();
        while let Some(Reverse((_, who))) = self.due.peek().copied().filter(|Reverse((due, _))| *due <= row) {
            self.due.pop();
            let (limit, taken, need) = match who {
                Who::Node(node) => (1, self.node_taken[node], need(problem, node)),
                Who::Zone(zone) => {
                    (i64::from(problem.zone_limits[zone]), self.zone_taken[zone], self.zone_need[zone])
                }
            };
            if need <= 0 || limit == 0 {
                continue;
            }
            let room: i64 = (0..).zip(&self.rows_left).map(|(places, rows)| limit.min(places) * rows).sum();
            let spare = room - taken - need;
            self.due.push(Reverse((row + (spare / limit).max(1) as usize, who)));
            let here = self.room(problem, row, who, limit);
            if spare < here {
                demands.push((who, here - spare.max(0)));
            }
        }
        self.count(problem, row, -1);
    }

    /// How many places of the row somebody may take.
    fn room(&self, problem: &Problem, row: usize, who: Who, limit: i64) -> i64 {
        let held = match who {
            Who::Node(node) => {
                problem.places(row).filter(|cell| usize::from(problem.cells[*cell]) == node).count() as i64
            }
            Who::Zone(zone) => i64::from(problem.in_zone(row, zone)),
        };
        (limit - held).max(0).min(vacant(problem, row) as i64)
    }

    /// A node took a place.
    pub(super) fn placed(&mut self, problem: &Problem, node: usize) {
        self.zone_need[problem.zone[node]] -= 1;
    }
}

fn need(problem: &Problem, node: usize) -> i64 {
    i64::from(problem.aim[node]) - i64::from(problem.load[node])
}

fn vacant(problem: &Problem, row: usize) -> usize {
    problem.places(row).filter(|cell| problem.cells[*cell] == VACANT).count()
}
