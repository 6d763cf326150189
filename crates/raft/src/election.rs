//! Elections: pre-vote, vote, and when a leader must go.
//!
//! Pre-vote (thesis, section 9.6) and check-quorum (section 6.2) belong together. The first keeps a replica that cannot win from
//! deposing a leader; the second makes a leader that cannot work go, so that the replicas which ignore candidates
//! while they hear it begin to listen.

use std::collections::BTreeSet;

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Ballot, Kind, ProposalId, ReplicaId, Slot};

use crate::{
    core::{Leader, Raft, Role},
    lease::Lease,
    progress::Peer,
    quiescence::Drowsy,
    read::Confirming,
    wire::{Body, Candidacy, VoteReply},
};

/// Who would vote, or voted, for this replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Candidate {
    granted: BTreeSet<ReplicaId>,
    /// The write that holds the own vote: it counts once that is durable.
    voted_in: u64,
}

impl Raft {
    /// Draws the next election timeout: between one and two of the configured (section 5.2 of the paper), and not before a promise is over.
    pub(crate) fn rearm_election(&mut self) {
        let (least, election) = (self.quiet_span(), self.config.timing.election);
        self.election_due = self.now.after(self.random.between(least, least + election));
    }

    /// Whether this replica must not help to depose a leader: it leads, heard one less than an election timeout ago, or may have
    /// promised one before it booted.
    pub(crate) fn hears_leader(&self) -> bool {
        self.is_leader() || self.now < self.quiet_until || self.is_asleep()
    }

    /// Whether a candidate's log holds everything this one's does (section 5.4.1).
    fn is_up_to_date(&self, candidacy: Candidacy) -> bool {
        let theirs = (Ballot::term(candidacy.last_term), Slot(candidacy.last_slot));
        theirs >= (self.log.last_ballot(), self.log.last())
    }

    fn candidacy(&self, transfer: bool) -> Candidacy {
        Candidacy { last_slot: self.log.last().0, last_term: self.log.last_ballot().round, transfer }
    }

    fn other_voters(&self) -> Vec<ReplicaId> {
        let config = self.members.config();
        #[cfg(feature = "mutants")]
        if Mutant::NonVotersCounted.is_on() {
            return config.members().filter(|replica| *replica != self.id).collect();
        }
        config.members().filter(|replica| *replica != self.id && config.is_voter(*replica)).collect()
    }

    /// Enters a term as a follower, or steps down in the present one.
    pub(crate) fn become_follower(&mut self, term: u64, leader: Option<ReplicaId>) {
        if term > self.meta.term {
            self.wake();
            self.meta.term = term;
            self.meta.vote = None;
            self.outbox.write_meta(self.meta.encode());
            self.acknowledge = None;
        }
        match std::mem::replace(&mut self.role, Role::Follower) {
            Role::Follower => {}
            Role::PreCandidate(_) | Role::Candidate(_) => self.rearm_election(),
            Role::Leader(leading) => {
                self.leave_leadership(*leading);
                self.rearm_election();
            }
        }
        if self.leader != leader {
            self.leader = leader;
            self.fail_asked_reads();
        }
    }

    /// A message of the present term shows who leads in it.
    pub(crate) fn follow(&mut self, leader: ReplicaId) {
        self.wake();
        if self.leader != Some(leader) || !matches!(self.role, Role::Follower) {
            self.become_follower(self.meta.term, Some(leader));
        }
        self.quiet_until = self.quiet_until.max(self.now.after(self.quiet_span()));
        self.called = false;
        self.rearm_election();
    }

    /// Whether this replica may have to lead: by a configuration of its own log, or, as a learner, by one that a candidate has and it has not. Where
    /// that one's log lacks what is here nobody may win but this replica; without its own vote it is a candidate like another (thesis, section
    /// 4.2.2). Who is removed is never made a voter again, so nobody needs it.
    pub(crate) fn may_stand(&self) -> bool {
        self.members.may_stand(self.id) || (self.called && self.members.contains(self.id))
    }

    /// Nothing was heard of a leader for long enough, or the last attempt came to nothing.
    pub(crate) fn election_timeout(&mut self) {
        if !self.may_stand() || self.fetch.is_installing() || self.disk_stalls() {
            // A replica without a vote, without a log it can vouch for, or whose disk hangs is no leader to wish for.
            self.rearm_election();
            return;
        }
        self.become_follower(self.meta.term, None);
        let heartbeat = self.config.timing.heartbeat;
        // Asking changes nothing, so it may be repeated soon; only an election must not collide with the next.
        self.election_due = self.now.after(self.random.between(heartbeat, heartbeat * 3));
        let granted = BTreeSet::from([self.id]);
        let wins = self.members.config().is_elect_quorum(|replica| granted.contains(&replica));
        self.role = Role::PreCandidate(Candidate { granted, voted_in: 0 });
        if wins {
            self.campaign(false);
            return;
        }
        let body = Body::PreVote(self.candidacy(false));
        for to in self.other_voters() {
            let message = self.message(to, body);
            self.outbox.promise_term(message);
        }
    }

    /// Stands for election in the next term (section 5.2).
    pub(crate) fn campaign(&mut self, transfer: bool) {
        if self.meta.term >= crate::wire::TERM_MAX {
            return;
        }
        self.become_follower(self.meta.term + 1, None);
        self.rearm_election();
        self.meta.vote = Some(self.id);
        self.meta.promise = std::time::Duration::ZERO;
        let voted_in = self.outbox.write_meta(self.meta.encode());
        self.role = Role::Candidate(Candidate { granted: BTreeSet::new(), voted_in });
        #[cfg(feature = "mutants")]
        if Mutant::VoteBeforeDurable.is_on() {
            self.role = Role::Candidate(Candidate { granted: BTreeSet::from([self.id]), voted_in });
        }
        let body = Body::Vote(self.candidacy(transfer));
        for to in self.other_voters() {
            // The request vouches for the log and for the own vote, so it waits for both.
            let message = self.message(to, body);
            #[cfg(feature = "mutants")]
            if Mutant::VoteBeforeDurable.is_on() {
                self.outbox.send(message);
                continue;
            }
            self.outbox.promise(message);
        }
    }

