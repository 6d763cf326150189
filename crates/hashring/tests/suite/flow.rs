//! The fewest changes that bounds and zones allow, by a minimum-cost flow. It shares nothing with the planner but the question.
//!
//! Rows with the same nodes are one vertex: `rows → (rows, zone) → node → end`. A node that has a place keeps it for nothing, any other place costs one. What a
//! node is to have at least is worth so much that it is filled first.

use std::collections::{BTreeMap, VecDeque};

struct Edge {
    to: usize,
    room: i64,
    cost: i64,
}

#[derive(Default)]
struct Network {
    edges: Vec<Edge>,
    from: Vec<Vec<usize>>,
}

impl Network {
    fn vertex(&mut self) -> usize {
        self.from.push(Vec::new());
        self.from.len() - 1
    }

    fn edge(&mut self, from: usize, to: usize, room: i64, cost: i64) {
        self.from[from].push(self.edges.len());
        self.edges.push(Edge { to, room, cost });
        self.from[to].push(self.edges.len());
        self.edges.push(Edge { to: from, room: 0, cost: -cost });
    }

    /// The most that flows, and what it costs at least.
    fn cheapest(&mut self, source: usize, sink: usize) -> (i64, i64) {
        let (mut flow, mut total) = (0, 0);
        loop {
            let mut distance = vec![i64::MAX; self.from.len()];
            let mut through = vec![usize::MAX; self.from.len()];
            let mut queued = vec![false; self.from.len()];
            let mut queue = VecDeque::from([source]);
            distance[source] = 0;
            while let Some(vertex) = queue.pop_front() {
                queued[vertex] = false;
                for id in &self.from[vertex] {
                    let edge = &self.edges[*id];
                    if edge.room > 0 && distance[vertex] + edge.cost < distance[edge.to] {
                        distance[edge.to] = distance[vertex] + edge.cost;
                        through[edge.to] = *id;
                        if !std::mem::replace(&mut queued[edge.to], true) {
                            queue.push_back(edge.to);
                        }
                    }
                }
            }
            if distance[sink] == i64::MAX {
                return (flow, total);
            }
            let path = || {
                std::iter::successors(Some(through[sink]), |id| {
                    let before = self.edges[*id ^ 1].to;
                    (before != source).then(|| through[before])
                })
            };
            let room = path().map(|id| self.edges[id].room).min().unwrap();
            let path: Vec<usize> = path().collect();
            for id in path {
                self.edges[id].room -= room;
                self.edges[id ^ 1].room += room;
            }
            flow += room;
            total += room * distance[sink];
        }
    }
}

/// A node that may hold something.
pub(crate) struct Taker {
    pub(crate) id: u64,
    pub(crate) zone: usize,
    pub(crate) least: u32,
    pub(crate) most: u32,
}

/// The fewest places that change so that each row is on `replicas` of the takers, at most `zone_limit` of a row in one zone. `None`: impossible.
pub(crate) fn fewest_changes(
    rows: &[Vec<u64>],
    replicas: usize,
    takers: &[Taker],
    zone_limit: usize,
) -> Option<u64> {
    const WORTH: i64 = 1 << 30;
    let mut patterns: BTreeMap<Vec<u64>, i64> = BTreeMap::new();
    for row in rows {
        let mut kept: Vec<u64> =
            row.iter().copied().filter(|id| takers.iter().any(|taker| taker.id == *id)).collect();
        kept.sort_unstable();
        *patterns.entry(kept).or_default() += 1;
    }
    let mut network = Network::default();
    let (source, sink) = (network.vertex(), network.vertex());
    let nodes: Vec<usize> = takers.iter().map(|_| network.vertex()).collect();
    let mut least_sum = 0;
    for (taker, node) in takers.iter().zip(&nodes) {
        network.edge(*node, sink, i64::from(taker.least), -WORTH);
        network.edge(*node, sink, i64::from(taker.most - taker.least), 0);
        least_sum += i64::from(taker.least);
    }
    let zones = takers.iter().map(|taker| taker.zone).max().unwrap() + 1;
    for (kept, count) in patterns {
        let pattern = network.vertex();
        network.edge(source, pattern, count * replicas as i64, 0);
        // With one replica zones do not matter, and the network is smaller without them.
        let at_zone: Vec<usize> = if replicas == 1 {
            vec![pattern; zones]
        } else {
            (0..zones)
                .map(|_| {
                    let at = network.vertex();
                    network.edge(pattern, at, count * zone_limit as i64, 0);
                    at
                })
                .collect()
        };
        for (taker, node) in takers.iter().zip(&nodes) {
            network.edge(at_zone[taker.zone], *node, count, i64::from(!kept.contains(&taker.id)));
        }
    }
    let (flow, cost) = network.cheapest(source, sink);
    let complete = flow == (rows.len() * replicas) as i64;
    let changes = cost + WORTH * least_sum;
    (complete && (0..WORTH).contains(&changes)).then_some(changes as u64)
}

#[test]
fn the_oracle_counts_what_a_hand_counts() {
    let taker = |id, zone, least, most| Taker { id, zone, least, most };
    let rows = vec![vec![1], vec![1], vec![1], vec![2]];
    let two = [taker(1, 0, 2, 2), taker(2, 1, 2, 2)];
    assert_eq!(fewest_changes(&rows, 1, &two, 1), Some(1));
    let full = [taker(1, 0, 1, 1), taker(2, 1, 1, 1)];
    assert_eq!(fewest_changes(&rows, 1, &full, 1), None, "no room for four");
    let pairs = vec![vec![1, 2], vec![1, 2]];
    let zones = [taker(1, 0, 1, 2), taker(2, 0, 1, 2), taker(3, 1, 0, 2)];
    assert_eq!(fewest_changes(&pairs, 2, &zones, 1), Some(2), "one of each pair leaves its zone");
}
