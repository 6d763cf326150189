//! A linearizable read sees every write acknowledged before it began, and every state that an earlier read showed.

use super::Violation;

/// Remembers the highest revision that any client was told of.
#[derive(Debug, Default)]
pub struct ReadFreshness {
    told: i64,
}

impl ReadFreshness {
    /// A client is told a revision, by an acknowledgement or by a linearizable read.
    pub fn told(&mut self, revision: i64) {
        self.told = self.told.max(revision);
    }

    /// What an operation that begins now must see at least.
    #[must_use]
    pub fn floor(&self) -> i64 {
        self.told
    }

    /// An operation that began at `floor` was answered as of `revision`.
    ///
    /// # Errors
    /// If that is older.
    pub fn answered(&self, node: u64, floor: i64, revision: i64) -> Result<(), Violation> {
        if revision >= floor {
            return Ok(());
        }
        let what = format!("node {node} answered as of revision {revision}, after {floor} had been told");
        Err(Violation::new("read freshness", what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_a_read_older_than_what_was_told() {
        let mut check = ReadFreshness::default();
        check.told(7);
        let floor = check.floor();
        check.told(9);
        assert!(check.answered(1, floor, 7).is_ok(), "concurrent with the write of 9");
        assert!(check.answered(1, floor, 6).is_err());
    }
}
