//! Proposals and reads, on their way to the leader: proposed here, forwarded once, or parked until one is known.

use conclave_consensus::{
    GroupId, Input, MembershipChange, NodeId, Outcome, Proposal, ProposalId, ReadError, ReadId, ReadMode,
    StepError, Time,
};
use conclave_transport::Packet;

use super::{Host, Parked};
use crate::{HostEffect, ProposeError, ReconfigureError};

impl Host {
    /// `until` is when the batch fails if no leader is found for it.
    pub(super) fn propose(&mut self, group: GroupId, batch: Vec<Proposal>, until: Time) {
        let Some(g) = self.groups.get_mut(&group) else {
            self.fail_all(&batch, ProposeError::NoGroup);
            return;
        };
        let Some(leader) = g.leader else {
            self.park(group, batch, until);
            return;
        };
        if leader == g.core.replica() {
            if let Err(error) = self.propose_here(group, &batch) {
                match error {
                    StepError::NotLeader { .. } => self.park(group, batch, until),
                    StepError::TooLarge { .. } => self.fail_all(&batch, ProposeError::TooLarge),
                    _ => self.fail_all(&batch, ProposeError::Busy),
                }
            }
            return;
        }
        match g.addresses.of(leader) {
            Some(to) => {
                self.counters.forwarded += batch.len() as u64;
                self.effects.push(HostEffect::Send { to, packet: Packet::Forward { group, batch } });
            }
            None => self.park(group, batch, until),
        }
    }

    /// Proposals share their payloads, so handing the core a copy of the batch copies a few words for each.
    fn propose_here(&mut self, group: GroupId, batch: &[Proposal]) -> Result<(), StepError> {
        let Some(g) = self.groups.get_mut(&group) else { return Err(StepError::NotLeader { leader: None }) };
        self.touched.insert(group);
        let result = g.core.step(self.now, Input::Propose { batch: batch.to_vec(), only_in: None });
        if let Err(StepError::Broken(why)) = result {
            self.effects.push(HostEffect::Halt { group, why });
        }
        result
    }

    pub(super) fn forwarded(&mut self, from: NodeId, group: GroupId, batch: Vec<Proposal>) {
        let busy = match self.propose_here(group, &batch) {
            Ok(()) => return,
            Err(error) => !matches!(error, StepError::NotLeader { .. }),
        };
        let ids = batch.iter().map(|p| p.id).collect();
        let packet = Packet::Refused { group, ids, outcome: Outcome::Dropped, busy };
        self.effects.push(HostEffect::Send { to: from, packet });
    }

    fn park(&mut self, group: GroupId, batch: Vec<Proposal>, until: Time) {
        let Some(g) = self.groups.get_mut(&group) else { return };
        let bytes = bytes_of(&batch);
        if g.parked_count + batch.len() > self.config.parked_max
            || g.parked_bytes + bytes > self.config.parked_bytes_max
        {
            self.fail_all(&batch, ProposeError::Busy);
            return;
        }
        g.parked_count += batch.len();
        g.parked_bytes += bytes;
        g.parked.push_back(Parked { until, batch });
    }

    pub(super) fn unpark(&mut self, group: GroupId) {
        let Some(g) = self.groups.get_mut(&group) else { return };
        (g.parked_count, g.parked_bytes) = (0, 0);
        for parked in std::mem::take(&mut g.parked) {
            self.propose(group, parked.batch, parked.until);
        }
    }

    pub(super) fn read_barrier(&mut self, group: GroupId, id: ReadId) {
        let Some(g) = self.groups.get_mut(&group) else {
            self.effects.push(HostEffect::ReadFailed { group, id, why: ReadError::NoLeader });
            return;
        };
        self.touched.insert(group);
        g.reads.insert(id);
        let why = match g.core.step(self.now, Input::ReadBarrier { id, mode: ReadMode::Follower }) {
            Ok(()) => return,
            Err(StepError::Busy) => ReadError::Busy,
            Err(StepError::Broken(why)) => {
                self.effects.push(HostEffect::Halt { group, why });
                ReadError::NoLeader
            }
            Err(_) => ReadError::NoLeader,
        };
        g.reads.remove(&id);
        self.effects.push(HostEffect::ReadFailed { group, id, why });
    }

    pub(super) fn transfer(&mut self, group: GroupId, id: ProposalId, to: NodeId) {
        let Some(g) = self.groups.get_mut(&group) else {
            self.fail(id, ProposeError::NoGroup);
            return;
        };
        self.touched.insert(group);
        let heir = g.addresses.member_on(to);
        let refused = match heir {
            Some(heir) => g.core.step(self.now, Input::Transfer { id, to: heir }).is_err(),
            None => true,
        };
        if refused {
            self.fail(id, ProposeError::LeaderChanged);
        }
    }

    /// Never forwarded: whoever asks for a change reads the membership first, and so finds the leader.
    pub(super) fn reconfigure(&mut self, group: GroupId, id: ProposalId, changes: Vec<MembershipChange>) {
        let Some(g) = self.groups.get_mut(&group) else {
            self.effects.push(HostEffect::ChangeRefused { id, why: ReconfigureError::NoGroup });
            return;
        };
        self.touched.insert(group);
        let why = match g.core.step(self.now, Input::Reconfigure { id, changes }) {
            Ok(()) => return,
            Err(StepError::Broken(why)) => {
                self.effects.push(HostEffect::Halt { group, why });
                return;
            }
            Err(StepError::NotLeader { leader }) => {
                ReconfigureError::NotLeader { leader: leader.and_then(|leader| g.addresses.of(leader)) }
            }
            Err(StepError::NotServing) => ReconfigureError::NotServing,
            Err(StepError::ChangeInProgress) => ReconfigureError::InProgress,
            Err(StepError::LearnerNotReady { .. }) => ReconfigureError::LearnerNotReady,
            Err(StepError::Change(why)) => ReconfigureError::Change(why),
            Err(StepError::Busy) => ReconfigureError::Busy,
            // An engine that keeps its members.
            Err(_) => ReconfigureError::Dropped,
        };
        self.effects.push(HostEffect::ChangeRefused { id, why });
    }

    pub(super) fn lost(&mut self, group: GroupId, id: ProposalId, outcome: Outcome) {
        if id.node == self.config.node {
            let why = match outcome {
                Outcome::Dropped => ProposeError::LeaderChanged,
                Outcome::Unknown => ProposeError::Unknown,
            };
            self.fail(id, why);
        } else if !id.is_none() {
            let packet = Packet::Refused { group, ids: vec![id], outcome, busy: false };
            self.effects.push(HostEffect::Send { to: id.node, packet });
        }
    }

    pub(super) fn fail(&mut self, id: ProposalId, why: ProposeError) {
        self.counters.proposals_failed += 1;
        self.effects.push(HostEffect::Failed { id, why });
    }

    fn fail_all(&mut self, batch: &[Proposal], why: ProposeError) {
        for proposal in batch {
            self.fail(proposal.id, why);
        }
    }
}

pub(super) fn bytes_of(batch: &[Proposal]) -> usize {
    batch.iter().map(|p| p.payload.len()).sum()
}
