//! Who is in a group, and which sets of replicas decide.
//!
//! Quorums have names. An *elect* quorum grants leadership (Raft: votes; Paxos: promises); a *commit* quorum
//! makes an entry chosen. Safety needs every elect quorum to meet every commit quorum. With majorities both
//! are the same; other sizes ([`Quorums`]) trade the one for the other (Howard, Malkhi and Spiegelman, *Flexible Paxos*, 2016). In a joint
//! configuration (Ongaro's thesis, section 4.3) either needs a quorum of both sets. A read barrier needs a set that meets every elect quorum.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{NodeId, ReplicaId, Slot, Time};

/// How many members a configuration may have, learners included.
pub const MEMBERS_MAX: usize = 64;

/// A group has more voters than these only by exception.
const FEW: usize = 8;

/// Sizes of quorums other than majorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quorums {
    /// So many voters grant leadership.
    pub elect: u8,
    /// So many voters choose an entry.
    pub commit: u8,
}

/// Why sizes of quorums cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuorumsError {
    /// Two quorums that do not meet could choose two entries for one slot.
    #[error(
        "{elect} of {voters} voters that elect and {commit} that commit need not meet: together they must be more than {voters}"
    )]
    Apart {
        /// The size of an elect quorum.
        elect: u8,
        /// The size of a commit quorum.
        commit: u8,
        /// How many voters there are.
        voters: usize,
    },
    /// A quorum of nobody, or of more than there are.
    #[error("a quorum of {size} is no quorum of {voters} voters")]
    Size {
        /// The size.
        size: u8,
        /// How many voters there are.
        voters: usize,
    },
}

impl Quorums {
    /// Whether quorums of these sizes meet, among so many voters.
    ///
    /// # Errors
    /// See [`QuorumsError`].
    pub fn check(self, voters: usize) -> Result<(), QuorumsError> {
        for size in [self.elect, self.commit] {
            if size == 0 || usize::from(size) > voters {
                return Err(QuorumsError::Size { size, voters });
            }
        }
        let Self { elect, commit } = self;
        if usize::from(elect) + usize::from(commit) > voters {
            Ok(())
        } else {
            Err(QuorumsError::Apart { elect, commit, voters })
        }
    }
}

/// A set of voters and the sizes of its quorums.
#[derive(Clone, Copy)]
struct Side<'a> {
    voters: &'a BTreeSet<ReplicaId>,
    quorums: Option<Quorums>,
}

impl Side<'_> {
    fn majority(self) -> usize {
        self.voters.len() / 2 + 1
    }

    fn elect(self) -> usize {
        self.quorums.map_or(self.majority(), |sizes| usize::from(sizes.elect))
    }

    fn commit(self) -> usize {
        self.quorums.map_or(self.majority(), |sizes| usize::from(sizes.commit))
    }

    /// So many that no elect quorum is found among the others.
    fn meets_elect(self) -> usize {
        self.quorums
            .map_or(self.majority(), |sizes| (self.voters.len() + 1).saturating_sub(usize::from(sizes.elect)))
    }

    /// The highest value that so many voters have reached, given each one's. `room` is for at least as many as there are.
    fn reached<T: Ord + Copy, const N: usize>(
        self,
        mut room: [T; N],
        at: impl Fn(ReplicaId) -> T,
        size: usize,
    ) -> Option<T> {
        let values = &mut room[..self.voters.len().min(N)];
        for (value, replica) in values.iter_mut().zip(self.voters) {
            *value = at(*replica);
        }
        values.sort_unstable();
        // In ascending order, the last `size` of them are at least the one where they begin.
        values.len().checked_sub(size).and_then(|place| values.get(place).copied())
    }

    fn has(self, size: usize, has: &impl Fn(ReplicaId) -> bool) -> bool {
        size > 0 && self.voters.iter().filter(|replica| has(**replica)).count() >= size
    }
}

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
    /// Counts configurations where an engine's ballots name them (Paxos); zero in Raft.
    pub number: u64,
    /// Sizes of the voters' quorums; `None` for majorities.
    pub quorums: Option<Quorums>,
    /// The same of the outgoing voters.
    pub outgoing_quorums: Option<Quorums>,
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
    /// Quorums that need not meet, or of voters that are not there.
    #[error(transparent)]
    Quorums(#[from] QuorumsError),
}

impl Config {
    /// A simple configuration of voters, each on its node.
    #[must_use]
    pub fn of_voters(members: impl IntoIterator<Item = (ReplicaId, NodeId)>) -> Self {
        let nodes: BTreeMap<_, _> = members.into_iter().collect();
        let next_replica = ReplicaId(nodes.keys().next_back().map_or(1, |last| last.0 + 1));
        Self { voters: nodes.keys().copied().collect(), nodes, next_replica, ..Self::default() }
    }

    /// The same voters with quorums of these sizes; `None` for majorities.
    ///
    /// # Errors
    /// See [`QuorumsError`].
    pub fn with_quorums(mut self, quorums: Option<Quorums>) -> Result<Self, QuorumsError> {
        if let Some(sizes) = quorums {
            sizes.check(self.voters.len())?;
        }
        self.quorums = quorums;
        Ok(self)
    }

