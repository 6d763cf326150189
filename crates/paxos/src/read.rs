//! Linearizable reads without a log entry, in batches (as ReadIndex in Ongaro's thesis, section 6.4).
//!
//! A read may be served at slot *s* if *s* was the leader's chosen slot at some moment after the read arrived, and nobody had been elected
//! after that leader then. The leader takes its chosen slot (once all is chosen that phase 1 found: before, it does not know
//! what was chosen before it), begins a *round*, and when replicas that meet every elect quorum have answered a beat of that round, which they do only
//! if they promised no higher ballot, the slot stands. All reads that arrive before a round begins share it.
//!
//! A follower asks its leader, once for all reads that wait. Where leader and asker together meet every elect quorum, as in a group of three, the leader
//! answers at once: whoever was elected later needed the promise of one of the two, and neither can have given it before the question was
//! sent, which is after the reads arrived. Its questions carry a number drawn at boot besides the counter, so that
//! an answer from before a crash or a long pause never passes for the answer to a newer question.

use std::collections::VecDeque;

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Ballot, Effect, ReadError, ReadId, ReadMode, ReplicaId, Slot, StepError, Time};

use crate::{
    core::{Paxos, Role},
    wire::{Body, ReadAsk, ReadReply},
};

/// Questions of one follower that a leader keeps; more are dropped and asked again.
const REMOTE_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Local(ReadId),
    Remote { replica: ReplicaId, life: u64, context: u64 },
}

#[derive(Clone, Debug)]
struct Round {
    number: u64,
    at: Slot,
    readers: Vec<Reader>,
}

/// A leader's side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Confirming {
    waiting: Vec<Reader>,
    rounds: VecDeque<Round>,
    /// Counted from the beginning of the ballot.
    round: u64,
    locals: usize,
}

impl Confirming {
    /// The last round begun.
    pub(crate) fn round(&self) -> u64 {
        self.round
    }

    /// Numbers another round.
    pub(crate) fn begin(&mut self) -> u64 {
        self.round += 1;
        self.round
    }

    fn readers(&self) -> impl Iterator<Item = &Reader> {
        self.waiting.iter().chain(self.rounds.iter().flat_map(|round| &round.readers))
    }
}

#[derive(Clone, Debug)]
struct Asked {
    context: u64,
    reads: Vec<ReadId>,
    at: Time,
}

/// A follower's side.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    life: u64,
    contexts: u64,
    waiting: Vec<ReadId>,
    asked: VecDeque<Asked>,
    count: usize,
}

impl Asking {
    pub(crate) fn new(life: u64) -> Self {
        Self { life, contexts: 0, waiting: Vec::new(), asked: VecDeque::new(), count: 0 }
    }
}

impl Paxos {
    pub(crate) fn read_barrier(&mut self, id: ReadId, mode: ReadMode) -> Result<(), StepError> {
        if mode == ReadMode::Lease && self.holds_lease() {
            self.outbox.push(Effect::ReadReady { id, at: self.chosen });
            return Ok(());
        }
        if let Role::Leader(leader) = &mut self.role {
            if leader.reads.locals >= self.config.reads_max {
                return Err(StepError::Busy);
            }
            leader.reads.locals += 1;
            leader.reads.waiting.push(Reader::Local(id));
            return Ok(());
        }
        if mode != ReadMode::Follower || self.leader.is_none() {
            self.outbox.push(Effect::ReadFailed { id, why: ReadError::NoLeader });
            return Ok(());
        }
        if self.asking.count >= self.config.reads_max {
            return Err(StepError::Busy);
        }
        self.asking.count += 1;
        self.asking.waiting.push(id);
        Ok(())
    }

    /// Begins a round for the reads that wait, if one may begin.
    pub(crate) fn begin_read_round(&mut self) {
        let (serving, at) = (self.is_serving(), self.chosen);
        #[cfg(feature = "mutants")]
        let serving = serving || Mutant::ReadBeforeCommitInTerm.is_on();
        let Role::Leader(leader) = &mut self.role else { return };
        let reads = &mut leader.reads;
        if !serving || reads.waiting.is_empty() || reads.rounds.len() >= self.config.read_rounds_max {
            return;
        }
        let number = reads.begin();
        let readers = std::mem::take(&mut reads.waiting);
        reads.rounds.push_back(Round { number, at, readers });
        self.beat();
        self.confirm_reads();
    }

    /// Serves the rounds that a quorum has answered.
    pub(crate) fn confirm_reads(&mut self) {
        loop {
            let id = self.id;
            let Role::Leader(leader) = &mut self.role else { return };
            let Some(number) = leader.reads.rounds.front().map(|round| round.number) else { return };
            let peers = &leader.peers;
            let answered =
                |replica| replica == id || peers.get(&replica).is_some_and(|peer| peer.round >= number);
            if !self.members.config().meets_every_elect_quorum(answered) {
                return;
            }
            let Some(round) = leader.reads.rounds.pop_front() else { return };
            for reader in round.readers {
                self.serve(reader, round.at);
            }
        }
    }

