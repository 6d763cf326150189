//! Whose turn it is among the watches that read the history.
//!
//! Watches with the same next revision form a *cohort*. Cohorts take turns, one page each; a page serves its cohort and all whose next revision it
//! contains, and they go on together. So no watch waits for another's whole history, and watches that are near each other read it once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// All cohorts.
#[derive(Debug, Default)]
pub(super) struct Cohorts {
    /// By next revision. One that has become empty stays until its turn.
    by_revision: BTreeMap<i64, BTreeSet<u32>>,
    /// The order of their turns; each cohort is in it once.
    turns: VecDeque<i64>,
}

impl Cohorts {
    pub(super) fn insert(&mut self, next: i64, watch: u32) {
        let turns = &mut self.turns;
        let cohort = self.by_revision.entry(next).or_insert_with(|| {
            turns.push_back(next);
            BTreeSet::new()
        });
        cohort.insert(watch);
    }

    pub(super) fn remove(&mut self, next: i64, watch: u32) {
        if let Some(cohort) = self.by_revision.get_mut(&next) {
            cohort.remove(&watch);
        }
    }

    /// The revision from which the next page is to be read. The cohort keeps its turn until it is taken.
    pub(super) fn turn(&mut self) -> Option<i64> {
        loop {
            let next = *self.turns.front()?;
            if self.by_revision.get(&next).is_some_and(|cohort| !cohort.is_empty()) {
                return Some(next);
            }
            self.turns.pop_front();
            self.by_revision.remove(&next);
        }
    }

    /// Takes all watches whose next revision lies between two, both included.
    pub(super) fn take(&mut self, from: i64, through: i64) -> Vec<(i64, u32)> {
        let mut taken = Vec::new();
        for (next, cohort) in self.by_revision.range_mut(from..=through) {
            taken.extend(std::mem::take(cohort).into_iter().map(|watch| (*next, watch)));
        }
        // Its turn was now.
        if self.turns.front() == Some(&from) {
            self.turns.pop_front();
            self.by_revision.remove(&from);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cohorts_take_turns_and_grow_together() {
        let mut cohorts = Cohorts::default();
        for (next, watch) in [(10, 1), (50, 2), (10, 3), (12, 4), (90, 5)] {
            cohorts.insert(next, watch);
        }
        assert_eq!(cohorts.turn(), Some(10));
        assert_eq!(cohorts.take(10, 20), [(10, 1), (10, 3), (12, 4)]);
        for watch in [1, 3, 4] {
            cohorts.insert(21, watch);
        }
        // Whoever is behind does not come before everybody else.
        assert_eq!(cohorts.turn(), Some(50));
        assert_eq!(cohorts.take(50, 60), [(50, 2)]);
        cohorts.insert(61, 2);
        assert_eq!(cohorts.turn(), Some(90));
        cohorts.remove(90, 5);
        assert_eq!(cohorts.turn(), Some(21));
        assert_eq!(cohorts.take(21, 70), [(21, 1), (21, 3), (21, 4), (61, 2)]);
        assert_eq!(cohorts.turn(), None);
        assert!(cohorts.by_revision.is_empty() && cohorts.turns.is_empty());
    }

    #[test]
    fn coming_and_going_leaves_nothing() {
        let mut cohorts = Cohorts::default();
        cohorts.insert(7, 0);
        for watch in 1..100 {
            cohorts.insert(7, watch);
            cohorts.remove(7, watch);
            assert_eq!((cohorts.turn(), cohorts.turns.len()), (Some(7), 1));
        }
        cohorts.remove(7, 0);
        assert_eq!(cohorts.turn(), None);
        assert!(cohorts.by_revision.is_empty() && cohorts.turns.is_empty());
    }
}
