//! Messages: which are taken, and which room each goes to.
//!
//! It is the sender's configuration that decides whom it asks, and the asker's that decides whose answers count (thesis, section 4.1). So
//! *requests* are taken from anyone: a replica that was just added knows of no leader and must follow the one that writes to it, and one
//! whose log lacks a change, or holds one that will never be committed, must vote for a candidate that its own configuration does
//! not name, or a group could find no leader although a quorum lives. That harms nothing: terms, logs and the
//! silence that a heard leader imposes judge a request, and a configuration would judge it by what may be undone.
//!
//! *Answers* are taken from members alone, and from peers that are on their way out ([`crate::reconfigure`]); neither a stranger nor
//! one that leaves is ever counted, or ends a leadership by its term. That the sender is who it says is the transport's to know.

use std::time::Duration;

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Message, ReplicaId, Slot, StepError};

use crate::{
    core::{Raft, Role},
    wire::{self, Body},
};

impl Raft {
    /// Whether the replica is a member, a peer on its way out, or the leader that this one follows.
    fn is_known(&self, replica: ReplicaId) -> bool {
        self.members.contains(replica)
            || self.leader == Some(replica)
            || matches!(&self.role, Role::Leader(leader) if leader.peers.contains_key(&replica))
    }

    pub(crate) fn on_message(&mut self, message: Message) -> Result<(), StepError> {
        let from = message.from;
        let bad = |why| StepError::BadMessage { from, why };
        if message.to != self.id {
            return Err(bad("for another replica"));
        }
        if from == self.id || from == ReplicaId(0) {
            return Err(bad("nobody else can have sent it"));
        }
        let (term, body) = wire::decode(&message).map_err(bad)?;
        if body.is_answer() && !self.members.contains(from) {
            if !self.is_known(from) {
                return Err(bad("a stranger's answer"));
            }
            if term > self.meta.term {
                return Ok(()); // One that leaves says so: it must not take a leader with it.
            }
        }
        if matches!(body, Body::PreVote(_) | Body::Vote(_)) {
            self.wake_by_candidate(from, term);
        }
        match &body {
            // Neither raises the receiver's term: that is what a pre-vote is for.
            Body::PreVote(candidacy) => {
                self.on_pre_vote(from, term, *candidacy);
                return Ok(());
            }
            // In its own term too, which it may have entered by another message: a leader may rely on its silence all the same.
            Body::Vote(candidacy) if term >= self.meta.term && !candidacy.transfer && self.hears_leader() => {
                return Ok(());
            }
            Body::PreVoteReply(reply) if term <= self.meta.term => {
                self.on_pre_vote_reply(from, *reply);
                return Ok(());
            }
            _ => {}
        }
        if term < self.meta.term {
            self.on_stale(from, &body);
            return Ok(());
        }
        self.check_for_this_term(term, from, &body).map_err(bad)?;
        if matches!(&body, Body::Append(append) if self.would_fall(append, &message.entries)) {
            return Err(bad("terms fall along the log"));
        }
        if term > self.meta.term {
            let slept_by =
                self.leader.filter(|leader| self.is_asleep() && *leader != self.id && *leader != from);
            self.become_follower(term, None);
            if let Some(leader) = slept_by {
                // It may sleep too, and believe that it leads.
                let message = self.message(leader, Body::Stale(wire::Stale {}));
                self.outbox.promise_term(message);
            }
        }
        if self.is_leader() && !matches!(body, Body::BeatReply(_)) {
            self.wake();
        }
        match body {
            Body::PreVote(_) | Body::PreVoteReply(_) | Body::Stale(_) => Ok(()),
            Body::Vote(candidacy) => {
                self.on_vote(from, candidacy);
                Ok(())
            }
            Body::VoteReply(reply) => {
                self.on_vote_reply(from, reply);
                Ok(())
            }
            Body::Append(append) => {
                self.follow(from);
                self.on_append(append, message.entries)
            }
            Body::AppendReply(reply) => {
                self.on_append_reply(from, reply);
                Ok(())
            }
            Body::Beat(beat) => {
                self.promise(Duration::from_micros(beat.promise_us));
                self.follow(from);
                self.on_beat(from, beat);
                Ok(())
            }
            Body::BeatReply(reply) => {
                self.on_beat_reply(from, reply);
                Ok(())
            }
            Body::SnapshotOffer(offer) => {
                self.follow(from);
                self.on_snapshot_offer(from, offer);
                Ok(())
            }
            Body::TimeoutNow(_) => {
                self.on_timeout_now(from);
                Ok(())
            }
            Body::ReadAsk(ask) => {
                self.on_read_ask(from, ask);
                Ok(())
            }
            Body::ReadReply(reply) => {
                self.on_read_reply(from, reply);
                Ok(())
            }
        }
    }

    /// What a peer cannot have said in this replica's term, before anything is changed.
    fn check_for_this_term(&self, term: u64, from: ReplicaId, body: &Body) -> Result<(), &'static str> {
        if matches!(body, Body::Append(_) | Body::Beat(_) | Body::SnapshotOffer(_))
            && term == self.meta.term
            && self.leader.is_some_and(|leader| leader != from)
        {
            return Err("a second leader in one term");
        }
        if term > self.meta.term {
            return Ok(());
        }
        match (body, &self.role) {
            (Body::AppendReply(reply), Role::Leader(_)) if Slot(reply.slot) > self.log.last() => {
                Err("acknowledges what was never sent")
            }
            (Body::BeatReply(reply), Role::Leader(leader)) if reply.round > leader.reads.round() => {
                Err("answers a round that was never asked")
            }
            _ => Ok(()),
        }
    }

    /// A message of an earlier term. Whoever leads in it must learn that it is over, or a replica with a higher term that
    /// nobody may vote for would stay apart for ever (the deadlock of pre-vote and check-quorum).
    fn on_stale(&mut self, from: ReplicaId, body: &Body) {
        #[cfg(feature = "mutants")]
        if Mutant::StaleTermNotTold.is_on() {
            return;
        }
        match body {
            Body::Append(_) | Body::Beat(_) | Body::SnapshotOffer(_) | Body::Vote(_) | Body::ReadAsk(_) => {
                let message = self.message(from, Body::Stale(wire::Stale {}));
                self.outbox.promise_term(message);
            }
            _ => {}
        }
    }
}
