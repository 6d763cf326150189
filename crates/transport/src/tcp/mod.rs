//! The transport between processes.
//!
//! Each peer has two lanes, each lane a bounded queue and a task that dials, writes and dials again ([`outgoing`]). Each
//! accepted connection has a task that reads and delivers ([`incoming`]). Sending takes a short lock and wakes the
//! task only if it sleeps, so that under load many packets share one wake, one write and one read.

mod incoming;
mod outgoing;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use conclave_consensus::NodeId;
use parking_lot::{Mutex, RwLock};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{Semaphore, mpsc, watch},
};
use tracing::info;

use crate::{
    Acceptor, ClusterId, Connector, Inbound, Lane, Packet, PeerStats, Plain, QueueBounds, Transport,
    TransportStats,
    handshake::{self, About, Doorkeeper, HandshakeError, Identity, OpenDoor, VERSION_MAX, VERSION_MIN},
    notices::Notices,
    stats::Counter,
};
use incoming::Seats;
use outgoing::{Addresses, Peer};

/// How many nodes are known at a time by what they said themselves alone. Beyond it one that nobody named is heard and not answered.
const INTRODUCED_MAX: usize = 64;

/// How many removed nodes are remembered, to be told so when they dial.
const REMOVED_MAX: usize = 1024;

/// How a [`TcpTransport`] is set up.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Where it accepts peers, each `host:port`; port 0 takes a free one.
    pub listen: Vec<String>,
    /// The longest frame sent or taken, in bytes after its header; default 32 MiB. Must exceed the longest entry.
    pub frame_bytes_max: usize,
    /// What may wait for a peer on the consensus lane.
    pub consensus_queue: QueueBounds,
    /// What may wait for a peer on the bulk lane.
    pub bulk_queue: QueueBounds,
    /// How many accepted connections may be open, strangers included; default 256. More are closed at once.
    pub inbound_max: usize,
    /// Where this node is reached by others, each `host:port`: said to those that it dials, for one that was not told. Default: it does not say. What
    /// is beyond 512 bytes in all is left out.
    pub advertised: Vec<String>,
    /// How long resolving and connecting may take; default 1 s.
    pub dial_timeout: Duration,
    /// How long the handshake may take; default 2 s.
    pub handshake_timeout: Duration,
    /// How long a write may make no end before the connection is given up; default 5 s.
    pub write_timeout: Duration,
    /// The first pause after a failure; doubled with each further one; default 50 ms.
    pub backoff_min: Duration,
    /// The longest pause; default 1 s. A connection that held as long is dialed again at once.
    pub backoff_max: Duration,
    /// The versions of the protocol to speak, least and highest.
    pub versions: (u32, u32),
    /// Names this node's data directory, so that nobody comes back under its name without what it promised; zero does not say.
    pub incarnation: u64,
    /// Decides who is let in, and speaks to those who enquire.
    pub doorkeeper: Arc<dyn Doorkeeper>,
    /// Makes outgoing streams.
    pub connector: Arc<dyn Connector>,
    /// Makes streams of accepted connections.
    pub acceptor: Arc<dyn Acceptor>,
}

impl TcpOptions {
    /// Plain TCP with every default.
    #[must_use]
    pub fn new(node: NodeId, cluster: ClusterId, listen: Vec<String>) -> Self {
        Self {
            node,
            cluster,
            listen,
            frame_bytes_max: 32 << 20,
            consensus_queue: QueueBounds::CONSENSUS,
            bulk_queue: QueueBounds::BULK,
            inbound_max: 256,
            advertised: Vec::new(),
            dial_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(2),
            write_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            versions: (VERSION_MIN, VERSION_MAX),
            incarnation: 0,
            doorkeeper: Arc::new(OpenDoor),
            connector: Arc::new(Plain),
            acceptor: Arc::new(Plain),
        }
    }

    fn identity(&self) -> Identity<'_> {
        Identity {
            node: self.node,
            cluster: self.cluster,
            versions: self.versions,
            frame_bytes_max: self.frame_bytes_max,
            incarnation: self.incarnation,
            addresses: &self.advertised,
        }
    }
}

