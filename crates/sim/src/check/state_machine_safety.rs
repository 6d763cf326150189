//! No two replicas ever apply different entries at the same slot (Raft, figure 3), none applies out of order, and a snapshot
//! stands for what was applied below it.

use std::collections::BTreeMap;

use conclave_consensus::{Ballot, Entry, Kind, NodeId, ProposalId, Slot};

use super::{MirrorEntry, Violation};

/// An entry that was applied somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Who proposed it; nobody if it is no command.
    pub id: ProposalId,
    /// Its term and a hash of its content.
    pub entry: MirrorEntry,
}

/// Remembers what was applied at each slot, by whoever came first.
#[derive(Debug, Default)]
pub struct StateMachineSafety {
    chosen: BTreeMap<Slot, Chosen>,
    applied: BTreeMap<NodeId, Slot>,
}

const NAME: &str = "state machine safety";

impl StateMachineSafety {
    /// A node booted, or installed a snapshot, with everything up to `slot` applied.
    ///
    /// # Errors
    /// If the state is beyond what was ever chosen, or names another term for its last slot.
    pub fn restored(&mut self, node: NodeId, slot: Slot, ballot: Ballot) -> Result<(), Violation> {
        self.applied.insert(node, slot);
        if slot == Slot(0) {
            return Ok(());
        }
        match self.chosen.get(&slot) {
            Some(Chosen { entry, .. }) if entry.ballot == Ballot::default() || entry.ballot == ballot => {
                Ok(())
            }
            found => Err(Violation::new(
                NAME,
                format!("node {node} has a state of slot {slot}, {ballot:?}; chosen there: {found:?}"),
            )),
        }
    }

    /// A node applies an entry. Says whether it is the first to apply at this slot.
    ///
    /// # Errors
    /// If another entry was applied there, or it is not the node's next.
    pub fn apply(&mut self, node: NodeId, entry: &Entry) -> Result<bool, Violation> {
        let applied = self.applied.entry(node).or_default();
        if entry.slot != applied.next() {
            let what = format!("node {node} applies slot {} after {applied}", entry.slot);
            return Err(Violation::new(NAME, what));
        }
        *applied = entry.slot;
        let id = if entry.kind == Kind::Command { entry.id } else { ProposalId::NONE };
        let new = Chosen { id, entry: MirrorEntry::of(entry) };
        match self.chosen.get(&entry.slot) {
            Some(old) if *old == new => Ok(false),
            Some(old) => Err(Violation::new(
                NAME,
                format!("node {node} applies {new:?} at slot {}, where {old:?} was applied", entry.slot),
            )),
            None => {
                self.chosen.insert(entry.slot, new);
                Ok(true)
            }
        }
    }

    /// Everything applied anywhere, in order.
    pub fn chosen(&self) -> impl Iterator<Item = (Slot, Chosen)> + '_ {
        self.chosen.iter().map(|(slot, chosen)| (*slot, *chosen))
    }

    /// The last slot applied anywhere.
    #[must_use]
    pub fn last(&self) -> Slot {
        self.chosen.keys().next_back().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(slot: u64, payload: &'static str) -> Entry {
        Entry {
            slot: Slot(slot),
            ballot: Ballot::term(1),
            kind: Kind::Command,
            id: ProposalId::NONE,
            payload: Bytes::from_static(payload.as_bytes()),
        }
    }

    #[test]
    fn fires_on_different_entries_at_one_slot() {
        let mut check = StateMachineSafety::default();
        assert_eq!(check.apply(NodeId(1), &entry(1, "a")), Ok(true));
        assert_eq!(check.apply(NodeId(2), &entry(1, "a")), Ok(false));
        assert!(check.apply(NodeId(3), &entry(1, "b")).is_err());
    }

    #[test]
    fn fires_on_gaps_and_repetitions() {
        let mut check = StateMachineSafety::default();
        check.apply(NodeId(1), &entry(1, "a")).unwrap();
        assert!(check.apply(NodeId(1), &entry(1, "a")).is_err());
        assert!(check.apply(NodeId(1), &entry(3, "a")).is_err());
    }

    #[test]
    fn fires_on_a_state_that_was_never_chosen() {
        let mut check = StateMachineSafety::default();
        check.apply(NodeId(1), &entry(1, "a")).unwrap();
        assert!(check.restored(NodeId(2), Slot(1), Ballot::term(1)).is_ok());
        assert!(check.restored(NodeId(2), Slot(1), Ballot::term(2)).is_err());
        assert!(check.restored(NodeId(2), Slot(2), Ballot::term(1)).is_err());
    }
}
