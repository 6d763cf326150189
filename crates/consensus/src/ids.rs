//! Identifiers and numbers with a meaning, each its own type.
//!
//! A *replica* is a voter's or learner's identity inside one group; it is allotted once and never
//! reused. A *node* is a process with an address that may host replicas of many groups. Consensus
//! knows replicas only; hosts resolve them to nodes.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Identity of one replica within one group. Allotted by the log entry that adds the replica and
    /// never used again, so that an acknowledgement of a predecessor can never count for it.
    /// Zero is nobody.
    ReplicaId
}
number! {
    /// Address-bearing identity of a process that hosts replicas; etcd's member id. Zero is nobody.
    NodeId
}
number! {
    /// One consensus group among the many that a process may host.
    GroupId
}
number! {
    /// A position in a group's log. The first entry stands at slot 1; slot 0 is "before the log".
    Slot
}
number! {
    /// How often a node has booted, counted durably. Tells a node's lives apart.
    Epoch
}
number! {
    /// Names one linearizable read at the replica that asked; never reused within a boot.
    ReadId
}
number! {
    /// Names one [`Effect::ReadLog`](crate::Effect::ReadLog) within a boot.
    LogReadId
}

impl Slot {
    /// The slot after this one.
    ///
    /// # Panics
    /// At the end of the number space, which a log that grows a billion entries a second reaches
    /// after 500 years.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("slots never wrap"))
    }

    /// The slot before this one; slot 0 for slot 0.
    #[must_use]
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// Who proposed a command and which of its commands it was: how a waiter recognises its entry when it is
/// chosen. Unique over all nodes and all their boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId {
    /// The node at which the client waits.
    pub node: NodeId,
    /// The node's boot count in the upper 24 bits, a counter in the lower 40.
    pub sequence: u64,
}

impl ProposalId {
    /// The id of entries that nobody waits for, such as a new leader's no-op.
    pub const NONE: Self = Self { node: NodeId(0), sequence: 0 };
    const COUNTER_BITS: u32 = 40;

    /// The `counter`-th proposal of `node` in its boot `epoch`.
    ///
    /// # Panics
    /// If either number leaves its range: 2^24 boots, 2^40 proposals a boot.
    #[must_use]
    pub fn new(node: NodeId, epoch: Epoch, counter: u64) -> Self {
        assert!(epoch.0 < 1 << (64 - Self::COUNTER_BITS), "boot count out of range");
        assert!(counter < 1 << Self::COUNTER_BITS, "proposal counter out of range");
        Self { node, sequence: epoch.0 << Self::COUNTER_BITS | counter }
    }

    /// The boot of `node` in which this id was made.
    #[must_use]
    pub fn epoch(self) -> Epoch {
        Epoch(self.sequence >> Self::COUNTER_BITS)
    }

    /// Whether nobody waits for it.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// A point on the host's monotonic clock (CLOCK_BOOTTIME, which goes on in suspend), in nanoseconds since an
/// arbitrary origin. Two hosts' times are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The time `span` later, saturating.
    #[must_use]
    pub fn after(self, span: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The right to lead for a while, totally ordered. Raft uses `round` as its term and leaves the other two at
/// zero; Paxos uses all three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// Counts configurations where an engine numbers them (Paxos); zero in Raft.
    pub config: u64,
    /// Raft's term, Paxos' round.
    pub round: u64,
    /// The proposer, where two proposers may share a round (Paxos); nobody in Raft.
    pub replica: ReplicaId,
}

impl Ballot {
    /// Raft's ballot: a term.
    #[must_use]
    pub fn term(round: u64) -> Self {
        Self { config: 0, round, replica: ReplicaId(0) }
    }
}

/// What a completion answers: the ballot and sequence under which a write was asked for. A completion whose mark
/// is not the expected one is of an earlier life of the same slots and says nothing about today's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The core's ballot when it asked.
    pub ballot: Ballot,
    /// Grows by one with each request of a core's life.
    pub sequence: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposal_id_keeps_its_parts() {
        let id = ProposalId::new(NodeId(7), Epoch(3), 9);
        assert_eq!(id.epoch(), Epoch(3));
        assert!(!id.is_none());
        assert_ne!(id, ProposalId::new(NodeId(7), Epoch(4), 9));
    }

    #[test]
    #[should_panic(expected = "counter out of range")]
    fn proposal_counter_is_bounded() {
        let _ = ProposalId::new(NodeId(1), Epoch(1), 1 << 40);
    }

    #[test]
    fn ballots_order_by_configuration_then_round_then_replica() {
        let low = Ballot { config: 1, round: 9, replica: ReplicaId(9) };
        let high = Ballot { config: 2, round: 1, replica: ReplicaId(1) };
        assert!(low < high && Ballot::term(3) < Ballot::term(4));
    }
}
