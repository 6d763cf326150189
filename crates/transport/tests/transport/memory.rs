//! The twin inside one process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use conclave_consensus::NodeId;
use conclave_transport::{Link, MemoryNetwork, MemoryTransport, Transport, TransportStats};

use crate::{
    conformance::{self, BULK, CONSENSUS, Mesh, ONE, TWO},
    inbox::{Inbox, request, wait_for},
};

struct MemoryMesh {
    network: MemoryNetwork,
    nodes: [(MemoryTransport, Arc<Inbox>); 2],
}

impl MemoryMesh {
    fn new() -> Self {
        let network = MemoryNetwork::with_bounds(CONSENSUS, BULK);
        let nodes = [ONE, TWO].map(|node| {
            let inbox = Inbox::new();
            (network.join(node, Arc::clone(&inbox) as _), inbox)
        });
        Self { network, nodes }
    }

    fn node(&self, node: NodeId) -> &(MemoryTransport, Arc<Inbox>) {
        &self.nodes[node.0 as usize - 1]
    }
}

impl Mesh for MemoryMesh {
    fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        Arc::new(self.node(node).0.clone())
    }

    fn inbox(&self, node: NodeId) -> &Inbox {
        &self.node(node).1
    }

    fn stats(&self, node: NodeId) -> TransportStats {
        self.node(node).0.stats()
    }

    fn cut(&self) {
        self.network.set_cut(ONE, TWO, true);
    }
}

#[test]
fn conforms() {
    conformance::run(|| Box::new(MemoryMesh::new()));
}

#[test]
fn a_delay_holds_packets_back_in_order() {
    let mesh = MemoryMesh::new();
    let delay = Duration::from_millis(30);
    mesh.network.set_link(ONE, TWO, Link { cut: false, delay });
    let begun = Instant::now();
    for id in 0..5 {
        mesh.node(ONE).0.send(TWO, &mut vec![request(id)]);
    }
    mesh.network.set_link(ONE, TWO, Link::default());
    mesh.node(ONE).0.send(TWO, &mut vec![request(5)]);
    let received = mesh.inbox(TWO).take(6);
    assert!(received.into_iter().map(|(_, packet)| packet).eq((0..6).map(request)));
    assert!(begun.elapsed() < Duration::from_secs(5));

    mesh.network.set_link(ONE, TWO, Link { cut: false, delay });
    let begun = Instant::now();
    mesh.node(ONE).0.send(TWO, &mut vec![request(6)]);
    mesh.inbox(TWO).take(1);
    assert!(begun.elapsed() >= delay);
}

#[test]
fn a_cut_is_one_way_and_heals() {
    let mesh = MemoryMesh::new();
    mesh.network.set_link(ONE, TWO, Link { cut: true, delay: Duration::ZERO });
    mesh.node(ONE).0.send(TWO, &mut vec![request(1)]);
    mesh.node(TWO).0.send(ONE, &mut vec![request(2)]);
    mesh.inbox(ONE).take(1);
    wait_for("the packet is lost", || mesh.stats(ONE).peers[0].consensus.dropped_stale == 1);
    mesh.network.set_cut(ONE, TWO, false);
    mesh.node(ONE).0.send(TWO, &mut vec![request(3)]);
    assert_eq!(mesh.inbox(TWO).take(1), [(ONE, request(3))]);
}

#[test]
fn a_node_that_left_hears_nothing_until_it_joins_again() {
    let mesh = MemoryMesh::new();
    mesh.network.leave(TWO);
    mesh.node(ONE).0.send(TWO, &mut vec![request(1)]);
    let inbox = Inbox::new();
    wait_for("the packet is lost", || {
        // A departed node is in nobody's list; its return brings the counts back.
        let _transport = mesh.network.join(TWO, Arc::clone(&inbox) as _);
        let stats = mesh.stats(ONE).peers[0].consensus.clone();
        stats.dropped_stale + stats.received_packets + inbox.len() as u64 > 0
    });
    inbox.take_when(|_| true);
    mesh.node(ONE).0.send(TWO, &mut vec![request(2)]);
    inbox.take_when(|received| received.last() == Some(&(ONE, request(2))));
}
