//! Snapshots and compaction.
//!
//! Nobody sends a snapshot unasked: who offers one says which slot it must contain, and the receiver's host fetches the last durable checkpoint
//! of whoever has it. What arrived is taken only where it tells something new.
//!
//! # What an acceptor accepted stays
//! A snapshot says what was decided; it does not take back what this acceptor accepted beyond. But a log keeps what stands above a snapshot only where
//! it holds the snapshot's last slot with the snapshot's ballot: a rule for engines whose entries have the same ballot everywhere. Here the ballots of a
//! slot differ between replicas, so the snapshot is given the ballot that this log has there; and where it has nothing there, a
//! *filler* is written first, an entry in the ballot of nobody. Should a crash come between the filler and the snapshot, the next boot
//! passes over the filler: nobody accepts anything in the ballot of nobody.

use bytes::Bytes;
use conclave_consensus::{
    Ballot, Effect, Entry, Kind, LogOp, Mark, ProposalId, ReplicaId, Slot, SnapshotMeta, StepError,
};

use crate::{
    core::{Paxos, Role},
    wire::SLOT_MAX,
};

/// The way to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fetch {
    Idle,
    /// The host fetches one, which this replica offered last.
    Asked(ReplicaId),
    /// The host makes it the state. The log in memory starts after it already; nothing is accepted meanwhile.
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

impl Paxos {
    pub(crate) fn on_snapshot_offer(&mut self, from: ReplicaId, at_least: Slot) {
        if self.fetch.is_installing() {
            return;
        }
        if at_least <= self.received {
            // An earlier one arrived after all: the leader's log can follow on.
            self.acknowledge.get_or_insert_default();
            return;
        }
        self.fetch_snapshot(from, at_least);
    }

    /// From whoever offered it, or from any other voter. Whoever offers one while another is fetched may be needed, since that one's source may be
    /// gone; of the others, which may be gone too, the host has heard.
    pub(crate) fn fetch_snapshot(&mut self, from: ReplicaId, at_least: Slot) {
        if self.fetch.is_installing() || self.fetch == Fetch::Asked(from) {
            return;
        }
        let is_first = self.fetch.is_idle();
        let voters = self.members.config().voters.iter().copied();
        let others = voters.filter(|replica| is_first && *replica != from && *replica != self.id);
        let sources = std::iter::once(from).chain(others).collect();
        self.fetch = Fetch::Asked(from);
        self.outbox.push(Effect::FetchSnapshot { at_least, from: sources });
    }

    pub(crate) fn on_snapshot_failed(&mut self) {
        if matches!(self.fetch, Fetch::Asked(_)) {
            self.fetch = Fetch::Idle;
        }
    }

    /// Refused without effect if this replica leads, already installs one, or knows as much to be chosen as the snapshot holds.
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
        let known = meta.slot <= self.chosen || meta.config.number < self.members.number();
        #[cfg(feature = "mutants")]
        let known = known && !conclave_consensus::Mutant::DelayedSnapshotForgets.is_on();
        if self.is_leader() || known {
            return;
        }
        #[cfg(feature = "mutants")]
        let meta = if conclave_consensus::Mutant::SnapshotStaleMembership.is_on() {
            SnapshotMeta { config: self.members.config().clone(), ..meta }
        } else {
            meta
        };
        // What was written before must reach the log before the reset does.
        self.flush_acknowledgement();
        let ballot = self.keep_suffix(meta.slot);
        let meta = SnapshotMeta { ballot, ..meta };
        self.flush();
        self.lose_below_snapshot(meta.slot);
        self.log.reset(&meta);
        self.stops = self.stops.split_off(&meta.slot.next());
        self.chosen = meta.slot;
        self.received = self.received.max(meta.slot);
        self.delivered = meta.slot;
        self.delivery_read = None;
        self.unchosen_bytes = self.log.bytes();
        self.state = meta.clone();
        self.enter_config_of_snapshot(meta.slot, meta.config.clone());
        let mark = self.outbox.next_mark(self.ballot());
        self.fetch = Fetch::Installing(mark);
        self.outbox.push(Effect::InstallSnapshot { mark, meta: Box::new(meta) });
    }

    /// Sees to it that the log keeps what stands above the slot; gives the ballot by which it does.
    fn keep_suffix(&mut self, slot: Slot) -> Ballot {
        if let Some(ballot) = self.log.ballot_at(slot) {
            return ballot;
        }
        let ballot = Ballot::default();
        if self.log.last() > slot {
            let (kind, id) = (Kind::Noop, ProposalId::NONE);
            self.outbox.put(Entry { slot, ballot, kind, id, payload: Bytes::new() }.into());
        }
        ballot
    }

    pub(crate) fn on_snapshot_installed(&mut self, mark: Mark) {
        if self.fetch != Fetch::Installing(mark) {
            return;
        }
        self.fetch = Fetch::Idle;
        self.applied_to(self.state.slot);
        self.persisted = self.persisted.max(self.state.slot);
        self.advance_persisted();
        self.note_progress();
        if self.leader.is_some() {
            self.acknowledge.get_or_insert_default();
        }
        if matches!(self.role, Role::Candidate(_)) {
            self.finish_if_recovered();
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
        if self.members.of_state_at(meta.slot).is_some_and(|config| *config != meta.config) {
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
