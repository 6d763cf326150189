//! What a software transaction has read and wants to write, and on what condition that may take place.
//!
//! Every read is as of one revision, the *snapshot*, which the first read fixes. A read of something that the transaction wrote
//! sees what it wrote. At the end everything is written at once, on the condition that:
//!
//! | isolation | nobody changed since the snapshot | what can still go wrong |
//! |---|---|---|
//! | [`Serializable`](Isolation::Serializable) | what was read | nothing: it is as if transactions ran one after the other |
//! | [`Snapshot`](Isolation::Snapshot) | what is written | write skew: two that read both keys and each write another |
//!
//! A key that was read must stand at the very revision at which it was read, or not be there if it was not. A key that is written without
//! having been read must not have been put since the snapshot; a deletion of it makes no difference to who writes without looking.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    kv::{Delete, KeyValue, Put, Revision},
    txn::{Compare, Is, Txn},
};

/// The most conditions and the most writes of a software transaction: as many as a server takes.
pub const KEYS_MAX: usize = 128;

/// On what condition a software transaction takes place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Nobody changed what it read.
    #[default]
    Serializable,
    /// Nobody changed what it writes.
    Snapshot,
}

#[derive(Clone, Debug)]
struct Read {
    value: Option<Bytes>,
    /// 0 if it was not there.
    modified: Revision,
}

/// Reads and writes of one attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workspace {
    snapshot: Option<Revision>,
    reads: BTreeMap<Bytes, Read>,
    writes: BTreeMap<Bytes, Option<Bytes>>,
}

impl Workspace {
    /// The revision as of which is read.
    pub(crate) fn snapshot(&self) -> Option<Revision> {
        self.snapshot
    }

    /// What the transaction sees under a key, if that is known without asking.
    pub(crate) fn known(&self, key: &Bytes) -> Option<Option<Bytes>> {
        self.writes.get(key).cloned().or_else(|| self.reads.get(key).map(|read| read.value.clone()))
    }

    /// Notes what was read, as of `revision` if it is the first.
    pub(crate) fn note(&mut self, key: Bytes, found: Option<KeyValue>, revision: Revision) -> Option<Bytes> {
        self.snapshot.get_or_insert(revision);
        let modified = found.as_ref().map_or(Revision(0), |kv| kv.mod_revision);
        let value = found.map(|kv| kv.value);
        self.reads.insert(key, Read { value: value.clone(), modified });
        value
    }

    pub(crate) fn write(&mut self, key: Bytes, value: Option<Bytes>) {
        self.writes.insert(key, value);
    }

    /// Whether there is nothing to write: then there is nothing to ask, for what was read is of one revision.
    pub(crate) fn is_read_only(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether it is larger than a server takes, with so many conditions besides.
    pub(crate) fn is_too_large(&self, isolation: Isolation, further: usize) -> bool {
        self.conditions(isolation).count() + further > KEYS_MAX || self.writes.len() > KEYS_MAX
    }

    fn conditions(&self, isolation: Isolation) -> impl Iterator<Item = Compare> + '_ {
        let as_read = self
            .reads
            .iter()
            .filter(move |(key, _)| isolation == Isolation::Serializable || self.writes.contains_key(*key));
        let as_read = as_read.map(|(key, read)| Compare::mod_revision(key.clone(), Is::Equal, read.modified));
        // Without a read there is no snapshot, and nothing that could have changed since.
        let snapshot = self.snapshot.filter(|_| isolation == Isolation::Snapshot);
        let unread = self.writes.keys().filter(|key| !self.reads.contains_key(*key));
        let unread = snapshot.into_iter().flat_map(move |snapshot| {
            unread.clone().map(move |key| Compare::mod_revision(key.clone(), Is::Less, snapshot.next()))
        });
        as_read.chain(unread)
    }

