//! The transport inside one process: for tests, and for nodes that share a process.
//!
//! A [`MemoryNetwork`] is the wire, with one thread that carries everything; each node [`join`](MemoryNetwork::join)s it. Queues and
//! their bounds are those of TCP. Each direction between two nodes is a [`Link`] that can be cut and slowed down.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use conclave_consensus::NodeId;
use parking_lot::{Condvar, Mutex};

use crate::{
    Inbound, Lane, LaneStats, Packet, PeerStats, QueueBounds, Transport, TransportStats, queue::Queue,
    stats::LaneCounters,
};

/// How packets fare from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Whatever is sent is lost, and so is whatever is under way.
    pub cut: bool,
    /// How long a packet is under way at least.
    pub delay: Duration,
}

/// A wire that joins nodes. Clones are the same wire; the last one to go, transports included, ends its thread.
#[derive(Clone)]
pub struct MemoryNetwork(Arc<Wire>);

struct Wire {
    hub: Arc<Hub>,
    carrier: Mutex<Option<JoinHandle<()>>>,
}

struct Hub {
    state: Mutex<State>,
    work: Condvar,
    bounds: [QueueBounds; 2],
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, Arc<dyn Inbound>>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    /// By lane first, so that the consensus lane is served first.
    routes: BTreeMap<(Lane, NodeId, NodeId), Route>,
    stop: bool,
}

/// One lane from one node to another.
struct Route {
    queue: Queue,
    counters: LaneCounters,
    /// With a delay: taken from the queue, and due at a time that never decreases.
    under_way: VecDeque<(Instant, Vec<Packet>)>,
    under_way_packets: usize,
}

/// A delivery to be made without the lock.
type Delivery = (Arc<dyn Inbound>, NodeId, Vec<Packet>);

impl MemoryNetwork {
    /// A wire without nodes, with the bounds of TCP's queues.
    #[must_use]
    pub fn new() -> Self {
        Self::with_bounds(QueueBounds::CONSENSUS, QueueBounds::BULK)
    }

    /// A wire whose queues have other bounds.
    #[must_use]
    pub fn with_bounds(consensus: QueueBounds, bulk: QueueBounds) -> Self {
        let hub = Arc::new(Hub { state: Mutex::default(), work: Condvar::new(), bounds: [consensus, bulk] });
        let carried = Arc::clone(&hub);
        let carrier = std::thread::Builder::new()
            .name("memory-network".into())
            .spawn(move || carried.carry())
            .expect("a thread can be started");
        Self(Arc::new(Wire { hub, carrier: Mutex::new(Some(carrier)) }))
    }

    /// Connects a node; a node that joined before under this id leaves.
    pub fn join(&self, node: NodeId, inbound: Arc<dyn Inbound>) -> MemoryTransport {
        self.0.hub.state.lock().nodes.insert(node, inbound);
        MemoryTransport { node, network: self.clone() }
    }

    /// Disconnects a node: what is under way to it is lost.
    pub fn leave(&self, node: NodeId) {
        self.0.hub.state.lock().nodes.remove(&node);
    }

    /// Changes how packets fare from one node to another, in this direction only.
    pub fn set_link(&self, from: NodeId, to: NodeId, link: Link) {
        self.0.hub.state.lock().links.insert((from, to), link);
        self.0.hub.work.notify_one();
    }

    /// Cuts or mends both directions between two nodes.
    pub fn set_cut(&self, one: NodeId, other: NodeId, cut: bool) {
        for (from, to) in [(one, other), (other, one)] {
            self.0.hub.state.lock().links.entry((from, to)).or_default().cut = cut;
        }
        self.0.hub.work.notify_one();
    }
}

impl Default for MemoryNetwork {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.hub.state.lock();
        f.debug_struct("MemoryNetwork")
            .field("nodes", &state.nodes.keys())
            .field("links", &state.links)
            .finish()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.hub.state.lock().stop = true;
        self.hub.work.notify_one();
        if let Some(carrier) = self.carrier.lock().take()
            && carrier.thread().id() != std::thread::current().id()
        {
            // An `Inbound` that panicked has already said so on its thread.
            let _ = carrier.join();
        }
    }
}

