//! The nodes that the group knows, and where the others reach each of them.
//!
//! They are no keys: they have no revision and are in no hash. All replicas hold the same ones, and checkpoints and snapshots carry them,
//! so that a node that was away, or that is new, learns from the state whom to call.

use std::{collections::BTreeMap, fmt};

use conclave_api::conclave::kv::v1::{RegisterNode, RegisteredNode};
use conclave_storage::StateError;

use crate::{command::KvError, layout::damaged};

/// The most nodes that a group knows.
pub const NODES_MAX: usize = 64;
/// The most peer URLs of a node.
pub const PEER_URLS_MAX: usize = 16;
/// The longest peer URL, in bytes.
pub const PEER_URL_BYTES_MAX: usize = 1024;

/// Is told of changes, on the apply thread, once readers see them. It must not wait; it may read.
pub trait StoreObserver: Send + Sync + fmt::Debug {
    /// The registered nodes changed, by commands, those replayed at the start included, or by a snapshot. Several changes may be told
    /// at once.
    fn nodes_changed(&self);
}

/// The registered nodes.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    nodes: BTreeMap<u64, RegisteredNode>,
    /// Counts the changes since the store was opened.
    pub(crate) version: u64,
}

impl Registry {
    /// Reads what a checkpoint's record says.
    pub(crate) fn load(nodes: Vec<RegisteredNode>) -> Result<Self, StateError> {
        if nodes.len() > NODES_MAX || !nodes.is_sorted_by(|a, b| a.id < b.id) {
            return Err(damaged("the registered nodes are too many or out of order"));
        }
        if !nodes.iter().all(|node| are_bounded(&node.peer_urls)) {
            return Err(damaged("a registered node with too many or too long URLs"));
        }
        let nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
        Ok(Self { nodes, version: 0 })
    }

    /// Notes a node, or replaces what is known of it.
    pub(crate) fn register(
        &mut self,
        RegisterNode { id, peer_urls, votes }: RegisterNode,
    ) -> Result<(), KvError> {
        if !are_bounded(&peer_urls) {
            return Err(KvError::NodeTooLarge);
        }
        let node = RegisteredNode { id, peer_urls, votes };
        match self.nodes.get(&id) {
            Some(known) if *known == node => return Ok(()),
            None if self.nodes.len() == NODES_MAX => return Err(KvError::TooManyNodes),
            Some(_) | None => self.nodes.insert(id, node),
        };
        self.version += 1;
        Ok(())
    }

    /// Forgets a node, if it is known.
    pub(crate) fn unregister(&mut self, id: u64) {
        if self.nodes.remove(&id).is_some() {
            self.version += 1;
        }
    }

    /// Goes on counting where the registry that this one replaces left off.
    pub(crate) fn succeed(&mut self, old: &Self) {
        self.version = old.version + u64::from(self.nodes != old.nodes);
    }

    /// The nodes by id.
    pub(crate) fn nodes(&self) -> Vec<RegisteredNode> {
        self.nodes.values().cloned().collect()
    }
}

fn are_bounded(peer_urls: &[String]) -> bool {
    peer_urls.len() <= PEER_URLS_MAX && peer_urls.iter().all(|url| url.len() <= PEER_URL_BYTES_MAX)
}
