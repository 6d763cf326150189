//! The transport between processes, over the loopback interface.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use conclave_consensus::{Class, Entries, GroupId, Message, NodeId, ReplicaId};
use conclave_transport::{
    BindError, ClusterId, LaneStats, Packet, TcpOptions, TcpTransport, Transport, TransportStats,
};
use tokio::runtime::Runtime;

use crate::{
    conformance::{self, BULK, CONSENSUS, FRAME_BYTES_MAX, Mesh, ONE, TWO},
    inbox::{Inbox, PATIENCE, every_kind, piece, request, wait_for},
};

fn runtime() -> Arc<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Arc::new(builder.worker_threads(2).enable_all().build().expect("a runtime starts"))
}

fn options(node: NodeId) -> TcpOptions {
    let mut options = TcpOptions::new(node, ClusterId(0xc1), vec!["127.0.0.1:0".to_owned()]);
    options.frame_bytes_max = FRAME_BYTES_MAX;
    (options.consensus_queue, options.bulk_queue) = (CONSENSUS, BULK);
    options.backoff_min = Duration::from_millis(5);
    options.backoff_max = Duration::from_millis(50);
    options
}

struct Node {
    runtime: Arc<Runtime>,
    transport: Arc<TcpTransport>,
    inbox: Arc<Inbox>,
}

impl Node {
    fn start(runtime: &Arc<Runtime>, options: TcpOptions) -> Self {
        let transport = Arc::new(runtime.block_on(TcpTransport::bind(options)).expect("a free port"));
        let inbox = Inbox::new();
        transport.start(Arc::clone(&inbox) as _);
        Self { runtime: Arc::clone(runtime), transport, inbox }
    }

    fn address(&self) -> SocketAddr {
        self.transport.addresses()[0]
    }

    fn knows(&self, node: NodeId, other: &Self) {
        self.transport.set_peer(node, &[other.address().to_string()]);
    }

    fn send(&self, to: NodeId, packet: Packet) {
        self.transport.send(to, &mut vec![packet]);
    }

    fn stop(&self) {
        let stopped = async { tokio::time::timeout(PATIENCE, self.transport.shutdown()).await };
        self.runtime.block_on(stopped).expect("all tasks end");
    }

    fn consensus(&self) -> LaneStats {
        self.transport.stats().peers[0].consensus.clone()
    }
}

fn pair() -> [Node; 2] {
    let runtime = runtime();
    let nodes = [ONE, TWO].map(|node| Node::start(&runtime, options(node)));
    nodes[0].knows(TWO, &nodes[1]);
    nodes[1].knows(ONE, &nodes[0]);
    nodes
}

struct TcpMesh([Node; 2]);

impl Mesh for TcpMesh {
    fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        Arc::clone(&self.0[node.0 as usize - 1].transport) as _
    }

    fn inbox(&self, node: NodeId) -> &Inbox {
        &self.0[node.0 as usize - 1].inbox
    }

    fn stats(&self, node: NodeId) -> TransportStats {
        self.0[node.0 as usize - 1].transport.stats()
    }

    fn cut(&self) {
        self.0[1].stop();
        wait_for("the end is noticed", || self.0[0].consensus().failures > 0);
    }
}

#[test]
fn conforms() {
    conformance::run(|| Box::new(TcpMesh(pair())));
}

#[test]
fn counts_agree_on_both_sides() {
    let [one, two] = pair();
    one.transport.send(TWO, &mut every_kind());
    two.inbox.take(every_kind().len());
    wait_for("the counts", || {
        let (sent, received) = (one.transport.stats(), two.transport.stats());
        let (sent, received) = (&sent.peers[0], &received.peers[0]);
        sent.consensus.sent_packets == 10
            && sent.bulk.sent_packets == 4
            && received.consensus.received_packets == 10
            && received.bulk.received_packets == 4
            && sent.consensus.sent_bytes == received.consensus.received_bytes
            && sent.consensus.connected_since.is_some()
    });
}

