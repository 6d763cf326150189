//! Leases as replicas hold them: what is granted, attached, ended, kept and told.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use conclave_api::{
    conclave::kv::v1::{CheckpointRecord, SnapshotPiece},
    errors::EtcdError,
    etcdserverpb::{
        Compare, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RequestOp, TxnRequest,
        compare::TargetUnion, request_op::Request,
    },
};
use conclave_consensus::Slot;
use conclave_kv::{
    Granted, KeyObserver, KvError, LeaseChange, LeaseInfo, LeaseObserver, Machine, Options, Reply,
    command::{self, Revision},
};
use conclave_storage::{MemoryEngine, StateEngine, StateMachine};
use prost::Message;

use crate::harness::{GROUP, Replica, bytes, error, put, range};

fn grant(store: &mut Replica, id: i64, ttl: i64) -> Result<Granted, KvError> {
    match store.command(command::lease_grant(&LeaseGrantRequest { id, ttl }))? {
        Reply::LeaseGrant(response) => {
            assert_eq!((response.id, response.ttl, response.error.as_str()), (id, ttl, ""));
            assert_eq!(response.header.unwrap().revision, store.reader.revision());
            Ok(Granted { id, slot: store.machine.applied() })
        }
        other => panic!("{other:?}"),
    }
}

fn revoke(store: &mut Replica, id: i64) -> Result<i64, KvError> {
    revision(store.command(command::lease_revoke(Revision::Next, &LeaseRevokeRequest { id })))
}

fn expire(store: &mut Replica, leases: &[Granted]) -> i64 {
    revision(store.command(command::expire_leases(Revision::Next, leases))).unwrap()
}

fn revision(outcome: Result<Reply, KvError>) -> Result<i64, KvError> {
    match outcome? {
        Reply::LeaseRevoke(response) => Ok(response.header.unwrap().revision),
        other => panic!("{other:?}"),
    }
}

fn leased(key: &str, lease: i64) -> PutRequest {
    PutRequest { lease, ..put(key, "v") }
}

fn keys(store: &Replica, granted: Granted) -> Vec<Bytes> {
    store.reader.lease_keys(granted).unwrap()
}

#[test]
fn a_revoked_lease_takes_all_its_keys_at_one_revision() {
    let mut store = Replica::new();
    let lease = grant(&mut store, 7, 60).unwrap();
    assert_eq!(store.reader.revision(), 1, "a grant is no revision");
    for key in ["b", "a", "c"] {
        store.put(leased(key, 7)).unwrap();
    }
    store.set("stays", "1");
    assert_eq!(keys(&store, lease), ["a", "b", "c"]);
    assert_eq!(revoke(&mut store, 7).unwrap(), 6);
    assert_eq!(store.texts("\0", "\0", 0), ["stays=1"]);
    assert_eq!(store.texts("\0", "\0", 5), ["a=v", "b=v", "c=v", "stays=1"]);
    assert_eq!((store.reader.lease(7), store.reader.lease_keys(lease)), (None, None));
    assert_eq!(error(revoke(&mut store, 7)), EtcdError::LeaseNotFound);
    grant(&mut store, 8, 60).unwrap();
    assert_eq!(revoke(&mut store, 8).unwrap(), 6, "nothing was attached, so nothing changed");
}

#[test]
fn a_lease_with_more_keys_than_are_deleted_at_once_ends_at_one_revision() {
    let mut store = Replica::new();
    grant(&mut store, 7, 60).unwrap();
    for at in 0..3000 {
        store.put(leased(&format!("key{at}"), 7)).unwrap();
    }
    let before = store.reader.revision();
    assert_eq!(revoke(&mut store, 7).unwrap(), before + 1);
    assert_eq!(store.range(range("\0", "\0")).unwrap().count, 0);
    assert_eq!(store.reader.stats().keys, 0);
}

#[test]
fn grants_are_refused_as_etcd_refuses_them() {
    let mut store = Replica::new();
    grant(&mut store, -7, 9_000_000_000).unwrap();
    assert_eq!(error(grant(&mut store, -7, 60)), EtcdError::LeaseExist);
    assert_eq!(error(grant(&mut store, 8, 9_000_000_001)), EtcdError::LeaseTtlTooLarge);
    assert!(matches!(grant(&mut store, 0, 60), Err(KvError::Malformed)), "the proposer chooses the id");
    assert!(matches!(grant(&mut store, 8, 0), Err(KvError::Malformed)), "and a time");
    assert_eq!(error(store.put(leased("a", 8))), EtcdError::LeaseNotFound);
    assert_eq!(store.reader.leases().len(), 1);
}

