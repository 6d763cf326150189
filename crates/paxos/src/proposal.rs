//! Proposals: taking them, and saying exactly once what became of each.
//!
//! A proposal has one slot and is proposed at no other. It comes back in a `Commit`, or is `Lost`. When leadership ends it is *in doubt*: another
//! replica may hold the entry and have it chosen yet. So nothing is said until that is decided:
//!
//! * the same entry was chosen at its slot: it comes back;
//! * another one was: `Dropped`;
//! * a snapshot covers the slot, or nothing was chosen there for two election timeouts (nobody may have proposed anything so far): `Unknown`.

use std::collections::{BTreeMap, VecDeque};

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Ballot, Effect, Entry, Kind, Outcome, Proposal, ProposalId, Slot, StepError, Time};

use crate::core::{Paxos, Role};

/// The proposals made at this replica in this boot whose outcome was not told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// Runs of slots (first, last) in the log, in order.
    runs: VecDeque<(Slot, Slot)>,
    /// Those of them that left memory before they were delivered.
    released: VecDeque<(Slot, ProposalId)>,
    /// Those of them at whose slots something else stands here, or nothing any more, and which are not decided.
    doubtful: BTreeMap<Slot, ProposalId>,
    /// When those that leadership left behind are given up.
    doubt_until: Option<Time>,
}

impl Own {
    pub(crate) fn add(&mut self, from: Slot, to: Slot) {
        match self.runs.back_mut() {
            Some((_, last)) if last.next() == from => *last = to,
            _ => self.runs.push_back((from, to)),
        }
    }

    pub(crate) fn contains(&self, slot: Slot) -> bool {
        self.runs.iter().any(|(from, to)| (*from..=*to).contains(&slot))
    }

    /// Everything up to `slot` is delivered.
    pub(crate) fn delivered(&mut self, slot: Slot) {
        while self.runs.pop_front_if(|(_, to)| *to <= slot).is_some() {}
        if let Some((from, _)) = self.runs.front_mut() {
            *from = (*from).max(slot.next());
        }
        while self.released.pop_front_if(|(at, _)| *at <= slot).is_some() {}
    }

    pub(crate) fn doubt_due(&self) -> Option<Time> {
        self.doubt_until
    }

    /// Nothing more is to be said of the slot.
    fn forget(&mut self, slot: Slot) {
        let Some(place) = self.runs.iter().position(|(from, to)| (*from..=*to).contains(&slot)) else {
            return;
        };
        let (from, to) = self.runs[place];
        let parts = [(from, slot.before()), (slot.next(), to)];
        self.runs.remove(place);
        for part in parts.into_iter().rev().filter(|(from, to)| from <= to) {
            self.runs.insert(place, part);
        }
    }

    /// Forgets what stands above `slot`.
    fn forget_above(&mut self, slot: Slot) {
        while self.runs.pop_back_if(|(from, _)| *from > slot).is_some() {}
        if let Some((_, to)) = self.runs.back_mut() {
            *to = (*to).min(slot);
        }
    }

    /// An entry leaves memory before its delivery.
    pub(crate) fn release(&mut self, entry: &Entry) {
        if !entry.id.is_none() && self.contains(entry.slot) {
            self.released.push_back((entry.slot, entry.id));
        }
    }
}

impl Paxos {
    pub(crate) fn propose(&mut self, batch: Vec<Proposal>, only_in: Option<Ballot>) -> Result<(), StepError> {
        if only_in.is_some_and(|ballot| !self.is_leader() || ballot != self.ballot()) {
            for proposal in batch {
                self.outbox.push(Effect::Lost { id: proposal.id, outcome: Outcome::Dropped });
            }
            return Ok(());
        }
        let Role::Leader(leader) = &self.role else {
            return Err(StepError::NotLeader { leader: self.leader });
        };
        if leader.transfer.is_some() || leader.stop.is_some() || leader.is_over {
            // Soon another one's to take, or ours again: a matter of leadership, not of load. Beyond a stop nothing is proposed in this ballot.
            return Err(StepError::NotLeader { leader: None });
        }
        let size_bytes_max = self.config.entry_bytes_max;
        if let Some(large) =
            batch.iter().map(|proposal| proposal.payload.len()).find(|size| *size > size_bytes_max)
        {
            return Err(StepError::TooLarge { size_bytes: large, size_bytes_max });
        }
        let bytes: usize = batch.iter().map(|proposal| proposal.payload.len() + 64).sum();
        let count = batch.len() as u64;
        let unchosen = self.log.last().0 - self.chosen.0;
        let unapplied = self.log.last().0 - self.applied.0;
        let too_many = unchosen > 0
            && (unchosen + count > self.config.unchosen_entries_max
                || self.unchosen_bytes + bytes > self.config.unchosen_bytes_max);
        if too_many || (unapplied > 0 && unapplied + count > self.config.unapplied_entries_max) {
            return Err(StepError::Busy);
        }
        let from = self.log.last().next();
        let ballot = self.ballot();
        let entry = |(at, Proposal { id, payload })| {
            let slot = Slot(from.0 + at as u64);
            Entry { slot, ballot, kind: Kind::Command, id, payload }
        };
        self.accept(batch.into_iter().enumerate().map(entry).collect());
        if count > 0 {
            self.own.add(from, self.log.last());
        }
        Ok(())
    }