#[test]
fn what_is_queued_together_is_written_and_read_together() {
    let [one, two] = pair();
    one.send(TWO, request(0));
    two.inbox.take(1);
    let before = one.consensus().writes;
    one.transport.send(TWO, &mut (1..=1000).map(request).collect());
    two.inbox.take(1000);
    wait_for("all is written", || one.consensus().sent_packets == 1001);
    let writes = one.consensus().writes - before;
    assert!(writes <= 2, "{writes} writes for 1000 small packets");
    let reads = two.consensus().reads;
    assert!(reads <= 20, "{reads} reads for 1000 small packets");
}

#[test]
fn a_peer_that_comes_back_is_found_again() {
    let [one, two] = pair();
    one.send(TWO, request(1));
    two.inbox.take(1);
    let address = two.address().to_string();
    two.stop();
    wait_for("the end is noticed", || one.consensus().connected_since.is_none());
    wait_for("a dial fails", || one.consensus().failures > 1);
    let failure = one.consensus().last_failure.unwrap();
    assert!(failure.why.contains(&address), "{}", failure.why);

    let mut options = options(TWO);
    options.listen = vec![address];
    let two = Node::start(&two.runtime, options);
    wait_for("it is found", || one.consensus().connected_since.is_some());
    one.send(TWO, request(2));
    assert_eq!(two.inbox.take(1), [(ONE, request(2))]);
}

#[test]
fn a_peer_that_dials_us_is_dialed_at_once() {
    let runtime = runtime();
    let mut patient = options(ONE);
    (patient.backoff_min, patient.backoff_max) = (PATIENCE * 10, PATIENCE * 10);
    let one = Node::start(&runtime, patient);
    let reserved = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    one.transport.set_peer(TWO, std::slice::from_ref(&reserved));
    wait_for("a dial fails", || one.consensus().failures == 1);
    let mut options = options(TWO);
    options.listen = vec![reserved];
    let two = Node::start(&runtime, options);
    two.knows(ONE, &one);
    wait_for("it is dialed", || one.consensus().connected_since.is_some());
}

#[test]
fn a_peer_moves_and_is_removed_and_comes_back() {
    let [one, two] = pair();
    one.send(TWO, request(1));
    two.inbox.take(1);
    let elsewhere = Node::start(&one.runtime, options(TWO));
    two.stop();
    one.knows(TWO, &elsewhere);
    wait_for("it is found", || one.consensus().connects >= 2 && one.consensus().connected_since.is_some());
    one.send(TWO, request(2));
    assert_eq!(elsewhere.inbox.take(1), [(ONE, request(2))]);

    elsewhere.knows(ONE, &one);
    elsewhere.send(ONE, request(3));
    one.inbox.take(1);
    one.transport.remove_peer(TWO);
    assert!(one.transport.stats().peers.is_empty());
    one.send(TWO, request(4));
    assert_eq!(one.transport.stats().dropped_unknown_peer, 1);
    wait_for("it is told", || {
        elsewhere
            .consensus()
            .last_failure
            .is_some_and(|failure| failure.why.contains("removed from the cluster"))
    });
    assert!(one.transport.stats().inbound_refused > 0);

    one.knows(TWO, &elsewhere);
    wait_for("it is welcome again", || elsewhere.consensus().connected_since.is_some());
}

#[test]
fn addresses_are_tried_in_turn_until_the_peer_is_found() {
    let runtime = runtime();
    let [one, other, two] = [ONE, NodeId(3), TWO].map(|node| Node::start(&runtime, options(node)));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let addresses = [nobody, other.address(), two.address()].map(|address| address.to_string());
    one.transport.set_peer(TWO, &addresses);
    one.send(TWO, request(1));
    wait_for("it is found", || one.consensus().connected_since.is_some());
    one.send(TWO, request(2));
    wait_for("it hears", || two.inbox.len() > 0);
    assert_eq!(other.inbox.len(), 0);
    assert_eq!(one.transport.stats().peers[0].address, addresses.join(","));
    one.transport.set_peer(TWO, &addresses[..2]);
    wait_for("a dial fails", || one.consensus().last_failure.is_some());
    let why = one.consensus().last_failure.unwrap().why;
    assert!(why.contains(&addresses[0]) && why.contains(&addresses[1]), "{why}");
}

