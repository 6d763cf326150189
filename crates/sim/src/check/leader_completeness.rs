//! An entry committed in a term is in the logs of the leaders of all higher terms (Raft, figure 3; thesis, section 3.6.3).
//!
//! When an entry is first applied, the term of the node that applies it is at least the term in which it was committed. So
//! whoever leads in a higher term than that must hold it; a late winner of a lower term need not.

use std::collections::BTreeMap;

use conclave_consensus::{Ballot, NodeId, Slot};

use super::{LogMatching, MirrorEntry, Violation};

/// Remembers the committed entries and in which term at the latest each was.
#[derive(Debug, Default)]
pub struct LeaderCompleteness {
    committed: BTreeMap<Slot, (MirrorEntry, Ballot)>,
}

impl LeaderCompleteness {
    /// An entry was applied for the first time anywhere, by a node in ballot `seen_in`.
    pub fn committed(&mut self, slot: Slot, entry: MirrorEntry, seen_in: Ballot) {
        self.committed.insert(slot, (entry, seen_in));
    }

    /// A node begins to lead.
    ///
    /// # Errors
    /// If its log lacks an entry committed in a lower term.
    pub fn leads(&self, node: NodeId, ballot: Ballot, logs: &LogMatching) -> Result<(), Violation> {
        let first = logs.first(node);
        for (slot, (entry, seen_in)) in self.committed.range(first..) {
            let held = logs.at(node, *slot);
            if *seen_in < ballot && held != Some(*entry) {
                return Err(Violation::new(
                    "leader completeness",
                    format!(
                        "node {node} leads in {ballot:?} and holds {held:?} at slot {slot}, \
                         where {entry:?} was committed in {seen_in:?} or before"
                    ),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{Entry, Kind, LogOp, ProposalId};

    use super::*;

    #[test]
    fn fires_on_a_leader_without_a_committed_entry() {
        let entry = Entry {
            slot: Slot(1),
            ballot: Ballot::term(1),
            kind: Kind::Command,
            id: ProposalId::NONE,
            payload: Bytes::from_static(b"a"),
        };
        let (mut check, mut logs) = (LeaderCompleteness::default(), LogMatching::default());
        logs.change(NodeId(1), &LogOp::Put(entry.clone().into())).unwrap();
        check.committed(Slot(1), MirrorEntry::of(&entry), Ballot::term(2));
        assert!(check.leads(NodeId(1), Ballot::term(3), &logs).is_ok());
        assert!(check.leads(NodeId(2), Ballot::term(2), &logs).is_ok(), "it may have lost the race");
        assert!(check.leads(NodeId(2), Ballot::term(3), &logs).is_err());
        logs.reboot(NodeId(2), Slot(2), None, &[]).unwrap();
        assert!(check.leads(NodeId(2), Ballot::term(3), &logs).is_ok(), "its state contains the entry");
    }
}
