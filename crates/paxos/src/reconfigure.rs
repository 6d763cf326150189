//! Changes of membership: a stop, and what follows it (Lampson, *How to Build a Highly Available System Using Consensus*, 1996; Lamport, Malkhi and Zhou,
//! *Reconfiguring a State Machine*, 2010; *Omni-Paxos*, section 6).
//!
//! ```text
//!   slots ≤ s, configuration c                     │ slots > s, configuration c + 1
//!   … accepted … │ stop at s: names c + 1 ─ chosen ─▶ phase 1 in ballot (c + 1, …) ─▶ proposals ─ held by its quorums ─▶ settled
//! ```
//!
//! A configuration decides its slots alone, with its own quorums: no quorum of two configurations has to meet. What has to be is that the old one
//! decides nothing more once the new one may begin, and that the new one has what the old one decided before that is given up.
//!
//! # Invariants
//! 1. The *stop*, an entry that holds the next configuration, is the last thing a leader proposes in its ballot. So nothing is decided beyond it in the
//!    old configuration, and what a later leader of that finds there it passes over ([`crate::recovery`]).
//! 2. The next configuration is in force when the stop is chosen, and never before: there is nothing to take back. Its number stands first in the ballots
//!    of its leaders, and who knows of it refuses those of the old one.
//! 3. Its first leader runs phase 1 among its members, from the slot after the stop on. What its members know of before, they learn as any laggard does.
//! 4. The next change begins once the last is *settled*: a commit quorum of the configuration in force holds durably everything that led to it, and
//!    remembers that it is in force. Only then, too, is who was removed told that it may be destroyed. Otherwise new replicas could decide what comes,
//!    and nobody have what was; or wait after a power cut for a quorum of those that are gone.
//! 5. Who votes changes in two steps, through a joint configuration in which quorums of both sets decide. Paxos does not need it for safety: it is for
//!    the time in between. While new voters fetch what was decided, the old ones can lead and complete the group, whoever fails meanwhile.
//! 6. A leader that the next configuration does not name hands over to a voter that holds everything up to the stop, and is there for the others until then.
//! 7. A replica that leaves is written to, outside every quorum, until [`LEAVING_ELECTIONS`] election timeouts after its removal was settled.
//! 8. An id is allotted by the chosen stop, so no two replicas have the same.
//!
//! The request's id stands in the first of the stops. `Membership` says what is in force, and again, as committed, when that is settled.

use conclave_consensus::{
    ChangeError, Config, Effect, Entry, Kind, MembershipChange, ProposalId, ReplicaId, Slot, StepError, Time,
};

use crate::{
    core::{Paxos, Role},
    wire::{self, Body},
};

/// How many election timeouts after its removal was settled a replica is still told of it.
const LEAVING_ELECTIONS: u32 = 4;

/// A peer that the configuration in force no longer has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    replica: ReplicaId,
    /// Set once its removal is settled.
    until: Option<Time>,
}

impl Paxos {
    pub(crate) fn reconfigure(
        &mut self,
        id: ProposalId,
        changes: &[MembershipChange],
    ) -> Result<(), StepError> {
        let Role::Leader(leader) = &self.role else {
            return Err(StepError::NotLeader { leader: self.leader });
        };
        if leader.transfer.is_some() || leader.is_over {
            return Err(StepError::NotLeader { leader: None });
        }
        if !self.is_serving() {
            return Err(StepError::NotServing);
        }
        if leader.stop.is_some() || !self.members.is_settled() || self.members.config().is_joint() {
            return Err(StepError::ChangeInProgress);
        }
        let next = self.next_config(changes)?;
        for change in changes {
            if let MembershipChange::Promote(replica) = change {
                self.check_ready(*replica)?;
            }
        }
        self.propose_stop(id, &next);
        Ok(())
    }