/// A node that says where it is.
fn advertised(runtime: &Arc<Runtime>, node: NodeId) -> Node {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let reserved = free.expect("a free port").to_string();
    let options = TcpOptions { listen: vec![reserved.clone()], advertised: vec![reserved], ..options(node) };
    Node::start(runtime, options)
}

#[test]
fn one_that_nobody_named_is_answered_where_it_says_it_is() {
    let runtime = runtime();
    let one = advertised(&runtime, ONE);
    let two = Node::start(&runtime, options(TWO));
    one.knows(TWO, &two);
    wait_for("it is known", || two.transport.stats().peers.iter().any(|peer| peer.node == ONE));
    wait_for("it is found", || two.consensus().connected_since.is_some());
    two.send(ONE, request(1));
    assert_eq!(one.inbox.take(1), [(TWO, request(1))]);
    one.stop();
    wait_for("it is forgotten", || two.transport.stats().peers.is_empty());
    two.stop();
}

#[test]
fn what_a_node_says_of_itself_never_overrides_what_was_set() {
    let runtime = runtime();
    let (one, two) = (advertised(&runtime, ONE), Node::start(&runtime, options(TWO)));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    two.transport.set_peer(ONE, std::slice::from_ref(&nobody));
    one.knows(TWO, &two);
    one.send(TWO, request(1));
    two.inbox.take(1);
    assert_eq!(two.transport.stats().peers[0].address, nobody);
    // What was said is overridden as well, and stays when the node goes.
    let (three, four) = (advertised(&runtime, NodeId(3)), Node::start(&runtime, options(NodeId(4))));
    three.knows(NodeId(4), &four);
    wait_for("it is known", || !four.transport.stats().peers.is_empty());
    four.transport.set_peer(NodeId(3), std::slice::from_ref(&nobody));
    three.stop();
    wait_for("it has gone", || four.transport.stats().inbound_connections == 0);
    assert_eq!(four.transport.stats().peers[0].address, nobody);
    // Who was removed says nothing any more.
    two.transport.remove_peer(ONE);
    wait_for("it is refused", || two.transport.stats().inbound_refused > 0);
    assert!(two.transport.stats().peers.is_empty());
}

