//! A TCP proxy before each node's peer port, so that single links can be cut without privileges.
//!
//! A node dials the address its peers advertise, which is the proxy's. The first bytes of a connection tell who dials, so the proxy knows
//! which link a connection belongs to and can end it, or swallow what comes, while the link is cut.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A direction of a link: the dialing node's id and the index of the node dialed.
type Link = (u64, usize);

/// Proxies of a cluster.
#[derive(Debug)]
pub struct Proxies {
    ports: Vec<u16>,
    cut: Arc<watch::Sender<BTreeSet<Link>>>,
    seen: Arc<Mutex<BTreeSet<u64>>>,
}

/// The dialing node's id, where the handshake carries it.
#[derive(Clone, PartialEq, Message)]
struct Hello {
    #[prost(fixed64, tag = "4")]
    from: u64,
}

const PREFIX_BYTES: usize = 16;
const HELLO_BYTES_MAX: usize = 1024;

impl Proxies {
    /// Stands before the given peer ports.
    ///
    /// # Errors
    /// When no socket can be bound.
    pub async fn start(targets: &[u16]) -> Result<Self> {
        let cut = Arc::new(watch::Sender::new(BTreeSet::new()));
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let mut ports = Vec::new();
        for (index, target) in targets.iter().copied().enumerate() {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            ports.push(listener.local_addr()?.port());
            let (cut, seen) = (Arc::clone(&cut), Arc::clone(&seen));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let cut = cut.subscribe();
                    let seen = Arc::clone(&seen);
                    // A connection that fails is what a network does.
                    tokio::spawn(async move { drop(carry(stream, index, target, cut, &seen).await) });
                }
            });
        }
        Ok(Self { ports, cut, seen })
    }

    /// The ports that the nodes are to advertise.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// The ids of the nodes that have dialed.
    #[must_use]
    pub fn dialed(&self) -> Vec<u64> {
        self.seen.lock().iter().copied().collect()
    }

    /// Cuts the link from the node with an id to the node with an index.
    pub fn cut(&self, from: u64, to: usize) {
        self.cut.send_if_modified(|cut| cut.insert((from, to)));
    }

    /// Heals all links.
    pub fn heal(&self) {
        self.cut.send_modify(BTreeSet::clear);
    }
}

async fn carry(
    mut from: TcpStream,
    index: usize,
    target: u16,
    mut cut: watch::Receiver<BTreeSet<Link>>,
    seen: &Mutex<BTreeSet<u64>>,
) -> Result<()> {
    let mut word = vec![0; PREFIX_BYTES];
    from.read_exact(&mut word).await?;
    let (_, length) = word.split_last_chunk::<4>().context("a prefix")?;
    let length = u32::from_le_bytes(*length) as usize;
    anyhow::ensure!(length <= HELLO_BYTES_MAX, "not a hello");
    word.resize(PREFIX_BYTES + length, 0);
    from.read_exact(&mut word[PREFIX_BYTES..]).await?;
    let node = Hello::decode(&word[PREFIX_BYTES..])?.from;
    seen.lock().insert(node);
    let link = (node, index);
    if cut.borrow_and_update().contains(&link) {
        // As a cut cable: no answer, and no refusal either.
        tokio::time::sleep(Duration::from_millis(300)).await;
        return Ok(());
    }
    let mut to = TcpStream::connect(("127.0.0.1", target)).await?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    to.write_all(&word).await?;
    tokio::select! {
        ended = tokio::io::copy_bidirectional(&mut from, &mut to) => { ended?; }
        _ = cut.wait_for(|cut| cut.contains(&link)) => {}
    }
    Ok(())
}
