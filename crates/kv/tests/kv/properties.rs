//! Random commands, checkpoints, crashes and snapshots: the store always answers as the twin does.

use bytes::Bytes;
use conclave_api::{
    errors::EtcdError,
    etcdserverpb::{
        Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
        RangeResponse, RequestOp, TxnRequest, compare::TargetUnion, request_op::Request,
    },
};
use conclave_kv::{
    Granted, KvError, Limits,
    command::{self, Revision},
    validate::{validate_range_stream, validate_txn},
};
use proptest::{collection::vec, prelude::*};

use crate::{
    harness::Replica,
    model::{Model, ModelLease},
};

#[derive(Clone, Debug)]
enum Step {
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(i64),
    Grant(i64, i64),
    Revoke(i64),
    /// The leases by the numbers of their grants: the last one, the one before, and so on.
    Expire(Vec<u64>),
    CheckpointLease(u64, i64),
    Freeze,
    Write,
    Thaw,
    Crash,
    /// The other replica takes this one's checkpoint.
    Snapshot(usize),
    /// The other replica applies the log, or takes a checkpoint.
    Follow,
    FollowerCheckpoint,
    Range(RangeRequest),
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "b", "b\0", "b\0\0c", "c", "cc", "d", "\0"]).prop_map(Bytes::from)
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => Just(Bytes::new()), 2 => Just(Bytes::from("\0")), 3 => key()]
}

fn value() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["", "1", "2", "3", "a longer value than the others"]).prop_map(Bytes::from)
}

/// Counted back from the newest; negative is in the future.
fn age() -> impl Strategy<Value = i64> {
    prop_oneof![4 => Just(i64::MAX), 6 => 0..12_i64, 1 => -2..0_i64]
}

prop_compose! {
    fn put()(key in key(), value in value(), prev_kv in any::<bool>(), ignore in 0..12_u8, lease in -8..5_i64) -> PutRequest {
        PutRequest {
            key,
            value: if ignore == 0 { Bytes::new() } else { value },
            lease: if ignore == 1 { 0 } else { lease.max(0) },
            prev_kv,
            ignore_value: ignore == 0,
            ignore_lease: ignore == 1,
        }
    }
}

prop_compose! {
    fn delete()(key in key(), range_end in range_end(), prev_kv in any::<bool>()) -> DeleteRangeRequest {
        DeleteRangeRequest { key, range_end, prev_kv }
    }
}

prop_compose! {
    fn range()(
        key in key(), range_end in range_end(), limit in 0..4_i64, revision in age(), sort_order in 0..3_i32, sort_target in 0..5_i32,
        flags in 0..8_u8, bounds in prop::option::weighted(0.3, [0..15_i64, 0..40_i64, 0..15_i64, 0..40_i64]),
    ) -> RangeRequest {
        let bounds = bounds.unwrap_or_default();
        RangeRequest {
            key, range_end, limit, revision, sort_order, sort_target,
            serializable: false,
            keys_only: flags & 3 == 1,
            count_only: flags == 2,
            min_mod_revision: bounds[0],
            max_mod_revision: bounds[1],
            min_create_revision: bounds[2],
            max_create_revision: bounds[3],
        }
    }
}

prop_compose! {
    fn compare()(key in key(), range_end in range_end(), result in 0..4_i32, target in 0..5_i32, number in 0..30_i64, value in value()) -> Compare {
        let given = match target {
            0 => TargetUnion::Version(number / 8),
            1 => TargetUnion::CreateRevision(number),
            2 => TargetUnion::ModRevision(number),
            3 => TargetUnion::Value(value),
            _ => TargetUnion::Lease(number / 8),
        };
        Compare { result, target, key, range_end, target_union: Some(given) }
    }
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let op = prop_oneof![
        3 => put().prop_map(Request::RequestPut),
        2 => delete().prop_map(Request::RequestDeleteRange),
        2 => range().prop_map(|range| Request::RequestRange(RangeRequest { revision: 0, ..range })),
    ];
    let level = |op: BoxedStrategy<Request>| {
        let ops = vec(op.prop_map(|request| RequestOp { request: Some(request) }), 0..4);
        (vec(compare(), 0..3), ops.clone(), ops).prop_map(|(compare, success, failure)| TxnRequest {
            compare,
            success,
            failure,
        })
    };
    let nested = level(op.clone().boxed()).prop_map(Request::RequestTxn);
    level(prop_oneof![4 => op, 1 => nested].boxed())
}