    /// The sets of voters that must agree: one, or in a joint configuration two.
    fn sides(&self) -> impl Iterator<Item = Side<'_>> {
        let incoming = Side { voters: &self.voters, quorums: self.quorums };
        let outgoing = Side { voters: &self.outgoing, quorums: self.outgoing_quorums };
        std::iter::once(incoming).chain(self.is_joint().then_some(outgoing))
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
        self.has_voters() && self.sides().all(|side| side.has(side.elect(), &has))
    }

    fn has_voters(&self) -> bool {
        !self.voters.is_empty()
    }

    /// Whether the replicas for which `has` holds choose an entry.
    #[must_use]
    pub fn is_commit_quorum(&self, has: impl Fn(ReplicaId) -> bool) -> bool {
        #[cfg(feature = "mutants")]
        if crate::Mutant::NonVotersCounted.is_on() {
            return self.is_elect_quorum(has);
        }
        self.has_voters() && self.sides().all(|side| side.has(side.commit(), &has))
    }

    /// Whether the replicas for which `has` holds meet every elect quorum, so that no leader can have been elected
    /// without one of them: what a read barrier or a lease needs.
    #[must_use]
    pub fn meets_every_elect_quorum(&self, has: impl Fn(ReplicaId) -> bool) -> bool {
        #[cfg(feature = "mutants")]
        if crate::Mutant::NonVotersCounted.is_on() {
            return self.is_elect_quorum(has);
        }
        self.has_voters() && self.sides().all(|side| side.has(side.meets_elect(), &has))
    }

    /// The highest value that a commit quorum has reached, given each replica's. `None` without voters.
    #[must_use]
    pub fn committed(&self, at: impl Fn(ReplicaId) -> Slot) -> Option<Slot> {
        self.reached(at, |side| side.commit())
    }

    /// The latest time, given one for each replica that has any, at or after which replicas that meet every elect quorum have theirs.
    /// `None` without such replicas.
    #[must_use]
    pub fn heard_since(&self, at: impl Fn(ReplicaId) -> Option<Time>) -> Option<Time> {
        self.reached(at, |side| side.meets_elect()).flatten()
    }

    fn reached<T: Copy + Default + Ord>(
        &self,
        at: impl Fn(ReplicaId) -> T,
        size: impl Fn(Side<'_>) -> usize,
    ) -> Option<T> {
        let of = |side: Side<'_>| {
            // Asked for with every acknowledgement, mostly of a few: room for all that there may be costs more than the rest.
            if side.voters.len() <= FEW {
                side.reached([T::default(); FEW], &at, size(side))
            } else {
                side.reached([T::default(); MEMBERS_MAX], &at, size(side))
            }
        };
        let mut least = of(self.sides().next()?)?;
        for side in self.sides().skip(1) {
            least = least.min(of(side)?);
        }
        Some(least)
    }

    /// The record that goes into logs and snapshots. A member without a node is not in it.
    ///
    /// # Panics
    /// With more than 255 members; no configuration has more than [`MEMBERS_MAX`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(2 + self.nodes.len() * 17 + 8 + 12);
        // The plain form is the one that every version reads; the other follows it with what it lacks.
        let plain = self.number == 0 && self.quorums.is_none() && self.outgoing_quorums.is_none();
        out.put_u8(if plain { 1 } else { 2 });
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
        if !plain {
            out.put_u64(self.number);
            for sizes in [self.quorums, self.outgoing_quorums] {
                let (elect, commit) = sizes.map_or((0, 0), |sizes| (sizes.elect, sizes.commit));
                out.put_slice(&[elect, commit]);
            }
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
        let tail = match version {
            1 => 0,
            2 => 12,
            _ => return Err(ConfigError::Version(version)),
        };
        let mut config = Self { next_replica: ReplicaId(bytes.get_u64()), ..Self::default() };
        let count = usize::from(bytes.get_u8());
        if count > MEMBERS_MAX {
            return Err(ConfigError::TooManyMembers(count));
        }
        if bytes.len() != count * 17 + tail {
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
        if tail > 0 {
            config.number = bytes.get_u64();
            config.quorums = quorums(&mut bytes, config.voters.len())?;
            config.outgoing_quorums = quorums(&mut bytes, config.outgoing.len())?;
            if config.number == 0 && config.quorums.is_none() && config.outgoing_quorums.is_none() {
                return Err(ConfigError::Inconsistent);
            }
        }
        Ok(config)
    }
}

fn quorums(bytes: &mut &[u8], voters: usize) -> Result<Option<Quorums>, ConfigError> {
    let sizes = Quorums { elect: bytes.get_u8(), commit: bytes.get_u8() };
    if sizes == (Quorums { elect: 0, commit: 0 }) {
        return Ok(None);
    }
    sizes.check(voters)?;
    Ok(Some(sizes))
}
