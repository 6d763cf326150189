//! What a leader finds left to do about its members, and how a member learns that it is one no more.

use std::{collections::BTreeMap, sync::Arc};

use conclave_consensus::{MembershipChange, NodeId, Progress, ReplicaId, Slot, Status};
use conclave_transport::{ClusterId, Doorkeeper as _, HandshakeError, Refusal};
use prost::Message as _;
use tokio::time::{Duration, sleep};

use super::{
    Members, Running, authorities,
    changes::{reconfigure, register, unregister},
    joining::enquire_of,
    wire::ClusterAbout,
};
use crate::replicated::DATA;

/// For so many rounds in a row a node is registered without a replica before it is forgotten: an addition may be under way, and one that was
/// removed is to hear of it.
const ORPHAN_ROUNDS: u32 = 8;
/// After so many rounds without a leader a member asks whether it is still one.
const LONELY_ROUNDS: u32 = 5;
/// A learner is promoted when it is behind by no more entries than this: a second voter that lags stops every write until it has them.
const PROMOTE_WITHIN_ENTRIES: u64 = 5_000;
/// How long the one who is asked may take.
const PATIENCE: Duration = Duration::from_secs(1);

impl Members {
    /// Does what is to be done, once an election timeout, until the task is aborted.
    pub(super) async fn keep_house(self: Arc<Self>) {
        let Some(running) = self.running.get() else { return };
        let mut orphans = BTreeMap::new();
        let mut lonely = 0;
        loop {
            sleep(self.election_timeout).await;
            let Some(role) = running.handle.role(DATA).map(|role| *role.borrow()) else { return };
            if role.serving {
                // A proposal may never be answered, as when leadership moves under it: the next round finds what is left to do.
                let _ = tokio::time::timeout(self.request_timeout, self.keep_members(running, &mut orphans))
                    .await;
            } else {
                orphans.clear();
            }
            if let Some(refusal) = self.is_of_another_past(running).await {
                self.dismissed.send_replace(Some(refusal));
                return;
            }
            lonely = if role.leader.is_some() { 0 } else { lonely + 1 };
            if lonely >= LONELY_ROUNDS {
                lonely = 0;
                if let Some(refusal) = self.ask_whether_dismissed().await {
                    self.dismissed.send_replace(Some(refusal));
                    return;
                }
            }
        }
    }

    /// Registers founders, promotes those that are to vote, forgets those that have left. What fails is tried again in the next round.
    async fn keep_members(&self, running: &Running, orphans: &mut BTreeMap<u64, u32>) {
        let Ok(_one_at_a_time) = self.changing.try_lock() else { return };
        let Some(status) = running.handle.status(DATA).await else { return };
        let configuration = &status.config;
        if !status.serving || configuration.is_joint() {
            return;
        }
        let registered = running.reader.nodes();
        let founders = self.bootstrap_addresses();
        for (replica, NodeId(node)) in &configuration.nodes {
            let votes = configuration.voters.contains(replica);
            match registered.iter().find(|known| known.id == *node) {
                None => {
                    if let Some(urls) = founders.get(node)
                        && let Err(error) = register(running, *node, urls, votes).await
                    {
                        tracing::debug!(member = format_args!("{node:x}"), %error, "a member is not registered yet");
                    }
                }
                Some(known)
                    if known.votes
                        && configuration.learners.contains(replica)
                        && has_caught_up(&status, *replica) =>
                {
                    if reconfigure(running, MembershipChange::Promote(*replica)).await.is_ok() {
                        tracing::info!(
                            member = format_args!("{node:x}"),
                            "a new member has caught up and votes"
                        );
                    }
                }
                Some(_) => {}
            }
        }
        let has_replica = |id: u64| configuration.nodes.values().any(|node| node.0 == id);
        orphans.retain(|id, _| registered.iter().any(|known| known.id == *id));
        for known in registered.iter().filter(|known| !has_replica(known.id)) {
            let rounds = orphans.entry(known.id).or_insert(0);
            *rounds += 1;
            if *rounds > ORPHAN_ROUNDS && unregister(running, known.id).await.is_ok() {
                orphans.remove(&known.id);
            }
        }
        orphans.retain(|id, _| !has_replica(*id));
    }

    /// Nobody leads, as far as this member hears: perhaps because nobody talks to it any more. It is dismissed if one refuses it, or if for most of
    /// the others its replica was removed.
    async fn ask_whether_dismissed(&self) -> Option<Refusal> {
        let (own, incarnation) = (NodeId(self.identity().member_id), self.bootstrap.incarnation);
        let cluster_id = ClusterId(self.identity().cluster_id);
        let mut others = self.addresses();
        others.remove(&own.0);
        let mut without_us = 0;
        for (id, urls) in &others {
            match enquire_of(*id, authorities(urls), (own, cluster_id), incarnation, PATIENCE).await {
                Err(HandshakeError::Refused(refusal @ (Refusal::Removed(_) | Refusal::Replaced(_)))) => {
                    return Some(refusal);
                }
                Ok(about) if !self.door.knows_otherwise(about.node, about.incarnation) => {
                    let cluster = ClusterAbout::decode(about.about).unwrap_or_default();
                    let listed = cluster.members.iter().any(|member| member.id == own.0);
                    // One that lags may not have heard of this member yet.
                    let removed = !listed && self.bootstrap.replica < cluster.next_replica;
                    without_us += usize::from(removed && !cluster.members.is_empty());
                }
                // Somebody else lives there, or one that lost what it knew, or nobody.
                Ok(_) | Err(_) => {}
            }
        }
        (without_us > others.len() / 2).then_some(Refusal::Removed(own))
    }

    /// Returns when the others say that this member is none of them.
    pub(crate) async fn dismissed(&self) -> Refusal {
        let mut told = self.dismissed.subscribe();
        let found = told.wait_for(Option::is_some).await.map(|told| *told);
        match found {
            Ok(Some(refusal)) => refusal,
            // The sender lives as long as `self`.
            _ => std::future::pending().await,
        }
    }
}

/// Whether a learner answers and lags little enough that it may vote.
fn has_caught_up(status: &Status, replica: ReplicaId) -> bool {
    status.progress.iter().any(|peer| peer.replica == replica && is_close(peer, status.last))
}

fn is_close(peer: &Progress, last: Slot) -> bool {
    peer.active && peer.matched > Slot(0) && last.0.saturating_sub(peer.matched.0) <= PROMOTE_WITHIN_ENTRIES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_that_answers_and_lags_little_is_promoted() {
        let peer = |matched, active| Progress { replica: ReplicaId(2), matched: Slot(matched), active };
        // Nine tenths of the slot's number are not enough.
        assert!(!is_close(&peer(4_500_000, true), Slot(5_000_000)));
        assert!(!is_close(&peer(5_000_000, false), Slot(5_000_000)), "it does not answer");
        assert!(!is_close(&peer(0, true), Slot(3)), "nothing is known of it");
        assert!(!is_close(&peer(1, true), Slot(PROMOTE_WITHIN_ENTRIES + 2)));
        assert!(is_close(&peer(1, true), Slot(PROMOTE_WITHIN_ENTRIES + 1)));
    }
}