    fn next_config(&self, changes: &[MembershipChange]) -> Result<Config, ChangeError> {
        let next = self.members.config().changed(changes, ReplicaId(0))?;
        Ok(Config { number: self.members.number() + 1, ..next })
    }

    /// A learner may vote once it holds nine tenths of what the leader does, as etcd demands.
    fn check_ready(&self, replica: ReplicaId) -> Result<(), StepError> {
        let last = self.log.last();
        let Role::Leader(leader) = &self.role else { return Ok(()) };
        let peer = leader.peers.get(&replica).ok_or(ChangeError::UnknownReplica(replica))?;
        let matched = peer.matched;
        let ready = u128::from(matched.0) * 10 >= u128::from(last.0) * 9;
        if ready { Ok(()) } else { Err(StepError::LearnerNotReady { replica, matched, last }) }
    }

    fn propose_stop(&mut self, id: ProposalId, config: &Config) {
        self.append(Kind::Config, id, config.encode());
        let at = self.log.last();
        if !id.is_none() {
            self.own.add(at, at);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.stop = Some(at);
        }
    }

    /// The stop at `at` is chosen: its configuration governs what comes after.
    pub(crate) fn enter_config(&mut self, at: Slot, config: Config) {
        self.members.enter(at, config.clone());
        self.outbox.push(Effect::Membership {
            config: Box::new(config),
            at,
            committed: self.members.is_settled(),
        });
        self.begin_config();
    }

    pub(crate) fn enter_config_of_snapshot(&mut self, at: Slot, config: Config) {
        self.members.reset(at, config.clone());
        self.outbox.push(Effect::Membership {
            config: Box::new(config),
            at,
            committed: self.members.is_settled(),
        });
        self.begin_config();
    }

    fn begin_config(&mut self) {
        self.forget_neighbours();
        // Before anything more is said of what is chosen, this is remembered.
        self.entered_in = self.write_meta();
        if self.leader.is_some() && matches!(self.role, Role::Follower) {
            self.acknowledge.get_or_insert_default();
        }
        let number = self.members.number();
        self.forget_void(self.chosen, |entry| entry.ballot.config < number);
        let may_stand =
            self.meta.promise.ballot().config >= number && self.members.config().is_voter(self.id);
        match &mut self.role {
            Role::Leader(leader) => leader.is_over = true,
            Role::Candidate(_) if !may_stand => {
                self.become_follower(None);
                self.election_due = self.now;
            }
            Role::Candidate(_) | Role::Follower => {}
        }
    }

    /// What stands above `slot` and no longer counts is forgotten. On the disk it may stay: it will count no more after a boot.
    pub(crate) fn forget_void(&mut self, slot: Slot, goes: impl Fn(&Entry) -> bool) {
        for entry in self.log.forget_above(slot, goes) {
            self.unchosen_bytes -= entry.size_bytes();
            self.stops.remove(&entry.slot);
            self.doubt(&entry);
            if entry.slot <= self.persisted {
                self.persisted = entry.slot.before();
            }
        }
        self.received = self.received.min(self.log.last()).max(self.chosen);
    }

    /// The leader's stop is chosen. Who votes in what follows stands at once, in its first ballot.
    pub(crate) fn succeed_if_over(&mut self) {
        let is_over = matches!(&self.role, Role::Leader(leader) if leader.is_over);
        if is_over && self.members.config().is_voter(self.id) && !self.disk_stalls() {
            self.stand(true);
        }
    }

    /// A leader without a vote in what follows hands over to one that has, and holds everything.
    pub(crate) fn retire_if_over(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        if !leader.is_over {
            return;
        }
        let (voters, at) = (&self.members.config().voters, self.members.at());
        let fits = leader.peers.iter().filter(|(id, peer)| {
            voters.contains(id) && self.is_active(peer) && peer.matched >= at && peer.told >= at
        });
        if let Some((heir, _)) = fits.max_by_key(|(_, peer)| peer.matched) {
            let heir = *heir;
            let message = self.message(heir, Body::TakeOver(wire::TakeOver { chosen: self.chosen.0 }));
            self.outbox.send(message);
            self.become_follower(None);
            self.heard_until = self.now;
        }
    }

