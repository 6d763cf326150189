//! Changes of membership (thesis, chapter 4), as a leader makes them.
//!
//! ```text
//!             appended                    committed: appended at once
//!  C_old ─────────────────▶ C_old,new ───────────────────────────────▶ C_new      who votes changes
//!  C_old ────────────────────────────────────────────────────────────▶ C_new      learners alone change
//! ```
//!
//! # Invariants
//! 1. A configuration is in force from the moment its entry is in the log, committed or not, and no longer than that (section 4.1).
//! 2. Whatever changes who votes goes through a joint configuration (section 4.3): there is no second, simpler way that would be safe only
//!    under rules of its own.
//! 3. A leader appends a configuration only while it serves, that is after an entry of its own term is committed, and only when
//!    the one in force is committed. Without the first rule two leaders in turn could each count their own change (the flaw of the
//!    single-server change, Ongaro's note of 2015); without the second the log could hold more than one way out of a joint one.
//! 4. Whoever leads and serves leaves a joint configuration that is committed, whoever began it: a leader that inherits one
//!    does, and so does one that has no vote in what follows.
//! 5. A leader that the configuration in force does not name leads on without counting itself until that is committed, then tells its most
//!    complete follower to stand and goes (section 4.2.2). From the append on it takes no proposals.
//!    If it loses leadership before that, it stands again, without its own vote, as long as it does not know the end to be committed: its log
//!    may be the only one that is complete.
//! 6. A learner stands if a candidate that counts on its vote lacks what its log holds. A leader may have reached it and no
//!    voter, and another may have made it a voter that nobody can win without: then no voter can be elected. It leads as in 5.
//! 7. A replica that leaves is still written to, outside every quorum, until [`LEAVING_ELECTIONS`] election timeouts after its removal was
//!    committed: so that its host learns that it may destroy it. One that was away for longer asks for pre-votes that nobody who hears a
//!    leader answers, and disturbs no one.
//! 8. An id is allotted once, even if the entry that allots it is truncated (see [`IDS_PER_TERM`]).
//!
//! The request's id stands in the first of the entries: once that is committed the change is decided, for nothing leads back from a committed
//! joint configuration. When it is in force alone, `Membership` says so.

use conclave_consensus::{
    ChangeError, Config, Effect, Kind, MembershipChange, ProposalId, ReplicaId, Slot, StepError, Time,
};

use crate::{
    core::{Raft, Role},
    progress::Peer,
    wire::{Body, TimeoutNow},
};

/// How many replicas can be added in one term. The term's number stands above it in their ids, so that two leaders never allot the same
/// one, although the first one's entry may be truncated when the replica lives already.
const IDS_PER_TERM: u64 = 1 << 16;

/// How many election timeouts after the commit of its removal a replica is still told of it.
const LEAVING_ELECTIONS: u32 = 4;

/// A peer that the configuration in force no longer has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    replica: ReplicaId,
    /// The entry that removed it.
    at: Slot,
    /// Set once that is committed.
    until: Option<Time>,
}

impl Raft {
    pub(crate) fn reconfigure(
        &mut self,
        id: ProposalId,
        changes: &[MembershipChange],
    ) -> Result<(), StepError> {
        let Role::Leader(leader) = &self.role else {
            return Err(StepError::NotLeader { leader: self.leader });
        };
        if leader.transfer.is_some() {
            return Err(StepError::NotLeader { leader: None });
        }
        let may = self.is_serving();
        #[cfg(feature = "mutants")]
        let may = may || conclave_consensus::Mutant::ChangeBeforeOwnTerm.is_on();
        if !may {
            return Err(StepError::NotServing);
        }
        let config = self.members.config();
        if !self.members.is_settled() || config.is_joint() {
            return Err(StepError::ChangeInProgress);
        }
        if changes.iter().any(|change| matches!(change, MembershipChange::SetQuorums(_))) {
            return Err(StepError::Unsupported("quorums other than majorities"));
        }
        let next = self.next_config(changes)?;
        for change in changes {
            if let MembershipChange::Promote(replica) = change {
                self.check_ready(*replica)?;
            }
        }
        self.wake();
        self.append_config(id, &next);
        Ok(())
    }

