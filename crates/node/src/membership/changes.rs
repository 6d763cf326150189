//! Changes of membership, with etcd's refusals: asked of any member, carried out by the leader.

use std::sync::Arc;

use conclave_api::errors::EtcdError;
use conclave_consensus::{ChangeError, Config as Membership, MembershipChange, NodeId, ReplicaId, Status};
use conclave_kv::{Reply, command, registry};
use conclave_replica::{BarrierError, ProposeError, ReconfigureError, Responder};
use prost::Message as _;
use tokio::time::{Duration, Instant, sleep, timeout_at};

use super::{
    Members, Running,
    wire::{Add, Change, Changed, Question, Update},
};
use crate::{config::url::Url, identity, replicated::DATA};

/// How long to wait before a leader, or a change under way, is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers another member's question to this one as the leader.
pub(super) async fn answer(members: Arc<Members>, change: Change, respond: Responder) {
    // Beyond it nobody waits, and whoever comes next must not.
    let outcome = tokio::time::timeout(members.request_timeout, members.change_here(change)).await;
    let outcome = outcome.unwrap_or(Err(EtcdError::Timeout));
    respond.send(Changed::of(outcome).encode_to_vec().into());
}

impl Members {
    /// Carries a change out at the leader, whichever member that is, and returns the member's id once the list here shows it.
    ///
    /// # Errors
    /// etcd's.
    pub(crate) async fn change(&self, change: Change) -> Result<u64, EtcdError> {
        let running = self.running.get().ok_or(EtcdError::Stopped)?;
        let deadline = Instant::now() + self.request_timeout;
        let late = || match running.handle.role(DATA).and_then(|role| role.borrow().leader) {
            Some(_) => EtcdError::Timeout,
            None => EtcdError::TimeoutDueToConnectionLost,
        };
        loop {
            let outcome = timeout_at(deadline, self.change_at_leader(running, &change)).await;
            match outcome.map_err(|_| late())? {
                Ok(id) => {
                    // What follows here sees it: another member may have carried it out.
                    let barrier = || running.handle.read_barrier(DATA);
                    return see(deadline, late, barrier).await.map(|()| id);
                }
                // Certainly not done: the next leader may.
                Err(EtcdError::NotLeader | EtcdError::NoLeader | EtcdError::LeaderChanged) => {}
                Err(refused) => return Err(refused),
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(late());
            }
            sleep(PAUSE).await;
        }
    }

    async fn change_at_leader(&self, running: &Running, change: &Change) -> Result<u64, EtcdError> {
        let role = running.handle.role(DATA).ok_or(EtcdError::Stopped)?;
        let leader = role.borrow().leader.ok_or(EtcdError::NoLeader)?;
        if leader.0 == self.identity().member_id {
            return self.change_here(change.clone()).await;
        }
        let question = Question { change: Some(change.clone()) };
        let answer = running.handle.ask(leader, question.encode_to_vec().into()).await;
        // Without an answer nobody knows whether it was done.
        let answer = answer.and_then(|answer| Changed::decode(answer).ok()).ok_or(EtcdError::Timeout)?;
        answer.outcome()
    }

    async fn change_here(&self, change: Change) -> Result<u64, EtcdError> {
        let _one_at_a_time = self.changing.lock().await;
        let running = self.running.get().ok_or(EtcdError::Stopped)?;
        let status = running.handle.status(DATA).await.ok_or(EtcdError::Stopped)?;
        if !status.serving {
            return Err(EtcdError::NotLeader);
        }
        match change {
            Change::Add(add) => self.add(running, &status, add).await,
            Change::Remove(id) => self.remove(running, &status, id).await,
            Change::Update(update) => self.update(running, &status, update).await,
            Change::Promote(id) => self.promote(running, &status, id).await,
        }
    }

