//! Messages: which are taken, and which room each goes to.
//!
//! *Requests* are taken from anyone: an acceptor promises and accepts by what it promised, whatever it knows of configurations, and a replica that was
//! just added knows of none. *Answers* are taken from members alone, from peers of a leader, and from the leader that is followed: whoever is
//! asked counts by the asker's configuration. That the sender is who it says is the transport's to know.
//!
//! A request in a ballot that is too low, or of a configuration that is known to be over, is refused by a `Nack`: the old configuration is not revived,
//! and who tries to is told that more was chosen than it knows.

use std::time::Duration;

use conclave_consensus::{Ballot, Message, ReplicaId, Slot, StepError};

use crate::{
    core::{Paxos, Role},
    wire::{self, Body},
};

impl Paxos {
    fn is_known(&self, replica: ReplicaId) -> bool {
        self.members.contains(replica)
            || self.leader == Some(replica)
            || self.ballot().replica == replica
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
        let (ballot, body) = wire::decode(&message).map_err(bad)?;
        if body.is_answer() && !self.is_known(from) {
            return Err(bad("a stranger's answer"));
        }
        self.check_for_this_ballot(from, ballot, &body).map_err(bad)?;
        match body {
            Body::Beat(beat) => match beat.stage {
                wire::SEEKS => self.on_search(from, ballot, beat),
                wire::LEADS if self.takes_up(from, ballot) => {
                    self.promise_to_lease(Duration::from_micros(beat.promise_us));
                    self.on_beat(from, beat);
                }
                wire::LEADS => {}
                wire::PREPARES => self.on_candidate_beat(ballot, beat),
                _ => self.on_resigned(from, ballot),
            },
            Body::BeatReply(reply) => {
                if self.is_leader() {
                    if ballot == self.ballot() {
                        self.on_beat_reply(from, reply);
                    }
                } else {
                    self.on_search_reply(from, ballot, reply);
                }
            }
            Body::Prepare(prepare) => {
                if !self.refuses(from, ballot) {
                    self.on_prepare(from, ballot, prepare);
                }
            }
            Body::Promise(promise) => {
                if ballot == self.ballot() {
                    self.on_promise(from, promise, &message.entries);
                }
            }
            Body::Accept(accept) => {
                if self.takes_up(from, ballot) {
                    self.on_accept(accept, &message.entries);
                }
            }
            Body::Accepted(accepted) => {
                if ballot == self.ballot() {
                    self.on_accepted(from, &accepted);
                }
            }
            Body::Nack(nack) => self.on_nack(from, ballot, nack),
            Body::Ask(ask) => self.on_ask(from, Slot(ask.from)),
            Body::Tell(tell) => self.on_tell(from, tell, &message.entries),
            Body::SnapshotOffer(offer) => {
                if self.takes_up(from, ballot) {
                    self.on_snapshot_offer(from, Slot(offer.at_least));
                }
            }
            Body::TakeOver(take_over) => {
                if ballot == self.ballot() {
                    self.on_take_over(from, Slot(take_over.chosen));
                }
            }
            Body::ReadAsk(ask) => self.on_read_ask(from, ballot, ask),
            Body::ReadReply(reply) => self.on_read_reply(from, reply),
        }
        Ok(())
    }

    /// What a peer cannot have said in this replica's ballot, before anything is changed.
    fn check_for_this_ballot(
        &self,
        from: ReplicaId,
        ballot: Ballot,
        body: &Body,
    ) -> Result<(), &'static str> {
        if ballot != self.ballot() {
            return Ok(());
        }
        match (body, &self.role) {
            (Body::Accepted(accepted), Role::Leader(leader)) => {
                let last = accepted.runs().last().map_or(Slot(accepted.upto), |(_, last)| last);
                let is_peer = leader.peers.contains_key(&from);
                if last > self.log.last() && is_peer {
                    Err("acknowledges what was never sent")
                } else {
                    Ok(())
                }
            }
            (Body::BeatReply(reply), Role::Leader(leader)) if reply.round > leader.reads.round() => {
                Err("answers a round that was never asked")
            }
            _ => Ok(()),
        }
    }

    /// Whether a ballot is too low, or of a configuration that is over; if so, its owner is told.
    fn refuses(&mut self, from: ReplicaId, ballot: Ballot) -> bool {
        if ballot >= self.ballot() && ballot.config >= self.members.number() {
            return false;
        }
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::StaleTermNotTold.is_on() {
            return true;
        }
        let nack =
            wire::Nack { refused: ballot.into(), chosen: self.chosen.0, config: self.members.number() };
        let message = self.message(from, Body::Nack(nack));
        self.outbox.after_promise(message);
        true
    }

    /// A leader speaks: unless its ballot is refused, it is followed in it.
    fn takes_up(&mut self, from: ReplicaId, ballot: Ballot) -> bool {
        if self.refuses(from, ballot) {
            return false;
        }
        // That a quorum promised the ballot is its word that a lease of another leader is over.
        self.enter_ballot(ballot);
        self.follow(from);
        true
    }

    /// A request of this replica's was refused.
    fn on_nack(&mut self, from: ReplicaId, promised: Ballot, nack: wire::Nack) {
        self.saw_ballot(promised);
        if Ballot::from(nack.refused) == self.ballot() && self.ballot().replica == self.id {
            match &self.role {
                // Its time is over anyway; it is there for those that do not know yet.
                Role::Leader(leader) if leader.is_over => {}
                Role::Leader(_) => self.on_refused_as_leader(from),
                Role::Candidate(_) => {
                    self.become_follower(None);
                    let heartbeat = self.config.timing.heartbeat;
                    self.election_due = self.now.after(self.random.between(heartbeat, heartbeat * 3));
                }
                Role::Follower => {}
            }
        }
        self.hear_of_chosen(from, Slot(nack.chosen));
    }
}
