//! What a replica of the key-value store is given: commands from the log, pieces of a snapshot, and its own checkpoint.

use std::sync::Arc;

use bytes::Bytes;
use conclave_api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest, request_op::Request,
};
use conclave_consensus::{Ballot, Entry, GroupId, Kind, NodeId, ProposalId, Slot, SnapshotMeta};
use conclave_kv::{
    ClientId, Granted, KvError, Machine, Options, Reader, Reply, RequestId,
    command::{self, Revision},
};
use conclave_storage::{Checkpoint, MemoryEngine, StateEngine, StateMachine, StateStore};

use super::{Source, piece};

const GROUP: GroupId = GroupId(1);

fn store() -> Arc<dyn StateStore> {
    MemoryEngine::new().store(GROUP, 0).expect("a new engine")
}

fn machine() -> (Machine, Reader) {
    Machine::open(store(), Options { value_cache_bytes: 1 << 20, ..Options::default() })
        .expect("an empty store")
}

fn entry(slot: u64, payload: Bytes) -> Entry {
    let id = ProposalId { node: NodeId(1), sequence: slot };
    Entry { slot: Slot(slot), ballot: Ballot::term(1), kind: Kind::Command, id, payload }
}

fn everything(reader: &Reader) -> Result<(), KvError> {
    let all = RangeRequest {
        key: b"\0".as_slice().into(),
        range_end: b"\0".as_slice().into(),
        ..RangeRequest::default()
    };
    reader.range(&all).map(drop)
}

/// Applies the pieces of the bytes as commands to two replicas, to one of them all at once: the same answers, the same state, each
/// answer readable.
pub(super) fn commands(data: &[u8]) {
    let mut source = Source::new(data);
    let mut log = Vec::new();
    while !source.is_empty() {
        log.push(entry(log.len() as u64 + 1, Bytes::copy_from_slice(source.piece())));
    }
    let ((mut one, one_reader), (mut other, other_reader)) = (machine(), machine());
    let (mut replies, mut at_once) = (Vec::new(), Vec::new());
    for entry in &log {
        one.apply(std::slice::from_ref(entry), &|_| true, &mut replies);
    }
    other.apply(&log, &|_| true, &mut at_once);
    assert_eq!(replies, at_once);
    assert_eq!(one_reader.hash().ok(), other_reader.hash().ok());
    for (_, reply) in replies {
        // A refusal is a tag and a number, and one tells a revision.
        let length = reply.len();
        assert!(
            Reply::decode(reply).is_ok() || length == 3 || length == 11,
            "an answer that its client cannot read"
        );
    }
    everything(&one_reader).expect("what was applied can be read");
}

fn requests() -> Vec<Bytes> {
    let put = PutRequest { key: "a".into(), value: "1".into(), prev_kv: true, ..PutRequest::default() };
    let delete = DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: true };
    let op = |request| RequestOp { request: Some(request) };
    let nested = TxnRequest { success: vec![op(Request::RequestPut(put.clone()))], ..TxnRequest::default() };
    let txn = TxnRequest {
        compare: vec![Compare { key: "a".into(), ..Compare::default() }],
        success: vec![op(Request::RequestDeleteRange(delete.clone())), op(Request::RequestTxn(nested))],
        failure: vec![op(Request::RequestRange(RangeRequest { key: "a".into(), ..RangeRequest::default() }))],
    };
    let id = RequestId { client: ClientId(7), sequence: 1 };
    let named = command::identified(&command::txn(Revision::Next, &txn), id);
    vec![
        named.clone(),
        named,
        command::register_node(NodeId(7), &["http://a:2380".to_owned()], true),
        command::unregister_node(NodeId(8)),
        command::put(Revision::Next, &put),
        command::txn(Revision::Next, &txn),
        command::delete_range(Revision::Next, &delete),
        command::put(Revision::Next, &PutRequest { ignore_value: true, ..put }),
        command::compaction(&CompactionRequest { revision: 2, physical: false }),
        command::lease_grant(&LeaseGrantRequest { id: 5, ttl: 600 }),
        command::put(Revision::Next, &PutRequest { key: "b".into(), lease: 5, ..PutRequest::default() }),
        command::checkpoint_leases(&[(Granted { id: 5, slot: Slot(10) }, 7)]),
        command::lease_grant(&LeaseGrantRequest { id: -5, ttl: 1 }),
        command::lease_revoke(Revision::Next, &LeaseRevokeRequest { id: -5 }),
        command::expire_leases(Revision::Next, &[Granted { id: 6, slot: Slot(9) }]),
    ]
}

