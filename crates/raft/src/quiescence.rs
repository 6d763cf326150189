//! Quiescence: a group in which nothing happens sends nothing and wants no tick. Opt-in, `RaftConfig::quiesce`.
//!
//! A process may host thousands of groups, most of them idle. Their beats say one thing over and over: this *node* lives. So the host
//! says it once for all of them, between each two nodes ([`Input::Peer`](conclave_consensus::Input::Peer)), and an idle group goes to sleep on
//! the strength of it.
//!
//! # When a group is idle
//! Its leader serves; the configuration is committed and simple, and nobody is on the way out; the whole log is committed and durable here; no
//! read waits and no leadership is handed over; and every member whose node lives holds the whole log, was told that all of it is committed, and
//! is no better leader. After [`IDLE_BEATS`] beats in a row that found it so, the beats ask the followers to sleep.
//!
//! # Invariants
//! 1. A follower sleeps only when its leader asked it to, its log is the leader's and committed to the end, and the leader's node lives. It says so
//!    in its answer.
//! 2. A leader sleeps only when every member whose node lives has said so in answer to one and the same round, and those are, with itself, a
//!    quorum.
//! 3. Asleep, a node that lives stands for the messages of its replica: a follower hears its leader, so it ignores candidates; a leader hears a
//!    quorum. Asleep, [`next_deadline`](conclave_consensus::Consensus::next_deadline) is `None` but for questions of reads.
//! 4. A follower wakes when its leader's node no longer counts as alive or lives another life, when its leader says anything but *sleep*,
//!    and when its leader asks it for a vote: then it leads no more. One that wakes because it moves on to another term tells its leader.
//! 5. A leader wakes when those that sleep and live are no quorum with it, when a node lives another life or comes back to life, when there is
//!    anything to do, and at any message of a replica but the word that it sleeps.
//! 6. Nothing of safety rests on it. A leader that sleeps and was replaced, unknown to it, can commit nothing and serve no read: its lease is
//!    over, and every other read is confirmed by a round, which wakes it.
//!
//! # What the host keeps
//! It says `Peer` when it first hears of a node, when the node's epoch changes, and when `alive_until` has passed without news; a quiescent core is
//! told no sooner than it is stepped, unless a node falls silent that it leads or is led from. Before it steps a sleeping group with anything else it
//! says what it knows of all its nodes, or the core takes the last word for all there is and wakes. A node speaks only while its groups can be stepped: one whose disk or host thread hangs must fall silent.

use std::{collections::BTreeMap, time::Duration};

use conclave_consensus::{Epoch, MEMBERS_MAX, NodeId, ReplicaId, Time};

use crate::{
    core::{Leader, Raft, Role},
    progress::{Mode, Peer},
};

/// How many beats in a row must find the group idle before its replicas are asked to sleep.
const IDLE_BEATS: u32 = 3;

/// Nodes that are remembered, whether or not they have a member; one may be about to get one.
const NODES_MAX: usize = 4 * MEMBERS_MAX;

/// What the host says of the nodes, and whether this replica sleeps by it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quiescence {
    asleep: bool,
    nodes: BTreeMap<NodeId, Word>,
}

/// The host's last word of a node.
#[derive(Clone, Copy, Debug)]
struct Word {
    epoch: Epoch,
    alive_until: Time,
    /// It was that the node fell silent. A word of life that has run out is not: the host may have a newer one, and tells a core that sleeps no
    /// sooner than it steps it.
    silent: bool,
}

/// A leader's way to sleep.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drowsy {
    /// Beats in a row that found the group idle.
    idle_beats: u32,
    /// The round whose answers decide.
    asked: Option<u64>,
}

impl Raft {
    pub(crate) fn is_asleep(&self) -> bool {
        self.quiescence.asleep
    }

    fn node_lives(&self, node: NodeId) -> bool {
        self.quiescence.nodes.get(&node).is_some_and(|word| self.now < word.alive_until)
    }

    /// As far as was told: the last word of the node is not that it fell silent.
    fn node_lived(&self, node: NodeId) -> bool {
        self.quiescence.nodes.get(&node).is_some_and(|word| !word.silent)
    }

    pub(crate) fn lives(&self, replica: ReplicaId) -> bool {
        self.members.config().nodes.get(&replica).is_some_and(|node| self.node_lives(*node))
    }

