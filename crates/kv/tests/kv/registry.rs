//! The registered nodes: what commands do to them, and that nothing loses them.

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use conclave_api::conclave::kv::v1::{Command, RegisterNode, command::Operation};
use conclave_consensus::NodeId;
use conclave_kv::{
    KvError, Machine, Options, Reader, RegisteredNode, Reply, StoreObserver, command,
    registry::{NODES_MAX, PEER_URL_BYTES_MAX, PEER_URLS_MAX},
};
use proptest::{collection::vec, prelude::*};
use prost::Message;

use crate::harness::Replica;

fn url(at: u64) -> String {
    format!("http://10.0.0.{at}:2380")
}

fn register(store: &mut Replica, id: u64, peer_urls: &[String]) -> Result<Reply, KvError> {
    store.command(command::register_node(NodeId(id), peer_urls, id.is_multiple_of(2)))
}

fn unregister(store: &mut Replica, id: u64) {
    assert_eq!(store.command(command::unregister_node(NodeId(id))).unwrap(), Reply::Registry);
}

fn node(id: u64, peer_urls: &[String]) -> RegisteredNode {
    RegisteredNode { id, peer_urls: peer_urls.to_vec(), votes: id.is_multiple_of(2) }
}

#[test]
fn nodes_are_noted_replaced_and_forgotten_outside_of_revisions_and_hashes() {
    let mut store = Replica::new();
    store.set("a", "1");
    let hashes = |store: &Replica| (store.reader.hash().unwrap(), store.reader.hash_kv(0).unwrap());
    let before = hashes(&store);
    assert_eq!((store.reader.nodes(), store.reader.nodes_version()), (Vec::new(), 0));
    assert_eq!(register(&mut store, 9, &[url(9)]).unwrap(), Reply::Registry);
    register(&mut store, u64::MAX, &[url(1), url(2)]).unwrap();
    register(&mut store, 3, &[]).unwrap();
    let expected = [node(3, &[]), node(9, &[url(9)]), node(u64::MAX, &[url(1), url(2)])];
    assert_eq!((store.reader.nodes().as_slice(), store.reader.nodes_version()), (&expected[..], 3));
    register(&mut store, 9, &[url(9)]).unwrap();
    unregister(&mut store, 4);
    assert_eq!(store.reader.nodes_version(), 3, "nothing changed");
    register(&mut store, 9, &[url(8)]).unwrap();
    unregister(&mut store, 3);
    unregister(&mut store, 3);
    let expected = [node(9, &[url(8)]), node(u64::MAX, &[url(1), url(2)])];
    assert_eq!((store.reader.nodes().as_slice(), store.reader.nodes_version()), (&expected[..], 5));
    assert_eq!(hashes(&store), before);
}

#[test]
fn what_is_out_of_bounds_is_refused_without_effect() {
    let mut store = Replica::new();
    let longest = "u".repeat(PEER_URL_BYTES_MAX);
    for id in 1..=NODES_MAX as u64 {
        register(&mut store, id, &vec![longest.clone(); PEER_URLS_MAX]).unwrap();
    }
    assert!(matches!(register(&mut store, 99, &[]), Err(KvError::TooManyNodes)));
    let full = store.reader.nodes();
    assert_eq!(full.len(), NODES_MAX);
    for urls in [vec![String::new(); PEER_URLS_MAX + 1], vec![longest + "u"]] {
        assert!(matches!(register(&mut store, 1, &urls), Err(KvError::NodeTooLarge)));
    }
    assert_eq!((store.reader.nodes(), store.reader.nodes_version()), (full.clone(), NODES_MAX as u64));
    // All of it fits a checkpoint and a snapshot.
    store.checkpoint();
    let mut other = Replica::new();
    other.install_from(&store, 1 << 10);
    store.crash();
    assert_eq!((store.reader.nodes(), other.reader.nodes()), (full.clone(), full));
    unregister(&mut store, 7);
    register(&mut store, 99, &[]).unwrap();
    register(&mut store, 1, &[]).unwrap();
}