pub(super) fn command_seeds() -> Vec<Vec<u8>> {
    let pieces: Vec<Vec<u8>> = requests().iter().map(|request| piece(request)).collect();
    pieces.iter().cloned().chain([pieces.concat()]).collect()
}

/// A replica with some keys and a checkpoint of them.
fn checkpointed() -> Machine {
    let (mut machine, _) = machine();
    let log: Vec<Entry> = (1..).zip(requests()).map(|(slot, request)| entry(slot, request)).collect();
    machine.apply(&log, &|_| false, &mut Vec::new());
    let meta = SnapshotMeta { slot: machine.applied(), ballot: Ballot::term(1), ..SnapshotMeta::default() };
    machine.checkpoint(meta).expect("none is under way").run().expect("memory takes it");
    machine.checkpointed();
    machine
}

/// The pieces of the bytes as pieces of a snapshot. What is accepted can be switched to and read.
pub(super) fn snapshot(data: &[u8]) {
    let (mut machine, _) = machine();
    let mut sink = machine.receive(1).expect("a new generation");
    let mut source = Source::new(data);
    while !source.is_empty() {
        if sink.piece(Bytes::copy_from_slice(source.piece())).is_err() {
            return;
        }
    }
    let Ok(meta) = sink.finish() else { return };
    if machine.install(&meta).is_ok() {
        let _ = everything(&machine.reader());
    }
}

pub(super) fn snapshot_seeds() -> Vec<Vec<u8>> {
    let mut source = checkpointed().snapshot().expect("a checkpoint was taken");
    let mut seed = Vec::new();
    while let Some(bytes) = source.next(64).expect("memory gives it") {
        seed.extend(piece(&bytes));
    }
    vec![seed]
}

/// A store whose checkpoint holds the bytes: its record, then keys and values. It opens or says why not, and if it opens it is read.
pub(super) fn checkpoint(data: &[u8]) {
    let mut source = Source::new(data);
    let record = Bytes::copy_from_slice(source.piece());
    let mut pairs = std::collections::BTreeMap::new();
    while !source.is_empty() {
        let key = Bytes::copy_from_slice(source.piece());
        pairs.insert(key, Some(Bytes::copy_from_slice(source.piece())));
    }
    let store = store();
    let meta = SnapshotMeta { slot: Slot(5), ballot: Ballot::term(1), ..SnapshotMeta::default() };
    if store.ingest(Checkpoint { meta, record }, &mut pairs.into_iter()).is_err() {
        return;
    }
    // Nothing is applied: a state machine on a damaged disk has no answer, and halts the node.
    if let Ok((_, reader)) =
        Machine::open(store, Options { value_cache_bytes: 1 << 20, ..Options::default() })
    {
        let _ = everything(&reader);
        let _ = reader.hash();
    }
}

pub(super) fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let store = store();
    let options = Options { value_cache_bytes: 1 << 20, ..Options::default() };
    let (mut machine, _) = Machine::open(Arc::clone(&store), options).expect("an empty store");
    let mut seeds = Vec::new();
    for (slot, request) in (1..).zip(requests()) {
        machine.apply(&[entry(slot, request)], &|_| false, &mut Vec::new());
        let meta = SnapshotMeta { slot: Slot(slot), ballot: Ballot::term(1), ..SnapshotMeta::default() };
        machine.checkpoint(meta).expect("none is under way").run().expect("memory takes it");
        machine.checkpointed();
        let mut seed = piece(&store.checkpoint().expect("just taken").record);
        for pair in store.view().scan(std::ops::Bound::Unbounded) {
            let (key, value) = pair.expect("memory gives it");
            seed.extend(piece(&key));
            seed.extend(piece(&value));
        }
        seeds.push(seed);
    }
    seeds
}
