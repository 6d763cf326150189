//! Phase 1, once for all slots: what a new leader must know before it proposes anything.
//!
//! A candidate asks for promises from its first slot that is not known chosen on. Whoever promises tells what it accepted there in *pages*, each
//! asked for when the one before arrived, so that no message grows with the log, and says what it knows to be chosen, which the candidate then asks for
//! as any laggard does ([`crate::catchup`]).
//!
//! # Invariants
//! 1. A promise is durable before the first page leaves, and the own one before it counts.
//! 2. The candidate takes office once an elect quorum has told everything and it holds all that those know to be chosen. Then, for each slot beyond
//!    up to the last that anyone told of, it proposes what was accepted in the highest ballot ([`Reports`]), and nothing at all (a no-op) where
//!    nobody accepted anything: a gap would hold up what comes after it.
//! 3. It ends at the first *stop*, an entry that holds a configuration: beyond it nothing of this configuration counts. Anything that was accepted
//!    there was so by a proposer that did not know of the stop, and nobody can have taken it for decided, for the slots before it were not.
//! 4. What was accepted in an earlier configuration's ballot says nothing of slots that a later one governs.
//! 5. A candidate that learns that its configuration is over, or that it has no vote in the one of its ballot, stands no more.
//! 6. Whoever has seen a ballot of a later configuration stands in that one, although it does not know who takes part in it: what ended those before is
//!    chosen, and so is everything up to there, or there would be no such ballot. So what an elect quorum of the configuration in force here reports in the
//!    highest ballots, up to the first stop, *is* what was chosen. Else a group would wait for ever for a leader that is gone, and with it the
//!    knowledge that the stop was chosen.

use std::collections::BTreeMap;

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Ballot, Entry, Kind, ProposalId, ReplicaId, Slot, Time};

use crate::{
    core::{Leader, Paxos, Role},
    lease::Lease,
    progress::Peer,
    read::Confirming,
    synod::{Acceptance, Reports},
    wire::{self, Body},
};

/// What one that promised has told.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// Everything below.
    next: Slot,
    /// Everything.
    done: bool,
    /// It holds durably what was chosen up to here.
    chosen: Slot,
}

/// A phase 1 under way.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// The write that holds the own promise: it counts once that is durable.
    promised_in: u64,
    told: BTreeMap<ReplicaId, Told>,
    reports: BTreeMap<Slot, Reports<Entry>>,
    /// When it last learned anything.
    progress_at: Time,
    pub(crate) beat_due: Time,
    /// The present leader wants it.
    transfer: bool,
}

impl Paxos {
    /// Asks everyone to promise the own ballot, whose record is written.
    pub(crate) fn prepare(&mut self, promised_in: u64, transfer: bool) {
        let beat_due = self.now.after(self.config.timing.heartbeat);
        self.role = Role::Candidate(Box::new(Candidate {
            promised_in,
            told: BTreeMap::new(),
            reports: BTreeMap::new(),
            progress_at: self.now,
            beat_due,
            transfer,
        }));
        #[cfg(feature = "mutants")]
        if Mutant::VoteBeforeDurable.is_on()
            && let Role::Candidate(candidate) = &mut self.role
        {
            candidate.promised_in = 0;
        }
        for to in self.other_voters() {
            self.send_prepare(to);
        }
    }

    fn send_prepare(&mut self, to: ReplicaId) {
        let Role::Candidate(candidate) = &self.role else { return };
        let next = candidate.told.get(&to).map_or(Slot(0), |told| told.next);
        let from = next.max(self.chosen.next()).0;
        let message = self.message(to, Body::Prepare(wire::Prepare { from, transfer: candidate.transfer }));
        self.outbox.after_promise(message);
    }

    /// A candidate's clock: asks again where nothing came, and gives way if nothing comes at all.
    pub(crate) fn tick_candidate(&mut self) {
        let heartbeat = self.config.timing.heartbeat;
        let (now, stalls) = (self.now, self.disk_stalls());
        let Role::Candidate(candidate) = &mut self.role else { return };
        if now < candidate.beat_due {
            return;
        }
        candidate.beat_due = now.after(heartbeat);
        let is_idle = self.fetch.is_idle() && now.since(candidate.progress_at) >= self.config.timing.election;
        if is_idle || stalls {
            self.become_follower(None);
            self.election_due = now.after(self.random.between(heartbeat, heartbeat * 3));
            return;
        }
        let done: Vec<ReplicaId> =
            candidate.told.iter().filter(|(_, told)| told.done).map(|(replica, _)| *replica).collect();
        self.beat_as_candidate();
        for to in self.other_voters() {
            if !done.contains(&to) {
                self.send_prepare(to);
            }
        }
        self.ask_most_complete();
    }