    async fn add(&self, running: &Running, status: &Status, add: Add) -> Result<u64, EtcdError> {
        let urls = canonical(&add.peer_urls)?;
        self.check_unused(&urls, None)?;
        let members = self.list();
        if add.learner && members.iter().filter(|member| member.is_learner).count() >= self.learners_max {
            return Err(EtcdError::TooManyLearners);
        }
        if !add.learner {
            // Found out before it is registered: it is to vote once it has caught up.
            fits(&status.config, self.voters_to_be(&status.config) + 1)?;
        }
        if self.strict {
            let voters: Vec<u64> = members.iter().filter(|m| !m.is_learner).map(|m| m.id).collect();
            if !add.learner && !self.enough_started_with_one_more(&voters) {
                return Err(EtcdError::MemberNotEnoughStarted);
            }
            if !status.progress.iter().all(|peer| peer.active || !status.config.is_voter(peer.replica)) {
                return Err(EtcdError::Unhealthy);
            }
        }
        let id = identity::new_member_id(&urls, &self.token);
        register(running, id, &urls, !add.learner).await?;
        reconfigure(running, MembershipChange::AddLearner(NodeId(id))).await?;
        Ok(id)
    }

    async fn remove(&self, running: &Running, status: &Status, id: u64) -> Result<u64, EtcdError> {
        let replica = replica_of(&status.config, id).ok_or(EtcdError::MemberNotFound)?;
        if status.config.voters.contains(&replica) {
            fits(&status.config, status.config.voters.len() - 1)?;
        }
        if self.strict && status.config.is_voter(replica) {
            let others = |r: &&ReplicaId| **r != replica;
            let left = status.config.voters.iter().filter(others).count();
            let started = status
                .config
                .voters
                .iter()
                .filter(others)
                .filter_map(|replica| status.config.nodes.get(replica))
                .filter(|node| self.is_started(node.0))
                .count();
            let needed = quorum_max(&status.config, left);
            if started < needed {
                return Err(EtcdError::MemberNotEnoughStarted);
            }
            let active = |r: &ReplicaId| {
                *r == status.replica || status.progress.iter().any(|peer| peer.replica == *r && peer.active)
            };
            // One that is down already is safe to remove.
            let active_left = status.config.voters.iter().filter(others).filter(|r| active(r)).count();
            if active(&replica) && active_left < needed {
                return Err(EtcdError::Unhealthy);
            }
        }
        reconfigure(running, MembershipChange::Remove(replica)).await?;
        Ok(id)
    }

    async fn update(&self, running: &Running, status: &Status, update: Update) -> Result<u64, EtcdError> {
        let urls = canonical(&update.peer_urls)?;
        let replica = replica_of(&status.config, update.id).ok_or(EtcdError::MemberNotFound)?;
        self.check_unused(&urls, Some(update.id))?;
        let votes = status.config.is_voter(replica) || self.to_be_voters().contains(&update.id);
        register(running, update.id, &urls, votes).await?;
        Ok(update.id)
    }

    async fn promote(&self, running: &Running, status: &Status, id: u64) -> Result<u64, EtcdError> {
        let replica = replica_of(&status.config, id).ok_or(EtcdError::MemberNotFound)?;
        if !status.config.learners.contains(&replica) || self.to_be_voters().contains(&id) {
            return Err(EtcdError::MemberNotLearner);
        }
        if self.strict && !self.is_started(id) {
            return Err(EtcdError::LearnerNotReady);
        }
        reconfigure(running, MembershipChange::Promote(replica)).await?;
        // It votes, whatever becomes of this: the registry only says what it was added as.
        let urls = self.addresses().remove(&id).unwrap_or_default();
        if let Err(error) = register(running, id, &urls, true).await {
            tracing::debug!(member = format_args!("{id:x}"), %error, "a promoted member is registered as a learner");
        }
        Ok(id)
    }

    /// How many members vote, those included that are to once they have caught up.
    fn voters_to_be(&self, configuration: &Membership) -> usize {
        let nodes = self.to_be_voters();
        let learns = |replica: &&ReplicaId| {
            configuration.nodes.get(replica).is_some_and(|node| nodes.contains(&node.0))
        };
        configuration.voters.len() + configuration.learners.iter().filter(learns).count()
    }

