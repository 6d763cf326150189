//! The links between nodes: each direction of each pair on its own.

use std::collections::BTreeMap;

use conclave_transport::Lane;

use crate::{clock::SimTime, options::NetworkOptions, rng::Rng};

/// What links did to packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCounters {
    /// Packets handed over to be sent.
    pub sent: u64,
    /// Packets lost, by chance or by a cut.
    pub lost: u64,
    /// Packets that arrive twice.
    pub duplicated: u64,
    /// Packets that overtake others.
    pub reordered: u64,
    /// Times that links were cut.
    pub partitions: u64,
}

/// How a partition cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// One node from all others, both ways.
    Isolate,
    /// What one node sends is lost; it still hears.
    Mute,
    /// What is sent to one node is lost; it still speaks.
    Deafen,
    /// Two sides, neither hears the other.
    Split,
    /// Two nodes do not hear each other; a third hears both.
    Bridge,
    /// Each direction of each link on its own is cut or not.
    Random,
    /// Nothing is lost, but everything waits until the end.
    Clog,
}

#[derive(Debug)]
struct Partition {
    links: Vec<(u64, u64)>,
    until: SimTime,
    clogs: bool,
}

/// All links.
#[derive(Debug)]
pub struct Network {
    rng: Rng,
    options: NetworkOptions,
    partitions: Vec<Partition>,
    /// When the last packet of a lane arrives: the next one does not overtake it.
    arrivals: BTreeMap<(u64, u64, bool), SimTime>,
    counters: NetworkCounters,
}

/// When copies of a packet arrive: none, one or two.
pub type Arrivals = [Option<SimTime>; 2];

impl Network {
    /// Links in the condition that `options` describe.
    #[must_use]
    pub fn new(rng: Rng, options: NetworkOptions) -> Self {
        Self {
            rng,
            options,
            partitions: Vec::new(),
            arrivals: BTreeMap::new(),
            counters: NetworkCounters::default(),
        }
    }

    /// From now on the links are in another condition, and nothing is cut.
    pub fn heal(&mut self, options: NetworkOptions) {
        self.options = options;
        self.partitions.clear();
    }

    /// Cuts links among the nodes `1..=nodes` until a time.
    pub fn cut(&mut self, how: Cut, nodes: u64, until: SimTime) {
        let one = self.rng.between(1, nodes);
        let mut sides = self.rng.bits();
        let mut links = Vec::new();
        let other = 1 + (one + self.rng.below(nodes - 1)) % nodes;
        for from in 1..=nodes {
            for to in (1..=nodes).filter(|to| *to != from) {
                let cut = match how {
                    Cut::Isolate | Cut::Clog => from == one || to == one,
                    Cut::Mute => from == one,
                    Cut::Deafen => to == one,
                    Cut::Split => (sides >> from ^ sides >> to) & 1 == 1,
                    Cut::Bridge => (from == one && to == other) || (from == other && to == one),
                    Cut::Random => {
                        sides = sides.rotate_left(1);
                        sides & 1 == 1
                    }
                };
                if cut {
                    links.push((from, to));
                }
            }
        }
        self.cut_links(links, until);
        if let Some(last) = self.partitions.last_mut() {
            last.clogs = how == Cut::Clog;
        }
    }

    /// Cuts these links, each from a node to another, until a time.
    pub fn cut_links(&mut self, links: Vec<(u64, u64)>, until: SimTime) {
        self.counters.partitions += 1;
        self.partitions.push(Partition { links, until, clogs: false });
    }

    /// Whether packets are to travel as bytes.
    #[must_use]
    pub fn is_wire(&self) -> bool {
        self.options.wire
    }

    /// How many packets in a million are read with a bit flipped too.
    #[must_use]
    pub fn garbled_ppm(&self) -> u64 {
        self.options.garbled_ppm
    }