    /// The entry no longer stands at its slot here: another replaced it, or it counts for nothing.
    pub(crate) fn doubt(&mut self, entry: &Entry) {
        if entry.id.is_none() || !self.own.contains(entry.slot) || self.own.doubtful.contains_key(&entry.slot)
        {
            return;
        }
        #[cfg(feature = "mutants")]
        if Mutant::TruncatedReportedDropped.is_on() {
            self.outbox.push(Effect::Lost { id: entry.id, outcome: Outcome::Dropped });
            return;
        }
        self.own.doubtful.insert(entry.slot, entry.id);
    }

    /// Leadership ended.
    pub(crate) fn doubt_from_now(&mut self) {
        if !self.own.runs.is_empty() {
            self.own.doubt_until = Some(self.now.after(self.config.timing.election * 2));
        }
    }

    /// Nothing was chosen at these slots for so long that whoever waits should rather ask. As leader the own ones are proposed again.
    pub(crate) fn give_up_doubtful(&mut self) {
        if self.own.doubt_until.take_if(|until| *until <= self.now).is_none() {
            return;
        }
        let mut lost: Vec<(Slot, ProposalId)> =
            self.own.doubtful.split_off(&self.chosen.next()).into_iter().collect();
        lost.iter().for_each(|(slot, _)| self.own.forget(*slot));
        if !self.is_leader() {
            let stands = self.log.entries(self.chosen.next(), self.log.last());
            let own = stands.filter(|entry| self.own.contains(entry.slot));
            lost.extend(own.map(|entry| (entry.slot, entry.id)));
            self.own.forget_above(self.chosen);
        }
        for (_, id) in lost.into_iter().filter(|(_, id)| !id.is_none()) {
            self.outbox.push(Effect::Lost { id, outcome: Outcome::Unknown });
        }
    }

    /// These entries are chosen and handed out: what stood at their slots before is decided.
    pub(crate) fn settle(&mut self, entries: &[Entry]) {
        let Some(last) = entries.last() else { return };
        self.own.delivered(last.slot);
        if self.own.doubtful.is_empty() {
            return;
        }
        for entry in entries {
            if let Some(id) = self.own.doubtful.remove(&entry.slot)
                && id != entry.id
            {
                self.outbox.push(Effect::Lost { id, outcome: Outcome::Dropped });
            }
        }
    }

    /// A snapshot covers everything up to `upto`: whether an entry of this replica's was chosen there cannot be told.
    pub(crate) fn lose_below_snapshot(&mut self, upto: Slot) {
        let released = self.own.released.iter().filter(|(slot, _)| *slot > self.delivered && *slot <= upto);
        let mut lost: Vec<ProposalId> = released.map(|(_, id)| *id).collect();
        let from = self.log.cached_from().max(self.delivered.next());
        let doubtful = &self.own.doubtful;
        lost.extend(
            self.log
                .entries(from, upto)
                .filter(|entry| self.own.contains(entry.slot) && !doubtful.contains_key(&entry.slot))
                .map(|entry| entry.id),
        );
        let open = self.own.doubtful.split_off(&upto.next());
        lost.extend(std::mem::replace(&mut self.own.doubtful, open).into_values());
        self.own.delivered(upto);
        for id in lost.into_iter().filter(|id| !id.is_none()) {
            self.outbox.push(Effect::Lost { id, outcome: Outcome::Unknown });
        }
    }
}
