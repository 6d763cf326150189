//! Proposals: taking them, and saying exactly once what became of each.
//!
//! A proposal comes back in a `Commit`, or is `Lost`. A truncated one is *in doubt*: another replica may hold the entry
//! and have it chosen yet. So nothing is said until that is decided:
//!
//! * the same entry was chosen at its slot: it comes back;
//! * another one was: `Dropped`;
//! * an entry of a higher term was chosen at a *lower* slot: `Dropped`. Every later leader holds that one (section 5.4.3), terms never fall
//!   along a log, so no log that holds it can hold ours after it. A new leader's no-op thus settles all that it truncated;
//! * a snapshot covers the slot: `Unknown`.

use std::collections::{BTreeMap, VecDeque};

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Ballot, Effect, Entry, Kind, Outcome, Proposal, ProposalId, Slot, StepError};

use crate::core::{Raft, Role};

/// The proposals made at this replica in this boot whose outcome was not told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// Runs of slots (first, last) in the log, in order.
    runs: VecDeque<(Slot, Slot)>,
    /// Those of them that left memory before they were delivered.
    released: VecDeque<(Slot, ProposalId)>,
    /// Truncated entries whose slots are not decided.
    doubtful: BTreeMap<(Slot, Ballot), ProposalId>,
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

    fn truncate_from(&mut self, slot: Slot) {
        while self.runs.pop_back_if(|(from, _)| *from >= slot).is_some() {}
        if let Some((_, to)) = self.runs.back_mut() {
            *to = (*to).min(slot.before());
        }
    }

    /// An entry leaves memory before its delivery.
    pub(crate) fn release(&mut self, entry: &Entry) {
        if !entry.id.is_none() && self.contains(entry.slot) {
            self.released.push_back((entry.slot, entry.id));
        }
    }
}

impl Raft {
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
        if leader.transfer.is_some() || !self.members.config().is_voter(self.id) {
            // Soon another one's to take, or ours again: a matter of leadership, not of load. What a leader took after the entry that
            // removes it, it might never learn the end of.
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
        let uncommitted = self.log.last().0 - self.committed.0;
        let unapplied = self.log.last().0 - self.applied.0;
        let too_many = uncommitted > 0
            && (uncommitted + count > self.config.uncommitted_entries_max
                || self.uncommitted_bytes + bytes > self.config.uncommitted_bytes_max);
        if too_many || (unapplied > 0 && unapplied + count > self.config.unapplied_entries_max) {
            return Err(StepError::Busy);
        }
        self.wake();
        let (from, ballot) = (self.log.last().next(), self.ballot());
        let command = |(slot, Proposal { id, payload })| Entry {
            slot: Slot(slot),
            ballot,
            kind: Kind::Command,
            id,
            payload,
        };
        self.append_run((from.0..).zip(batch).map(command).collect());
        if count > 0 {
            self.own.add(from, self.log.last());
        }
        Ok(())
    }

    /// These entries were truncated.
    pub(crate) fn doubt(&mut self, removed: &[Entry]) {
        let Some(first) = removed.first() else { return };
        for entry in removed {
            if entry.id.is_none() || !self.own.contains(entry.slot) {
                continue;
            }
            #[cfg(feature = "mutants")]
            if Mutant::TruncatedReportedDropped.is_on() {
                self.outbox.push(Effect::Lost { id: entry.id, outcome: Outcome::Dropped });
                continue;
            }
            if (self.own.doubtful.len() as u64) < self.config.uncommitted_entries_max {
                self.own.doubtful.insert((entry.slot, entry.ballot), entry.id);
            } else {
                self.outbox.push(Effect::Lost { id: entry.id, outcome: Outcome::Unknown });
            }
        }
        self.own.truncate_from(first.slot);
    }

    /// These entries are chosen and handed out: what stood at their slots before is decided.
    pub(crate) fn settle(&mut self, entries: &[Entry]) {
        let Some(last) = entries.last() else { return };
        self.own.delivered(last.slot);
        if self.own.doubtful.is_empty() {
            return;
        }
        for entry in entries {
            while let Some(first) =
                self.own.doubtful.first_entry().filter(|first| first.key().0 <= entry.slot)
            {
                let ((_, ballot), id) = first.remove_entry();
                if ballot != entry.ballot {
                    self.outbox.push(Effect::Lost { id, outcome: Outcome::Dropped });
                }
            }
        }
        let outbox = &mut self.outbox;
        self.own.doubtful.retain(|(_, ballot), id| {
            let open = *ballot >= last.ballot;
            if !open {
                outbox.push(Effect::Lost { id: *id, outcome: Outcome::Dropped });
            }
            open
        });
    }

    /// A snapshot covers everything up to `upto`: whether an entry of this replica's was chosen there cannot be told.
    pub(crate) fn lose_below_snapshot(&mut self, upto: Slot) {
        let released = self.own.released.iter().filter(|(slot, _)| *slot > self.delivered && *slot <= upto);
        let mut lost: Vec<ProposalId> = released.map(|(_, id)| *id).collect();
        let from = self.log.cached_from().max(self.delivered.next());
        let in_memory = (from.0..=upto.min(self.log.last()).0).filter_map(|slot| self.log.get(Slot(slot)));
        lost.extend(
            in_memory
                .filter(|entry| !entry.id.is_none() && self.own.contains(entry.slot))
                .map(|entry| entry.id),
        );
        while let Some(first) = self.own.doubtful.first_entry().filter(|first| first.key().0 <= upto) {
            lost.push(first.remove());
        }
        self.own.delivered(upto);
        for id in lost {
            self.outbox.push(Effect::Lost { id, outcome: Outcome::Unknown });
        }
    }
}