#[test]
fn a_put_attaches_and_detaches() {
    let mut store = Replica::new();
    let (one, two) = (grant(&mut store, 1, 60).unwrap(), grant(&mut store, 2, 60).unwrap());
    store.put(leased("a", 1)).unwrap();
    store.put(leased("a", 2)).unwrap();
    assert_eq!((keys(&store, one).len(), keys(&store, two).len()), (0, 1));
    store.put(PutRequest { ignore_lease: true, ..put("a", "2") }).unwrap();
    assert_eq!(store.range(range("a", "")).unwrap().kvs[0].lease, 2);
    assert_eq!(keys(&store, two), ["a"]);
    store.set("a", "3");
    assert_eq!(keys(&store, two).len(), 0, "a put without a lease detaches");
    store.put(leased("b", 1)).unwrap();
    store.delete("b", "");
    store.put(leased("b", 1)).unwrap();
    store.delete("b", "c");
    assert_eq!(keys(&store, one).len(), 0);
    let before = store.set("b", "1");
    assert_eq!(revoke(&mut store, 1).unwrap(), before, "a key written anew is not its affair");
    assert_eq!(store.texts("b", "", 0), ["b=1"]);
}

#[test]
fn transactions_see_leases_and_fail_whole_without_them() {
    let mut store = Replica::new();
    grant(&mut store, 5, 60).unwrap();
    store.put(leased("a", 5)).unwrap();
    let op = |put| RequestOp { request: Some(Request::RequestPut(put)) };
    let compare = Compare {
        target: 4,
        key: bytes("a"),
        target_union: Some(TargetUnion::Lease(5)),
        ..Compare::default()
    };
    let txn = TxnRequest {
        compare: vec![compare],
        success: vec![op(put("b", "1")), op(leased("c", 6))],
        failure: vec![op(leased("c", 5))],
    };
    assert_eq!(error(store.txn(&txn)), EtcdError::LeaseNotFound);
    assert_eq!(store.texts("b", "", 0), [""; 0]);
    store.set("a", "1");
    assert!(!store.txn(&txn).unwrap().succeeded);
    revoke(&mut store, 5).unwrap();
    assert_eq!(store.texts("\0", "\0", 0), ["a=1"]);
}

#[test]
fn what_was_decided_of_one_grant_never_hits_the_next() {
    let mut store = Replica::new();
    let first = grant(&mut store, 5, 600).unwrap();
    revoke(&mut store, 5).unwrap();
    let second = grant(&mut store, 5, 600).unwrap();
    store.put(leased("a", 5)).unwrap();
    let before = store.reader.revision();
    assert_eq!(expire(&mut store, &[first]), before);
    store.command(command::checkpoint_leases(&[(first, 10)])).unwrap();
    assert_eq!(
        store.reader.lease(5),
        Some(LeaseInfo { granted: second, ttl_seconds: 600, remaining_seconds: 0 })
    );
    store.command(command::checkpoint_leases(&[(second, 10)])).unwrap();
    assert_eq!(store.reader.lease(5).unwrap().remaining_seconds, 10);
    assert_eq!(expire(&mut store, &[first, second, second]), before + 1);
    assert_eq!(store.texts("a", "", 0), [""; 0]);
}

#[test]
fn several_leases_expire_at_one_revision() {
    let mut store = Replica::new();
    let leases: Vec<Granted> = (1..=3).map(|id| grant(&mut store, id, 60).unwrap()).collect();
    for id in 1..=3 {
        store.put(leased(&format!("k{id}"), id)).unwrap();
    }
    let at = store.reader.revision();
    assert_eq!(expire(&mut store, &leases[..2]), at + 1);
    assert_eq!(store.texts("\0", "\0", 0), ["k3=v"]);
    assert_eq!(store.texts("\0", "\0", at), ["k1=v", "k2=v", "k3=v"]);
}

#[test]
fn checkpoints_and_snapshots_carry_leases() {
    let mut store = Replica::new();
    let lease = grant(&mut store, i64::MIN, 600).unwrap();
    let short = grant(&mut store, 3, 5).unwrap();
    store.put(leased("a", i64::MIN)).unwrap();
    store.command(command::checkpoint_leases(&[(lease, 200)])).unwrap();
    assert!(store.machine.pending_bytes() > 0);
    store.freeze();
    revoke(&mut store, 3).unwrap();
    store.write();
    store.log.truncate(4);
    store.crash();
    assert_eq!(store.reader.leases().len(), 2, "what was frozen is not changed by what follows");
    assert_eq!(expire(&mut store, &[short]), 2);
    store.checkpoint();
    assert_eq!(store.machine.pending_bytes(), 0);
    let expected = [LeaseInfo { granted: lease, ttl_seconds: 600, remaining_seconds: 200 }];
    store.crash();
    assert_eq!(store.reader.leases(), expected);
    let mut other = Replica::new();
    grant(&mut other, 9, 9).unwrap();
    other.install_from(&store, 64);
    assert_eq!((other.reader.leases().as_slice(), keys(&other, lease)), (&expected[..], vec![bytes("a")]));
    assert_eq!(revoke(&mut other, i64::MIN).unwrap(), 3);
    assert_eq!(other.reader.stats().keys, 0);
}

