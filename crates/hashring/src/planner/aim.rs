//! The loads that the fewest changes lead to.
//!
//! With `kept` what each node has and may keep, a load within its bounds costs the places it is above `kept`. Starting from `kept` moved into the
//! bounds, what is missing in all goes to the nodes that are the lowest beside their shares, and what is too much comes from those that
//! are the highest: whoever they are, the number of changes is the same, so balance decides.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use super::problem::Problem;

/// A node with how it stands, ordered by that, then by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Standing(f64, usize);

impl Eq for Standing {}

impl PartialOrd for Standing {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Standing {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

/// The load that each node is to have.
pub(super) fn compute(problem: &Problem) -> Vec<u32> {
    let clamp = |node: usize| problem.bounds[node].clamp(problem.load[node]);
    let mut aim: Vec<u32> =
        (0..problem.ids.len()).map(|node| if problem.taker[node] { clamp(node) } else { 0 }).collect();
    let zones = problem.nodes_by_zone();
    let mut room = Vec::with_capacity(zones.len());
    for (zone, nodes) in zones.iter().enumerate() {
        let limit = problem.rows as u64 * u64::from(problem.zone_limits[zone]);
        let sum: u64 = nodes.iter().map(|node| u64::from(aim[*node])).sum();
        lower(problem, &mut aim, nodes, sum.saturating_sub(limit));
        room.push(limit.saturating_sub(sum));
    }
    let all: Vec<usize> = problem.takers().collect();
    let sum: u64 = aim.iter().map(|load| u64::from(*load)).sum();
    let places = problem.rows as u64 * problem.replicas as u64;
    lower(problem, &mut aim, &all, sum.saturating_sub(places));
    raise(problem, &mut aim, &all, places.saturating_sub(sum), &mut room);
    aim
}

/// Takes from the highest.
fn lower(problem: &Problem, aim: &mut [u32], nodes: &[usize], count: u64) {
    if count == 0 {
        return;
    }
    let high = |node: usize, load: u32| Standing(f64::from(load) / problem.shares[node].value(), node);
    let mut heap: BinaryHeap<Standing> = nodes
        .iter()
        .filter(|node| aim[**node] > problem.bounds[**node].least)
        .map(|node| high(*node, aim[*node]))
        .collect();
    for _ in 0..count {
        let Some(Standing(_, node)) = heap.pop() else { return };
        aim[node] -= 1;
        if aim[node] > problem.bounds[node].least {
            heap.push(high(node, aim[node]));
        }
    }
}

/// Gives to the lowest whose zone has room.
fn raise(problem: &Problem, aim: &mut [u32], nodes: &[usize], count: u64, room: &mut [u64]) {
    let low =
        |node: usize, load: u32| Reverse(Standing(f64::from(load + 1) / problem.shares[node].value(), node));
    let mut heap: BinaryHeap<Reverse<Standing>> = nodes
        .iter()
        .filter(|node| aim[**node] < problem.bounds[**node].most)
        .map(|node| low(*node, aim[*node]))
        .collect();
    let mut left = count;
    while left > 0 {
        let Some(Reverse(Standing(_, node))) = heap.pop() else { return };
        let room = &mut room[problem.zone[node]];
        if *room == 0 {
            continue;
        }
        *room -= 1;
        left -= 1;
        aim[node] += 1;
        if aim[node] < problem.bounds[node].most {
            heap.push(low(node, aim[node]));
        }
    }
}