    /// Whether most of the voters would be started if one more, which is not, were added. One alone may always get a second.
    fn enough_started_with_one_more(&self, voters: &[u64]) -> bool {
        let started = voters.iter().filter(|id| self.is_started(**id)).count();
        (started == 1 && voters.len() == 1) || started > voters.len().div_ceil(2)
    }

    fn is_started(&self, id: u64) -> bool {
        !self.introductions.of(id).name.is_empty()
    }

    fn check_unused(&self, urls: &[String], by: Option<u64>) -> Result<(), EtcdError> {
        let taken = self.list().into_iter().filter(|member| Some(member.id) != by);
        if taken.flat_map(|member| member.peer_ur_ls).any(|url| urls.contains(&url)) {
            return Err(EtcdError::PeerUrlExist);
        }
        Ok(())
    }

    /// Hands leadership to another member, which takes effect while the call waits.
    ///
    /// # Errors
    /// `NotLeader` elsewhere, `BadLeaderTransferee` for one that cannot lead, `Timeout` if it does not take over.
    pub(crate) async fn move_leader(&self, to: u64) -> Result<(), EtcdError> {
        let running = self.running.get().ok_or(EtcdError::Stopped)?;
        let status = running.handle.status(DATA).await.ok_or(EtcdError::Stopped)?;
        if status.leader != Some(status.replica) {
            return Err(EtcdError::NotLeader);
        }
        if to == self.identity().member_id {
            return Ok(());
        }
        let heir = replica_of(&status.config, to).filter(|heir| status.config.voters.contains(heir));
        if heir.is_none() {
            return Err(EtcdError::BadLeaderTransferee);
        }
        let mut role = running.handle.role(DATA).ok_or(EtcdError::Stopped)?;
        running.handle.transfer(DATA, NodeId(to));
        let taken_over = role.wait_for(|role| role.leader == Some(NodeId(to)));
        match tokio::time::timeout(self.request_timeout, taken_over).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(EtcdError::Stopped),
            Err(_) => Err(EtcdError::Timeout),
        }
    }
}

/// Waits until what was done is seen here. It is done, so a barrier that finds no room is asked for again.
async fn see<B: Future<Output = Result<(), BarrierError>>>(
    deadline: Instant,
    late: impl Fn() -> EtcdError,
    barrier: impl Fn() -> B,
) -> Result<(), EtcdError> {
    loop {
        match timeout_at(deadline, barrier()).await.map_err(|_| late())? {
            Ok(()) => return Ok(()),
            Err(BarrierError::Busy) if Instant::now() + PAUSE < deadline => sleep(PAUSE).await,
            Err(BarrierError::Busy) => return Err(late()),
            Err(BarrierError::Stopped | BarrierError::NoGroup) => return Err(EtcdError::Stopped),
        }
    }
}

/// A member's replica, if it has one that stays.
fn replica_of(configuration: &Membership, id: u64) -> Option<ReplicaId> {
    let of = configuration.nodes.iter().filter(|(_, node)| node.0 == id).map(|(replica, _)| *replica);
    of.into_iter()
        .find(|replica| configuration.voters.contains(replica) || configuration.learners.contains(replica))
}

/// Whether so many voters could go on with quorums of the sizes that are set.
fn fits(configuration: &Membership, voters: usize) -> Result<(), EtcdError> {
    let Some(Err(error)) = configuration.quorums.map(|sizes| sizes.check(voters)) else { return Ok(()) };
    tracing::warn!(%error, "the change does not fit the sizes of the cluster's quorums");
    Err(EtcdError::QuorumsDoNotFit)
}

/// So many of the voters it takes to elect a leader and to write.
fn quorum_max(configuration: &Membership, voters: usize) -> usize {
    let majority = voters / 2 + 1;
    configuration.quorums.map_or(majority, |sizes| usize::from(sizes.elect.max(sizes.commit)))
}

/// Peer addresses in their one order and form.
fn canonical(urls: &[String]) -> Result<Vec<String>, EtcdError> {
    if urls.is_empty() || urls.len() > registry::PEER_URLS_MAX {
        return Err(EtcdError::MemberBadUrls);
    }
    let parse = |url: &String| Url::parse(url).map_err(|_| EtcdError::MemberBadUrls);
    let mut urls = urls.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    urls.sort();
    urls.dedup();
    let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
    if urls.iter().any(|url| url.len() > registry::PEER_URL_BYTES_MAX) {
        return Err(EtcdError::MemberBadUrls);
    }
    Ok(urls)
}