fn lease() -> impl Strategy<Value = i64> {
    1..5_i64
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => put().prop_map(Step::Put),
        4 => delete().prop_map(Step::Delete),
        6 => txn().prop_map(Step::Txn),
        2 => (0..10_i64).prop_map(Step::Compact),
        4 => (lease(), prop_oneof![9 => 1..1000_i64, 1 => 9_000_000_000..9_000_000_003_i64])
            .prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        1 => lease().prop_map(Step::Revoke),
        1 => vec(0..6_u64, 0..3).prop_map(Step::Expire),
        1 => (0..6_u64, -1..1000_i64).prop_map(|(back, left)| Step::CheckpointLease(back, left)),
        3 => Just(Step::Freeze),
        1 => Just(Step::Write),
        3 => Just(Step::Thaw),
        1 => Just(Step::Crash),
        1 => (1..200_usize).prop_map(Step::Snapshot),
        2 => Just(Step::Follow),
        1 => Just(Step::FollowerCheckpoint),
        20 => range().prop_map(Step::Range),
    ]
}

fn etcd<T>(outcome: Result<T, KvError>) -> Result<T, EtcdError> {
    outcome.map_err(|error| error.etcd().unwrap_or_else(|| panic!("{error}")))
}

/// A stream's chunks merged are the answer in one piece.
fn check_stream(replica: &Replica, request: &RangeRequest, expected: &Result<RangeResponse, EtcdError>) {
    if validate_range_stream(request).is_err() {
        return;
    }
    let merged = replica.reader.range_stream(request).and_then(|chunks| {
        let mut merged = RangeResponse::default();
        for chunk in chunks {
            let chunk = chunk?;
            assert!(merged.header.is_none(), "the header is in the last chunk");
            merged.kvs.extend(chunk.kvs);
            (merged.header, merged.more, merged.count) = (chunk.header, chunk.more, chunk.count);
        }
        Ok(merged)
    });
    // The order of keys is the only one, so the target makes no difference.
    if request.sort_target == 0 {
        assert_eq!(&etcd(merged), expected, "stream of {request:?}");
    }
}