#[test]
fn a_snapshot_of_the_layout_before_leases_is_taken() {
    let mut store = Replica::new();
    store.set("a", "1");
    store.checkpoint();
    let mut source = store.machine.snapshot().unwrap();
    let mut piece = SnapshotPiece::decode(source.next(1 << 20).unwrap().unwrap()).unwrap();
    let header = piece.header.as_mut().unwrap();
    let record = CheckpointRecord { format: 3, ..CheckpointRecord::decode(header.record.clone()).unwrap() };
    (header.format, header.record) = (3, record.encode_to_vec().into());
    let mut other = Replica::new();
    let mut sink = other.machine.receive(1).unwrap();
    sink.piece(piece.encode_to_vec().into()).unwrap();
    let meta = sink.finish().unwrap();
    other.machine.install(&meta).unwrap();
    assert_eq!((other.texts("a", "", 0), other.reader.leases().len()), (vec!["a=1".to_owned()], 0));
}

/// What observers were told, in order.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl LeaseObserver for Told {
    fn leases_changed(&self, changes: &[LeaseChange]) {
        let mut told = self.0.lock().unwrap();
        told.extend(changes.iter().map(|change| match change {
            LeaseChange::Granted(lease) => format!("granted {} for {}", lease.granted.id, lease.ttl_seconds),
            LeaseChange::Ended(granted) => format!("ended {} of {}", granted.id, granted.slot),
        }));
    }
}

impl KeyObserver for Told {
    fn awaits(&self, key: &[u8]) -> bool {
        key.starts_with(b"awaited")
    }

    fn changed(&self, keys: &[Box<[u8]>]) {
        let names = keys.iter().map(|key| format!("changed {}", String::from_utf8_lossy(key)));
        self.0.lock().unwrap().extend(names);
    }

    fn replaced(&self) {
        self.0.lock().unwrap().push("replaced".to_owned());
    }
}

#[test]
fn observers_hear_of_leases_and_of_the_keys_that_are_awaited() {
    let told = Arc::new(Told::default());
    let mut store = Replica::new();
    store.options = Options {
        lease_observer: Some(told.clone()),
        key_observer: Some(told.clone()),
        ..Options::default()
    };
    let (machine, reader) =
        Machine::open(MemoryEngine::new().store(GROUP, 0).unwrap(), store.options.clone()).unwrap();
    (store.machine, store.reader) = (machine, reader);
    grant(&mut store, 7, 60).unwrap();
    store.put(leased("awaited/a", 7)).unwrap();
    store.put(leased("other", 7)).unwrap();
    store.set("awaited/b", "1");
    store.delete("awaited/b", "awaited/c");
    revoke(&mut store, 7).unwrap();
    store.delete("awaited/a", "");
    let mut other = Replica::new();
    other.set("x", "1");
    other.checkpoint();
    store.install_from(&other, 1 << 20);
    assert_eq!(
        std::mem::take(&mut *told.0.lock().unwrap()),
        [
            "granted 7 for 60",
            "changed awaited/a",
            "changed awaited/b",
            "changed awaited/b",
            "ended 7 of 1",
            "changed awaited/a",
            "replaced",
        ]
    );
    // It goes on after a snapshot.
    store.set("awaited/c", "1");
    assert_eq!(*told.0.lock().unwrap(), ["changed awaited/c"]);
}

#[test]
fn readers_page_through_many_leases_and_keys() {
    let mut store = Replica::new();
    for id in 1..=5000 {
        grant(&mut store, id, 60).unwrap();
    }
    for at in 0..5000 {
        store.put(leased(&format!("{at:04}"), 1)).unwrap();
    }
    let leases = store.reader.leases();
    assert!(leases.len() == 5000 && leases.is_sorted_by_key(|lease| lease.granted.id));
    let held = keys(&store, leases[0].granted);
    assert!(held.len() == 5000 && held.is_sorted());
    let named: Vec<Granted> = leases.iter().map(|lease| lease.granted).collect();
    assert_eq!(store.reader.leases_within(&named, 4999, 1 << 20), 1, "one is always among them");
    assert_eq!(store.reader.leases_within(&named[1..], 0, 0), 4999);
    assert_eq!(store.reader.leases_within(&[named[1], named[0]], 5000, 19_999), 1);
    assert_eq!(store.reader.leases_within(&[named[1], named[0]], 5000, 20_000), 2);
    assert_eq!(store.reader.leases_within(&[Granted { id: 9999, slot: Slot(1) }], 1, 1), 1);
    assert_eq!(store.reader.leases_within(&[], 1, 1), 0);
}
