//! What it costs a node that others fetch its snapshot.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use conclave_consensus::{Config, NodeId, ReplicaId};
use conclave_transport::{Inbound, MemoryNetwork, Packet, SnapshotPrefix, Transport as _};
use tokio::sync::mpsc;

use crate::fixture::{GROUP, Heavy, add, start_with, within};

/// Hands on what arrives.
#[derive(Debug)]
struct Ear(u64, mpsc::UnboundedSender<(u64, Packet)>);

impl Inbound for Ear {
    fn receive(&self, _: NodeId, packets: Vec<Packet>) {
        for packet in packets {
            let _ = self.1.send((self.0, packet));
        }
    }
}

fn pull(piece: u64, have: SnapshotPrefix) -> Packet {
    Packet::SnapshotPull { group: GROUP, fetch: 1, at_least: 1, piece, have }
}

/// Three nodes fetch as fast as they are served, with four pieces under way each. Together they get what the node may serve and no more,
/// in turn; and meanwhile its clients are answered as ever.
#[tokio::test(flavor = "multi_thread")]
async fn all_who_fetch_share_one_rate_and_hold_nobody_up() {
    const RATE: u64 = 4 << 20;
    const PIECE_BYTES: usize = 512 << 10;
    const PIECES: u64 = 17;
    let network = MemoryNetwork::new();
    let mut members = Config::of_voters([(ReplicaId(1), NodeId(1))]);
    for learner in 2..=4 {
        members.learners.insert(ReplicaId(learner));
        members.nodes.insert(ReplicaId(learner), NodeId(learner));
    }
    members.next_replica = ReplicaId(5);
    let limit = |config: &mut conclave_replica::ShellConfig| config.serve_bytes_per_second = Some(RATE);
    let machine = Box::new(Heavy::new(1_000, PIECE_BYTES));
    let node = start_with(&network, 1, ReplicaId(1), &members, &limit, None, machine);
    let (ear, mut heard) = mpsc::unbounded_channel();
    let nodes: BTreeMap<u64, _> =
        (2..=4).map(|n| (n, network.join(NodeId(n), Arc::new(Ear(n, ear.clone()))))).collect();
    assert_eq!(add(&node.handle, 1).await, Ok(1), "it leads");
    let client = {
        let handle = node.handle.clone();
        tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            for _ in 0..200 {
                let asked = Instant::now();
                add(&handle, 1).await.unwrap();
                slowest = slowest.max(asked.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            slowest
        })
    };
    let began = Instant::now();
    for transport in nodes.values() {
        let mut first = (0..4).map(|piece| pull(piece, SnapshotPrefix::default())).collect();
        transport.send(NodeId(1), &mut first);
    }
    let mut got = BTreeMap::new();
    while got.values().sum::<u64>() < PIECES {
        let (to, packet) = within(heard.recv()).await.unwrap();
        if let Packet::SnapshotPiece { after, body, .. } = packet {
            assert_eq!((after.pieces, body.len()), (*got.entry(to).or_default(), PIECE_BYTES));
            *got.entry(to).or_default() += 1;
            nodes[&to].send(NodeId(1), &mut vec![pull(after.pieces + 4, after)]);
            let (most, least) =
                (got.values().max(), (2..=4).map(|n| got.get(&n).copied().unwrap_or(0)).min());
            assert!(most.copied() <= least.map(|least| least + 2), "{got:?}: not in turn");
        }
    }
    // The first is free; each waits until the one before is paid off.
    let least = Duration::from_secs_f64((PIECES - 1) as f64 * PIECE_BYTES as f64 / RATE as f64);
    assert!(began.elapsed() >= least, "{:?} for {got:?}, at least {least:?}", began.elapsed());
    let slowest = client.await.unwrap();
    assert!(slowest < Duration::from_secs(1), "a client waited {slowest:?}");
    node.shell.unwrap().stop();
}
