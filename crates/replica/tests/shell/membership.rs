//! Members come and go while the group serves.

use std::time::Duration;

use conclave_consensus::{ChangeError, Config, MembershipChange, NodeId, ReplicaId};
use conclave_replica::{Fatal, Handle, ProposeError, ReconfigureError};
use conclave_transport::MemoryNetwork;

use crate::fixture::{GROUP, Node, add, start_one, within};

fn three(network: &MemoryNetwork) -> Vec<Node> {
    let members = Config::of_voters((1..=3).map(|n| (ReplicaId(n), NodeId(n))));
    (1..=3).map(|n| start_one(network, n, ReplicaId(n), &members, &|_| {}, None)).collect()
}

async fn serving(nodes: &[Node]) -> usize {
    within(async {
        loop {
            let serves = |node: &Node| node.handle.role(GROUP).unwrap().borrow().serving;
            if let Some(place) = nodes.iter().position(serves) {
                return place;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn until(handle: &Handle, holds: impl FnMut(&Config) -> bool) -> Config {
    let mut membership = handle.membership(GROUP).unwrap();
    within(membership.wait_for(holds)).await.unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_is_added_catches_up_is_promoted_and_serves() {
    let network = MemoryNetwork::new();
    let nodes = three(&network);
    let leader = serving(&nodes).await;
    assert_eq!(add(&nodes[0].handle, 5).await, Ok(5));
    let handle = &nodes[leader].handle;
    within(handle.reconfigure(GROUP, vec![MembershipChange::AddLearner(NodeId(4))])).await.unwrap();
    let config = handle.membership(GROUP).unwrap().borrow().clone();
    let replica = *config.learners.first().unwrap();
    assert_eq!(config.nodes[&replica], NodeId(4), "known as soon as it is answered");

    // It knows nobody: it answers whoever speaks to it.
    let fourth = start_one(&network, 4, replica, &Config::default(), &|_| {}, None);
    until(&fourth.handle, |config| config.learners.contains(&replica)).await;
    assert_eq!(add(&fourth.handle, 2).await, Ok(7));
    within(fourth.handle.read_barrier(GROUP)).await.unwrap();

    within(async {
        // The leader may not have heard how far the learner is.
        while let Err(why) = handle.reconfigure(GROUP, vec![MembershipChange::Promote(replica)]).await {
            assert!(matches!(why, ReconfigureError::LearnerNotReady | ReconfigureError::InProgress), "{why}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    until(&fourth.handle, |config| config.voters.contains(&replica) && !config.is_joint()).await;
    assert_eq!(add(&fourth.handle, 1).await, Ok(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_leader_takes_changes_and_says_why_not() {
    let network = MemoryNetwork::new();
    let nodes = three(&network);
    let leader = serving(&nodes).await;
    let follower = &nodes[(leader + 1) % 3].handle;
    let mut role = follower.role(GROUP).unwrap();
    within(role.wait_for(|role| role.leader.is_some())).await.unwrap();
    let remove = |id| vec![MembershipChange::Remove(ReplicaId(id))];
    assert_eq!(
        within(follower.reconfigure(GROUP, remove(1))).await,
        Err(ReconfigureError::NotLeader { leader: Some(NodeId(leader as u64 + 1)) })
    );
    assert_eq!(
        within(nodes[leader].handle.reconfigure(GROUP, remove(9))).await,
        Err(ReconfigureError::Change(ChangeError::UnknownReplica(ReplicaId(9))))
    );
    assert_eq!(
        within(follower.reconfigure(conclave_consensus::GroupId(9), remove(1))).await,
        Err(ReconfigureError::NoGroup)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_follower_halts_and_says_so() {
    let network = MemoryNetwork::new();
    let nodes = three(&network);
    let leader = serving(&nodes).await;
    let gone = (leader + 1) % 3;
    let replica = ReplicaId(gone as u64 + 1);
    within(nodes[leader].handle.reconfigure(GROUP, vec![MembershipChange::Remove(replica)])).await.unwrap();
    let why = within(nodes[gone].handle.failed()).await;
    assert!(matches!(why, Fatal::Removed { group: GROUP }), "{why}");
    assert_eq!(why.to_string(), "this member was removed from the cluster");
    assert_eq!(add(&nodes[gone].handle, 1).await, Err(ProposeError::Stopped));
    assert!(nodes[gone].handle.membership(GROUP).unwrap().borrow().has_removed(replica));
    assert_eq!(add(&nodes[leader].handle, 1).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_removes_itself_answers_first() {
    let network = MemoryNetwork::new();
    let nodes = three(&network);
    let leader = serving(&nodes).await;
    let replica = ReplicaId(leader as u64 + 1);
    let removed = nodes[leader].handle.reconfigure(GROUP, vec![MembershipChange::Remove(replica)]);
    assert_eq!(within(removed).await, Ok(()));
    let why = within(nodes[leader].handle.failed()).await;
    assert!(matches!(why, Fatal::Removed { .. }), "{why}");
    let others: Vec<&Node> = (0..3).filter(|place| *place != leader).map(|place| &nodes[place]).collect();
    let config = until(&others[0].handle, |config| config.has_removed(replica)).await;
    assert_eq!(config.voters.len(), 2);
    within(async {
        // What was on its way to the old leader is never answered.
        while tokio::time::timeout(Duration::from_secs(2), others[0].handle.propose(GROUP, "1".into()))
            .await
            .is_err()
        {}
    })
    .await;
}
