//! Many groups in one shell: what they ask of threads, log and network is asked together, and each is answered as if it were alone.

use std::{sync::atomic::Ordering, time::Duration};

use conclave_consensus::{GroupId, Slot};

use crate::fixture::{GROUP, add_to, start_many, within};

const GROUPS: u64 = 40;

fn groups() -> impl Iterator<Item = GroupId> {
    (0..GROUPS).map(|nth| GroupId(GROUP.0 + nth))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_all_groups_at_all_nodes_are_answered_by_their_own() {
    const ROUNDS: u64 = 20;
    let nodes = start_many(3, GROUPS);
    let mut clients = Vec::new();
    for group in groups() {
        for node in &nodes {
            let handle = node.handle.clone();
            clients.push(tokio::spawn(async move {
                let mut last = 0;
                for _ in 0..ROUNDS {
                    let sum = add_to(&handle, group, group.0).await.unwrap();
                    assert!(sum > last && sum % group.0 == 0, "{sum} after {last} in group {group}");
                    last = sum;
                }
            }));
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    for group in groups() {
        let expected = group.0 * ROUNDS * nodes.len() as u64;
        assert_eq!(add_to(&nodes[0].handle, group, 0).await, Ok(expected), "in group {group}");
        for node in &nodes {
            within(node.handle.read_barrier(group)).await.unwrap();
        }
    }
    for node in nodes {
        node.shell.unwrap().stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sync_serves_all_groups_that_wait_for_it() {
    let nodes = start_many(1, GROUPS);
    let node = &nodes[0];
    for group in groups() {
        assert_eq!(add_to(&node.handle, group, 1).await, Ok(1));
    }
    node.log.hold(true);
    let before = node.log.syncs.load(Ordering::Relaxed);
    let waiting: Vec<_> = groups()
        .map(|group| {
            let handle = node.handle.clone();
            tokio::spawn(async move { add_to(&handle, group, 1).await })
        })
        .collect();
    for group in groups() {
        // The no-op that began the term, and an entry each before and now.
        while within(node.handle.status(group)).await.unwrap().last < Slot(3) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    // What it was stepped with before it told its state, it has handed to the log before it tells it again.
    within(node.handle.status(GROUP)).await.unwrap();
    node.log.hold(false);
    for task in waiting {
        assert_eq!(task.await.unwrap(), Ok(2));
    }
    let syncs = node.log.syncs.load(Ordering::Relaxed) - before;
    assert!((1..=2).contains(&syncs), "the one that was held, and one for all that came meanwhile: {syncs}");
    nodes.into_iter().for_each(|node| node.shell.unwrap().stop());
}