#[test]
fn nodes_survive_checkpoints_replay_and_snapshots() {
    let mut store = Replica::new();
    register(&mut store, 1, &[url(1)]).unwrap();
    register(&mut store, 2, &[url(2)]).unwrap();
    store.crash();
    assert_eq!(store.reader.nodes().len(), 2, "from the log alone");
    store.freeze();
    unregister(&mut store, 1);
    store.thaw();
    register(&mut store, 3, &[url(3)]).unwrap();
    store.crash();
    let expected = [node(2, &[url(2)]), node(3, &[url(3)])];
    assert_eq!(store.reader.nodes(), expected, "from the checkpoint and the log above it");
    store.checkpoint();
    let mut other = Replica::new();
    register(&mut other, 7, &[url(7)]).unwrap();
    other.install_from(&store, 100);
    assert_eq!((other.reader.nodes().as_slice(), other.reader.nodes_version()), (&expected[..], 2));
    other.crash();
    assert_eq!(other.reader.nodes(), expected, "from the snapshot's generation");
}

/// Notes what readers see when it is told.
#[derive(Debug, Default)]
struct Witness {
    reader: OnceLock<Reader>,
    seen: Mutex<Vec<Vec<u64>>>,
}

impl StoreObserver for Witness {
    fn nodes_changed(&self) {
        if let Some(reader) = self.reader.get() {
            self.seen.lock().unwrap().push(reader.nodes().iter().map(|node| node.id).collect());
        }
    }
}

#[test]
fn an_observer_is_told_once_readers_see_the_change() {
    let witness = Arc::new(Witness::default());
    let mut store = Replica::new();
    store.options = Options { observer: Some(witness.clone()), ..store.options };
    (store.machine, store.reader) = Machine::open(store.store.clone(), store.options.clone()).unwrap();
    witness.reader.set(store.reader.clone()).unwrap();
    let seen = || std::mem::take(&mut *witness.seen.lock().unwrap());
    register(&mut store, 1, &[]).unwrap();
    register(&mut store, 2, &[]).unwrap();
    unregister(&mut store, 1);
    assert_eq!(seen(), [vec![1], vec![1, 2], vec![2]]);
    store.set("a", "1");
    register(&mut store, 2, &[]).unwrap();
    unregister(&mut store, 1);
    assert_eq!(seen(), [[0; 0]; 0], "nothing changed");
    let mut ahead = Replica::new();
    ahead.follow(&store.log);
    ahead.checkpoint();
    store.install_from(&ahead, 100);
    assert_eq!(seen(), [[0; 0]; 0], "the snapshot names the same nodes");
    register(&mut ahead, 5, &[]).unwrap();
    ahead.checkpoint();
    store.install_from(&ahead, 100);
    assert_eq!(seen(), [[2, 5]]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn registrations_that_are_none_are_malformed_alike(bytes in vec(any::<u8>(), 0..40), field in 6..8_u32) {
        let (mut one, mut two) = (Replica::new(), Replica::new());
        let garbage: Bytes = [&[(field << 3 | 2) as u8, bytes.len() as u8][..], &bytes].concat().into();
        let replies = (one.command(garbage.clone()), two.command(garbage));
        assert_eq!(format!("{:?}", replies.0), format!("{:?}", replies.1));
        two.checkpoint();
        two.crash();
        assert_eq!(one.reader.nodes(), two.reader.nodes());
    }
}

#[test]
fn a_url_that_is_no_text_is_malformed() {
    let mut store = Replica::new();
    let operation =
        Operation::RegisterNode(RegisterNode { id: 1, peer_urls: vec!["http".to_owned()], votes: true });
    let mut bytes = Command { operation: Some(operation), ..Command::default() }.encode_to_vec();
    *bytes.last_mut().unwrap() = 0xff;
    assert!(matches!(store.command(bytes.into()), Err(KvError::Malformed)));
    assert!(store.reader.nodes().is_empty());
}
