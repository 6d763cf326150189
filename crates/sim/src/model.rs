//! A store so simple that it is plainly right: what the real one is compared with.

use std::collections::BTreeMap;

use crate::history::{Action, Answer, Key, Seen, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    value: Value,
    created: i64,
    modified: i64,
    version: i64,
}

/// The newest state of every key, and the revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    revision: i64,
    compacted: i64,
    cells: BTreeMap<Key, Cell>,
}

impl Default for Model {
    fn default() -> Self {
        Self { revision: 1, compacted: -1, cells: BTreeMap::new() }
    }
}

impl Model {
    /// The revision of the last change; 1 in the beginning.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Does an action and says what its client must be told.
    pub fn apply(&mut self, action: &Action) -> Answer {
        let mut answer = Answer { revision: self.revision, done: true, seen: Vec::new() };
        match action {
            Action::Put { key, value } => {
                self.revision += 1;
                self.write(*key, *value);
            }
            Action::PutAll { keys, value } => {
                self.revision += 1;
                for key in keys {
                    self.write(*key, *value);
                }
            }
            Action::Delete { from, to } => {
                answer.seen = self.read(*from, *to);
                if !answer.seen.is_empty() {
                    self.revision += 1;
                }
                for seen in &answer.seen {
                    self.cells.remove(&seen.key);
                }
            }
            Action::Swap { key, expect, value } => {
                if self.cells.get(key).map(|cell| cell.value) == *expect {
                    self.revision += 1;
                    self.write(*key, *value);
                } else {
                    answer.done = false;
                    answer.seen = self.read(*key, key + 1);
                }
            }
            Action::Compact { revision } => {
                answer.done = *revision > self.compacted && *revision <= self.revision;
                if answer.done {
                    self.compacted = *revision;
                }
            }
            Action::Read { from, to } => answer.seen = self.read(*from, *to),
        }
        answer.revision = self.revision;
        answer
    }

    /// The keys `from..to`.
    #[must_use]
    pub fn read(&self, from: Key, to: Key) -> Vec<Seen> {
        if from >= to {
            return Vec::new();
        }
        self.cells
            .range(from..to)
            .map(|(key, cell)| Seen {
                key: *key,
                value: cell.value,
                modified: cell.modified,
                created: cell.created,
                version: cell.version,
            })
            .collect()
    }

    fn write(&mut self, key: Key, value: Value) {
        let revision = self.revision;
        let fresh = Cell { value, created: revision, modified: revision, version: 0 };
        let cell = self.cells.entry(key).or_insert(fresh);
        (cell.value, cell.modified) = (value, revision);
        cell.version += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_dense_and_versions_start_anew() {
        let mut model = Model::default();
        assert_eq!(model.apply(&Action::Put { key: 1, value: 10 }).revision, 2);
        assert_eq!(model.apply(&Action::Put { key: 1, value: 11 }).revision, 3);
        let gone = model.apply(&Action::Delete { from: 0, to: 9 });
        assert_eq!((gone.revision, gone.seen[0].version, gone.seen[0].created), (4, 2, 2));
        assert_eq!(model.apply(&Action::Delete { from: 0, to: 9 }).revision, 4, "nothing changed");
        model.apply(&Action::PutAll { keys: vec![1, 2], value: 12 });
        let read = model.apply(&Action::Read { from: 0, to: 9 });
        assert!(read.seen.iter().all(|s| (s.modified, s.version, s.created) == (5, 1, 5)));
    }

    #[test]
    fn a_swap_judges_the_state_before() {
        let mut model = Model::default();
        assert!(model.apply(&Action::Swap { key: 1, expect: None, value: 5 }).done);
        let refused = model.apply(&Action::Swap { key: 1, expect: None, value: 6 });
        assert_eq!((refused.done, refused.seen[0].value, refused.revision), (false, 5, 2));
        assert!(model.apply(&Action::Swap { key: 1, expect: Some(5), value: 6 }).done);
    }
}