    pub(crate) fn note_progress(&mut self) {
        if let Role::Candidate(candidate) = &mut self.role {
            candidate.progress_at = self.now;
        }
    }

    /// Someone asks for a promise. Whether it may is judged by what is promised, and by who is heard.
    pub(crate) fn on_prepare(&mut self, from: ReplicaId, ballot: Ballot, prepare: wire::Prepare) {
        let is_leaders = self.leader == Some(from) || prepare.transfer;
        if ballot > self.ballot() && self.hears_leader() && !is_leaders {
            return; // It is to ask again when nobody leads, or not at all.
        }
        self.enter_ballot(ballot);
        self.give_time();
        let told = self.chosen.min(self.persisted);
        let from_slot = Slot(prepare.from).max(told.next());
        let page = self.page_from(from_slot);
        let next = page.last().map_or(from_slot, |entry| entry.slot.next());
        let done = next > self.log.last();
        let promise = wire::Promise {
            from: prepare.from,
            next: if done { next.max(self.log.last().next()).0.max(prepare.from) } else { next.0 },
            done,
            chosen: told.0,
        };
        let message = wire::message(self.id, from, self.ballot(), Body::Promise(promise), page);
        self.outbox.after_promise(message);
    }

    /// What was accepted from a slot on, as much as one message may hold.
    fn page_from(&self, from: Slot) -> Vec<Entry> {
        let (mut bytes, mut page) = (0, Vec::new());
        for entry in self.log.entries(from, self.log.last()) {
            bytes += entry.size_bytes();
            if !page.is_empty() && bytes > self.config.message_bytes_max {
                break;
            }
            page.push(entry.clone());
        }
        page
    }

    pub(crate) fn on_promise(&mut self, from: ReplicaId, promise: wire::Promise, entries: &[Entry]) {
        let chosen = self.chosen;
        let Role::Candidate(candidate) = &mut self.role else { return };
        let told = candidate.told.entry(from).or_insert(Told {
            next: Slot(promise.from),
            done: false,
            chosen: Slot(promise.chosen),
        });
        told.chosen = told.chosen.max(Slot(promise.chosen));
        // A page that begins beyond what was told leaves something out: it answers another question.
        if Slot(promise.from) > told.next.max(chosen.next()) || told.done {
            return;
        }
        // A page that came before asks for nothing: of repeated ones each would ask for the next again, and more would come of it at every page.
        if Slot(promise.next) <= told.next && !promise.done {
            return;
        }
        (told.next, told.done) = (told.next.max(Slot(promise.next)), promise.done);
        let done = told.done;
        candidate.progress_at = self.now;
        for entry in entries {
            if entry.slot > chosen {
                let report = Acceptance { ballot: entry.ballot, value: entry.clone() };
                candidate.reports.entry(report.value.slot).or_default().add(report);
            }
        }
        if !done {
            self.send_prepare(from);
        }
        self.ask_most_complete();
        self.finish_if_recovered();
    }

    /// What others know to be chosen, the candidate must learn first.
    fn ask_most_complete(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        let most = candidate.told.iter().max_by_key(|(_, told)| told.chosen);
        if let Some((from, chosen)) = most.map(|(from, told)| (*from, told.chosen)) {
            self.hear_of_chosen(from, chosen);
        }
    }

    /// Takes office if phase 1 is complete.
    pub(crate) fn finish_if_recovered(&mut self) {
        let (id, chosen, durable) = (self.id, self.chosen, self.outbox.durable());
        let Role::Candidate(candidate) = &mut self.role else { return };
        if durable < candidate.promised_in || self.fetch.is_installing() {
            return;
        }
        let told = &candidate.told;
        let has_told = |replica| replica == id || told.get(&replica).is_some_and(|told| told.done);
        if !self.members.config().is_elect_quorum(has_told) {
            return;
        }
        if told.values().any(|told| told.done && told.chosen > chosen) {
            return; // It is asked for.
        }
        if self.meta.promise.ballot().config > self.members.number() {
            self.recover_stop();
            return;
        }
        let told = std::mem::take(&mut candidate.told);
        let reports = std::mem::take(&mut candidate.reports);
        self.take_office(&told, reports);
    }