    /// A leader takes office: says so, and what is known to be settled.
    pub(crate) fn begin_office(&mut self) {
        self.beat_anew();
        self.settle_if_held();
    }

    /// Whether a commit quorum of the configuration in force holds all that led to it. If so everyone is told, and a joint one is left.
    pub(crate) fn settle_if_held(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        if leader.is_over {
            return;
        }
        if !self.members.is_settled() {
            let held = self.members.config().committed(|replica| {
                if replica == self.id {
                    if self.outbox.durable() >= self.entered_in { self.persisted } else { Slot(0) }
                } else {
                    leader.peers.get(&replica).map_or(Slot(0), |peer| peer.matched.min(peer.knows))
                }
            });
            if held.is_some_and(|held| held >= self.members.at()) {
                self.hear_settled(self.members.number());
                self.beat();
            }
        }
        self.leave_joint_if_settled();
    }

    /// A configuration is settled.
    pub(crate) fn hear_settled(&mut self, number: u64) {
        if self.members.settle(number) {
            let (config, at) = (self.members.config().clone(), self.members.at());
            self.outbox.push(Effect::Membership { config: Box::new(config), at, committed: true });
        }
    }

    /// What is joint and settled has done its work.
    fn leave_joint_if_settled(&mut self) {
        let config = self.members.config();
        if !config.is_joint() || !self.members.is_settled() || !self.is_serving() {
            return;
        }
        // The heir does it, or the transfer is given up first.
        if matches!(&self.role, Role::Leader(leader) if leader.transfer.is_some() || leader.stop.is_some()) {
            return;
        }
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::JointNeverLeft.is_on()
            && self.log.ballot_at(self.members.at()).is_none_or(|ballot| ballot.replica != self.id)
        {
            return;
        }
        let next = Config { number: config.number + 1, ..config.after_joint() };
        self.propose_stop(ProposalId::NONE, &next);
    }

    /// Who left with the last change.
    pub(crate) fn leaving_now(&self) -> Vec<Leaving> {
        self.members.former().map(|replica| Leaving { replica, until: None }).collect()
    }

    /// Forgets peers that have been told of their removal for long enough.
    pub(crate) fn let_go(&mut self) {
        let span = self.config.timing.election * LEAVING_ELECTIONS;
        let (now, settled) = (self.now, self.members.is_settled());
        let Role::Leader(leader) = &mut self.role else { return };
        let peers = &mut leader.peers;
        leader.leaving.retain_mut(|leaving| {
            let stays = !settled || now < *leaving.until.get_or_insert(now.after(span));
            if !stays {
                peers.remove(&leaving.replica);
            }
            stays
        });
    }

    /// Makes learners voters that have caught up, if that is wanted.
    pub(crate) fn promote_who_is_ready(&mut self) {
        let Some(bound) = self.config.promote_within_entries else { return };
        let Role::Leader(leader) = &self.role else { return };
        let config = self.members.config();
        let may = self.is_serving()
            && leader.transfer.is_none()
            && leader.stop.is_none()
            && self.members.is_settled()
            && !config.is_joint();
        if !may || config.learners.is_empty() {
            return;
        }
        let last = self.log.last();
        let ready = config.learners.iter().filter(|replica| {
            leader.peers.get(replica).is_some_and(|peer| {
                peer.matched > Slot(0)
                    && self.is_active(peer)
                    && peer.matched.0.saturating_add(bound) >= last.0
            })
        });
        let changes: Vec<MembershipChange> =
            ready.map(|replica| MembershipChange::Promote(*replica)).collect();
        if let Ok(next) = self.next_config(&changes) {
            self.propose_stop(ProposalId::NONE, &next);
        }
    }
}
