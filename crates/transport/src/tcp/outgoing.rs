//! A peer as one sends to it: per lane a queue and the task that empties it into a connection.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Buf;
use conclave_consensus::NodeId;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tracing::{debug, error, info, warn};

use super::{Alive, Shared, TcpOptions};
use crate::{
    Failure, Lane, LaneStats, Packet, PeerStats, QueueBounds, Stream,
    codec::Encoder,
    handshake::{self, Agreed},
    queue::Queue,
    stats::LaneCounters,
};

/// About how much is encoded for one write.
const BATCH_BYTES: usize = 256 << 10;

/// A node that is sent to.
#[derive(Debug)]
pub(super) struct Peer {
    node: NodeId,
    /// Where it is, at one of these; `None` once it is no peer any more, which ends its tasks.
    addresses: watch::Sender<Option<Addresses>>,
    /// Whether it is known by what it said itself alone.
    introduced: AtomicBool,
    links: [Link; 2],
}

/// Where a node may be reached, each `host:port`, in the order in which they are tried.
pub(super) type Addresses = Arc<[String]>;

/// One lane to a peer.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) counters: LaneCounters,
    waiting: Mutex<Waiting>,
    wake: Notify,
    /// The peer was heard of: a pause between dials ends.
    contact: Notify,
    condition: Mutex<Condition>,
}

#[derive(Debug)]
struct Waiting {
    queue: Queue,
    /// Whether the task waits to be woken. Only then does a sender pay for waking it.
    asleep: bool,
}

#[derive(Debug, Default)]
struct Condition {
    connected_since: Option<SystemTime>,
    last_failure: Option<Failure>,
    /// The failure that the log was last told, until the next success.
    told: Option<String>,
}

impl Peer {
    pub(super) fn new(node: NodeId, addresses: Addresses, introduced: bool, options: &TcpOptions) -> Self {
        Self {
            node,
            addresses: watch::Sender::new(Some(addresses)),
            introduced: AtomicBool::new(introduced),
            links: [Link::new(options.consensus_queue), Link::new(options.bulk_queue)],
        }
    }

    pub(super) fn move_to(&self, addresses: Addresses, introduced: bool) {
        self.introduced.store(introduced, Ordering::Relaxed);
        self.addresses.send_if_modified(|present| {
            let moves = present.as_ref() != Some(&addresses);
            if moves {
                *present = Some(addresses);
            }
            moves
        });
    }

    pub(super) fn is_introduced(&self) -> bool {
        self.introduced.load(Ordering::Relaxed)
    }

    pub(super) fn leave(&self) {
        self.addresses.send_replace(None);
    }

    pub(super) fn link(&self, lane: Lane) -> &Link {
        &self.links[lane as usize]
    }

    /// The peer dialed us, so it can probably be dialed.
    pub(super) fn heard_of(&self) {
        for link in &self.links {
            if link.condition.lock().connected_since.is_none() {
                link.contact.notify_one();
            }
        }
    }

    pub(super) fn send(&self, packets: &mut Vec<Packet>) {
        let [consensus, bulk] = &self.links;
        let (mut consensus_waiting, mut bulk_waiting) = (None, None);
        for packet in packets.drain(..) {
            let (link, waiting) = match packet.lane() {
                Lane::Consensus => (consensus, &mut consensus_waiting),
                Lane::Bulk => (bulk, &mut bulk_waiting),
            };
            waiting.get_or_insert_with(|| link.waiting.lock()).queue.push(packet, &link.counters);
        }
        for (link, waiting) in [(consensus, consensus_waiting), (bulk, bulk_waiting)] {
            if let Some(mut waiting) = waiting
                && std::mem::take(&mut waiting.asleep)
            {
                drop(waiting);
                link.wake.notify_one();
            }
        }
    }

    pub(super) fn stats(&self) -> PeerStats {
        let [consensus, bulk] = self.links.each_ref().map(Link::stats);
        let address = self.addresses.borrow().as_deref().unwrap_or_default().join(",");
        PeerStats { node: self.node, address, consensus, bulk }
    }
}

