//! From chosen to applied, and out of memory.
//!
//! `Commit` hands out what is chosen *and* durable here, in order, at most a window beyond what is applied. Memory is given back in
//! two steps: what everyone who lives has applied or holds goes down to a small cache; above a hard bound whatever is
//! chosen and durable goes, and is read back when its turn comes.
//!
//! An entry that is handed out shows no ballot: in which one it was accepted differs between replicas, and nothing may depend on it.

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{
    Ballot, Config, Effect, Entries, Entry, LogReadId, LogSlice, Slot, SlotRange, StepError,
};

use crate::core::{Paxos, Role};

impl Paxos {
    /// Everything up to `slot` is chosen, and what stands there is it.
    pub(crate) fn chosen_to(&mut self, slot: Slot) {
        if slot <= self.chosen {
            return;
        }
        assert!(slot <= self.log.last(), "only what is held is known chosen here");
        self.unchosen_bytes -= self.log.size_bytes(self.chosen.next(), slot);
        self.chosen = slot;
        self.received = self.received.max(slot);
        while let Some(at) = self.stops.first().copied().filter(|at| *at <= slot) {
            self.stops.remove(&at);
            // Malformed ones were refused, by the wire or at boot.
            if let Some(Ok(config)) = self.log.get(at).map(|entry| Config::decode(&entry.payload)) {
                self.enter_config(at, config);
            }
        }
    }

    /// The last slot that may be handed out.
    fn deliverable(&self) -> Slot {
        let window = Slot(self.applied.0.saturating_add(self.config.apply_window_entries));
        #[cfg(feature = "mutants")]
        if Mutant::AppliedBeyondLog.is_on() {
            return self.chosen.min(window);
        }
        self.chosen.min(self.persisted).min(window)
    }

    pub(crate) fn deliver(&mut self) {
        let upto = self.deliverable();
        if upto <= self.delivered || self.fetch.is_installing() || self.delivery_read.is_some() {
            return;
        }
        let Some(room) =
            self.config.apply_window_bytes.checked_sub(self.unapplied_bytes).filter(|room| *room > 0)
        else {
            return;
        };
        let from = self.delivered.next();
        if from < self.log.cached_from() {
            let id = self.next_log_read();
            self.delivery_read = Some(id);
            let range = SlotRange { from, to: upto.next().min(self.log.cached_from()) };
            let bytes_max = u32::try_from(self.config.message_bytes_max).unwrap_or(u32::MAX);
            self.outbox.push(Effect::ReadLog { id, range, bytes_max });
            return;
        }
        let shown = |entry: &Entry| Entry { ballot: Ballot::default(), ..entry.clone() };
        let entries = self.log.run_as(from, upto, room, shown);
        self.hand_out(entries);
    }

    /// Entries that show no ballot.
    fn hand_out(&mut self, entries: Entries) {
        let Some(last) = entries.last() else { return };
        self.delivered = last.slot;
        let bytes = entries.iter().map(Entry::size_bytes).sum();
        self.unapplied.push_back((last.slot, bytes));
        self.unapplied_bytes += bytes;
        self.settle(&entries);
        self.outbox.push(Effect::Commit(entries));
    }

    pub(crate) fn on_log_read(&mut self, id: LogReadId, result: LogSlice) -> Result<(), StepError> {
        if self.delivery_read != Some(id) {
            if self.on_log_read_for_ask(id, &result)? {
                return Ok(());
            }
            return self.on_log_read_for_peer(id, result);
        }
        self.delivery_read = None;
        if self.fetch.is_installing() {
            return Ok(());
        }
        let LogSlice::Entries(mut entries) = result else {
            return Err(StepError::Broken("the log was cut above what is applied"));
        };
        let from = self.delivered.next();
        if entries.is_empty() || (from.0..).zip(&entries).any(|(slot, entry)| entry.slot != Slot(slot)) {
            return Err(StepError::Broken("a read of the log gave other slots than those asked for"));
        }
        let upto = self.deliverable();
        entries.retain(|entry| entry.slot <= upto);
        entries.iter_mut().for_each(|entry| entry.ballot = Ballot::default());
        self.hand_out(entries.into());
        Ok(())
    }

    pub(crate) fn on_applied(&mut self, slot: Slot) -> Result<(), StepError> {
        if slot > self.delivered {
            return Err(StepError::Broken("applied what was never handed out"));
        }
        self.applied_to(slot);
        Ok(())
    }

    pub(crate) fn applied_to(&mut self, slot: Slot) {
        self.applied = self.applied.max(slot);
        while let Some((_, bytes)) = self.unapplied.pop_front_if(|(last, _)| *last <= slot) {
            self.unapplied_bytes -= bytes;
        }
    }

    /// Gives memory back.
    pub(crate) fn release(&mut self) {
        if self.log.bytes() <= self.config.cache_kept_bytes {
            return;
        }
        let safe = self.chosen.min(self.persisted);
        let mut unneeded = safe.min(self.applied);
        if let Role::Leader(leader) = &self.role {
            let live = leader.peers.values().filter(|peer| self.is_active(peer));
            unneeded = live.map(|peer| peer.matched).fold(unneeded, Slot::min);
        }
        while let Some(front) = self.log.front().map(|entry| entry.slot) {
            let bytes = self.log.bytes();
            let goes = (bytes > self.config.cache_kept_bytes && front <= unneeded)
                || (bytes > self.config.cache_bytes_max && front <= safe);
            if !goes {
                return;
            }
            if front > self.delivered
                && let Some(entry) = self.log.front()
            {
                self.own.release(entry);
            }
            self.log.release_front();
        }
    }
}