/// Replicates a member's registration.
pub(super) async fn register(
    running: &Running,
    id: u64,
    urls: &[String],
    votes: bool,
) -> Result<(), EtcdError> {
    propose(running, command::register_node(NodeId(id), urls, votes)).await
}

/// Replicates that a member's registration is over.
pub(super) async fn unregister(running: &Running, id: u64) -> Result<(), EtcdError> {
    propose(running, command::unregister_node(NodeId(id))).await
}

async fn propose(running: &Running, command: bytes::Bytes) -> Result<(), EtcdError> {
    let reply = running.handle.propose(DATA, command).await.map_err(|error| match error {
        ProposeError::Busy => EtcdError::TooManyRequests,
        ProposeError::NoLeader | ProposeError::LeaderChanged => EtcdError::LeaderChanged,
        ProposeError::TooLarge => EtcdError::RequestTooLarge,
        ProposeError::Unknown => EtcdError::TimeoutDueToLeaderFail,
        ProposeError::Stopped | ProposeError::NoGroup => EtcdError::Stopped,
    })?;
    // The bounds were checked, but for the number of nodes.
    Reply::decode(reply).map(|_| ()).map_err(|_| EtcdError::TooManyRequests)
}

/// Changes the configuration, after whatever change is under way.
pub(super) async fn reconfigure(running: &Running, change: MembershipChange) -> Result<(), EtcdError> {
    loop {
        let refused = match running.handle.reconfigure(DATA, vec![change]).await {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        return Err(match refused {
            // Whoever waits sets the limit.
            ReconfigureError::InProgress => {
                sleep(PAUSE).await;
                continue;
            }
            ReconfigureError::NotLeader { .. } | ReconfigureError::NotServing => EtcdError::NotLeader,
            ReconfigureError::Dropped => EtcdError::LeaderChanged,
            ReconfigureError::LearnerNotReady => EtcdError::LearnerNotReady,
            ReconfigureError::Unknown => EtcdError::TimeoutDueToLeaderFail,
            ReconfigureError::Busy => EtcdError::TooManyRequests,
            ReconfigureError::Stopped | ReconfigureError::NoGroup => EtcdError::Stopped,
            ReconfigureError::Change(error) => match error {
                ChangeError::Joint => {
                    sleep(PAUSE).await;
                    continue;
                }
                ChangeError::UnknownReplica(_) | ChangeError::Nothing => EtcdError::MemberNotFound,
                ChangeError::NotLearner(_) => EtcdError::MemberNotLearner,
                ChangeError::NodeTaken(_) => EtcdError::MemberExist,
                ChangeError::NoVoters => EtcdError::MemberNotEnoughStarted,
                ChangeError::IdsExhausted | ChangeError::TooManyMembers => EtcdError::TooManyRequests,
                ChangeError::Quorums(error) => {
                    tracing::warn!(%error, "the change does not fit the sizes of the cluster's quorums");
                    EtcdError::QuorumsDoNotFit
                }
            },
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_change_is_seen_here_before_it_is_told_however_busy_this_member_is() {
        let late = || EtcdError::Timeout;
        let asked = Cell::new(0);
        let busy_twice = || {
            asked.set(asked.get() + 1);
            std::future::ready(if asked.get() > 2 { Ok(()) } else { Err(BarrierError::Busy) })
        };
        see(Instant::now() + 100 * PAUSE, late, busy_twice).await.unwrap();
        assert_eq!(asked.get(), 3);
        let busy = || std::future::ready(Err(BarrierError::Busy));
        assert_eq!(see(Instant::now() + 2 * PAUSE, late, busy).await, Err(EtcdError::Timeout));
        let stopped = || std::future::ready(Err(BarrierError::Stopped));
        assert_eq!(see(Instant::now() + 100 * PAUSE, late, stopped).await, Err(EtcdError::Stopped));
    }
}