fn run(steps: Vec<Step>, value_cache_bytes: usize) {
    let mut replica = Replica::with_cache(value_cache_bytes);
    let mut follower = Replica::with_cache(1 << 20);
    let mut model = Model::new();
    // Every grant ever made, by its number from 1 on.
    let mut grants: Vec<Granted> = Vec::new();
    let back = |grants: &[Granted], back: u64| (grants.len() as u64).checked_sub(back);
    for step in steps {
        match step {
            Step::Put(request) => {
                assert_eq!(etcd(replica.put(request.clone())), model.put(&request), "{request:?}")
            }
            Step::Delete(request) => {
                let reply = replica.command(command::delete_range(Revision::Next, &request)).unwrap();
                assert_eq!(
                    reply,
                    conclave_kv::Reply::DeleteRange(model.delete_range(&request)),
                    "{request:?}"
                );
            }
            Step::Txn(request) => match validate_txn(&request, &Limits::default()) {
                Ok(()) => assert_eq!(etcd(replica.txn(&request)), model.txn(&request), "{request:?}"),
                Err(refused) => assert_eq!(etcd(replica.txn(&request)).err(), refused.etcd()),
            },
            Step::Compact(age) => {
                let revision = model.revision - age + 1;
                assert_eq!(etcd(replica.compact(revision)), model.compact(revision), "compact to {revision}");
            }
            Step::Grant(id, ttl) => {
                let request = LeaseGrantRequest { id, ttl };
                let granted = etcd(replica.command(command::lease_grant(&request)));
                assert_eq!(
                    granted.map(drop),
                    model.grant(id, ttl).map(|_| {
                        grants.push(Granted { id, slot: replica.machine.applied() });
                    }),
                    "{request:?}"
                );
            }
            Step::Revoke(id) => {
                let request = LeaseRevokeRequest { id };
                let revoked = etcd(replica.command(command::lease_revoke(Revision::Next, &request)));
                assert_eq!(revoked.map(drop), model.revoke(id), "{request:?}");
            }
            Step::Expire(ages) => {
                let numbers: Vec<u64> =
                    ages.iter().filter_map(|age| back(&grants, *age)).filter(|number| *number > 0).collect();
                let named: Vec<Granted> = numbers.iter().map(|number| grants[*number as usize - 1]).collect();
                replica.command(command::expire_leases(Revision::Next, &named)).unwrap();
                model.expire(&numbers);
            }
            Step::CheckpointLease(age, left) => {
                if let Some(number) = back(&grants, age).filter(|number| *number > 0) {
                    let told = [(grants[number as usize - 1], left)];
                    replica.command(command::checkpoint_leases(&told)).unwrap();
                    model.checkpoint(number, left);
                }
            }
            Step::Freeze => replica.freeze(),
            Step::Write => replica.write(),
            Step::Thaw => replica.thaw(),
            Step::Crash => replica.crash(),
            Step::Snapshot(piece_bytes) => follower.install_from(&replica, piece_bytes),
            Step::Follow => follower.follow(&replica.log),
            Step::FollowerCheckpoint => follower.checkpoint(),
            Step::Range(request) => {
                let revision =
                    if request.revision == i64::MAX { 0 } else { model.revision - request.revision };
                let request = RangeRequest { revision, ..request };
                let expected = model.range(&request);
                assert_eq!(etcd(replica.range(request.clone())), expected, "{request:?}");
                check_stream(&replica, &request, &expected);
            }
        }
    }
    // What was answered does not depend on where anything is kept, and neither does the hash, at any revision.
    follower.follow(&replica.log);
    for replica in [&replica, &follower] {
        assert_eq!(
            (replica.reader.revision(), replica.reader.compact_revision()),
            (model.revision, model.compacted)
        );
        for revision in model.compacted.max(1)..=model.revision {
            let all = RangeRequest {
                key: "\0".into(),
                range_end: "\0".into(),
                revision,
                ..RangeRequest::default()
            };
            let expected = model.range(&all);
            assert_eq!(etcd(replica.range(all.clone())), expected, "at {revision}");
            check_stream(replica, &all, &expected);
        }
        let mut leases = model.leases.clone();
        leases.sort_by_key(|lease| lease.id);
        let told = replica.reader.leases();
        let numbers = told.iter().map(|lease| {
            let number = grants.iter().position(|granted| *granted == lease.granted).unwrap() as u64 + 1;
            ModelLease {
                id: lease.granted.id,
                grant: number,
                ttl: lease.ttl_seconds,
                remaining: lease.remaining_seconds,
            }
        });
        assert_eq!(numbers.collect::<Vec<_>>(), leases);
        for lease in &told {
            let keys = replica.reader.lease_keys(lease.granted).unwrap();
            assert_eq!(keys, model.lease_keys(lease.granted.id));
        }
        assert_eq!(replica.reader.stats().keys as i64, {
            let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
            model.range(&all).unwrap().count
        });
    }
    for revision in model.compacted.max(1)..=model.revision {
        assert_eq!(replica.reader.hash_kv(revision).unwrap(), follower.reader.hash_kv(revision).unwrap());
    }
    assert_eq!(replica.reader.hash().unwrap(), follower.reader.hash().unwrap());
}

proptest! {
    // Eight times the default or what PROPTEST_CASES says.
    #![proptest_config(ProptestConfig {
        cases: 8 * ProptestConfig::default().cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_store_answers_as_the_twin_does(steps in vec(step(), 1..120), cache in prop::sample::select(vec![0, 150, 1 << 20])) {
        run(steps, cache);
    }
}
