//! The configurations of the log, by slot.
//!
//! A configuration is in force as soon as its entry is appended (thesis, section 4.1: on append, never on apply), and goes when the
//! entry is truncated. So the committed one and every later one are kept.

use conclave_consensus::{Config, ReplicaId, Slot};

#[derive(Clone, Debug)]
pub(crate) struct Members {
    /// In slot order; the first is committed, the last is in force. Never empty.
    history: Vec<(Slot, Config)>,
}

impl Members {
    pub(crate) fn new(at: Slot, config: Config) -> Self {
        Self { history: vec![(at, config)] }
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> &Config {
        &self.in_force().1
    }

    /// The configuration in force, and the slot of its entry.
    pub(crate) fn in_force(&self) -> &(Slot, Config) {
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::ConfigActiveOnApply.is_on() {
            return self.history.first().unwrap_or(&EMPTY);
        }
        self.history.last().unwrap_or(&EMPTY)
    }

    pub(crate) fn contains(&self, replica: ReplicaId) -> bool {
        self.config().nodes.contains_key(&replica)
    }

    /// The configuration in force at a slot, if it is not forgotten.
    pub(crate) fn at(&self, slot: Slot) -> Option<&Config> {
        self.history.iter().rev().find(|(at, _)| *at <= slot).map(|(_, config)| config)
    }

    /// Whether a replica may have to lead: it votes in the configuration in force or, as long as that is not known to be committed, in one
    /// before it. A leader that wrote the end of its own membership may be the only one whose log is complete (thesis, section 4.2.2).
    pub(crate) fn may_stand(&self, replica: ReplicaId) -> bool {
        self.history.iter().any(|(_, config)| config.is_voter(replica))
    }

    pub(crate) fn append(&mut self, at: Slot, config: Config) {
        self.history.push((at, config));
    }

    /// Forgets configurations from `slot` on; says whether another is in force now.
    pub(crate) fn truncate_from(&mut self, slot: Slot) -> bool {
        let before = self.history.len();
        let keep = self.history.partition_point(|(at, _)| *at < slot).max(1);
        self.history.truncate(keep);
        self.history.len() != before
    }

    /// Everything up to `slot` is committed; gives the configurations that became so.
    pub(crate) fn commit(&mut self, slot: Slot) -> &[(Slot, Config)] {
        let committed = self.history.partition_point(|(at, _)| *at <= slot);
        if committed > 1 {
            self.history.drain(..committed - 1);
            return &self.history[..1];
        }
        &[]
    }

    /// Whether every configuration is committed.
    pub(crate) fn is_settled(&self) -> bool {
        self.history.len() == 1
    }

    /// A snapshot brings its own membership; later configurations stay only if the log's suffix did.
    pub(crate) fn reset(&mut self, at: Slot, config: Config, keep_suffix: bool) {
        self.history.retain(|(slot, _)| keep_suffix && *slot > at);
        self.history.insert(0, (at, config));
    }
}

static EMPTY: (Slot, Config) = (
    Slot(0),
    Config {
        voters: std::collections::BTreeSet::new(),
        outgoing: std::collections::BTreeSet::new(),
        learners: std::collections::BTreeSet::new(),
        nodes: std::collections::BTreeMap::new(),
        next_replica: ReplicaId(0),
        number: 0,
        quorums: None,
        outgoing_quorums: None,
    },
);

#[cfg(test)]
mod tests {
    use conclave_consensus::NodeId;

    use super::*;

    fn config(voters: u64) -> Config {
        Config::of_voters((1..=voters).map(|id| (ReplicaId(id), NodeId(id))))
    }

    #[test]
    fn in_force_on_append_and_gone_on_truncation() {
        let mut members = Members::new(Slot(0), config(1));
        members.append(Slot(5), config(2));
        members.append(Slot(9), config(3));
        assert_eq!(members.config(), &config(3));
        assert!(members.truncate_from(Slot(9)));
        assert_eq!(members.config(), &config(2));
        assert!(!members.truncate_from(Slot(9)));
        assert!(!members.is_settled());
    }

    #[test]
    fn commit_tells_the_newest_once() {
        let mut members = Members::new(Slot(0), config(1));
        members.append(Slot(5), config(2));
        assert!(members.commit(Slot(4)).is_empty());
        assert_eq!(members.commit(Slot(7)), [(Slot(5), config(2))]);
        assert!(members.commit(Slot(8)).is_empty() && members.is_settled());
    }

    #[test]
    fn a_snapshot_brings_its_own() {
        let mut members = Members::new(Slot(0), config(1));
        members.append(Slot(5), config(2));
        members.append(Slot(9), config(3));
        members.reset(Slot(7), config(2), true);
        assert_eq!(members.in_force(), &(Slot(9), config(3)));
        members.reset(Slot(8), config(1), false);
        assert_eq!(members.in_force(), &(Slot(8), config(1)));
    }
}
