//! Learning what was chosen, from whoever knows.
//!
//! A leader brings its followers up to date by itself. Where there is none, a candidate or a replica that looks for a leader may hear that another knows
//! more to be chosen: it asks for it, page by page. What was chosen is chosen, whoever says so and whenever, so an answer is never out of date; and
//! whoever answers reads what memory no longer holds back from its log, without waiting for it.
//!
//! # Invariants
//! 1. What is learned is written like what is accepted: under the promised ballot, or under the higher one in which another accepted it, which is
//!    thereby promised too. So no acceptor's log ever holds a higher ballot than it promised.
//! 2. One question at a time, and a bound on those that are answered from the log.

use std::collections::BTreeMap;

use conclave_consensus::{
    Effect, Entries, Entry, LogReadId, LogSlice, ReplicaId, Slot, SlotRange, StepError, Time,
};

use crate::{
    core::{Paxos, Role},
    wire::{self, Body},
};

/// Questions that wait for the log; more are dropped and asked again.
const SERVED_MAX: usize = 16;

/// Both sides of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CatchUp {
    /// Who was asked, and when the question counts as lost.
    asked: Option<(ReplicaId, Time)>,
    /// Who waits for a read of the log that begins at the slot.
    served: BTreeMap<LogReadId, (ReplicaId, Slot)>,
}

impl CatchUp {
    pub(crate) fn due(&self) -> Option<Time> {
        self.asked.map(|(_, until)| until)
    }

    pub(crate) fn is_asking(&self) -> bool {
        self.asked.is_some()
    }
}

impl Paxos {
    /// Another knows so much to be chosen.
    pub(crate) fn hear_of_chosen(&mut self, from: ReplicaId, chosen: Slot) {
        let needs = chosen > self.chosen && self.leader.is_none() && self.fetch.is_idle();
        if needs && self.catch_up.asked.is_none() {
            self.ask(from);
        }
    }

    fn ask(&mut self, from: ReplicaId) {
        self.catch_up.asked = Some((from, self.now.after(self.config.timing.heartbeat * 2)));
        let message = self.message(from, Body::Ask(wire::Ask { from: self.chosen.next().0 }));
        self.outbox.after_promise(message);
    }

    pub(crate) fn retry_catch_up(&mut self) {
        // Whoever is heard of next is asked: it may have been somebody who is gone.
        self.catch_up.asked.take_if(|(_, until)| *until <= self.now);
    }

    pub(crate) fn on_ask(&mut self, from: ReplicaId, slot: Slot) {
        if slot < self.log.first() {
            self.tell(from, self.floor(), Entries::default());
        } else if slot > self.chosen || slot >= self.log.cached_from() {
            let entries = self.log.run(slot, self.chosen, self.config.message_bytes_max);
            self.tell(from, Slot(0), entries);
        } else if self.catch_up.served.len() < SERVED_MAX {
            let id = self.next_log_read();
            self.catch_up.served.insert(id, (from, slot));
            let range = SlotRange { from: slot, to: self.log.cached_from() };
            let bytes_max = u32::try_from(self.config.message_bytes_max).unwrap_or(u32::MAX);
            self.outbox.push(Effect::ReadLog { id, range, bytes_max });
        }
    }

    fn tell(&mut self, to: ReplicaId, snapshot: Slot, entries: impl Into<Entries>) {
        let settled = self.members.settled();
        let tell = wire::Tell { chosen: self.chosen.0, snapshot: snapshot.0, settled };
        let message = wire::message(self.id, to, self.ballot(), Body::Tell(tell), entries);
        self.outbox.after_promise(message);
    }

    /// The log was read for one that asked; says whether it was.
    pub(crate) fn on_log_read_for_ask(
        &mut self,
        id: LogReadId,
        result: &LogSlice,
    ) -> Result<bool, StepError> {
        let Some((to, from)) = self.catch_up.served.remove(&id) else { return Ok(false) };
        match result {
            LogSlice::Compacted => self.tell(to, self.floor(), Vec::new()),
            LogSlice::Entries(entries) => {
                let fits = (from.0..).zip(entries).all(|(slot, entry)| entry.slot == Slot(slot));
                if !fits {
                    return Err(StepError::Broken("a read of the log gave other slots than those asked for"));
                }
                self.tell(to, Slot(0), entries.clone());
            }
        }
        Ok(true)
    }

    pub(crate) fn on_tell(&mut self, from: ReplicaId, tell: wire::Tell, entries: &[Entry]) {
        if self.catch_up.asked.take_if(|(asked, _)| *asked == from).is_none() {
            return; // Nobody waits for it any more.
        }
        if self.is_leader() || self.fetch.is_installing() {
            return;
        }
        if tell.snapshot > self.chosen.0 {
            self.fetch_snapshot(from, Slot(tell.snapshot));
            return;
        }
        let before = self.chosen;
        self.learn(entries, Slot(tell.chosen));
        self.hear_settled(tell.settled);
        if self.chosen > before {
            self.note_progress();
            self.hear_of_chosen(from, Slot(tell.chosen));
            if matches!(self.role, Role::Candidate(_)) {
                self.finish_if_recovered();
            }
        }
    }

    /// Takes chosen values in that follow on what is known.
    pub(crate) fn learn(&mut self, entries: &[Entry], chosen: Slot) {
        let mut upto = self.chosen;
        for entry in entries {
            if entry.slot > chosen || entry.slot > upto.next() {
                break;
            }
            if entry.slot <= upto {
                continue;
            }
            upto = entry.slot;
            let known = self.log.get(entry.slot);
            if known.is_some_and(|known| {
                (known.kind, known.id, &known.payload) == (entry.kind, entry.id, &entry.payload)
            }) {
                continue;
            }
            self.enter_ballot(entry.ballot);
            let ballot = self.ballot();
            self.accept_entry(Entry { ballot, ..entry.clone() });
        }
        self.chosen_to(upto);
    }
}
