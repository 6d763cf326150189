//! Checkpoints, crashes, removal of what was compacted, and snapshots.

use bytes::Bytes;
use conclave_api::etcdserverpb::RangeRequest;
use conclave_storage::StateMachine;

use crate::harness::{Replica, range};

#[test]
fn a_crash_loses_nothing_that_log_and_checkpoint_hold() {
    let mut store = Replica::new();
    store.set("a", "1");
    store.checkpoint();
    store.set("a", "2");
    store.set("b", "1");
    store.delete("b", "");
    let hash = store.reader.hash_kv(0).unwrap();
    store.crash();
    assert_eq!(store.reader.hash_kv(0).unwrap(), hash);
    assert_eq!(store.texts("a", "\0", 0), ["a=2"]);
    assert_eq!(store.texts("a", "\0", 2), ["a=1"]);
    assert_eq!(store.texts("a", "\0", 4), ["a=2", "b=1"]);
}

#[test]
fn a_checkpoint_that_was_frozen_is_not_changed_by_what_follows() {
    let mut store = Replica::new();
    store.set("a", "1");
    store.freeze();
    let frozen_bytes = store.machine.pending_bytes();
    store.set("a", "2");
    assert!(store.machine.pending_bytes() > frozen_bytes, "both count until the checkpoint is complete");
    let meta = store.meta();
    assert!(store.machine.checkpoint(meta).is_none(), "one at a time");
    store.write();
    store.log.truncate(1);
    store.crash();
    assert_eq!(store.texts("a", "", 0), ["a=1"]);
}

#[test]
fn values_that_do_not_fit_in_memory_come_from_the_engine() {
    let mut store = Replica::with_cache(0);
    for at in 0..500 {
        store.set(&format!("key{at:03}"), &format!("value{at}"));
    }
    store.checkpoint();
    // Letting go takes place as more is applied, and as a checkpoint is complete.
    store.set("other", "1");
    assert_eq!(store.reader.stats().cached_value_bytes, 0);
    let kvs = store.range(range("key", "l")).unwrap().kvs;
    assert!(kvs.len() == 500 && kvs[499].value == "value499" && kvs[0].value == "value0");
    assert_eq!(store.texts("key123", "", 0), ["key123=value123"]);
    let last = RangeRequest { sort_order: 2, sort_target: 3, limit: 1, ..range("key", "l") };
    assert_eq!(store.range(last).unwrap().kvs[0].value, "value499");
    assert!(store.reader.stats().engine_reads > 500);
}

#[test]
fn memory_does_not_grow_with_history() {
    let mut store = Replica::with_cache(1 << 12);
    for at in 0..5000 {
        store.set(&format!("passing{at}"), "value");
        store.delete(&format!("passing{at}"), "");
        store.set("same", &format!("value{at}"));
        if at % 500 == 499 {
            store.checkpoint();
        }
    }
    store.set("end", "1");
    let stats = store.reader.stats();
    assert_eq!(stats.keys, 2);
    assert!(stats.pending_bytes < 1 << 10 && stats.cached_value_bytes < 1 << 13, "{stats:?}");
    assert_eq!(store.texts("passing17", "", 2 + 17 * 3), ["passing17=value"]);
    assert_eq!(store.texts("passing17", "", 3 + 17 * 3), [""; 0]);
    assert_eq!(store.range(RangeRequest { revision: 600 * 3, ..range("passing", "q") }).unwrap().count, 0);
    assert_eq!(store.texts("\0", "\0", 2 + 600 * 3), ["passing600=value", "same=value599"]);
}

#[test]
fn what_is_compacted_is_removed_from_the_engine() {
    let mut store = Replica::with_cache(0);
    for at in 0..2000 {
        store.set(&format!("key{}", at % 10), "a value of some length");
        store.set("gone", "1");
        store.delete("gone", "");
    }
    store.checkpoint();
    let full_bytes = store.store.size_bytes();
    let revision = store.reader.revision();
    store.compact(revision).unwrap();
    let hash = store.reader.hash_kv(0).unwrap();
    // The first checkpoint makes the compaction durable, the second removes.
    store.checkpoint();
    store.checkpoint();
    store.checkpoint();
    assert!(store.store.size_bytes() < full_bytes / 20, "{} of {full_bytes}", store.store.size_bytes());
    assert_eq!(store.reader.hash_kv(0).unwrap(), hash);
    assert_eq!(store.range(range("\0", "\0")).unwrap().count, 10);
    store.crash();
    assert_eq!(store.reader.hash_kv(0).unwrap(), hash);
}

