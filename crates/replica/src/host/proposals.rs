//! Proposals and reads, on their way to the leader: proposed here, forwarded once, or parked until one is known.

use std::time::Duration;

use conclave_consensus::{
    Ballot, GroupId, Input, MembershipChange, NodeId, Outcome, Proposal, ProposalId, ReadError, ReadId,
    ReadMode, StepError, Time,
};
use conclave_transport::Packet;

use super::{Host, Parked};
use crate::{HostEffect, ProposeError, ReconfigureError};

/// How long what a leader refused waits before it is tried again.
const UNPARK_AFTER: Duration = Duration::from_millis(50);

impl Host {
    /// `until` is when the batch fails if no leader is found for it.
    pub(super) fn propose(&mut self, group: GroupId, batch: Vec<Proposal>, until: Time) {
        let Some(g) = self.groups.get_mut(group) else {
            self.fail_all(&batch, ProposeError::NoGroup);
            return;
        };
        let Some(leader) = g.leader else {
            self.park(group, batch, until);
            return;
        };
        if leader == g.core.replica() {
            if let Err(error) = self.propose_here(group, &batch, None) {
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

    /// What is not chosen in the ballot, since this node does not lead in it, is dropped.
    pub(super) fn propose_in(&mut self, group: GroupId, ballot: Ballot, proposal: Proposal) {
        let id = proposal.id;
        let why = match self.propose_here(group, &[proposal], Some(ballot)) {
            Ok(()) => return,
            Err(StepError::NotLeader { .. }) => ProposeError::LeaderChanged,
            Err(StepError::TooLarge { .. }) => ProposeError::TooLarge,
            Err(_) => ProposeError::Busy,
        };
        self.fail(id, why);
    }

    /// Proposals share their payloads, so handing the core a copy of the batch copies a few words for each.
    fn propose_here(
        &mut self,
        group: GroupId,
        batch: &[Proposal],
        only_in: Option<Ballot>,
    ) -> Result<(), StepError> {
        self.step_core(group, Input::Propose { batch: batch.to_vec(), only_in })
            .unwrap_or(Err(StepError::NotLeader { leader: None }))
    }

    pub(super) fn forwarded(&mut self, from: NodeId, group: GroupId, batch: Vec<Proposal>) {
        let busy = match self.propose_here(group, &batch, None) {
            Ok(()) => return,
            Err(error) => !matches!(error, StepError::NotLeader { .. }),
        };
        let ids = batch.iter().map(|p| p.id).collect();
        let packet = Packet::Refused { group, ids, outcome: Outcome::Dropped, busy };
        self.effects.push(HostEffect::Send { to: from, packet });
    }

    fn park(&mut self, group: GroupId, batch: Vec<Proposal>, until: Time) {
        let Some(g) = self.groups.get_mut(group) else { return };
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
        g.unpark_at = g.leader.map(|_| self.now.after(UNPARK_AFTER));
        self.touched.add(group, g);
    }

    pub(super) fn unpark(&mut self, group: GroupId) {
        let Some(g) = self.groups.get_mut(group) else { return };
        (g.parked_count, g.parked_bytes, g.unpark_at) = (0, 0, None);
        self.touched.add(group, g);
        for parked in std::mem::take(&mut g.parked) {
            self.propose(group, parked.batch, parked.until);
        }
    }

    /// Tries again what is parked under a leader that refused for a while, as during a transfer that came to nothing. Without a leader it
    /// waits for the next.
    pub(super) fn unpark_if_due(&mut self, group: GroupId) {
        let now = self.now;
        let Some(g) = self.groups.get_mut(group) else { return };
        if g.unpark_at.take_if(|at| *at <= now).is_some() && g.leader.is_some() {
            self.unpark(group);
        }
    }

    /// Fails what has been parked for too long.
    pub(super) fn drop_overdue(&mut self, group: GroupId) {
        let now = self.now;
        let Some(g) = self.groups.get_mut(group) else { return };
        while let Some(parked) = g.parked.pop_front_if(|parked| parked.until <= now) {
            g.parked_count -= parked.batch.len();
            g.parked_bytes -= bytes_of(&parked.batch);
            self.counters.proposals_failed += parked.batch.len() as u64;
            let failed = |p: &Proposal| HostEffect::Failed { id: p.id, why: ProposeError::NoLeader };
            self.effects.extend(parked.batch.iter().map(failed));
        }
        if g.parked.is_empty() {
            g.unpark_at = None;
        }
    }

    pub(super) fn read_barrier(&mut self, group: GroupId, id: ReadId) {
        if let Some(g) = self.groups.get_mut(group) {
            g.reads.insert(id);
        }
        let why = match self.step_core(group, Input::ReadBarrier { id, mode: ReadMode::Follower }) {
            Some(Ok(())) => return,
            Some(Err(StepError::Busy)) => ReadError::Busy,
            _ => ReadError::NoLeader,
        };
        if let Some(g) = self.groups.get_mut(group) {
            g.reads.remove(&id);
        }
        self.effects.push(HostEffect::ReadFailed { group, id, why });
    }

    pub(super) fn transfer(&mut self, group: GroupId, id: ProposalId, to: NodeId) {
        let Some(g) = self.groups.get(group) else {
            self.fail(id, ProposeError::NoGroup);
            return;
        };
        let taken = g.addresses.member_on(to).is_some_and(|heir| {
            matches!(self.step_core(group, Input::Transfer { id, to: heir }), Some(Ok(())))
        });
        if !taken {
            self.fail(id, ProposeError::LeaderChanged);
        }
    }

    /// Never forwarded: whoever asks for a change reads the membership first, and so finds the leader.
    pub(super) fn reconfigure(&mut self, group: GroupId, id: ProposalId, changes: Vec<MembershipChange>) {
        let Some(result) = self.step_core(group, Input::Reconfigure { id, changes }) else {
            self.effects.push(HostEffect::ChangeRefused { id, why: ReconfigureError::NoGroup });
            return;
        };
        let why = match result {
            // What is broken halts the node, and with it whoever waits.
            Ok(()) | Err(StepError::Broken(_)) => return,
            Err(StepError::NotLeader { leader }) => {
                let node = |leader| self.groups.get(group).and_then(|g| g.addresses.of(leader));
                ReconfigureError::NotLeader { leader: leader.and_then(node) }
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

fn bytes_of(batch: &[Proposal]) -> usize {
    batch.iter().map(|p| p.payload.len()).sum()
}
