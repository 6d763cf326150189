//! On which node a replica lives, beyond what the membership in force says.
//!
//! # Invariants
//! 1. A replica's id is allotted once, with its node, so a configuration that was in force tells the truth for ever: who left is still
//!    reached, for as long as a core writes to it.
//! 2. A replica that no configuration has named here is where its first accepted message came from: one that was just added, or whose log
//!    lacks a change, answers whoever speaks to it. From another node the same replica is not heard.
//! 3. Both memories are bounded; the least recently used gives way.

use std::collections::VecDeque;

use conclave_consensus::{Config, MEMBERS_MAX, NodeId, ReplicaId};

/// How many replicas of each kind are remembered.
const REMEMBERED_MAX: usize = MEMBERS_MAX;

/// What one group's host knows of where replicas live.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    in_force: Config,
    /// Members of configurations that were in force before.
    former: VecDeque<(ReplicaId, NodeId)>,
    /// Replicas that spoke and that no configuration has named.
    heard: VecDeque<(ReplicaId, NodeId)>,
}

impl Addresses {
    pub(super) fn new(in_force: Config) -> Self {
        Self { in_force, ..Self::default() }
    }

    /// Another configuration is in force.
    pub(super) fn enter(&mut self, config: Config) {
        let before = std::mem::replace(&mut self.in_force, config);
        for (replica, node) in before.nodes {
            remember(&mut self.former, replica, node);
        }
        let Self { in_force, former, heard } = self;
        former.retain(|(replica, _)| !in_force.nodes.contains_key(replica));
        heard.retain(|(replica, _)| !in_force.nodes.contains_key(replica));
    }

    /// The replica's node.
    pub(super) fn of(&self, replica: ReplicaId) -> Option<NodeId> {
        let known = self.in_force.nodes.get(&replica).copied();
        known.or_else(|| find(&self.former, replica)).or_else(|| find(&self.heard, replica))
    }

    /// Whether a configuration that is or was in force names the replica.
    pub(super) fn names(&self, replica: ReplicaId) -> bool {
        self.in_force.nodes.contains_key(&replica) || find(&self.former, replica).is_some()
    }

    /// The core took a message of the replica, which came from `node`.
    pub(super) fn heard(&mut self, replica: ReplicaId, node: NodeId) {
        if !self.names(replica) {
            remember(&mut self.heard, replica, node);
        }
    }

    /// The nodes of the membership in force.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.in_force.nodes.values().copied()
    }

    /// The replica of the membership in force that lives on the node.
    pub(super) fn member_on(&self, node: NodeId) -> Option<ReplicaId> {
        self.in_force.nodes.iter().find(|(_, at)| **at == node).map(|(replica, _)| *replica)
    }

    /// Whether any replica that is known lives there.
    pub(super) fn has_node(&self, node: NodeId) -> bool {
        let others = self.former.iter().chain(&self.heard).map(|(_, at)| at);
        self.in_force.nodes.values().chain(others).any(|at| *at == node)
    }
}

fn find(list: &VecDeque<(ReplicaId, NodeId)>, replica: ReplicaId) -> Option<NodeId> {
    list.iter().find(|(known, _)| *known == replica).map(|(_, node)| *node)
}

fn remember(list: &mut VecDeque<(ReplicaId, NodeId)>, replica: ReplicaId, node: NodeId) {
    if list.back() == Some(&(replica, node)) {
        return;
    }
    list.retain(|(known, _)| *known != replica);
    if list.len() >= REMEMBERED_MAX {
        list.pop_front();
    }
    list.push_back((replica, node));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(members: impl IntoIterator<Item = u64>) -> Config {
        Config::of_voters(members.into_iter().map(|id| (ReplicaId(id), NodeId(id * 10))))
    }

    #[test]
    fn who_left_is_still_reached() {
        let mut addresses = Addresses::new(config([1, 2, 3]));
        addresses.enter(config([1, 2, 4]));
        assert_eq!(addresses.of(ReplicaId(3)), Some(NodeId(30)));
        assert!(addresses.has_node(NodeId(30)) && addresses.member_on(NodeId(30)).is_none());
        addresses.heard(ReplicaId(3), NodeId(99));
        assert_eq!(addresses.of(ReplicaId(3)), Some(NodeId(30)), "an id is of one node for ever");
    }

    #[test]
    fn strangers_are_remembered_within_a_bound_and_those_that_speak_stay() {
        let mut addresses = Addresses::default();
        addresses.heard(ReplicaId(1), NodeId(10));
        for id in 2..1_000 {
            addresses.heard(ReplicaId(id), NodeId(7));
            addresses.heard(ReplicaId(1), NodeId(10));
        }
        assert_eq!(addresses.heard.len(), REMEMBERED_MAX);
        assert_eq!(addresses.of(ReplicaId(1)), Some(NodeId(10)));
        assert_eq!(addresses.of(ReplicaId(2)), None);
        addresses.enter(config([1]));
        assert!(!addresses.heard.iter().any(|(replica, _)| *replica == ReplicaId(1)), "named once is enough");
    }
}
