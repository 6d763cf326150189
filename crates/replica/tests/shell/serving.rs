//! Proposals and reads, and what ends a shell.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use conclave_replica::{Fatal, HostConfig, ProposeError};
use conclave_storage::LogError;

use crate::fixture::{GROUP, add, start, within};

#[tokio::test(flavor = "multi_thread")]
async fn every_node_proposes_and_reads() {
    let nodes = start(3, |_| {});
    let mut sum = 0;
    for round in 1..=5 {
        for node in &nodes {
            sum += round;
            // Asked of any node; while nobody leads the proposal is parked.
            assert_eq!(add(&node.handle, round).await, Ok(sum));
            within(node.handle.read_barrier(GROUP)).await.unwrap();
        }
    }
    let applied = nodes[0].handle.applied(GROUP);
    for node in &nodes {
        within(node.handle.read_barrier(GROUP)).await.unwrap();
        assert!(node.handle.applied(GROUP) >= applied, "a barrier waits for what was acknowledged anywhere");
    }
    for node in nodes {
        node.shell.unwrap().stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_says_so_and_loses_nothing_it_took() {
    let nodes = start(1, |config| config.proposals_max = 8);
    let node = &nodes[0];
    assert_eq!(add(&node.handle, 1).await, Ok(1));
    node.log.hold(true);
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let handle = node.handle.clone();
            tokio::spawn(async move { add(&handle, 1).await })
        })
        .collect();
    while node.handle.proposals_pending() < 8 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(add(&node.handle, 100).await, Err(ProposeError::Busy));
    node.log.hold(false);
    for task in waiting {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!(add(&node.handle, 1).await, Ok(10), "the refused one had no effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_leaves_its_place() {
    let nodes = start(1, |config| config.proposals_max = 1);
    let node = &nodes[0];
    assert_eq!(add(&node.handle, 1).await, Ok(1));
    node.log.hold(true);
    let impatient = node.handle.propose(GROUP, Bytes::from_static(b"1"));
    assert!(tokio::time::timeout(Duration::from_millis(50), impatient).await.is_err());
    assert_eq!(node.handle.proposals_pending(), 0);
    node.log.hold(false);
    assert_eq!(add(&node.handle, 1).await, Ok(3), "given up is not undone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_halts_the_node_and_acknowledges_nothing() {
    let mut nodes = start(1, |_| {});
    assert_eq!(add(&nodes[0].handle, 1).await, Ok(1));
    nodes[0].log.broken.store(true, Ordering::Relaxed);
    assert_eq!(add(&nodes[0].handle, 1).await, Err(ProposeError::Stopped));
    assert!(matches!(within(nodes[0].handle.failed()).await, Fatal::Log(LogError::Full)));
    assert_eq!(add(&nodes[0].handle, 1).await, Err(ProposeError::Stopped));
    assert!(within(nodes[0].handle.read_barrier(GROUP)).await.is_err());
    nodes.remove(0).shell.unwrap().stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_panics_ends_every_thread() {
    let mut nodes = start(1, |_| {});
    let outcome = within(nodes[0].handle.propose(GROUP, Bytes::from_static(b"no number"))).await;
    assert_eq!(outcome, Err(ProposeError::Stopped));
    assert!(matches!(within(nodes[0].handle.failed()).await, Fatal::Panicked("apply")));
    let shell = nodes.remove(0).shell.unwrap();
    within(tokio::task::spawn_blocking(move || shell.stop())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_lost_another_goes_on() {
    let mut nodes = start(3, |config| {
        config.host = HostConfig { parked_for: Duration::from_secs(10), ..config.host.clone() };
    });
    assert_eq!(add(&nodes[0].handle, 5).await, Ok(5));
    let mut role = nodes[0].handle.role(GROUP).unwrap();
    let leader = within(role.wait_for(|role| role.leader.is_some())).await.unwrap().leader.unwrap();
    let place = usize::try_from(leader.0 - 1).unwrap();
    nodes.remove(place).shell.unwrap().stop();
    // One that was on its way to the lost leader is never answered; what is asked of the new one is.
    let mut tries = 0;
    loop {
        let asked = nodes[0].handle.propose(GROUP, Bytes::from_static(b"1"));
        match tokio::time::timeout(Duration::from_secs(2), asked).await {
            Ok(Ok(_)) => break,
            other => {
                tries += 1;
                assert!(tries < 10, "{other:?}");
            }
        }
    }
    within(nodes[1].handle.read_barrier(GROUP)).await.unwrap();
}