/// Asks who is at `host:port`, and what it says about its cluster. `own` is the node that asks and its cluster, zero where it does not know yet, with
/// its data directory: so it learns whether it was removed, or is known by another directory.
///
/// # Errors
/// If nobody answers as a Conclave peer within `patience`, or the answer is a refusal.
pub async fn enquire(
    connector: &dyn Connector,
    address: &str,
    own: (NodeId, ClusterId),
    incarnation: u64,
    patience: Duration,
) -> Result<About, HandshakeError> {
    let asking = async {
        let mut stream = connector.dial(address).await?;
        handshake::enquire(&mut *stream, own, incarnation).await
    };
    match tokio::time::timeout(patience, asking).await {
        Ok(told) => told,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

/// Why a peer address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Someone else listens there.
    #[error("peer address {address} is in use: another process listens there")]
    InUse {
        /// As it was configured.
        address: String,
    },
    /// Anything else: a name that does not resolve, an address of another machine, a port without permission.
    #[error("cannot listen for peers on {address}: {source}")]
    Io {
        /// As it was configured.
        address: String,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// What the tasks share.
#[derive(Debug)]
struct Shared {
    options: TcpOptions,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    removed: Mutex<BTreeSet<NodeId>>,
    seats: Seats,
    notices: Notices,
    /// Room for accepted connections.
    places: Arc<Semaphore>,
    inbound_refused: Counter,
    inbound_foreign: Counter,
    inbound_turned_away: Counter,
    unknown_frames: Counter,
    dropped_unknown_peer: Counter,
    /// Set before the peers are let go for the last time.
    stopped: AtomicBool,
}

impl Shared {
    fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().get(&node).cloned()
    }

    /// A node that dialed, and sits, said where it is. It counts where nobody else said so, and as long as it sits.
    fn introduced(self: &Arc<Self>, alive: &Alive, node: NodeId, addresses: &[String]) {
        if addresses.is_empty() {
            return;
        }
        let mut peers = self.peers.write();
        match peers.get(&node) {
            Some(peer) if peer.is_introduced() => peer.move_to(addresses.into(), true),
            Some(_) => {}
            None => {
                let others = peers.values().filter(|peer| peer.is_introduced()).count();
                if others < INTRODUCED_MAX && !self.removed.lock().contains(&node) {
                    let address = addresses.join(",");
                    info!(peer = %format_args!("{:x}", node.0), address, "a peer that nobody named says where it is");
                    self.add(alive, &Handle::current(), &mut peers, node, addresses.into(), true);
                }
            }
        }
    }

    /// A connection of a node ended: where nobody but the node itself said where it is, it is forgotten with the last one.
    fn forget_introduced(&self, node: NodeId) {
        let mut peers = self.peers.write();
        if peers.get(&node).is_some_and(|peer| peer.is_introduced())
            && !self.seats.are_taken(node)
            && let Some(peer) = peers.remove(&node)
        {
            peer.leave();
        }
    }

    fn add(
        self: &Arc<Self>,
        alive: &Alive,
        runtime: &Handle,
        peers: &mut BTreeMap<NodeId, Arc<Peer>>,
        node: NodeId,
        addresses: Addresses,
        introduced: bool,
    ) {
        // Its tasks would outlive all others.
        if self.stopped.load(Ordering::Relaxed) {
            return;
        }
        let peer = Arc::new(Peer::new(node, addresses, introduced, &self.options));
        for lane in Lane::ALL {
            let (shared, peer) = (Arc::clone(self), Arc::clone(&peer));
            runtime.spawn(outgoing::run(alive.clone(), shared, peer, lane));
        }
        peers.insert(node, peer);
    }
}

/// Held by every task as its first argument, which is dropped last; when all are gone, so is all that tasks held.
type Alive = mpsc::Sender<()>;

/// [`Transport`] over TCP. Every method may be called from any thread.
pub struct TcpTransport {
    shared: Arc<Shared>,
    runtime: Handle,
    addresses: Vec<SocketAddr>,
    listeners: Mutex<Vec<TcpListener>>,
    stop: watch::Sender<bool>,
    alive: Mutex<Option<Alive>>,
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl fmt::Debug for TcpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTransport").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl TcpTransport {
    /// Claims the addresses to listen on. Peers may be set and sent to from now on; nothing is accepted before
    /// [`start`](Self::start). Tasks run on the runtime of the caller.
    ///
    /// # Errors
    /// If an address cannot be listened on; the error names it.
    pub async fn bind(options: TcpOptions) -> Result<Self, BindError> {
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for address in &options.listen {
            let failed = |source: io::Error| match source.kind() {
                io::ErrorKind::AddrInUse => BindError::InUse { address: address.clone() },
                _ => BindError::Io { address: address.clone(), source },
            };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        let (alive, ended) = mpsc::channel(1);
        let places = Arc::new(Semaphore::new(options.inbound_max));
        Ok(Self {
            shared: Arc::new(Shared {
                options,
                peers: RwLock::default(),
                removed: Mutex::default(),
                seats: Seats::default(),
                notices: Notices::default(),
                places,
                inbound_refused: Counter::default(),
                inbound_foreign: Counter::default(),
                inbound_turned_away: Counter::default(),
                unknown_frames: Counter::default(),
                dropped_unknown_peer: Counter::default(),
                stopped: AtomicBool::new(false),
            }),
            runtime: Handle::current(),
            addresses,
            listeners: Mutex::new(listeners),
            stop: watch::Sender::new(false),
            alive: Mutex::new(Some(alive)),
            ended: tokio::sync::Mutex::new(ended),
        })
    }

    /// The addresses listened on, in the order of the options, with the ports that were found for port 0.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Begins to accept connections and to deliver what arrives on them. Only the first call has an effect.
    pub fn start(&self, inbound: Arc<dyn Inbound>) {
        for listener in std::mem::take(&mut *self.listeners.lock()) {
            let Some(alive) = self.alive.lock().clone() else { return };
            let (shared, stop) = (Arc::clone(&self.shared), self.stop.subscribe());
            self.runtime.spawn(incoming::listen(alive, shared, listener, Arc::clone(&inbound), stop));
        }
    }

    /// Makes a node a peer, or moves it if it is one. Each address is `host:port`; they are dialed in turn until the node is found at one, and names
    /// are resolved at each dial. This node itself, and one without an address, are ignored.
    ///
    /// A node that was never set and dials this one is answered where it says that it is, for as long as one of its connections stands.
    pub fn set_peer(&self, node: NodeId, addresses: &[impl AsRef<str>]) {
        let Some(alive) = self.alive.lock().clone() else { return };
        if node == self.shared.options.node || addresses.is_empty() {
            return;
        }
        self.shared.removed.lock().remove(&node);
        let addresses = addresses.iter().map(|address| address.as_ref().to_owned()).collect();
        let mut peers = self.shared.peers.write();
        match peers.get(&node) {
            Some(peer) => peer.move_to(addresses, false),
            None => self.shared.add(&alive, &self.runtime, &mut peers, node, addresses, false),
        }
    }

    /// Ends all conversation with a node, drops what waits for it, and refuses it if it dials, until it is set again.
    pub fn remove_peer(&self, node: NodeId) {
        {
            let mut removed = self.shared.removed.lock();
            removed.insert(node);
            if removed.len() > REMOVED_MAX {
                removed.pop_first();
            }
        }
        if let Some(peer) = self.shared.peers.write().remove(&node) {
            peer.leave();
        }
        self.shared.seats.vacate(node);
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        let shared = &self.shared;
        let peers: Vec<PeerStats> = shared.peers.read().values().map(|peer| peer.stats()).collect();
        TransportStats {
            peers,
            inbound_connections: shared.options.inbound_max.saturating_sub(shared.places.available_permits()),
            inbound_refused: shared.inbound_refused.value(),
            inbound_foreign: shared.inbound_foreign.value(),
            inbound_turned_away: shared.inbound_turned_away.value(),
            unknown_frames: shared.unknown_frames.value(),
            dropped_unknown_peer: shared.dropped_unknown_peer.value(),
        }
    }

    /// Closes every connection and returns when all tasks have ended: nothing is delivered afterwards. What waits to be
    /// sent is dropped.
    pub async fn shutdown(&self) {
        self.halt();
        let mut ended = self.ended.lock().await;
        while ended.recv().await.is_some() {}
    }

    fn halt(&self) {
        *self.alive.lock() = None;
        // Whoever adds a peer holds the lock that is taken below, so it sees this or is undone there.
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.stop.send_replace(true);
        self.listeners.lock().clear();
        for peer in std::mem::take(&mut *self.shared.peers.write()).values() {
            peer.leave();
        }
    }
}

impl Drop for TcpTransport {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Transport for TcpTransport {
    fn send(&self, to: NodeId, packets: &mut Vec<Packet>) {
        if packets.is_empty() {
            return;
        }
        match self.shared.peers.read().get(&to) {
            Some(peer) => peer.send(packets),
            None => {
                self.shared.dropped_unknown_peer.add(packets.len() as u64);
                packets.clear();
            }
        }
    }
}