    fn next_config(&self, changes: &[MembershipChange]) -> Result<Config, ChangeError> {
        let ids = |term: u64| term.checked_mul(IDS_PER_TERM).ok_or(ChangeError::IdsExhausted);
        let (first, end) = (ids(self.meta.term)?, ids(self.meta.term + 1)?);
        let next = self.members.config().changed(changes, ReplicaId(first))?;
        if next.next_replica.0 > end { Err(ChangeError::IdsExhausted) } else { Ok(next) }
    }

    /// A learner may vote once it holds nine tenths of what the leader does, as etcd demands.
    fn check_ready(&self, replica: ReplicaId) -> Result<(), StepError> {
        let last = self.log.last();
        let matched = self.matched_by(replica).ok_or(ChangeError::UnknownReplica(replica))?;
        let ready = u128::from(matched.0) * 10 >= u128::from(last.0) * 9;
        if ready { Ok(()) } else { Err(StepError::LearnerNotReady { replica, matched, last }) }
    }

    fn matched_by(&self, replica: ReplicaId) -> Option<Slot> {
        let Role::Leader(leader) = &self.role else { return None };
        leader.peers.get(&replica).map(|peer| peer.matched)
    }

    fn append_config(&mut self, id: ProposalId, config: &Config) {
        self.append(Kind::Config, id, config.encode());
        if !id.is_none() {
            self.own.add(self.log.last(), self.log.last());
        }
    }

    /// The entry at `at` is about to be in the log: its configuration is in force.
    pub(crate) fn enter_config(&mut self, at: Slot, config: Config) {
        if let Role::Leader(leader) = &mut self.role {
            for replica in config.members().filter(|replica| *replica != self.id) {
                leader.peers.entry(replica).or_insert_with(|| Peer::new(at, self.now));
            }
            #[cfg(feature = "mutants")]
            if conclave_consensus::Mutant::ReplicaIdReused.is_on() {
                leader.leaving.retain(|leaving| !config.nodes.contains_key(&leaving.replica));
            }
            for replica in leader.peers.keys().filter(|replica| !config.nodes.contains_key(replica)) {
                if leader.leaving.iter().all(|leaving| leaving.replica != *replica) {
                    leader.leaving.push(Leaving { replica: *replica, at, until: None });
                }
            }
        }
        self.members.append(at, config.clone());
        self.outbox.push(Effect::Membership { config: config.into(), at, committed: false });
    }

    /// What is joint and committed has done its work.
    pub(crate) fn leave_joint_if_committed(&mut self) {
        let config = self.members.config();
        if !config.is_joint() || !self.members.is_settled() || !self.is_serving() {
            return;
        }
        // An entry now would make the heir's log the shorter one. The heir does it, or the transfer is given up first.
        if matches!(&self.role, Role::Leader(leader) if leader.transfer.is_some()) {
            return;
        }
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::JointNeverLeft.is_on()
            && self.log.get(self.members.in_force().0).is_none_or(|entry| entry.ballot != self.ballot())
        {
            return;
        }
        let next = config.after_joint();
        self.append_config(ProposalId::NONE, &next);
    }

    /// A leader that has no vote in a committed configuration has led to the end of its time.
    pub(crate) fn retire_if_removed(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        if self.members.config().is_voter(self.id) || !self.members.is_settled() || !self.is_serving() {
            return;
        }
        let voters = &self.members.config().voters;
        let live = leader.peers.iter().filter(|(id, peer)| voters.contains(id) && self.is_active(peer));
        if let Some((heir, _)) = live.max_by_key(|(_, peer)| peer.matched) {
            let message = self.message(*heir, Body::TimeoutNow(TimeoutNow {}));
            self.outbox.send(message);
        }
        self.become_follower(self.meta.term, None);
    }

    /// Forgets peers that have been told of their removal for long enough.
    pub(crate) fn let_go(&mut self) {
        let span = self.config.timing.election * LEAVING_ELECTIONS;
        let (now, committed) = (self.now, self.committed);
        let Role::Leader(leader) = &mut self.role else { return };
        let peers = &mut leader.peers;
        leader.leaving.retain_mut(|leaving| {
            if committed < leaving.at {
                return true;
            }
            let stays = now < *leaving.until.get_or_insert(now.after(span));
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
        let may =
            self.is_serving() && leader.transfer.is_none() && self.members.is_settled() && !config.is_joint();
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
            self.append_config(ProposalId::NONE, &next);
        }
    }
}
