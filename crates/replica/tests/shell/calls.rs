//! Questions between nodes that take work to answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use conclave_consensus::{Config, NodeId, ReplicaId};
use conclave_replica::{Answerer, Responder};
use conclave_transport::MemoryNetwork;
use parking_lot::Mutex;

use crate::fixture::{start_one, within};

/// Keeps questions, and answers none by itself.
#[derive(Debug, Default)]
struct Kept(Mutex<Vec<(NodeId, Bytes, Responder)>>);

impl Answerer for Kept {
    fn answer(&self, from: NodeId, question: Bytes, respond: Responder) {
        self.0.lock().push((from, question, respond));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_later_from_anywhere_or_never() {
    let network = MemoryNetwork::new();
    let members = Config::of_voters([1, 2].map(|n| (ReplicaId(n), NodeId(n))));
    let kept = Arc::new(Kept::default());
    let asker = start_one(&network, 1, ReplicaId(1), &members, &|_| {}, None);
    let _other =
        start_one(&network, 2, ReplicaId(2), &members, &|_| {}, Some(Arc::clone(&kept) as Arc<dyn Answerer>));
    let ask = |question: &'static [u8]| {
        let handle = asker.handle.clone();
        tokio::spawn(async move { handle.ask(NodeId(2), Bytes::from_static(question)).await })
    };
    let first = ask(b"first");
    while kept.0.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let second = ask(b"second");
    while kept.0.lock().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut asked: Vec<_> = kept.0.lock().drain(..).collect();
    let (from, question, respond) = asked.pop().unwrap();
    assert_eq!((from, &question[..]), (NodeId(1), &b"second"[..]));
    let answering = std::thread::spawn(move || respond.send(Bytes::from_static(b"later")));
    assert_eq!(within(second).await.unwrap(), Some(Bytes::from_static(b"later")));
    answering.join().unwrap();
    drop(asked);
    assert!(tokio::time::timeout(Duration::from_millis(50), first).await.is_err(), "dropped is not answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_under_way_are_bounded() {
    let network = MemoryNetwork::new();
    let members = Config::of_voters([1, 2].map(|n| (ReplicaId(n), NodeId(n))));
    let kept = Arc::new(Kept::default());
    let asker = start_one(&network, 1, ReplicaId(1), &members, &|_| {}, None);
    let _other =
        start_one(&network, 2, ReplicaId(2), &members, &|_| {}, Some(Arc::clone(&kept) as Arc<dyn Answerer>));
    // The asker gives up on each, so that only the other side's bound is met.
    for _ in 0..1_100 {
        let asked = asker.handle.ask(NodeId(2), Bytes::new());
        drop(tokio::time::timeout(Duration::ZERO, asked).await);
    }
    within(async {
        while kept.0.lock().len() < 1_024 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(kept.0.lock().len(), 1_024);
    kept.0.lock().clear();
    drop(tokio::time::timeout(Duration::from_millis(1), asker.handle.ask(NodeId(2), Bytes::new())).await);
    within(async {
        while kept.0.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