#[test]
fn a_snapshot_makes_an_equal_replica_whatever_the_size_of_its_pieces() {
    let mut store = Replica::new();
    for at in 0..300 {
        store.set(&format!("key{}", at % 50), &format!("value{at}"));
    }
    store.delete("key1", "key2");
    store.compact(100).unwrap();
    store.checkpoint();
    store.set("above", "the checkpoint");
    for piece_bytes in [1, 1000, 1 << 20] {
        let mut other = Replica::new();
        other.set("something", "else");
        other.checkpoint();
        other.install_from(&store, piece_bytes);
        for revision in [100, 200, 0] {
            assert_eq!(other.reader.hash_kv(revision).unwrap(), store.reader.hash_kv(revision).unwrap());
        }
        other.set("goes", "on");
        other.checkpoint();
        other.crash();
        assert_eq!(other.texts("goes", "", 0), ["goes=on"]);
        assert_eq!(other.texts("above", "", 0), ["above=the checkpoint"]);
    }
}

#[test]
fn entries_seen_before_are_passed_over() {
    let mut store = Replica::new();
    store.set("a", "1");
    let again = store.log.clone();
    store.machine.apply(&again, &|_| true, &mut Vec::new());
    assert_eq!((store.reader.revision(), store.texts("a", "", 0)), (2, vec!["a=1".to_owned()]));
}

#[test]
fn hashes_tell_stores_apart() {
    let (mut one, mut two) = (Replica::new(), Replica::new());
    one.set("a", "1");
    two.set("a", "2");
    assert_ne!(one.reader.hash_kv(0).unwrap().hash, two.reader.hash_kv(0).unwrap().hash);
    one.set("a", "3");
    two.set("a", "3");
    assert_ne!(one.reader.hash_kv(0).unwrap().hash, two.reader.hash_kv(0).unwrap().hash, "history counts");
    one.compact(3).unwrap();
    two.compact(3).unwrap();
    assert_eq!(one.reader.hash_kv(0).unwrap(), two.reader.hash_kv(0).unwrap(), "forgotten history does not");
}

/// The pieces of the last checkpoint.
fn pieces(store: &Replica) -> Vec<Bytes> {
    let mut source = store.machine.snapshot().unwrap();
    std::iter::from_fn(|| source.next(200).unwrap()).collect()
}

/// A transfer goes on where it ended only after the same bytes: those of one checkpoint are, however often its node boots.
#[test]
fn a_checkpoint_is_the_same_bytes_each_time_it_is_sent() {
    let mut store = Replica::new();
    for at in 0..60 {
        store.set(&format!("key{:02}", at % 20), &format!("value{at}"));
    }
    store.compact(30).unwrap();
    store.checkpoint();
    let sent = pieces(&store);
    assert!(sent.len() > 10);
    store.set("later", "1");
    store.crash();
    assert_eq!(pieces(&store), sent);
}

/// Another replica's checkpoint of the same slot is the same bytes while nothing was compacted. How far what was compacted is removed hangs on
/// when each took its checkpoints: then the bytes differ, from the first piece on, and a transfer begins anew there.
#[test]
fn checkpoints_of_two_replicas_are_the_same_bytes_until_they_remove_at_different_times() {
    let (mut one, mut other) = (Replica::new(), Replica::new());
    for at in 0..60 {
        one.set(&format!("key{:02}", at % 20), &format!("value{at}"));
        if at == 20 {
            one.checkpoint();
        }
    }
    other.follow(&one.log);
    one.checkpoint();
    other.checkpoint();
    assert_eq!(pieces(&one), pieces(&other));
    one.compact(30).unwrap();
    one.checkpoint();
    one.set("later", "1");
    other.follow(&one.log);
    one.checkpoint();
    other.checkpoint();
    assert_eq!(one.reader.hash_kv(0).unwrap(), other.reader.hash_kv(0).unwrap());
    assert_ne!(pieces(&one)[0], pieces(&other)[0]);
}
