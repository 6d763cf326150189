//! Bytes that are no command and no snapshot: an answer or an error, the same everywhere, and never a panic.

use bytes::Bytes;
use conclave_api::{
    conclave::kv::v1::{CheckpointRecord, SnapshotHeader, SnapshotPiece},
    errors::EtcdError,
    etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op::Request},
};
use conclave_kv::{
    KEY_BYTES_MAX, KvError, RegisteredNode,
    command::{self, Revision},
};
use conclave_storage::{StateError, StateMachine};
use proptest::{collection::vec, prelude::*};
use prost::Message;

use crate::harness::{Replica, error, put};

#[test]
fn commands_that_no_proposer_would_send_have_no_effect() {
    let mut store = Replica::new();
    let before = store.reader.hash().unwrap();
    assert!(matches!(store.command(Bytes::from_static(b"\xff\xff")), Err(KvError::Malformed)));
    assert!(matches!(store.command(Bytes::new()), Err(KvError::Malformed)));
    let empty = command::put(Revision::Next, &PutRequest::default());
    assert_eq!(error(store.command(empty)), EtcdError::EmptyKey);
    let long = PutRequest { key: vec![0; KEY_BYTES_MAX + 1].into(), ..PutRequest::default() };
    assert_eq!(error(store.command(command::put(Revision::Next, &long))), EtcdError::RequestTooLarge);
    let empty = command::delete_range(Revision::Next, &DeleteRangeRequest::default());
    assert_eq!(error(store.command(empty)), EtcdError::EmptyKey);
    let op = RequestOp { request: Some(Request::RequestPut(put("a", "1"))) };
    let twice = TxnRequest { success: vec![op.clone(), op], ..TxnRequest::default() };
    assert_eq!(error(store.command(command::txn(Revision::Next, &twice))), EtcdError::DuplicateKey);
    assert_eq!(store.reader.hash().unwrap(), before);
}

#[test]
fn the_longest_key_can_be_written() {
    let mut store = Replica::new();
    store.put(PutRequest { key: vec![0; KEY_BYTES_MAX].into(), ..PutRequest::default() }).unwrap();
    store.checkpoint();
    store.crash();
    assert_eq!(store.reader.stats().keys, 1);
}

#[test]
fn transactions_nested_too_deeply_are_refused() {
    let mut txn = TxnRequest::default();
    for _ in 0..200 {
        txn = TxnRequest {
            success: vec![RequestOp { request: Some(Request::RequestTxn(txn)) }],
            ..TxnRequest::default()
        };
    }
    let mut store = Replica::new();
    assert!(matches!(store.command(command::txn(Revision::Next, &txn)), Err(KvError::Malformed)));
}

fn pieces(store: &Replica) -> Vec<Bytes> {
    let mut source = store.machine.snapshot().unwrap();
    std::iter::from_fn(|| source.next(64).unwrap()).collect()
}

fn receive(pieces: &[Bytes]) -> Result<(), StateError> {
    let store = Replica::new();
    let mut sink = store.machine.receive(1).unwrap();
    for piece in pieces {
        sink.piece(piece.clone())?;
    }
    sink.finish().map(drop)
}

#[test]
fn a_snapshot_is_taken_whole_and_in_order_or_not_at_all() {
    let mut store = Replica::new();
    for key in ["a", "b", "c", "d"] {
        store.set(key, "some value");
    }
    store.checkpoint();
    let pieces = pieces(&store);
    assert!(pieces.len() > 3);
    receive(&pieces).unwrap();
    let without = |skip: usize| {
        pieces
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != skip)
            .map(|(_, piece)| piece.clone())
            .collect::<Vec<_>>()
    };
    for skip in 0..pieces.len() {
        assert!(receive(&without(skip)).is_err(), "without piece {skip}");
    }
    let twice: Vec<_> = pieces.iter().chain(&pieces).cloned().collect();
    assert!(receive(&twice).is_err() && receive(&[]).is_err());
    let mut swapped = pieces.clone();
    swapped.swap(1, 2);
    assert!(receive(&swapped).is_err());
    let mut changed = SnapshotPiece::decode(pieces[1].clone()).unwrap();
    changed.pairs[0].value = Bytes::from_static(b"changed");
    let mut forged = pieces.clone();
    forged[1] = changed.encode_to_vec().into();
    assert!(receive(&forged).is_err());
    assert!(receive(&[Bytes::from_static(b"\xff\xff\xff")]).is_err());
}

