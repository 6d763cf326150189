//! One heartbeat between two nodes, whatever the number of groups they share, and what cores are told of it.
//!
//! # Invariants
//! 1. Every [`HostConfig::alive_every`](super::HostConfig::alive_every) a node says that it lives to each node that it shares a group with, unless its log
//!    has not answered for [`HostConfig::alive_for`](super::HostConfig::alive_for): groups that sleep would take its word for a replica that cannot act.
//! 2. A node counts as alive for `alive_for` from when it was last heard. That it returns, lives another life or falls silent is told at once to the
//!    groups that are led here or there, and to the others before they are stepped next: nobody else sleeps by it.
//! 3. Before a group is stepped it is told what is known, unless what it was told lasts for another half of `alive_for`; of its leader's node
//!    first, since a follower that is asked about anything looks at that.
//! 4. A heartbeat that tells nothing costs the same for ten thousand groups as for one.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use conclave_consensus::{Epoch, GroupId, Input, Mark, NodeId, StepError, Time};
use conclave_transport::Packet;

use super::{Group, Host};
use crate::HostEffect;

/// The nodes that this one shares groups with.
#[derive(Debug)]
pub(super) struct Nodes {
    every: Option<Duration>,
    lasts: Duration,
    /// When this node speaks next.
    due: Time,
    nodes: BTreeMap<NodeId, Node>,
    /// Groups whose log has something to make durable, since when it did not answer, and the last it was asked for.
    writing: BTreeMap<GroupId, (Time, Mark)>,
}

#[derive(Debug, Default)]
struct Node {
    groups: BTreeSet<GroupId>,
    heard: Option<Heard>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    epoch: Epoch,
    until: Time,
    /// Whether the groups know it as alive.
    lives: bool,
}

impl Nodes {
    pub(super) fn new(every: Option<Duration>, lasts: Duration) -> Self {
        Self { every, lasts, due: Time(0), nodes: BTreeMap::new(), writing: BTreeMap::new() }
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.every?;
        let lapse = self.nodes.values().filter_map(|node| node.heard.filter(|heard| heard.lives));
        let speak = (!self.nodes.is_empty()).then_some(self.due);
        lapse.map(|heard| heard.until).chain(speak).min()
    }

    /// The group's members live on these nodes, and did on those.
    pub(super) fn share(&mut self, group: GroupId, before: &BTreeSet<NodeId>, after: &BTreeSet<NodeId>) {
        for gone in before.difference(after) {
            if let Some(node) = self.nodes.get_mut(gone) {
                node.groups.remove(&group);
                if node.groups.is_empty() {
                    self.nodes.remove(gone);
                }
            }
        }
        for added in after.difference(before) {
            self.nodes.entry(*added).or_default().groups.insert(group);
        }
    }

    /// The log is asked for a sync. Noted only where it decides whether this node speaks.
    pub(super) fn writes(&mut self, now: Time, group: GroupId, mark: Mark) {
        if self.every.is_none() {
            return;
        }
        self.writing.entry(group).or_insert((now, mark)).1 = mark;
    }

    pub(super) fn wrote(&mut self, now: Time, group: GroupId, mark: Mark) {
        match self.writing.get_mut(&group) {
            Some((_, last)) if *last == mark => drop(self.writing.remove(&group)),
            Some((since, _)) => *since = now,
            None => {}
        }
    }

    /// Tells a core what is known of its nodes, if it may know less.
    pub(super) fn refresh(&self, now: Time, group: GroupId, g: &mut Group, effects: &mut Vec<HostEffect>) {
        if self.every.is_none() || now < g.refresh_at {
            return;
        }
        // Of those that fell silent once: what is said again sounds like news.
        let all = g.refresh_at == Time(0);
        let leaders = g.leader.and_then(|leader| g.addresses.of(leader));
        let others = g.nodes.iter().copied().filter(|node| Some(*node) != leaders);
        let half = self.lasts / 2;
        g.refresh_at = Time(u64::MAX);
        for node in leaders.filter(|node| g.nodes.contains(node)).into_iter().chain(others) {
            let Some(Heard { epoch, until, .. }) = self.nodes.get(&node).and_then(|node| node.heard) else {
                continue;
            };
            if now < until {
                let lasting = until.since(now).saturating_sub(half);
                g.refresh_at = g.refresh_at.min(now.after(lasting)).max(Time(1));
            } else if !all {
                continue;
            }
            let told = g.core.step(now, Input::Peer { node, epoch, alive_until: until });
            if let Err(StepError::Broken(why)) = told {
                effects.push(HostEffect::Halt { group, why });
            }
        }
    }

    fn disk_stalls(&self, now: Time) -> bool {
        self.writing.values().any(|(since, _)| now.since(*since) >= self.lasts)
    }
}

impl Host {
    /// A node says that it lives.
    pub(super) fn alive(&mut self, from: NodeId, epoch: Epoch) {
        let now = self.now;
        if self.nodes.every.is_none() {
            return;
        }
        let until = now.after(self.nodes.lasts);
        let Some(node) = self.nodes.nodes.get_mut(&from) else { return };
        if node.heard.is_some_and(|heard| epoch < heard.epoch) {
            return; // Of an earlier life, late.
        }
        let known = node.heard.is_some_and(|heard| heard.epoch == epoch && heard.lives && now < heard.until);
        node.heard = Some(Heard { epoch, until, lives: true });
        if !known {
            self.tell_of(from);
        }
    }

    /// Says that this node lives, if it is time, and looks who fell silent.
    pub(super) fn tick_nodes(&mut self) {
        let now = self.now;
        let Some(every) = self.nodes.every else { return };
        let mut silent = Vec::new();
        for (id, node) in &mut self.nodes.nodes {
            if let Some(heard) = node.heard.as_mut().filter(|heard| heard.lives && heard.until <= now) {
                heard.lives = false;
                silent.push(*id);
            }
        }
        for node in silent {
            self.tell_of(node);
        }
        if self.nodes.due <= now {
            self.nodes.due = now.after(every);
            if !self.nodes.disk_stalls(now) {
                let epoch = self.config.epoch;
                let to = self.nodes.nodes.keys();
                self.effects
                    .extend(to.map(|to| HostEffect::Send { to: *to, packet: Packet::Alive { epoch } }));
            }
        }
    }

    fn tell_of(&mut self, node: NodeId) {
        let Some(groups) = self.nodes.nodes.get(&node).map(|node| node.groups.clone()) else { return };
        for group in groups {
            let Some(g) = self.groups.get_mut(group) else { continue };
            g.refresh_at = Time(0);
            let concerns = g
                .leader
                .is_some_and(|leader| leader == g.core.replica() || g.addresses.of(leader) == Some(node));
            if concerns {
                self.touched.add(group, g);
                self.nodes.refresh(self.now, group, g, &mut self.effects);
            }
        }
    }

    /// The group's membership in force has changed.
    pub(super) fn share_nodes(&mut self, group: GroupId) {
        let this = self.config.node;
        let Some(g) = self.groups.get_mut(group) else { return };
        let after: BTreeSet<NodeId> = g.addresses.nodes().filter(|node| *node != this).collect();
        self.nodes.share(group, &g.nodes, &after);
        g.nodes = after;
        g.refresh_at = Time(0);
    }
}
