//! What holds of every [`Transport`]. Run on TCP by `tcp.rs`, on memory by `memory.rs`.

use std::sync::Arc;

use bytes::Bytes;
use conclave_consensus::NodeId;
use conclave_transport::{Lane, QueueBounds, Transport, TransportStats};

use crate::inbox::{Inbox, append, every_kind, on_lane, piece, request, wait_for};

pub(crate) const ONE: NodeId = NodeId(1);
pub(crate) const TWO: NodeId = NodeId(2);

/// The bounds that the meshes under test use.
pub(crate) const CONSENSUS: QueueBounds = QueueBounds { packets_max: 4096, bytes_max: 64 << 20 };
pub(crate) const BULK: QueueBounds = QueueBounds { packets_max: 64, bytes_max: 64 << 20 };
/// The longest frame that the meshes under test take.
pub(crate) const FRAME_BYTES_MAX: usize = 8 << 20;

/// Two nodes that can reach each other.
pub(crate) trait Mesh {
    fn transport(&self, node: NodeId) -> Arc<dyn Transport>;
    fn inbox(&self, node: NodeId) -> &Inbox;
    fn stats(&self, node: NodeId) -> TransportStats;
    /// Makes `TWO` unreachable for `ONE`.
    fn cut(&self);
}

pub(crate) fn every_kind_arrives_whole_and_in_order(mesh: &dyn Mesh) {
    let mut packets = every_kind();
    mesh.transport(ONE).send(TWO, &mut packets);
    assert!(packets.is_empty(), "send takes everything");
    let received = mesh.inbox(TWO).take(every_kind().len());
    assert!(received.iter().all(|(from, _)| *from == ONE));
    for lane in Lane::ALL {
        let sent: Vec<_> = every_kind().into_iter().filter(|packet| packet.lane() == lane).collect();
        assert_eq!(on_lane(received.clone(), lane), sent);
    }
}

pub(crate) fn both_directions_are_apart(mesh: &dyn Mesh) {
    mesh.transport(ONE).send(TWO, &mut vec![request(1)]);
    mesh.transport(TWO).send(ONE, &mut vec![request(2)]);
    assert_eq!(mesh.inbox(TWO).take(1), [(ONE, request(1))]);
    assert_eq!(mesh.inbox(ONE).take(1), [(TWO, request(2))]);
}

pub(crate) fn order_is_kept_over_many_sends(mesh: &dyn Mesh) {
    let (transport, payload) = (mesh.transport(ONE), Bytes::from(vec![7; 300]));
    let mut expected = Vec::new();
    for round in 0..200_u64 {
        let mut packets = vec![request(round), append(round..round + 3, &payload)];
        expected.extend(packets.clone());
        transport.send(TWO, &mut packets);
        if round % 50 == 0 {
            wait_for("room", || mesh.stats(ONE).peers[0].consensus.queued_packets < 1000);
        }
    }
    let received = mesh.inbox(TWO).take(expected.len());
    assert_eq!(on_lane(received, Lane::Consensus), expected);
}

pub(crate) fn the_longest_packet_passes(mesh: &dyn Mesh) {
    let payload = Bytes::from(vec![0xab; FRAME_BYTES_MAX - 200]);
    let packets = [append(1..2, &payload), request(1), piece(1, FRAME_BYTES_MAX - 100)];
    mesh.transport(ONE).send(TWO, &mut packets.to_vec());
    let received = mesh.inbox(TWO).take(3);
    assert_eq!(on_lane(received.clone(), Lane::Consensus), packets[..2]);
    assert_eq!(on_lane(received, Lane::Bulk), packets[2..]);
}

pub(crate) fn a_node_unknown_is_no_harm(mesh: &dyn Mesh) {
    let mut packets = vec![request(1)];
    mesh.transport(ONE).send(NodeId(404), &mut packets);
    assert!(packets.is_empty());
    both_directions_are_apart(mesh);
}

pub(crate) fn bulk_does_not_delay_consensus(mesh: &dyn Mesh) {
    let transport = mesh.transport(ONE);
    transport.send(TWO, &mut vec![request(0)]);
    mesh.inbox(TWO).take(1);
    let mut packets: Vec<_> = (0..40).map(|nth| piece(nth, 1 << 20)).collect();
    packets.push(request(1));
    transport.send(TWO, &mut packets);
    let received = mesh.inbox(TWO).take(41);
    let before = received.iter().position(|(_, packet)| *packet == request(1));
    assert!(before.is_some_and(|before| before < 40), "a small packet waited for 40 MiB of snapshot");
}

pub(crate) fn what_cannot_be_sent_is_bounded_and_counted(mesh: &dyn Mesh) {
    let transport = mesh.transport(ONE);
    transport.send(TWO, &mut vec![request(0)]);
    mesh.inbox(TWO).take(1);
    mesh.cut();
    let count = 3 * CONSENSUS.packets_max as u64;
    for id in 1..=count {
        transport.send(TWO, &mut vec![request(id)]);
    }
    wait_for("the loss is counted", || {
        let stats = mesh.stats(ONE).peers.first().map(|peer| peer.consensus.clone()).unwrap_or_default();
        assert!(stats.queued_packets <= CONSENSUS.packets_max);
        stats.dropped() > 0 && stats.dropped() + stats.queued_packets as u64 <= count
    });
    assert_eq!(mesh.inbox(TWO).len(), 0);
}

/// Runs every property on a mesh of its own.
pub(crate) fn run(mesh: impl Fn() -> Box<dyn Mesh>) {
    type Property = fn(&dyn Mesh);
    let properties: [(&str, Property); 7] = [
        ("every_kind_arrives_whole_and_in_order", every_kind_arrives_whole_and_in_order),
        ("both_directions_are_apart", both_directions_are_apart),
        ("order_is_kept_over_many_sends", order_is_kept_over_many_sends),
        ("the_longest_packet_passes", the_longest_packet_passes),
        ("a_node_unknown_is_no_harm", a_node_unknown_is_no_harm),
        ("bulk_does_not_delay_consensus", bulk_does_not_delay_consensus),
        ("what_cannot_be_sent_is_bounded_and_counted", what_cannot_be_sent_is_bounded_and_counted),
    ];
    for (name, property) in properties {
        println!("{name}");
        property(&*mesh());
    }
}