#[test]
fn a_snapshot_of_an_unknown_layout_is_refused() {
    let mut store = Replica::new();
    store.set("a", "1");
    store.checkpoint();
    let mut pieces = pieces(&store);
    let mut first = SnapshotPiece::decode(pieces[0].clone()).unwrap();
    first.header.as_mut().unwrap().format += 1;
    pieces[0] = first.encode_to_vec().into();
    assert!(receive(&pieces).unwrap_err().to_string().contains("layout"));
}

#[test]
fn a_snapshot_whose_header_cannot_be_is_refused() {
    let mut store = Replica::new();
    store.set("a", "1");
    store.checkpoint();
    let pieces = pieces(&store);
    let with = |change: &dyn Fn(&mut SnapshotHeader)| {
        let mut first = SnapshotPiece::decode(pieces[0].clone()).unwrap();
        change(first.header.as_mut().unwrap());
        let mut forged = pieces.clone();
        forged[0] = first.encode_to_vec().into();
        receive(&forged)
    };
    with(&|_| {}).unwrap();
    with(&|header| header.slot = 1 << 62).unwrap();
    for slot in [0, (1 << 62) + 1, u64::MAX] {
        assert!(with(&|header| header.slot = slot).is_err(), "slot {slot}");
    }
    assert!(with(&|header| header.ballot_round = u64::MAX).is_err());
    for config in [&b""[..], b"\xff", b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff", &[0; 10], &[1; 300]] {
        assert!(with(&|header| header.config = Bytes::copy_from_slice(config)).is_err(), "{config:?}");
    }
    let with_record = |change: &dyn Fn(&mut CheckpointRecord)| {
        with(&|header| {
            let mut record = CheckpointRecord::decode(header.record.clone()).unwrap();
            change(&mut record);
            header.record = record.encode_to_vec().into();
        })
    };
    with_record(&|_| {}).unwrap();
    assert!(with_record(&|record| record.top_revision = i64::MAX).is_err());
    assert!(with_record(&|record| record.readable_revision = 0).is_err());
    assert!(with_record(&|record| record.compact_revision = record.readable_revision + 1).is_err());
    assert!(with_record(&|record| record.compact_cursor = Bytes::from_static(b"n")).is_err());
    let node = |id, urls: usize, bytes: usize| RegisteredNode {
        id,
        peer_urls: vec!["u".repeat(bytes); urls],
        votes: true,
    };
    with_record(&|record| record.nodes = vec![node(1, 16, 1024), node(2, 0, 0)]).unwrap();
    for nodes in [
        vec![node(2, 0, 0), node(1, 0, 0)],
        vec![node(1, 0, 0), node(1, 0, 0)],
        vec![node(1, 17, 0)],
        vec![node(1, 1, 1025)],
        (0..65).map(|id| node(id, 1, 1)).collect(),
    ] {
        assert!(with_record(&|record| record.nodes = nodes.clone()).is_err(), "{nodes:?}");
    }
    assert!(with(&|header| header.record = Bytes::from_static(b"\xff\xff")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_answered_alike_by_all(commands in vec(vec(any::<u8>(), 0..60), 1..20)) {
        let (mut one, mut two) = (Replica::new(), Replica::new());
        for (at, bytes) in commands.into_iter().enumerate() {
            // Some begin like a command, to get further in.
            let bytes: Bytes = if at % 2 == 0 { bytes.into() } else { [&[0x12, bytes.len() as u8][..], &bytes].concat().into() };
            let replies = (one.command(bytes.clone()), two.command(bytes));
            assert_eq!(format!("{:?}", replies.0), format!("{:?}", replies.1));
            two.checkpoint();
        }
        assert_eq!(one.reader.hash().unwrap(), two.reader.hash().unwrap());
    }
}