impl Hub {
    fn carry(&self) {
        let mut deliveries: Vec<Delivery> = Vec::new();
        loop {
            {
                let mut state = self.state.lock();
                loop {
                    if state.stop {
                        return;
                    }
                    let next = state.collect(Instant::now(), &mut deliveries);
                    if !deliveries.is_empty() {
                        break;
                    }
                    match next {
                        Some(at) => drop(self.work.wait_until(&mut state, at)),
                        None => self.work.wait(&mut state),
                    }
                }
            }
            for (inbound, from, packets) in deliveries.drain(..) {
                inbound.receive(from, packets);
            }
        }
    }
}

impl State {
    /// Gathers what is due, and says when the next packet will be.
    fn collect(&mut self, now: Instant, deliveries: &mut Vec<Delivery>) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for ((_, from, to), route) in &mut self.routes {
            let link = self.links.get(&(*from, *to)).copied().unwrap_or_default();
            let Some(inbound) = self.nodes.get(to).filter(|_| !link.cut) else {
                route.lose();
                continue;
            };
            let mut due = route.arrived(now);
            // What waits behind packets still under way must not overtake them.
            if link.delay.is_zero() && route.under_way.is_empty() {
                route.queue.take(usize::MAX, &mut due);
            } else {
                route.depart(now + link.delay);
            }
            if let Some((at, _)) = route.under_way.front() {
                next = Some(next.map_or(*at, |next| next.min(*at)));
            }
            if !due.is_empty() {
                route.counters.received_packets.add(due.len() as u64);
                route.counters.reads.add(1);
                deliveries.push((Arc::clone(inbound), *from, due));
            }
        }
        next
    }
}

impl Route {
    fn new(bounds: QueueBounds) -> Self {
        Self {
            queue: Queue::new(bounds),
            counters: LaneCounters::default(),
            under_way: VecDeque::new(),
            under_way_packets: 0,
        }
    }

    fn depart(&mut self, due: Instant) {
        // The queue keeps what does not fit, and drops what does not fit there.
        if self.queue.is_empty() || self.under_way_packets >= self.queue.bounds().packets_max {
            return;
        }
        let due = self.under_way.back().map_or(due, |(last, _)| due.max(*last));
        let mut packets = Vec::new();
        self.queue.take(usize::MAX, &mut packets);
        self.under_way_packets += packets.len();
        self.under_way.push_back((due, packets));
    }

    fn arrived(&mut self, now: Instant) -> Vec<Packet> {
        let mut due = Vec::new();
        while let Some((_, packets)) = self.under_way.pop_front_if(|(at, _)| *at <= now) {
            self.under_way_packets -= packets.len();
            due.extend(packets);
        }
        due
    }

    fn lose(&mut self) {
        let lost = self.queue.clear() + std::mem::take(&mut self.under_way_packets);
        self.under_way.clear();
        self.counters.dropped_stale.add(lost as u64);
    }
}

/// A node's end of a [`MemoryNetwork`].
#[derive(Clone, Debug)]
pub struct MemoryTransport {
    node: NodeId,
    network: MemoryNetwork,
}

impl MemoryTransport {
    /// What was counted of this node's conversation. Nothing is encoded, so bytes stay zero.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        let state = self.network.0.hub.state.lock();
        let others = state.nodes.keys().filter(|node| **node != self.node);
        let peers = others.map(|other| {
            let lane = |lane| {
                let mut stats = LaneStats::default();
                if let Some(route) = state.routes.get(&(lane, self.node, *other)) {
                    stats = route.counters.stats();
                    (stats.queued_packets, stats.queued_bytes) = (route.queue.packets(), route.queue.bytes());
                }
                let back = state.routes.get(&(lane, *other, self.node));
                (stats.received_packets, stats.reads) = back.map_or((0, 0), |route| {
                    (route.counters.received_packets.value(), route.counters.reads.value())
                });
                stats
            };
            let (consensus, bulk) = (lane(Lane::Consensus), lane(Lane::Bulk));
            PeerStats { node: *other, address: String::new(), consensus, bulk }
        });
        TransportStats { peers: peers.collect(), ..TransportStats::default() }
    }
}

impl Transport for MemoryTransport {
    fn send(&self, to: NodeId, packets: &mut Vec<Packet>) {
        let hub = &self.network.0.hub;
        let mut state = hub.state.lock();
        for packet in packets.drain(..) {
            let lane = packet.lane();
            let new = || Route::new(hub.bounds[lane as usize]);
            let route = state.routes.entry((lane, self.node, to)).or_insert_with(new);
            route.counters.sent_packets.add(1);
            route.queue.push(packet, &route.counters);
        }
        hub.work.notify_one();
    }
}