    /// Draws how to cut.
    pub fn draw_cut(&mut self) -> Cut {
        *self.rng.pick(&[
            Cut::Isolate,
            Cut::Isolate,
            Cut::Mute,
            Cut::Deafen,
            Cut::Split,
            Cut::Bridge,
            Cut::Random,
            Cut::Clog,
        ])
    }

    /// Sends a packet and says when copies of it arrive.
    pub fn route(&mut self, now: SimTime, from: u64, to: u64, lane: Lane) -> Arrivals {
        self.counters.sent += 1;
        self.partitions.retain(|partition| partition.until > now);
        let mut held = now;
        for partition in self.partitions.iter().filter(|p| p.links.contains(&(from, to))) {
            if !partition.clogs {
                self.counters.lost += 1;
                return [None, None];
            }
            held = held.max(partition.until);
        }
        if self.rng.chance(self.options.loss_ppm) {
            self.counters.lost += 1;
            return [None, None];
        }
        let first = self.arrival(held, from, to, lane);
        let twice = self.rng.chance(self.options.duplication_ppm);
        let second = twice.then(|| {
            self.counters.duplicated += 1;
            first + self.rng.below(4 * self.options.delay_max)
        });
        [Some(first), second]
    }

    fn arrival(&mut self, now: SimTime, from: u64, to: u64, lane: Lane) -> SimTime {
        let mut at = now + self.rng.between(self.options.delay_min, self.options.delay_max);
        if self.rng.chance(self.options.hiccup_ppm) {
            at += self.rng.below(self.options.hiccup.max(1));
        }
        let last = self.arrivals.entry((from, to, lane == Lane::Bulk)).or_default();
        if at <= *last {
            if self.rng.chance(self.options.reordering_ppm) {
                self.counters.reordered += 1;
                return at;
            }
            at = *last + 1;
        }
        *last = at;
        at
    }

    /// What links did so far.
    #[must_use]
    pub fn counters(&self) -> NetworkCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrives(network: &mut Network, from: u64, to: u64) -> bool {
        network.route(0, from, to, Lane::Consensus)[0].is_some()
    }

    #[test]
    fn a_lane_keeps_its_order() {
        let mut network = Network::new(Rng::new(1), NetworkOptions::healthy());
        let times: Vec<_> = (0..100).map(|_| network.route(0, 1, 2, Lane::Consensus)[0].unwrap()).collect();
        assert!(times.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn cuts_cut_what_they_say() {
        let links: Vec<(u64, u64)> =
            (1..=3).flat_map(|a| (1..=3).filter(move |b| a != *b).map(move |b| (a, b))).collect();
        for (how, cut) in
            [(Cut::Isolate, 4), (Cut::Mute, 2), (Cut::Deafen, 2), (Cut::Bridge, 2), (Cut::Clog, 0)]
        {
            let mut network = Network::new(Rng::new(9), NetworkOptions::healthy());
            network.cut(how, 3, 100);
            let lost = links.iter().filter(|(a, b)| !arrives(&mut network, *a, *b)).count();
            assert_eq!(lost, cut, "{how:?}");
            network.heal(NetworkOptions::healthy());
            assert!(links.iter().all(|(a, b)| arrives(&mut network, *a, *b)));
        }
    }

    #[test]
    fn a_clogged_link_holds_everything_back() {
        let mut network = Network::new(Rng::new(9), NetworkOptions::healthy());
        network.cut(Cut::Clog, 2, 1_000_000_000);
        assert!(network.route(0, 1, 2, Lane::Bulk)[0].unwrap() > 1_000_000_000);
    }

    #[test]
    fn what_is_lost_or_doubled_is_counted() {
        let options =
            NetworkOptions { loss_ppm: 200_000, duplication_ppm: 200_000, ..NetworkOptions::healthy() };
        let mut network = Network::new(Rng::new(2), options);
        for _ in 0..1000 {
            network.route(0, 1, 2, Lane::Consensus);
        }
        let counters = network.counters();
        assert!(
            (100..300).contains(&counters.lost) && (80..300).contains(&counters.duplicated),
            "{counters:?}"
        );
    }
}
