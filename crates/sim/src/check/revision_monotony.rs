//! A node's revision never goes back while it lives, and a state restored from disk is never ahead of what was applied.

use std::collections::BTreeMap;

use super::Violation;

/// Remembers each node's revision, and the highest of all.
#[derive(Debug, Default)]
pub struct RevisionMonotony {
    nodes: BTreeMap<u64, i64>,
    highest: i64,
}

impl RevisionMonotony {
    /// A node booted: its state may be older than the one it had, but never newer than any that was reached.
    ///
    /// # Errors
    /// If it is.
    pub fn booted(&mut self, node: u64, revision: i64) -> Result<(), Violation> {
        self.nodes.insert(node, revision);
        if revision <= self.highest.max(1) {
            return Ok(());
        }
        let what = format!("node {node} booted at revision {revision}, beyond {}", self.highest);
        Err(Violation::new("revision monotony", what))
    }

    /// A node applied something or installed a snapshot.
    ///
    /// # Errors
    /// If its revision went back.
    pub fn at(&mut self, node: u64, revision: i64) -> Result<(), Violation> {
        let before = self.nodes.insert(node, revision).unwrap_or_default();
        self.highest = self.highest.max(revision);
        if revision >= before {
            return Ok(());
        }
        let what = format!("node {node} went from revision {before} to {revision}");
        Err(Violation::new("revision monotony", what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_a_revision_that_goes_back() {
        let mut check = RevisionMonotony::default();
        check.at(1, 5).unwrap();
        assert!(check.at(2, 3).is_ok(), "another node may be behind");
        assert!(check.at(1, 4).is_err());
    }

    #[test]
    fn fires_on_a_boot_beyond_what_was_reached() {
        let mut check = RevisionMonotony::default();
        check.at(1, 5).unwrap();
        assert!(check.booted(1, 3).is_ok());
        assert!(check.booted(1, 6).is_err());
    }
}