impl Link {
    fn new(bounds: QueueBounds) -> Self {
        Self {
            counters: LaneCounters::default(),
            waiting: Mutex::new(Waiting { queue: Queue::new(bounds), asleep: false }),
            wake: Notify::new(),
            contact: Notify::new(),
            condition: Mutex::default(),
        }
    }

    /// Takes the next batch, or leaves it empty and asks to be woken.
    fn take(&self, batch: &mut Vec<Packet>) {
        let mut waiting = self.waiting.lock();
        waiting.queue.take(BATCH_BYTES, batch);
        waiting.asleep = batch.is_empty();
    }

    fn drop_stale(&self) {
        let mut waiting = self.waiting.lock();
        waiting.asleep = false;
        self.counters.dropped_stale.add(waiting.queue.clear() as u64);
    }

    fn stats(&self) -> LaneStats {
        let mut stats = self.counters.stats();
        {
            let waiting = self.waiting.lock();
            (stats.queued_packets, stats.queued_bytes) = (waiting.queue.packets(), waiting.queue.bytes());
        }
        let condition = self.condition.lock();
        stats.connected_since = condition.connected_since;
        stats.last_failure.clone_from(&condition.last_failure);
        stats
    }

    fn connected(&self, node: NodeId, lane: Lane, address: &str) {
        self.counters.connects.add(1);
        let mut condition = self.condition.lock();
        condition.connected_since = Some(SystemTime::now());
        condition.told = None;
        info!(peer = %format_args!("{:x}", node.0), %lane, address, "connected to peer");
    }

    /// Keeps the reason, and tells the log once until it changes or the peer is reached again.
    fn failed(&self, node: NodeId, lane: Lane, address: &str, why: String) {
        self.counters.failures.add(1);
        let mut condition = self.condition.lock();
        condition.connected_since = None;
        let peer = format_args!("{:x}", node.0).to_string();
        if condition.told.as_ref() == Some(&why) {
            debug!(peer, %lane, address, why, "still no connection to peer");
        } else {
            warn!(peer, %lane, address, why, "no connection to peer");
            condition.told = Some(why.clone());
        }
        condition.last_failure = Some(Failure { at: SystemTime::now(), why });
    }
}

/// Keeps a lane to a peer connected and written to, until the peer is no peer any more.
pub(super) async fn run(_alive: Alive, shared: Arc<Shared>, peer: Arc<Peer>, lane: Lane) {
    let (link, options) = (peer.link(lane), &shared.options);
    let mut addresses = peer.addresses.subscribe();
    let mut backoff = Backoff::new(options.backoff_min, options.backoff_max);
    // Which of the addresses is tried first: the one where the peer was found last.
    let mut first = 0;
    loop {
        let Some(targets) = addresses.borrow_and_update().clone() else { break };
        let dialed = tokio::select! {
            biased;
            _ = addresses.changed() => {
                backoff.reset();
                continue;
            }
            dialed = dial_in_turn(options, peer.node, lane, &targets, first) => dialed,
        };
        let (target, why) = match dialed {
            Ok((at, stream, agreed)) => {
                first = at;
                let target = &targets[at];
                link.connected(peer.node, lane, target);
                let since = Instant::now();
                let why = tokio::select! {
                    biased;
                    _ = addresses.changed() => None,
                    why = write(&shared, &peer, lane, stream, agreed) => Some(why),
                };
                link.condition.lock().connected_since = None;
                let Some(why) = why else {
                    backoff.reset();
                    continue;
                };
                if since.elapsed() >= options.backoff_max {
                    backoff.reset();
                    link.failed(peer.node, lane, target, why);
                    continue;
                }
                (target.clone(), why)
            }
            Err(why) => {
                link.drop_stale();
                (targets.join(","), why)
            }
        };
        link.failed(peer.node, lane, &target, why);
        tokio::select! {
            () = sleep(backoff.next()) => {}
            () = link.contact.notified() => backoff.reset(),
            _ = addresses.changed() => backoff.reset(),
        }
    }
    link.drop_stale();
}

