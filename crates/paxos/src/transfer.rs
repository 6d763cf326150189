//! Leadership transfer (as in Ongaro's thesis, section 3.10).
//!
//! The leader stops taking proposals, waits until the heir holds everything, so that its phase 1 is short, and tells it to stand at once. If the heir
//! has not taken over within an election timeout, the leader goes on as before.
//!
//! Where replicas have priorities, a leader does so by itself for a voter of a higher one than its own.

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Effect, Outcome, ProposalId, ReplicaId, Slot, StepError, Time};

use crate::{
    core::{Paxos, Role},
    progress::{Mode, Peer},
    wire::{self, Body},
};

/// How many election timeouts lie between two attempts to hand leadership to a replica of higher priority.
const PREFER_ELECTIONS: u32 = 4;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    id: ProposalId,
    to: ReplicaId,
    /// When it is given up.
    pub(crate) until: Time,
}

impl Paxos {
    pub(crate) fn transfer(&mut self, id: ProposalId, to: ReplicaId) -> Result<(), StepError> {
        let Role::Leader(leader) = &mut self.role else {
            return Err(StepError::NotLeader { leader: self.leader });
        };
        let may_lead = self.members.config().voters.contains(&to);
        #[cfg(feature = "mutants")]
        let may_lead = may_lead || Mutant::TransferToNonVoter.is_on();
        if to == self.id || !may_lead {
            return Err(StepError::NotTransferable(to));
        }
        if leader.transfer.is_some() || leader.is_over {
            return Err(StepError::Busy);
        }
        let until = self.now.after(self.config.timing.election);
        leader.transfer = Some(Transfer { id, to, until });
        self.hand_over_if_ready(to);
        Ok(())
    }

    /// Tells the heir to stand, if `replica` is it and lacks nothing.
    pub(crate) fn hand_over_if_ready(&mut self, replica: ReplicaId) {
        let Role::Leader(leader) = &self.role else { return };
        let Some(transfer) = leader.transfer else { return };
        let complete = leader.peers.get(&replica).is_some_and(|peer| peer.matched == self.log.last());
        if transfer.to == replica && complete {
            if let Role::Leader(leader) = &mut self.role {
                leader.lease.bar();
            }
            let message = self.message(replica, Body::TakeOver(wire::TakeOver { chosen: self.chosen.0 }));
            self.outbox.send(message);
        }
    }

    /// The message may have been lost.
    pub(crate) fn retry_hand_over(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        if let Some(transfer) = leader.transfer {
            self.hand_over_if_ready(transfer.to);
        }
    }

    pub(crate) fn abort_late_transfer(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(late) = leader.transfer.take_if(|transfer| self.now >= transfer.until) {
            self.end_transfer(&late, Outcome::Dropped);
        }
    }

    /// `Unknown`: leadership ended while it was handed over, and `Role` tells who has it. Nobody waits for what the leader began by itself.
    pub(crate) fn end_transfer(&mut self, transfer: &Transfer, outcome: Outcome) {
        if !transfer.id.is_none() {
            self.outbox.push(Effect::Lost { id: transfer.id, outcome });
        }
    }

    /// Hands leadership to a voter of higher priority that answers and holds what is chosen: at most once in a while, so that one
    /// that cannot take over costs the group little.
    pub(crate) fn hand_to_preferred(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let config = self.members.config();
        let quiet = leader.transfer.is_none()
            && leader.stop.is_none()
            && self.members.is_settled()
            && !config.is_joint();
        if !quiet || self.now < leader.prefers_after || !self.is_serving() {
            return;
        }
        let fits = |id: &ReplicaId, peer: &Peer| {
            peer.priority > self.config.priority
                && config.voters.contains(id)
                && self.is_active(peer)
                && peer.mode == Mode::Replicate
                && peer.matched >= self.chosen
        };
        let fit = leader.peers.iter().filter(|(id, peer)| fits(id, peer));
        let Some(heir) = fit.max_by_key(|(_, peer)| (peer.priority, peer.matched)).map(|(id, _)| *id) else {
            return;
        };
        let until = self.now.after(self.config.timing.election * PREFER_ELECTIONS);
        if let Role::Leader(leader) = &mut self.role {
            leader.prefers_after = until;
        }
        // It fits, so nothing is refused.
        let _ = self.transfer(ProposalId::NONE, heir);
    }

    /// The leader wants this replica to lead.
    pub(crate) fn on_take_over(&mut self, from: ReplicaId, chosen: Slot) {
        if self.leader != Some(from) || !matches!(self.role, Role::Follower) || self.fetch.is_installing() {
            return;
        }
        self.chosen_to(chosen.min(self.received));
        let votes = self.members.config().is_voter(self.id);
        #[cfg(feature = "mutants")]
        let votes = votes || Mutant::TransferToNonVoter.is_on();
        if votes {
            #[cfg(feature = "mutants")]
            if Mutant::TransferBlockedByPreVote.is_on() {
                self.look_for_leader();
                return;
            }
            self.stand(true);
        }
    }
}