    fn serve(&mut self, reader: Reader, at: Slot) {
        match reader {
            Reader::Local(id) => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.reads.locals -= 1;
                }
                self.outbox.push(Effect::ReadReady { id, at });
            }
            Reader::Remote { replica, life, context } => {
                let reply = ReadReply { life, context, at: at.0, refused: false };
                let message = self.message(replica, Body::ReadReply(reply));
                self.outbox.send(message);
            }
        }
    }

    /// Leadership ended: nothing that was not confirmed may be served.
    pub(crate) fn fail_confirming_reads(&mut self, reads: Confirming) {
        for reader in reads.readers() {
            if let Reader::Local(id) = reader {
                self.outbox.push(Effect::ReadFailed { id: *id, why: ReadError::LeaderChanged });
            }
        }
    }

    pub(crate) fn on_read_ask(&mut self, from: ReplicaId, ballot: Ballot, ask: ReadAsk) {
        if !self.is_leader() || ballot != self.ballot() {
            let reply = ReadReply { life: ask.life, context: ask.context, at: 0, refused: true };
            let message = self.message(from, Body::ReadReply(reply));
            self.outbox.after_promise(message);
            return;
        }
        let reader = Reader::Remote { replica: from, life: ask.life, context: ask.context };
        let serving = self.is_serving();
        #[cfg(feature = "mutants")]
        let serving = serving || Mutant::ReadBeforeCommitInTerm.is_on();
        // The question itself answers a round begun when it was sent: its sender had promised nothing higher. Of three, that is enough.
        if serving
            && self.members.config().meets_every_elect_quorum(|replica| replica == self.id || replica == from)
        {
            self.serve(reader, self.chosen);
            return;
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let known = leader.reads.readers().any(|other| *other == reader);
        let same = |reader: &&Reader| matches!(reader, Reader::Remote { replica, .. } if *replica == from);
        if !known && leader.reads.readers().filter(same).count() < REMOTE_MAX {
            leader.reads.waiting.push(reader);
        }
    }

    /// Asks the leader once for all reads that wait.
    pub(crate) fn send_read_asks(&mut self) {
        let Some(leader) = self.leader.filter(|leader| *leader != self.id) else { return };
        let asking = &mut self.asking;
        if asking.waiting.is_empty() || asking.asked.len() >= self.config.read_rounds_max {
            return;
        }
        asking.contexts += 1;
        #[cfg(feature = "mutants")]
        if Mutant::ReadIdReused.is_on() {
            (asking.life, asking.contexts) = (0, 0);
        }
        let (life, context) = (asking.life, asking.contexts);
        let reads = std::mem::take(&mut asking.waiting);
        asking.asked.push_back(Asked { context, reads, at: self.now });
        let message = self.message(leader, Body::ReadAsk(ReadAsk { life, context }));
        self.outbox.after_promise(message);
    }

    pub(crate) fn read_retry_due(&self) -> Option<Time> {
        let oldest = self.asking.asked.iter().map(|asked| asked.at).min()?;
        Some(oldest.after(self.config.timing.heartbeat * 2))
    }

    /// Questions or answers may be lost. The same question may be asked again: a later answer is as good.
    pub(crate) fn retry_read_asks(&mut self) {
        let Some(leader) = self.leader.filter(|leader| *leader != self.id) else { return };
        let (life, now, patience) = (self.asking.life, self.now, self.config.timing.heartbeat * 2);
        let mut late = Vec::new();
        for asked in self.asking.asked.iter_mut().filter(|asked| now.since(asked.at) >= patience) {
            asked.at = now;
            late.push(asked.context);
        }
        for context in late {
            let message = self.message(leader, Body::ReadAsk(ReadAsk { life, context }));
            self.outbox.after_promise(message);
        }
    }

    pub(crate) fn on_read_reply(&mut self, from: ReplicaId, reply: ReadReply) {
        if reply.life != self.asking.life || self.leader != Some(from) {
            return;
        }
        let Some(place) = self.asking.asked.iter().position(|asked| asked.context == reply.context) else {
            return;
        };
        let Some(asked) = self.asking.asked.remove(place) else { return };
        self.asking.count -= asked.reads.len();
        for id in asked.reads {
            self.outbox.push(if reply.refused {
                Effect::ReadFailed { id, why: ReadError::LeaderChanged }
            } else {
                Effect::ReadReady { id, at: Slot(reply.at) }
            });
        }
    }

    /// The leader that was asked leads no more, as far as this replica knows.
    pub(crate) fn fail_asked_reads(&mut self) {
        self.asking.count = 0;
        let asked = std::mem::take(&mut self.asking.asked).into_iter().flat_map(|asked| asked.reads);
        for id in std::mem::take(&mut self.asking.waiting).into_iter().chain(asked) {
            self.outbox.push(Effect::ReadFailed { id, why: ReadError::LeaderChanged });
        }
    }
}
