//! What each node is to hold: its share, and the bounds around it.
//!
//! Shares are by weight, but for three limits: a node holds a slot once at most, a zone holds as many replicas of a slot as anti-affinity allows, and a
//! node holds at least what is pinned to it. What a limit cuts off goes to the others by weight (water-filling). Every share is kept as a fraction
//! of integers.

use super::problem::Problem;

/// Between which loads a node is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// At least so many slots.
    pub least: u32,
    /// At most so many.
    pub most: u32,
}

impl Bounds {
    /// The load between them that is the nearest.
    pub(super) fn clamp(self, load: u32) -> u32 {
        load.clamp(self.least, self.most)
    }
}

/// A share as a fraction: so much of `of`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) part: u64,
    pub(super) of: u64,
}

impl Share {
    pub(super) const NONE: Share = Share { part: 0, of: 1 };

    fn whole(slots: u64) -> Self {
        Share { part: slots, of: 1 }
    }

    /// Below 2³² by far: a share is at most the number of slots.
    pub(super) fn value(self) -> f64 {
        self.part as f64 / self.of as f64
    }

    fn bounds(self, slack_thousandths: u32, pinned: u32, rows: u32) -> Bounds {
        let slack = u128::from(slack_thousandths);
        let (part, of) = (u128::from(self.part), u128::from(self.of));
        let least = part * (1_000 - slack) / (of * 1_000);
        let most = part.div_ceil(of).max(part * (1_000 + slack) / (of * 1_000));
        Bounds { least: (least as u32).max(pinned), most: (most as u32).min(rows).max(pinned) }
    }
}

/// Nodes that share a number of places by weight.
#[derive(Clone, Copy)]
struct Pool {
    places: u64,
    weight: u64,
}

impl Pool {
    fn of(places: u64, nodes: impl Iterator<Item = u64>) -> Self {
        Pool { places, weight: nodes.sum() }
    }

    fn share(self, weight: u64) -> Share {
        Share { part: self.places * weight, of: self.weight.max(1) }
    }

    /// Whether a weight's share is more than so many.
    fn exceeds(self, weight: u64, places: u64) -> bool {
        u128::from(self.places) * u128::from(weight) > u128::from(places) * u128::from(self.weight)
    }
}

/// The shares and bounds of all nodes; nothing for those that are to hold nothing.
pub(super) fn compute(problem: &Problem) -> (Vec<Share>, Vec<Bounds>) {
    let mut floor = vec![false; problem.ids.len()];
    loop {
        let shares = fill(problem, &floor);
        let below = |node: usize| u64::from(problem.pinned[node]) * shares[node].of > shares[node].part;
        let short: Vec<usize> = problem.takers().filter(|node| !floor[*node] && below(*node)).collect();
        if short.is_empty() {
            let bounds = (0..shares.len())
                .map(|node| {
                    if problem.taker[node] {
                        shares[node].bounds(
                            problem.slack_thousandths,
                            problem.pinned[node],
                            problem.rows as u32,
                        )
                    } else {
                        Bounds::default()
                    }
                })
                .collect();
            return (shares, bounds);
        }
        for node in short {
            floor[node] = true;
        }
    }
}

/// Water-filling with the nodes in `floor` held at what is pinned to them.
fn fill(problem: &Problem, floor: &[bool]) -> Vec<Share> {
    let rows = problem.rows as u64;
    let mut fixed: Vec<Option<u64>> =
        (0..problem.ids.len()).map(|node| floor[node].then_some(u64::from(problem.pinned[node]))).collect();
    // The zones that are full: their nodes share what the zone holds, apart from the rest.
    let mut full = vec![false; problem.zone_limits.len()];
    let zones = problem.nodes_by_zone();
    loop {
        let held = |zone: usize| zones[zone].iter().filter_map(|node| fixed[*node]).sum::<u64>();
        let limit = |zone: usize| rows * u64::from(problem.zone_limits[zone]);
        let open = |zone: usize| zones[zone].iter().copied().filter(|node| fixed[*node].is_none());
        let outside: u64 = (0..zones.len())
            .map(|zone| if full[zone] { limit(zone).max(held(zone)) } else { held(zone) })
            .sum();
        let free = Pool::of(
            (rows * problem.replicas as u64).saturating_sub(outside),
            (0..zones.len()).filter(|zone| !full[*zone]).flat_map(open).map(|node| problem.weights[node]),
        );
        let pools: Vec<Pool> = (0..zones.len())
            .map(|zone| {
                if full[zone] {
                    let weights = open(zone).map(|node| problem.weights[node]);
                    Pool::of(limit(zone).saturating_sub(held(zone)), weights)
                } else {
                    free
                }
            })
            .collect();
        let over: Vec<usize> = (0..zones.len())
            .filter(|zone| !full[*zone])
            .filter(|zone| {
                let weight: u64 = open(*zone).map(|node| problem.weights[node]).sum();
                weight > 0 && free.exceeds(weight, limit(*zone).saturating_sub(held(*zone)))
            })
            .collect();
        if !over.is_empty() {
            for zone in over {
                full[zone] = true;
            }
            continue;
        }
        let heavy: Vec<usize> = (0..zones.len())
            .flat_map(|zone| {
                open(zone)
                    .filter(|node| pools[zone].exceeds(problem.weights[*node], rows))
                    .collect::<Vec<_>>()
            })
            .collect();
        if heavy.is_empty() {
            let mut shares = vec![Share::NONE; problem.ids.len()];
            for (zone, nodes) in zones.iter().enumerate() {
                for node in nodes {
                    let by_weight = || pools[zone].share(problem.weights[*node]);
                    shares[*node] = fixed[*node].map_or_else(by_weight, Share::whole);
                }
            }
            return shares;
        }
        for node in heavy {
            fixed[node] = Some(rows);
        }
    }
}
