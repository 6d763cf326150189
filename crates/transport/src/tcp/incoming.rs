//! Accepted connections: heard out, given a seat, read from.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use conclave_consensus::NodeId;
use parking_lot::Mutex;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, watch},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{Alive, Shared};
use crate::{
    Inbound, Lane, Stream,
    codec::{Decoder, FrameError},
    handshake::{self, Arrival, HandshakeError},
};

/// What one read may bring.
const READ_BYTES: usize = 64 << 10;
/// With less room than this a new buffer is begun.
const ROOM_BYTES_MIN: usize = 4 << 10;
/// How far the buffer grows ahead of what the peer really sent of a long frame.
const GROW_BYTES: usize = 1 << 20;

/// Accepts connections until told to stop.
pub(super) async fn listen(
    alive: Alive,
    shared: Arc<Shared>,
    listener: TcpListener,
    inbound: Arc<dyn Inbound>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((connection, from)) => {
                let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else {
                    shared.inbound_turned_away.add(1);
                    if let Some(left_out) = shared.notices.admit("turned away") {
                        warn!(%from, left_out, "peer connection closed: too many are open");
                    }
                    continue;
                };
                let (shared, inbound) = (Arc::clone(&shared), Arc::clone(&inbound));
                let visit = Visit { shared, alive: alive.clone(), from, inbound };
                tokio::spawn(serve(alive.clone(), visit, connection, stop.clone(), place));
            }
            Err(error) => {
                // Out of descriptors or the like: others must end before it can go on.
                if let Some(left_out) = shared.notices.admit("accept") {
                    warn!(%error, left_out, "cannot accept peer connections");
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A connection and what it needs of the house.
struct Visit {
    shared: Arc<Shared>,
    alive: Alive,
    from: SocketAddr,
    inbound: Arc<dyn Inbound>,
}

/// Why a connection ended, where it is worth telling.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("no handshake came in time")]
    Silent,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("connection lost: {0}")]
    Lost(#[from] std::io::Error),
}

async fn serve(
    _alive: Alive,
    visit: Visit,
    connection: TcpStream,
    mut stop: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    let shared = Arc::clone(&visit.shared);
    let ended = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Ok(()),
        ended = visit.converse(connection) => ended,
    };
    let Err(why) = ended else { return };
    let kind = match &why {
        Ended::Handshake(HandshakeError::Refused(refusal)) => {
            shared.inbound_refused.add(1);
            refusal.kind()
        }
        Ended::Handshake(HandshakeError::Unwelcome(_)) => {
            shared.inbound_refused.add(1);
            "unwelcome"
        }
        Ended::Handshake(HandshakeError::Foreign(_)) | Ended::Silent | Ended::Frame(_) => {
            shared.inbound_foreign.add(1);
            "foreign"
        }
        Ended::Handshake(HandshakeError::Io(_)) | Ended::Lost(_) => {
            debug!(from = %visit.from, %why, "peer connection ended");
            return;
        }
    };
    if let Some(left_out) = shared.notices.admit(kind) {
        warn!(from = %visit.from, left_out, "peer connection closed: {why}");
    }
}

impl Visit {
    async fn converse(&self, connection: TcpStream) -> Result<(), Ended> {
        let options = &self.shared.options;
        let welcome = async {
            let mut stream = options.acceptor.accept(connection).await?;
            let identity = options.identity();
            let removed = |node| self.shared.removed.lock().contains(&node);
            let arrival = handshake::receive(&mut *stream, &identity, removed, &options.doorkeeper).await?;
            Ok::<_, HandshakeError>((stream, arrival))
        };
        let (mut stream, arrival) =
            timeout(options.handshake_timeout, welcome).await.map_err(|_| Ended::Silent)??;
        let Arrival::Peer(node, lane, addresses) = arrival else { return Ok(()) };
        if let Some(peer) = self.shared.peer(node) {
            peer.heard_of();
        }
        let (number, seat) = self.shared.seats.claim(node, lane);
        self.shared.introduced(&self.alive, node, &addresses);
        if seat.turn.try_lock().is_err()
            && let Some(left_out) = self.shared.notices.admit("taken over")
        {
            info!(
                from = %self.from, peer = %format_args!("{:x}", node.0), %lane, left_out,
                "a new connection of a peer takes over; if this goes on, two nodes have the same id"
            );
        }
        let mut taken = seat.taken.subscribe();
        // The one who sat here stops first, or its last packets would come after our first.
        let turn = seat.turn.lock().await;
        let ended = if *taken.borrow_and_update() == number {
            self.read(&mut *stream, node, lane, &mut taken).await
        } else {
            Ok(())
        };
        drop(turn);
        self.shared.seats.leave(node, lane, seat);
        self.shared.forget_introduced(node);
        ended
    }

    async fn read(
        &self,
        stream: &mut dyn Stream,
        node: NodeId,
        lane: Lane,
        taken: &mut watch::Receiver<u64>,
    ) -> Result<(), Ended> {
        let mut decoder = Decoder::new(self.shared.options.frame_bytes_max);
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        let mut packets = Vec::new();
        let mut missing = 0;
        loop {
            let wanted = missing.min(buffer.len().max(GROW_BYTES));
            if buffer.capacity() - buffer.len() < wanted.max(ROOM_BYTES_MIN) {
                buffer.reserve(wanted.max(READ_BYTES));
            }
            let read = tokio::select! {
                biased;
                read = stream.read_buf(&mut buffer) => read?,
                _ = taken.changed() => return Ok(()),
            };
            if read == 0 || taken.has_changed().unwrap_or(true) {
                return Ok(());
            }
            let decoded = decoder.decode(&mut buffer, &mut packets);
            if let Some(peer) = self.shared.peers.read().get(&node) {
                let counters = &peer.link(lane).counters;
                counters.received_bytes.add(read as u64);
                counters.received_packets.add(packets.len() as u64);
                counters.reads.add(1);
            }
            self.shared.unknown_frames.add(decoder.take_unknown());
            if !packets.is_empty() {
                self.inbound.receive(node, std::mem::take(&mut packets));
            }
            missing = decoded?;
        }
    }
}

/// Who reads each node's lanes: one connection at a time. A node that was cut off comes back on a new connection before the
/// old one is known to be dead; the new one takes its seat.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<BTreeMap<(NodeId, Lane), Arc<Seat>>>);

#[derive(Debug)]
struct Seat {
    /// The number of the latest claim.
    taken: watch::Sender<u64>,
    /// Held while reading.
    turn: tokio::sync::Mutex<()>,
}

impl Seats {
    fn claim(&self, node: NodeId, lane: Lane) -> (u64, Arc<Seat>) {
        let mut seats = self.0.lock();
        let new = || Arc::new(Seat { taken: watch::Sender::new(0), turn: tokio::sync::Mutex::new(()) });
        let seat = seats.entry((node, lane)).or_insert_with(new);
        seat.taken.send_modify(|number| *number += 1);
        let number = *seat.taken.borrow();
        (number, Arc::clone(seat))
    }

    /// Gives a seat up; the last to do so removes it.
    fn leave(&self, node: NodeId, lane: Lane, seat: Arc<Seat>) {
        let mut seats = self.0.lock();
        drop(seat);
        if seats.get(&(node, lane)).is_some_and(|seat| Arc::strong_count(seat) == 1) {
            seats.remove(&(node, lane));
        }
    }

    /// Whether a connection of the node is read from, or about to be.
    pub(super) fn are_taken(&self, node: NodeId) -> bool {
        let seats = self.0.lock();
        Lane::ALL.into_iter().any(|lane| seats.contains_key(&(node, lane)))
    }

    /// Makes the node's readers end.
    pub(super) fn vacate(&self, node: NodeId) {
        let seats = self.0.lock();
        for lane in Lane::ALL {
            if let Some(seat) = seats.get(&(node, lane)) {
                seat.taken.send_modify(|number| *number += 1);
            }
        }
    }
}
