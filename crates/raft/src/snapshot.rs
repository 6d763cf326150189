//! Snapshots and compaction.
//!
//! A leader never sends a snapshot: it says which slot one must contain, and the follower's host fetches the last durable checkpoint
//! of whoever has it. What arrived is taken only where it tells something new: a delayed snapshot must not unlearn
//! entries that were acknowledged.

use conclave_consensus::{Effect, LogOp, Mark, ReplicaId, Slot, SnapshotMeta, StepError};

use crate::{
    core::{Raft, Role},
    wire::{SLOT_MAX, SnapshotOffer},
};

/// A follower's way to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fetch {
    Idle,
    /// The host fetches one, which this replica offered last.
    Asked(ReplicaId),
    /// The host makes it the state. The log in memory starts after it already; nothing is appended meanwhile.
    Installing(Mark),
}

impl Fetch {
    pub(crate) fn is_idle(&self) -> bool {
        *self == Self::Idle
    }

    pub(crate) fn is_installing(&self) -> bool {
        matches!(self, Self::Installing(_))
    }
}

impl Raft {
    pub(crate) fn on_snapshot_offer(&mut self, from: ReplicaId, offer: SnapshotOffer) {
        // Whoever offers one while another is fetched may be needed yet: that one's source may be gone.
        if self.fetch.is_installing() || self.fetch == Fetch::Asked(from) {
            return;
        }
        let at_least = Slot(offer.at_least);
        if at_least <= self.committed && self.fetch.is_idle() {
            // An earlier one arrived after all, or the log caught up: the leader's can follow on.
            self.acknowledge = Some((from, self.committed));
            return;
        }
        self.fetch = Fetch::Asked(from);
        self.outbox.push(Effect::FetchSnapshot { at_least, from: vec![from] });
    }

    pub(crate) fn on_snapshot_failed(&mut self) {
        if matches!(self.fetch, Fetch::Asked(_)) {
            self.fetch = Fetch::Idle;
        }
    }

    /// Refused without effect if this replica leads, already installs one, or has handed out as much as the snapshot holds.
    pub(crate) fn on_snapshot_ready(&mut self, meta: SnapshotMeta) {
        if self.fetch.is_installing() {
            return;
        }
        self.fetch = Fetch::Idle;
        // From another node's disk, over the wire: a slot out of range, or a group without voters, is nobody's state. A membership without
        // this replica may be: the entry that adds it may stand above the snapshot.
        if meta.slot.0 > SLOT_MAX || meta.config.voters.is_empty() {
            return;
        }
        let known = meta.slot <= self.delivered;
        #[cfg(feature = "mutants")]
        let known = known && !conclave_consensus::Mutant::DelayedSnapshotForgets.is_on();
        if self.is_leader() || known || meta.ballot.round > self.meta.term {
            return;
        }
        #[cfg(feature = "mutants")]
        let meta = if conclave_consensus::Mutant::SnapshotStaleMembership.is_on() {
            SnapshotMeta { config: self.members.config().clone(), ..meta }
        } else {
            meta
        };
        self.become_follower(self.meta.term, self.leader);
        // What was written before must reach the log before the reset does.
        self.flush_acknowledgement();
        self.outbox.flush(self.ballot(), self.now);
        self.lose_below_snapshot(meta.slot);
        let forgotten = self.log.reset(&meta);
        let kept = forgotten.is_empty();
        let beyond: Vec<_> = forgotten.into_iter().filter(|entry| entry.slot > meta.slot).collect();
        self.doubt(&beyond);
        if !kept {
            self.outbox.forget_above(Slot(0));
            self.persisted = Slot(0);
        }
        self.committed = self.committed.max(meta.slot);
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::DelayedSnapshotForgets.is_on() {
            self.committed = meta.slot;
        }
        self.recount_uncommitted();
        self.members.reset(meta.slot, meta.config.clone(), kept);
        self.members.commit(self.committed);
        let (at, config) = self.members.in_force().clone();
        self.outbox.push(Effect::Membership {
            config: config.into(),
            at,
            committed: self.members.is_settled(),
        });
        self.delivery_read = None;
        self.delivered = meta.slot;
        self.state = meta.clone();
        let mark = self.outbox.next_mark(self.ballot());
        self.fetch = Fetch::Installing(mark);
        self.outbox.push(Effect::InstallSnapshot { mark, meta: meta.into() });
    }

    fn recount_uncommitted(&mut self) {
        let above = self.committed.0 + 1..=self.log.last().0;
        self.uncommitted_bytes = above
            .filter_map(|slot| self.log.get(Slot(slot)))
            .map(conclave_consensus::Entry::size_bytes)
            .sum();
    }

    pub(crate) fn on_snapshot_installed(&mut self, mark: Mark) {
        if self.fetch != Fetch::Installing(mark) {
            return;
        }
        self.fetch = Fetch::Idle;
        self.applied_to(self.state.slot);
        self.persisted = self.persisted.max(self.state.slot);
        if let Some(leader) = self.leader {
            self.acknowledge = Some((leader, self.state.slot));
        }
    }

    /// A checkpoint is durable: cuts the log below it, but keeps a margin, and for a live follower what it lacks, within bounds.
    pub(crate) fn on_compacted(&mut self, meta: SnapshotMeta) -> Result<(), StepError> {
        if meta.slot > self.delivered {
            return Err(StepError::Broken("a checkpoint beyond what was handed out"));
        }
        if meta.slot < self.state.slot {
            return Ok(());
        }
        let other = self.members.at(meta.slot).is_some_and(|config| *config != meta.config);
        if other || meta.config.voters.is_empty() {
            return Err(StepError::Broken("a checkpoint with another membership than that of its slot"));
        }
        let mut cut = meta.slot.0.saturating_sub(self.config.compaction_margin_entries) + 1;
        if let Role::Leader(leader) = &self.role {
            let lowest = meta.slot.0.saturating_sub(self.config.compaction_lag_entries_max) + 1;
            let live = leader.peers.values().filter(|peer| self.is_active(peer));
            cut = live.map(|peer| peer.needs(self.log.first()).0).fold(cut, u64::min).max(lowest);
        }
        self.state = meta;
        if Slot(cut) > self.log.first() {
            self.log.cut_below(Slot(cut));
            self.outbox.push(Effect::Write { ops: vec![LogOp::CutBelow(Slot(cut))] });
        }
        Ok(())
    }
}