    /// The transaction that writes everything, if it may.
    pub(crate) fn commit(&self, isolation: Isolation) -> Txn {
        let txn = self.conditions(isolation).fold(Txn::new(), Txn::when);
        self.writes.iter().fold(txn, |txn, (key, value)| match value {
            Some(value) => txn.then(Put::new(key.clone(), value.clone())),
            None => txn.then(Delete::new(key.clone())),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(key: &'static str) -> Bytes {
        Bytes::from_static(key.as_bytes())
    }

    fn kv(name: &'static str, modified: i64) -> KeyValue {
        let (key, modified) = (key(name), Revision(modified));
        KeyValue {
            value: key.clone(),
            key,
            create_revision: modified,
            mod_revision: modified,
            version: 1,
            lease: None,
        }
    }

    fn workspace() -> Workspace {
        let mut workspace = Workspace::default();
        workspace.note(key("a"), Some(kv("a", 3)), Revision(9));
        workspace.note(key("b"), None, Revision(9));
        workspace.write(key("b"), Some(key("new")));
        workspace.write(key("c"), None);
        workspace
    }

    #[test]
    fn a_transaction_sees_what_it_wrote_before_what_it_read() {
        let mut workspace = workspace();
        assert_eq!(workspace.known(&key("a")), Some(Some(key("a"))));
        assert_eq!(workspace.known(&key("b")), Some(Some(key("new"))));
        assert_eq!(workspace.known(&key("c")), Some(None));
        assert_eq!(workspace.known(&key("d")), None);
        workspace.write(key("a"), None);
        assert_eq!(workspace.known(&key("a")), Some(None));
    }

    #[test]
    fn the_first_read_fixes_the_snapshot() {
        let mut workspace = workspace();
        workspace.note(key("d"), Some(kv("d", 2)), Revision(12));
        assert_eq!(workspace.snapshot(), Some(Revision(9)));
    }

    #[test]
    fn serializable_guards_what_was_read_and_snapshot_what_is_written() {
        let workspace = workspace();
        let conditions = |isolation| workspace.conditions(isolation).collect::<Vec<_>>();
        assert_eq!(
            conditions(Isolation::Serializable),
            [
                Compare::mod_revision("a", Is::Equal, Revision(3)),
                Compare::mod_revision("b", Is::Equal, Revision(0)),
            ]
        );
        assert_eq!(
            conditions(Isolation::Snapshot),
            [
                Compare::mod_revision("b", Is::Equal, Revision(0)),
                Compare::mod_revision("c", Is::Less, Revision(10)),
            ]
        );
    }

    #[test]
    fn what_wrote_without_reading_takes_place_whatever_happened() {
        let mut workspace = Workspace::default();
        workspace.write(key("a"), None);
        assert_eq!(workspace.conditions(Isolation::Snapshot).count(), 0);
        assert_eq!(workspace.commit(Isolation::Snapshot), Txn::new().then(Delete::new("a")));
    }

    #[test]
    fn there_is_an_end_to_its_size() {
        let mut workspace = Workspace::default();
        for number in 0..KEYS_MAX {
            workspace.note(number.to_string().into(), None, Revision(9));
        }
        assert!(!workspace.is_too_large(Isolation::Serializable, 0));
        assert!(workspace.is_too_large(Isolation::Serializable, 1));
        assert!(!workspace.is_too_large(Isolation::Snapshot, 1));
        for number in 0..=KEYS_MAX {
            workspace.write(number.to_string().into(), None);
        }
        assert!(workspace.is_too_large(Isolation::Snapshot, 0));
    }

    /// A store that keeps its history: for each revision what stands under each of four keys, with the revision at which it was put.
    #[derive(Debug)]
    struct Store {
        history: Vec<BTreeMap<u8, (i64, u8)>>,
    }

    impl Store {
        fn at(&self, revision: i64, key: u8) -> (i64, Option<u8>) {
            self.history[revision as usize]
                .get(&key)
                .map_or((0, None), |(modified, value)| (*modified, Some(*value)))
        }

        fn last(&self) -> i64 {
            self.history.len() as i64 - 1
        }

        fn holds(&self, conditions: &[(u8, Is, i64)]) -> bool {
            conditions.iter().all(|(key, is, revision)| {
                let (modified, _) = self.at(self.last(), *key);
                match is {
                    Is::Equal => modified == *revision,
                    _ => modified < *revision,
                }
            })
        }

        fn write(&mut self, writes: &BTreeMap<u8, Option<u8>>) {
            let mut state = self.history.last().cloned().unwrap_or_default();
            let revision = self.history.len() as i64;
            for (key, value) in writes {
                match value {
                    Some(value) => state.insert(*key, (revision, *value)),
                    None => state.remove(key),
                };
            }
            self.history.push(state);
        }
    }

    /// A condition as the model judges it, taken from the request that a server would get.
    fn judged(txn: &Txn) -> Vec<(u8, Is, i64)> {
        use conclave_api::etcdserverpb::compare::{CompareResult, TargetUnion};
        let request = txn.clone().into_request();
        let judged = request.compare.iter().map(|compare| {
            let is = if compare.result == CompareResult::Equal as i32 { Is::Equal } else { Is::Less };
            let Some(TargetUnion::ModRevision(revision)) = compare.target_union else {
                panic!("{compare:?}")
            };
            (compare.key[0], is, revision)
        });
        judged.collect()
    }

    proptest! {
        /// Serializable: whatever others did between snapshot and commit, what was read is still so at the commit, values and absences alike.
        /// Snapshot: nothing that is written was put since.
        #[test]
        fn what_commits_may(
            before in prop::collection::vec((0_u8..4, prop::option::of(any::<u8>())), 1..12),
            reads in prop::collection::btree_set(0_u8..4, 0..4),
            writes in prop::collection::btree_map(0_u8..4, prop::option::of(any::<u8>()), 1..4),
            between in prop::collection::vec((0_u8..4, prop::option::of(any::<u8>())), 0..4),
            serializable in any::<bool>(),
        ) {
            let mut store = Store { history: vec![BTreeMap::new(), BTreeMap::new()] };
            for (key, value) in before {
                store.write(&BTreeMap::from([(key, value)]));
            }
            let snapshot = store.last();
            let mut workspace = Workspace::default();
            for &key in &reads {
                let (modified, value) = store.at(snapshot, key);
                let found = value.map(|value| KeyValue { value: vec![value].into(), mod_revision: Revision(modified), ..kv("", 1) });
                workspace.note(vec![key].into(), found, Revision(snapshot));
            }
            for (&key, value) in &writes {
                workspace.write(vec![key].into(), value.map(|value| vec![value].into()));
            }
            for (key, value) in between {
                store.write(&BTreeMap::from([(key, value)]));
            }
            let isolation = if serializable { Isolation::Serializable } else { Isolation::Snapshot };
            let commits = store.holds(&judged(&workspace.commit(isolation)));
            let unchanged = |key: &u8| store.at(snapshot, *key) == store.at(store.last(), *key);
            if serializable {
                prop_assert_eq!(commits, reads.iter().all(unchanged));
            } else if commits && !reads.is_empty() {
                for key in writes.keys() {
                    let (modified, _) = store.at(store.last(), *key);
                    prop_assert!(modified <= snapshot, "{key} was put since");
                    prop_assert!(!reads.contains(key) || unchanged(key), "an update of {key} would be lost");
                }
            }
        }
    }
}