/// Dials the addresses one after the other, from the one at `first` on, until the peer is found at one; says at which.
async fn dial_in_turn(
    options: &TcpOptions,
    node: NodeId,
    lane: Lane,
    addresses: &[String],
    first: usize,
) -> Result<(usize, Box<dyn Stream>, Agreed), String> {
    let mut failures = Vec::new();
    for nth in 0..addresses.len() {
        let at = (first + nth) % addresses.len();
        match dial(options, node, lane, &addresses[at]).await {
            Ok((stream, agreed)) => return Ok((at, stream, agreed)),
            Err(why) => failures.push(why),
        }
    }
    Err(failures.join("; "))
}

async fn dial(
    options: &TcpOptions,
    node: NodeId,
    lane: Lane,
    address: &str,
) -> Result<(Box<dyn Stream>, Agreed), String> {
    let mut stream = match timeout(options.dial_timeout, options.connector.dial(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("cannot connect to {address}: {error}")),
        Err(_) => return Err(format!("cannot connect to {address} within {:?}", options.dial_timeout)),
    };
    let identity = options.identity();
    let introduced = handshake::introduce(&mut *stream, &identity, node, lane, &options.doorkeeper);
    match timeout(options.handshake_timeout, introduced).await {
        Ok(Ok(agreed)) => {
            let frame_bytes_max = agreed.frame_bytes_max.min(options.frame_bytes_max);
            Ok((stream, Agreed { frame_bytes_max, ..agreed }))
        }
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address} accepts connections but does not answer the handshake")),
    }
}

/// Writes what is queued until the connection fails, and says why it did.
async fn write(
    shared: &Shared,
    peer: &Peer,
    lane: Lane,
    mut stream: Box<dyn Stream>,
    agreed: Agreed,
) -> String {
    let link = peer.link(lane);
    let counters = &link.counters;
    let (mut encoder, mut batch) = (Encoder::speaking(agreed.version), Vec::new());
    loop {
        link.take(&mut batch);
        if batch.is_empty() {
            // The peer never writes here: reading tells at once when it closes.
            let mut byte = [0];
            tokio::select! {
                biased;
                () = link.wake.notified() => continue,
                read = stream.read(&mut byte) => return match read {
                    Ok(0) => "the peer closed the connection".to_owned(),
                    Ok(_) => "the peer wrote where it must not".to_owned(),
                    Err(error) => format!("connection lost: {error}"),
                },
            }
        }
        let mut count = 0;
        for packet in batch.drain(..) {
            match encoder.push(&packet, agreed.frame_bytes_max) {
                Ok(()) => count += 1,
                Err(too_long) => {
                    counters.dropped_too_long.add(1);
                    if let Some(left_out) = shared.notices.admit("too long") {
                        error!(peer = %format_args!("{:x}", peer.node.0), left_out, "dropped: {too_long}");
                    }
                }
            }
        }
        let bytes = encoder.remaining() as u64;
        let written = async {
            stream.write_all_buf(&mut encoder).await?;
            stream.flush().await
        };
        let failure = match timeout(shared.options.write_timeout, written).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("connection lost: {error}")),
            Err(_) => Some(format!("the peer took nothing for {:?}", shared.options.write_timeout)),
        };
        counters.writes.add(1);
        counters.sent_bytes.add(bytes - encoder.remaining() as u64);
        match failure {
            None => counters.sent_packets.add(count),
            Some(why) => {
                counters.dropped_stale.add(count);
                return why;
            }
        }
        encoder.clear();
    }
}

/// Pauses between dials: each twice the one before, give or take a quarter, within bounds.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: u64,
}

impl Backoff {
    fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min, random: RandomState::new().build_hasher().finish() | 1 }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    fn next(&mut self) -> Duration {
        // Xorshift: nodes that lost each other together must not dial together, no more is asked of it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let part = (self.random % 512) as f64 / 1024.0;
        let pause = self.next.mul_f64(0.75 + part).clamp(self.min, self.max);
        self.next = (self.next * 2).min(self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds_and_start_over() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(1));
        let mut backoff = Backoff::new(min, max);
        let pauses: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses.iter().all(|pause| (min..=max).contains(pause)));
        assert!(pauses[0] < Duration::from_millis(63) && pauses[19] >= Duration::from_millis(750));
        backoff.reset();
        assert!(backoff.next() < Duration::from_millis(63));
    }
}
