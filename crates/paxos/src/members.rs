//! The configurations that govern the slots.
//!
//! The entry at slot *s* that holds a configuration is the *stop* of the one before: that governs the slots up to *s*, the new one those
//! above. It is in force once it is chosen, and never goes. The configuration before is kept too: who left it is still told.
//!
//! A configuration is *settled* when replicas that meet each of its elect quorums hold durably all that led to it, so that it needs the one before no
//! more. Only then does the next change begin, and only then may who was removed be destroyed.

use conclave_consensus::{Config, ReplicaId, Slot};

#[derive(Clone, Debug)]
pub(crate) struct Members {
    at: Slot,
    config: Config,
    before: Option<(Slot, Config)>,
    /// The number of the newest configuration known to be settled.
    settled: Option<u64>,
}

impl Members {
    /// As of the slot of a state; the configuration may have come at a lower one.
    pub(crate) fn new(at: Slot, config: Config) -> Self {
        // What a group begins with needs nothing before it.
        let settled = (at == Slot(0)).then_some(config.number);
        Self { at, config, before: None, settled }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// The slot after which the configuration governs, as far as is known here.
    pub(crate) fn at(&self) -> Slot {
        self.at
    }

    pub(crate) fn number(&self) -> u64 {
        self.config.number
    }

    pub(crate) fn contains(&self, replica: ReplicaId) -> bool {
        self.config.nodes.contains_key(&replica)
    }

    /// The configuration in force at a slot, if it is not forgotten.
    pub(crate) fn of_state_at(&self, slot: Slot) -> Option<&Config> {
        if slot >= self.at {
            return Some(&self.config);
        }
        self.before.as_ref().filter(|(at, _)| slot >= *at).map(|(_, config)| config)
    }

    /// Who was a member before and is none any more.
    pub(crate) fn former(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let before = self.before.iter().flat_map(|(_, config)| config.members());
        before.filter(|replica| !self.contains(*replica))
    }

    /// The entry at `at` is chosen.
    pub(crate) fn enter(&mut self, at: Slot, config: Config) {
        let before = std::mem::replace(&mut self.config, config);
        self.before = Some((std::mem::replace(&mut self.at, at), before));
    }

    /// A snapshot brings its own membership.
    pub(crate) fn reset(&mut self, at: Slot, config: Config) {
        if config.number != self.config.number || self.config.nodes.is_empty() {
            self.enter(at, config);
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.is_some_and(|settled| settled >= self.config.number)
    }

    /// The newest configuration known settled; zero, which always is, if none.
    pub(crate) fn settled(&self) -> u64 {
        self.settled.unwrap_or(0)
    }

    /// Learns that a configuration is settled; says whether the one in force is now and was not before.
    pub(crate) fn settle(&mut self, number: u64) -> bool {
        let before = self.is_settled();
        self.settled = self.settled.max(Some(number));
        !before && self.is_settled()
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::NodeId;

    use super::*;

    fn config(voters: u64, number: u64) -> Config {
        Config { number, ..Config::of_voters((1..=voters).map(|id| (ReplicaId(id), NodeId(id)))) }
    }

    #[test]
    fn one_governs_after_the_other_and_settles_once() {
        let mut members = Members::new(Slot(0), config(3, 0));
        assert!(members.is_settled());
        members.enter(Slot(5), config(2, 1));
        assert!(!members.is_settled() && members.former().eq([ReplicaId(3)]));
        assert_eq!(members.of_state_at(Slot(4)), Some(&config(3, 0)));
        assert_eq!(members.of_state_at(Slot(5)), Some(&config(2, 1)));
        assert!(!members.settle(0) && members.settle(1) && !members.settle(1));
        members.enter(Slot(9), config(1, 2));
        assert!(!members.is_settled() && members.of_state_at(Slot(4)).is_none());
    }
}
