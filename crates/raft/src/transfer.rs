//! Leadership transfer (thesis, section 3.10).
//!
//! The leader stops taking proposals, waits until the heir's log is complete, and tells it to stand at once. If the heir has not
//! taken over within an election timeout, the leader goes on as before.

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Effect, Outcome, ProposalId, ReplicaId, StepError, Time};

use crate::{
    core::{Raft, Role},
    wire::{Body, TimeoutNow},
};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    id: ProposalId,
    to: ReplicaId,
    /// When it is given up.
    pub(crate) until: Time,
}

impl Raft {
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
        if leader.transfer.is_some() {
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
            let message = self.message(replica, Body::TimeoutNow(TimeoutNow {}));
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
            self.outbox.push(Effect::Lost { id: late.id, outcome: Outcome::Dropped });
        }
    }

    /// Leadership ended while it was handed over: `Role` tells who has it.
    pub(crate) fn end_transfer_unknown(&mut self, transfer: &Transfer) {
        self.outbox.push(Effect::Lost { id: transfer.id, outcome: Outcome::Unknown });
    }

    /// The leader wants this replica to lead.
    pub(crate) fn on_timeout_now(&mut self, from: ReplicaId) {
        let votes = self.members.config().is_voter(self.id);
        #[cfg(feature = "mutants")]
        let votes = votes || Mutant::TransferToNonVoter.is_on();
        let may = self.leader == Some(from)
            && matches!(self.role, Role::Follower)
            && votes
            && !self.fetch.is_installing();
        if may {
            #[cfg(feature = "mutants")]
            if Mutant::TransferBlockedByPreVote.is_on() {
                self.election_timeout();
                return;
            }
            self.quiet_until = Time(0);
            self.campaign(true);
        }
    }
}
