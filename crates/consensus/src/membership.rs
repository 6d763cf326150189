//! Who is in a group, and which sets of replicas decide.
//!
//! Quorums have names. An *elect* quorum grants leadership (Raft: votes; Paxos: promises); a *commit* quorum
//! makes an entry chosen. Safety needs every elect quorum to meet every commit quorum. With majorities both
//! are the same; in a joint configuration (Ongaro's thesis, section 4.3) either needs a majority of both sets.
//! A read barrier needs a set that meets every elect quorum.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{NodeId, ReplicaId, Slot, Time};

/// How many members a configuration may have, learners included.
pub const MEMBERS_MAX: usize = 64;

/// A group's membership at one point of its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The voters in force; in a joint configuration the incoming set.
    pub voters: BTreeSet<ReplicaId>,
    /// The outgoing voters of a joint configuration; empty otherwise.
    pub outgoing: BTreeSet<ReplicaId>,
    /// Replicas that receive entries and never vote.
    pub learners: BTreeSet<ReplicaId>,
    /// On which node each replica lives.
    pub nodes: BTreeMap<ReplicaId, NodeId>,
    /// The next replica id to allot: ids are never reused.
    pub next_replica: ReplicaId,
}

/// Why bytes are not a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The bytes end early or go on too long.
    #[error("configuration record is truncated or has trailing bytes")]
    Length,
    /// The record was written by a version this one does not know.
    #[error("configuration record has unknown version {0}")]
    Version(u8),
    /// More than [`MEMBERS_MAX`] members.
    #[error("configuration has {0} members, more than {MEMBERS_MAX}")]
    TooManyMembers(usize),
    /// A node without a member, a member that both votes and learns, or replica ids out of order or never allotted.
    #[error("configuration names members and nodes that do not match")]
    Inconsistent,
}

impl Config {
    /// A simple configuration of voters, each on its node.
    #[must_use]
    pub fn of_voters(members: impl IntoIterator<Item = (ReplicaId, NodeId)>) -> Self {
        let nodes: BTreeMap<_, _> = members.into_iter().collect();
        let next_replica = ReplicaId(nodes.keys().next_back().map_or(1, |last| last.0 + 1));
        Self { voters: nodes.keys().copied().collect(), nodes, next_replica, ..Self::default() }
    }

    /// Whether two majorities are needed.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether the replica has a vote in either set.
    #[must_use]
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.outgoing.contains(&replica)
    }

    /// Every replica, voters of both sets and learners, in order and once each.
    pub fn members(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.nodes.keys().copied()
    }

    /// Whether the replicas for which `has` holds may grant leadership.
    #[must_use]
    pub fn is_elect_quorum(&self, has: impl Fn(ReplicaId) -> bool) -> bool {
        #[cfg(feature = "mutants")]
        if crate::Mutant::NonVotersCounted.is_on() {
            return self.members().filter(|replica| has(*replica)).count() > self.voters.len() / 2;
        }
        is_majority(&self.voters, &has) && (!self.is_joint() || is_majority(&self.outgoing, &has))
    }

    /// Whether the replicas for which `has` holds choose an entry.
    #[must_use]
    pub fn is_commit_quorum(&self, has: impl Fn(ReplicaId) -> bool) -> bool {
        self.is_elect_quorum(has)
    }

    /// Whether the replicas for which `has` holds meet every elect quorum, so that no leader can have been elected
    /// without one of them: what a read barrier or a lease needs.
    #[must_use]
    pub fn meets_every_elect_quorum(&self, has: impl Fn(ReplicaId) -> bool) -> bool {
        self.is_elect_quorum(has)
    }

    /// The highest value that a commit quorum has reached, given each replica's. `None` without voters.
    #[must_use]
    pub fn committed(&self, at: impl Fn(ReplicaId) -> Slot) -> Option<Slot> {
        self.reached(at)
    }

    /// The latest time, given one for each replica that has any, at or after which replicas that meet every elect quorum have theirs.
    /// `None` without such replicas.
    #[must_use]
    pub fn heard_since(&self, at: impl Fn(ReplicaId) -> Option<Time>) -> Option<Time> {
        self.reached(at).flatten()
    }

    fn reached<T: Copy + Default + Ord>(&self, at: impl Fn(ReplicaId) -> T) -> Option<T> {
        let of = |voters: &BTreeSet<ReplicaId>| {
            let mut values = [T::default(); MEMBERS_MAX];
            let values = &mut values[..voters.len().min(MEMBERS_MAX)];
            for (place, replica) in values.iter_mut().zip(voters) {
                *place = at(*replica);
            }
            values.sort_unstable();
            // In ascending order, the last `majority` entries are at least the one where they begin.
            (!values.is_empty()).then(|| values[values.len() - (values.len() / 2 + 1)])
        };
        let incoming = of(&self.voters)?;
        if self.is_joint() { Some(incoming.min(of(&self.outgoing)?)) } else { Some(incoming) }
    }

    /// The record that goes into logs and snapshots. A member without a node is not in it.
    ///
    /// # Panics
    /// With more than 255 members; no configuration has more than [`MEMBERS_MAX`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(2 + self.nodes.len() * 17 + 8);
        out.put_u8(1);
        out.put_u64(self.next_replica.0);
        out.put_u8(u8::try_from(self.nodes.len()).expect("at most MEMBERS_MAX members"));
        for (replica, node) in &self.nodes {
            out.put_u64(replica.0);
            out.put_u64(node.0);
            let sets = [&self.voters, &self.outgoing, &self.learners];
            out.put_u8(
                sets.iter().enumerate().map(|(bit, set)| u8::from(set.contains(replica)) << bit).sum(),
            );
        }
        out.freeze()
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// Any byte string that `encode` cannot have written.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() < 10 {
            return Err(ConfigError::Length);
        }
        let version = bytes.get_u8();
        if version != 1 {
            return Err(ConfigError::Version(version));
        }
        let mut config = Self { next_replica: ReplicaId(bytes.get_u64()), ..Self::default() };
        let count = usize::from(bytes.get_u8());
        if count > MEMBERS_MAX {
            return Err(ConfigError::TooManyMembers(count));
        }
        if bytes.len() != count * 17 {
            return Err(ConfigError::Length);
        }
        for _ in 0..count {
            let (replica, node, sets) = (ReplicaId(bytes.get_u64()), NodeId(bytes.get_u64()), bytes.get_u8());
            // A member votes now or learns, not both; an outgoing voter may be either.
            let contradicts = sets == 0 || sets > 7 || sets & 5 == 5;
            let ascends = config.nodes.last_key_value().is_none_or(|(last, _)| *last < replica);
            if contradicts || !ascends || replica >= config.next_replica || replica.0 == 0 {
                return Err(ConfigError::Inconsistent);
            }
            config.nodes.insert(replica, node);
            let members = [&mut config.voters, &mut config.outgoing, &mut config.learners];
            for (bit, set) in members.into_iter().enumerate() {
                if sets >> bit & 1 == 1 {
                    set.insert(replica);
                }
            }
        }
        Ok(config)
    }
}

fn is_majority(set: &BTreeSet<ReplicaId>, has: &impl Fn(ReplicaId) -> bool) -> bool {
    !set.is_empty() && set.iter().filter(|replica| has(**replica)).count() > set.len() / 2
}
