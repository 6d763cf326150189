//! At most one leader can be elected in a given term (Raft, figure 3; Ongaro's thesis, section 3.2).

use std::collections::BTreeMap;

use conclave_consensus::{Ballot, NodeId};

use super::Violation;

/// Remembers who led in each ballot.
#[derive(Debug, Default)]
pub struct ElectionSafety {
    leaders: BTreeMap<Ballot, NodeId>,
}

impl ElectionSafety {
    /// A node says that it leads.
    ///
    /// # Errors
    /// If another node led in the same ballot.
    pub fn leads(&mut self, node: NodeId, ballot: Ballot) -> Result<(), Violation> {
        let first = *self.leaders.entry(ballot).or_insert(node);
        if first == node {
            return Ok(());
        }
        Err(Violation::new("election safety", format!("nodes {first} and {node} both lead in {ballot:?}")))
    }

    /// In how many ballots somebody led.
    #[must_use]
    pub fn elections(&self) -> usize {
        self.leaders.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_two_leaders_in_one_term() {
        let mut check = ElectionSafety::default();
        assert!(check.leads(NodeId(1), Ballot::term(3)).is_ok());
        assert!(check.leads(NodeId(1), Ballot::term(3)).is_ok());
        assert!(check.leads(NodeId(2), Ballot::term(4)).is_ok());
        assert_eq!(check.leads(NodeId(2), Ballot::term(3)).unwrap_err().invariant, "election safety");
    }
}