    /// The ballot is of a later configuration: learns what ended the one in force, and goes on with those who take part in what follows.
    fn recover_stop(&mut self) {
        let mut reports = match &self.role {
            Role::Candidate(candidate) => candidate.reports.clone(),
            Role::Follower | Role::Leader(_) => return,
        };
        self.add_own(&mut reports);
        let (mut chosen, mut upto) = (Vec::new(), self.chosen);
        let stop = loop {
            upto = upto.next();
            let Some(value) = reports.remove(&upto).and_then(Reports::binding) else { break false };
            let is_stop = value.kind == Kind::Config;
            chosen.push(value);
            if is_stop {
                break true;
            }
        };
        if !stop {
            self.become_follower(None);
            return;
        }
        self.learn(&chosen, upto);
        self.note_progress();
        for to in self.other_voters() {
            let has_told = match &self.role {
                Role::Candidate(candidate) => candidate.told.get(&to).is_some_and(|told| told.done),
                Role::Follower | Role::Leader(_) => return,
            };
            if !has_told {
                self.send_prepare(to);
            }
        }
        self.finish_if_recovered();
    }

    /// What was accepted here above what is known chosen.
    fn add_own(&self, reports: &mut BTreeMap<Slot, Reports<Entry>>) {
        for entry in self.log.entries(self.chosen.next(), self.log.last()) {
            let report = Acceptance { ballot: entry.ballot, value: entry.clone() };
            reports.entry(entry.slot).or_default().add(report);
        }
    }

    fn take_office(&mut self, told: &BTreeMap<ReplicaId, Told>, mut reports: BTreeMap<Slot, Reports<Entry>>) {
        let number = self.members.number();
        self.add_own(&mut reports);
        // Everything from `chosen` on is governed by the configuration in force.
        let counts = |report: &Entry| report.ballot.config == number;
        #[cfg(feature = "mutants")]
        let counts = |report: &Entry| counts(report) || Mutant::RecoveredBeyondStop.is_on();
        let mut values: BTreeMap<Slot, Entry> = BTreeMap::new();
        for (slot, report) in reports {
            if slot > self.chosen
                && let Some(value) = report.binding().filter(|value| counts(value))
            {
                values.insert(slot, value);
            }
        }
        let last = values.keys().next_back().copied().unwrap_or(self.chosen);
        let stop = values.iter().find(|(_, value)| value.kind == Kind::Config).map(|(slot, _)| *slot);
        let end = stop.unwrap_or(last);
        #[cfg(feature = "mutants")]
        let end = if Mutant::RecoveredBeyondStop.is_on() { last } else { end };
        let ballot = self.ballot();
        let mut slot = self.chosen;
        while slot < end {
            slot = slot.next();
            let value = values.remove(&slot);
            #[cfg(feature = "mutants")]
            let value = value
                .filter(|_| slot == end || !Mutant::GapOverwritten.is_on() || self.log.get(slot).is_some());
            let entry = match value {
                Some(value) => Entry { ballot, ..value },
                None => Entry {
                    slot,
                    ballot,
                    kind: Kind::Noop,
                    id: ProposalId::NONE,
                    payload: bytes::Bytes::new(),
                },
            };
            self.accept_entry(entry);
        }
        self.forget_void(end, |_| true);
        self.received = end;
        let now = self.now;
        let mut peers: BTreeMap<ReplicaId, Peer> = BTreeMap::new();
        let others = self.members.config().members().chain(self.members.former());
        for replica in others.filter(|replica| *replica != self.id) {
            let mut peer = Peer::new(now);
            if let Some(told) = told.get(&replica) {
                peer.matched = told.chosen;
                peer.says_received(told.chosen);
            }
            peers.insert(replica, peer);
        }
        let leaving = self.leaving_now();
        self.leader = Some(self.id);
        self.role = Role::Leader(Box::new(Leader {
            peers,
            recovered: end,
            stop,
            is_over: false,
            beat_due: now.after(self.config.timing.heartbeat),
            reads: Confirming::default(),
            transfer: None,
            lease: Lease::default(),
            prefers_after: now.after(self.config.timing.election),
            leaving,
        }));
        self.begin_office();
        self.advance_chosen();
    }

    pub(crate) fn leave_leadership(&mut self, leading: Leader) {
        if self.leader == Some(self.id) {
            self.leader = None;
        }
        self.fail_confirming_reads(leading.reads);
        if let Some(transfer) = leading.transfer {
            self.end_transfer(&transfer, conclave_consensus::Outcome::Unknown);
        }
        self.doubt_from_now();
    }
}