    /// Someone asks for a vote, so it does not sleep. Does the leader, it leads no more, whatever its node's life says.
    pub(crate) fn wake_by_candidate(&mut self, from: ReplicaId, term: u64) {
        if !self.is_asleep() || term < self.meta.term {
            return;
        }
        if self.is_leader() {
            self.wake();
        } else if self.leader == Some(from) {
            self.become_follower(self.meta.term, None);
            self.wake();
        }
    }

    /// A pre-vote changes nothing here, least of all when a leader was last heard.
    pub(crate) fn on_pre_vote(&mut self, from: ReplicaId, term: u64, candidacy: Candidacy) {
        if term >= self.meta.term && self.hears_leader() {
            return;
        }
        let lacks_nothing = self.is_up_to_date(candidacy);
        // One of an earlier term is answered although a leader is heard.
        self.called |= !lacks_nothing && !self.hears_leader();
        let granted = term >= self.meta.term && lacks_nothing;
        #[cfg(feature = "mutants")]
        if granted && Mutant::PreVoteRefreshesContact.is_on() {
            self.rearm_election();
        }
        let message = self.message(from, Body::PreVoteReply(VoteReply { granted, asked_in: term }));
        self.outbox.promise_term(message);
    }

    pub(crate) fn on_pre_vote_reply(&mut self, from: ReplicaId, reply: VoteReply) {
        let Role::PreCandidate(candidate) = &mut self.role else { return };
        if !reply.granted || reply.asked_in != self.meta.term {
            return;
        }
        candidate.granted.insert(from);
        let granted = &candidate.granted;
        if self.members.config().is_elect_quorum(|replica| granted.contains(&replica)) {
            self.campaign(false);
        }
    }

    pub(crate) fn on_vote(&mut self, from: ReplicaId, candidacy: Candidacy) {
        let free = self.meta.vote.is_none_or(|vote| vote == from) && self.leader.is_none();
        let granted = free && self.is_up_to_date(candidacy);
        if granted && self.meta.vote.is_none() {
            self.meta.vote = Some(from);
            self.outbox.write_meta(self.meta.encode());
            self.rearm_election();
        }
        let asked_in = self.meta.term;
        let message = self.message(from, Body::VoteReply(VoteReply { granted, asked_in }));
        self.outbox.promise_term(message);
    }

    pub(crate) fn on_vote_reply(&mut self, from: ReplicaId, reply: VoteReply) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        if reply.granted && reply.asked_in == self.meta.term {
            candidate.granted.insert(from);
            self.take_office_if_elected();
        }
    }

    pub(crate) fn count_own_vote(&mut self) {
        let (id, durable) = (self.id, self.outbox.durable());
        let Role::Candidate(candidate) = &mut self.role else { return };
        if durable >= candidate.voted_in {
            candidate.granted.insert(id);
            self.take_office_if_elected();
        }
    }

    fn take_office_if_elected(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        if !self.members.config().is_elect_quorum(|replica| candidate.granted.contains(&replica)) {
            return;
        }
        let next = self.log.last().next();
        let others = self.members.config().members().filter(|replica| *replica != self.id);
        let peers = others.map(|replica| (replica, Peer::new(next, self.now))).collect();
        self.leader = Some(self.id);
        self.called = false;
        self.role = Role::Leader(Box::new(Leader {
            peers,
            began_at: next,
            beat_due: self.now.after(self.config.timing.heartbeat),
            reads: Confirming::default(),
            transfer: None,
            lease: Lease::default(),
            prefers_after: self.now.after(self.config.timing.election),
            drowsy: Drowsy::default(),
            leaving: Vec::new(),
        }));
        // Without an entry of its own term a leader cannot tell what is committed (sections 5.4.2 and 8).
        if next == Slot(1) {
            // Who is added later, and begins with nothing, has it from nowhere else who decided in the beginning.
            let founding = self.members.config().encode();
            self.append(Kind::Config, ProposalId::NONE, founding);
        } else {
            self.append(Kind::Noop, ProposalId::NONE, bytes::Bytes::new());
        }
    }

    fn leave_leadership(&mut self, leading: Leader) {
        if self.leader == Some(self.id) {
            self.leader = None;
        }
        self.fail_confirming_reads(leading.reads);
        if let Some(transfer) = leading.transfer {
            self.end_transfer(&transfer, conclave_consensus::Outcome::Unknown);
        }
    }

    pub(crate) fn is_active(&self, peer: &Peer) -> bool {
        self.now.since(peer.heard) < self.config.timing.election
    }

    /// A leader's clock: is it still of use, and who must hear of it?
    pub(crate) fn tick_leader(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let hears_quorum = self.members.config().meets_every_elect_quorum(|replica| {
            replica == self.id || leader.peers.get(&replica).is_some_and(|peer| self.is_active(peer))
        });
        #[cfg(feature = "mutants")]
        let hears_quorum = hears_quorum || Mutant::PreVoteWithoutCheckQuorum.is_on();
        if !hears_quorum || self.disk_stalls() {
            // Silence would let clients wait for a leader that others may have replaced; a hanging disk makes it one that
            // can promise nothing. Either way another must be free to stand.
            self.become_follower(self.meta.term, None);
            return;
        }
        self.abort_late_transfer();
        self.leave_joint_if_committed();
        self.beat_if_due();
    }
}