    /// The host heard of a node, or did not for too long.
    pub(crate) fn on_peer(&mut self, node: NodeId, epoch: Epoch, alive_until: Time) {
        if !self.config.quiesce {
            return;
        }
        let lived = self.node_lived(node);
        let word = Word { epoch, alive_until, silent: alive_until <= self.now };
        let before = self.quiescence.nodes.insert(node, word);
        let reborn = before.is_some_and(|known| known.epoch != epoch);
        let config = self.members.config();
        if self.quiescence.nodes.len() > NODES_MAX {
            self.quiescence.nodes.retain(|known, _| config.nodes.values().any(|member| member == known));
        }
        if !self.is_asleep() {
            return;
        }
        let is_leaders = self.leader.is_some_and(|leader| config.nodes.get(&leader) == Some(&node));
        let concerns = if self.is_leader() { reborn || !lived } else { reborn && is_leaders };
        // Of the others the word may be on its way yet.
        if concerns || !self.may_sleep_by(|node| self.node_lived(node)) {
            self.wake();
        }
    }

    /// Before anything else is judged: whether what this replica sleeps by still holds.
    pub(crate) fn wake_if_alone(&mut self) {
        if self.is_asleep() && !self.may_sleep_by(|node| self.node_lives(node)) {
            self.wake();
        }
    }

    fn may_sleep_by(&self, lives: impl Fn(NodeId) -> bool) -> bool {
        let config = self.members.config();
        let lives = |replica| config.nodes.get(&replica).is_some_and(|node| lives(*node));
        match &self.role {
            Role::Leader(_) => {
                config.meets_every_elect_quorum(|replica| replica == self.id || lives(replica))
            }
            _ => self.leader.is_some_and(lives),
        }
    }

    /// Back to clocks and beats.
    pub(crate) fn wake(&mut self) {
        if !std::mem::take(&mut self.quiescence.asleep) {
            return;
        }
        let (now, election) = (self.now, self.config.timing.election);
        let config = self.members.config();
        let nodes = &self.quiescence.nodes;
        if let Role::Leader(leader) = &mut self.role {
            for (replica, peer) in &mut leader.peers {
                let node = config.nodes.get(replica).and_then(|node| nodes.get(node));
                // Its node's word stood for its own until this moment, or the newer one that is on its way does.
                if node.is_some_and(|word| !word.silent) {
                    peer.heard = now;
                }
            }
            leader.drowsy = Drowsy::default();
            leader.beat_due = now;
        } else {
            // The silence of a dead leader's node has lasted long enough; what is left is not to stand all at once.
            self.election_due =
                now.after(self.random.between(Duration::ZERO, election)).max(self.quiet_until);
        }
    }

    /// The leader asks to sleep; says whether this replica does.
    pub(crate) fn sleep_if_idle(&mut self) -> bool {
        let idle = self.config.quiesce
            && self.committed == self.log.last()
            && self.persisted == self.log.last()
            && self.fetch.is_idle()
            && self.leader.is_some_and(|leader| self.lives(leader));
        self.quiescence.asleep = idle;
        idle
    }

    fn is_idle(&self, leader: &Leader) -> bool {
        let last = self.log.last();
        let rests = |replica: &ReplicaId, peer: &Peer| {
            !self.lives(*replica)
                || (peer.mode == Mode::Replicate
                    && peer.matched == last
                    && peer.told == last
                    && (peer.priority <= self.config.priority
                        || !self.members.config().voters.contains(replica)))
        };
        self.config.quiesce
            && self.is_serving()
            && self.committed == last
            && self.persisted == last
            && self.outbox.waits_since().is_none()
            && self.members.is_settled()
            && !self.members.config().is_joint()
            && leader.leaving.is_empty()
            && leader.transfer.is_none()
            && leader.reads.is_empty()
            && leader.peers.iter().all(|(replica, peer)| rests(replica, peer))
            && self
                .members
                .config()
                .meets_every_elect_quorum(|replica| replica == self.id || self.lives(replica))
    }

    /// At each beat that is due: whether it asks to sleep.
    pub(crate) fn grow_drowsy(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let idle = self.is_idle(leader);
        let Role::Leader(leader) = &mut self.role else { return };
        if !idle {
            leader.drowsy = Drowsy::default();
            return;
        }
        leader.drowsy.idle_beats = leader.drowsy.idle_beats.saturating_add(1);
        if leader.drowsy.idle_beats >= IDLE_BEATS {
            leader.drowsy.asked = Some(leader.reads.begin());
        }
    }

    /// A follower said that it sleeps.
    pub(crate) fn sleep_if_all_do(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let Some(asked) = leader.drowsy.asked else { return };
        let all = leader.peers.iter().all(|(replica, peer)| {
            !self.lives(*replica) || peer.sleeps_since.is_some_and(|round| round >= asked)
        });
        if all && self.is_idle(leader) {
            self.quiescence.asleep = true;
        }
    }
}

impl Drowsy {
    pub(crate) fn asks(&self) -> bool {
        self.asked.is_some()
    }
}