#[test]
fn mismatches_are_refused_with_a_reason_on_both_sides() {
    type Change = fn(&mut TcpOptions);
    let cases: [(&str, NodeId, Change); 3] = [
        ("it belongs to cluster c1, this node to cluster c2", TWO, |one| one.cluster = ClusterId(0xc2)),
        ("versions 1..=2 of the peer protocol, this node 3..=4", TWO, |one| one.versions = (3, 4)),
        ("node 3 was dialed, but node 2 answered", NodeId(3), |_| {}),
    ];
    let runtime = runtime();
    for (why, target, change) in cases {
        let two = Node::start(&runtime, options(TWO));
        let mut changed = options(ONE);
        change(&mut changed);
        let one = Node::start(&runtime, changed);
        one.knows(target, &two);
        wait_for(why, || one.consensus().last_failure.is_some_and(|failure| failure.why.contains(why)));
        one.send(target, request(1));
        let stats = two.transport.stats();
        assert!(stats.inbound_refused > 0 && stats.inbound_foreign == 0);
        assert_eq!((two.inbox.len(), one.consensus().connects), (0, 0));
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut options = options(ONE);
    options.listen = vec![address.clone()];
    let error = runtime().block_on(TcpTransport::bind(options.clone())).unwrap_err();
    assert!(matches!(&error, BindError::InUse { .. }) && error.to_string().contains(&address), "{error}");
    options.listen = vec!["no such host:1".to_owned()];
    let error = runtime().block_on(TcpTransport::bind(options)).unwrap_err();
    assert!(
        matches!(&error, BindError::Io { .. }) && error.to_string().contains("no such host:1"),
        "{error}"
    );
}

#[test]
fn strangers_are_shown_out_and_peers_go_on() {
    let runtime = runtime();
    let mut short = options(TWO);
    short.handshake_timeout = Duration::from_millis(100);
    short.inbound_max = 8;
    let (one, two) = (Node::start(&runtime, options(ONE)), Node::start(&runtime, short));
    one.knows(TWO, &two);
    wait_for("the peer is connected", || two.transport.stats().inbound_connections == 2);

    let garbage: [&[u8]; 4] =
        [b"GET /health HTTP/1.1\r\n\r\n", &[0xff; 4096], b"CONCLAVE\0\0\0\0\xff\xff\xff\x7f", b"CONC"];
    for (nth, bytes) in garbage.into_iter().enumerate() {
        let mut stranger = TcpStream::connect(two.address()).unwrap();
        stranger.write_all(bytes).unwrap();
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        // Either an end or a reset, and not a word.
        let _ = stranger.read_to_end(&mut answer);
        assert_eq!(answer, b"");
        wait_for("it is counted", || two.transport.stats().inbound_foreign == nth as u64 + 1);
    }
    let crowd: Vec<_> = (0..20).map(|_| TcpStream::connect(two.address()).unwrap()).collect();
    wait_for("the crowd is turned away", || two.transport.stats().inbound_turned_away > 0);
    assert!(two.transport.stats().inbound_connections <= 8);
    drop(crowd);
    one.send(TWO, request(1));
    assert_eq!(two.inbox.take(1), [(ONE, request(1))]);
}

/// The first word of a dialer to node 2 of the cluster, written by hand.
fn hello(from: NodeId) -> Vec<u8> {
    let mut body = vec![0x08, 1, 0x10, 1, 0x19];
    body.extend_from_slice(&0xc1_u64.to_le_bytes());
    body.push(0x21);
    body.extend_from_slice(&from.0.to_le_bytes());
    body.push(0x29);
    body.extend_from_slice(&TWO.0.to_le_bytes());
    word(&body)
}

/// The answer of a node 2 that takes frames of 1 MiB.
fn welcome() -> Vec<u8> {
    let mut body = vec![0x10, 1, 0x18, 1, 0x21];
    body.extend_from_slice(&0xc1_u64.to_le_bytes());
    body.push(0x29);
    body.extend_from_slice(&TWO.0.to_le_bytes());
    body.extend_from_slice(&[0x30, 0x80, 0x80, 0x40]);
    word(&body)
}

fn word(body: &[u8]) -> Vec<u8> {
    let (crc, length) = (crc32fast::hash(body).to_le_bytes(), (body.len() as u32).to_le_bytes());
    [b"CONCLAVE", &crc[..], &length, body].concat()
}

#[test]
fn a_broken_frame_ends_its_connection_only() {
    let [one, two] = pair();
    one.send(TWO, request(1));
    two.inbox.take(1);
    let mut nonsense = TcpStream::connect(two.address()).unwrap();
    nonsense.write_all(&[hello(NodeId(3)), vec![0xee; 64]].concat()).unwrap();
    wait_for("it is counted", || two.transport.stats().inbound_foreign == 1);
    one.send(TWO, request(2));
    assert_eq!(two.inbox.take(1), [(ONE, request(2))]);
    assert_eq!(one.consensus().connects, 1);
}

#[test]
fn the_newer_of_two_connections_is_read() {
    let [one, two] = pair();
    one.send(TWO, request(1));
    two.inbox.take(1);
    let mut double = TcpStream::connect(two.address()).unwrap();
    double.write_all(&hello(ONE)).unwrap();
    wait_for("the older is closed and dials again", || one.consensus().connects >= 2);
    let mut rest = Vec::new();
    double.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = double.read_to_end(&mut rest);
    assert!(rest.starts_with(b"CONCLAVE"), "it was welcomed and then closed in its turn");
    wait_for("it sits again", || one.consensus().connected_since.is_some());
    one.send(TWO, request(2));
    assert_eq!(two.inbox.take(1), [(ONE, request(2))]);
}

#[test]
fn a_peer_that_reads_nothing_fills_the_queue_and_no_more() {
    let runtime = runtime();
    let mut options = options(ONE);
    options.write_timeout = Duration::from_millis(200);
    options.bulk_queue.bytes_max = 4 << 20;
    let one = Node::start(&runtime, options);
    // It welcomes everyone and then reads no more.
    let sloth = TcpListener::bind("127.0.0.1:0").unwrap();
    one.transport.set_peer(TWO, &[sloth.local_addr().unwrap().to_string()]);
    let kept: Vec<_> = (0..2)
        .map(|_| {
            let (mut connection, _) = sloth.accept().unwrap();
            connection.write_all(&welcome()).unwrap();
            connection
        })
        .collect();
    wait_for("it is connected", || one.transport.stats().peers[0].bulk.connected_since.is_some());
    let begun = Instant::now();
    for nth in 0..200 {
        one.send(TWO, piece(nth, 1_000_000));
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "sending never waits");
    let bulk = one.transport.stats().peers[0].bulk.clone();
    assert!(bulk.queued_bytes <= 4 << 20 && bulk.dropped_full > 100, "{bulk:?}");
    wait_for("it is given up", || {
        // The operating system takes some megabytes before the peer's idleness shows.
        one.send(TWO, piece(0, 1_000_000));
        one.transport.stats().peers[0].bulk.last_failure.is_some()
    });
    let failure = one.transport.stats().peers[0].bulk.last_failure.clone().unwrap();
    assert!(failure.why.contains("took nothing") || failure.why.contains("handshake"), "{}", failure.why);
    drop(kept);
}

#[test]
fn beats_that_pile_up_are_replaced() {
    let runtime = runtime();
    let one = Node::start(&runtime, options(ONE));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    one.transport.set_peer(TWO, &[silent.local_addr().unwrap().to_string()]);
    for beat in 0..100_u8 {
        let head = Bytes::copy_from_slice(&[beat]);
        let message = Message {
            from: ReplicaId(1),
            to: ReplicaId(2),
            class: Class::Beat,
            head: head.into(),
            entries: Entries::default(),
        };
        one.send(TWO, Packet::Consensus { group: GroupId(1), message });
    }
    let stats = one.consensus();
    assert_eq!((stats.queued_packets, stats.replaced), (1, 99));
}

#[test]
fn a_packet_too_long_is_dropped_alone() {
    let [one, two] = pair();
    let long = Packet::Request { id: 1, body: Bytes::from(vec![0; FRAME_BYTES_MAX + 1]) };
    one.transport.send(TWO, &mut vec![request(0), long, request(2)]);
    assert_eq!(two.inbox.take(2), [(ONE, request(0)), (ONE, request(2))]);
    wait_for("it is counted", || one.consensus().dropped_too_long == 1);
}

#[test]
fn nothing_is_delivered_after_shutdown() {
    let [one, two] = pair();
    one.send(TWO, request(1));
    two.inbox.take(1);
    two.stop();
    two.stop();
    for id in 2..50 {
        one.send(TWO, request(id));
    }
    two.send(ONE, request(1));
    two.knows(ONE, &one);
    assert_eq!(two.transport.stats().inbound_connections, 0);
    one.stop();
    assert_eq!((two.inbox.len(), one.inbox.len()), (0, 0));
}
