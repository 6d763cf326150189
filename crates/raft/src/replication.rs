//! Replication: what a leader sends, what a follower answers, and when an entry is committed.
//!
//! A leader does not send where it learns something but once per drain ([`Raft::send_appends`]): whatever was proposed and
//! acknowledged since the last drain leaves in one message a follower, and tells of the commit on its way.

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Ballot, Effect, Entries, Entry, LogSlice, ReplicaId, Slot, SlotRange, StepError};

use crate::{
    core::{Raft, Role},
    progress::{Mode, Peer},
    wire::{self, Append, AppendReply, Beat, BeatReply, Body, SnapshotOffer},
};

/// What can be sent to a follower at this moment.
enum Next {
    Entries { prev: Ballot, entries: Entries },
    Read(SlotRange),
    Snapshot,
    Nothing,
}

impl Raft {
    /// Sends each follower what it lacks, within its bounds.
    pub(crate) fn send_appends(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let mut peers = std::mem::take(&mut leader.peers);
        for (to, peer) in &mut peers {
            self.send_to(*to, peer);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.peers = peers;
        }
    }

    fn send_to(&mut self, to: ReplicaId, peer: &mut Peer) {
        let (messages_max, bytes_max) = (self.config.inflight_messages_max, self.config.inflight_bytes_max);
        while peer.may_send(messages_max, bytes_max) && peer.next <= self.log.last() {
            match self.next_for(peer) {
                Next::Entries { prev, entries } => self.send_append(to, peer, prev, entries),
                Next::Read(range) => {
                    let id = self.next_log_read();
                    peer.read = Some((id, range.from));
                    let bytes_max = u32::try_from(self.config.message_bytes_max).unwrap_or(u32::MAX);
                    self.outbox.push(Effect::ReadLog { id, range, bytes_max });
                    return;
                }
                Next::Snapshot => {
                    peer.await_snapshot(self.log.first());
                    self.offer_snapshot(to);
                    return;
                }
                Next::Nothing => return,
            }
        }
        // Nothing to send: an empty message tells of a commit, or asks after messages that may be lost.
        let behind = peer.told < self.committed && peer.next > self.log.last();
        let due = match peer.mode {
            Mode::Replicate => behind || peer.poke,
            Mode::Probe { paused } => !paused,
            Mode::Snapshot => false,
        };
        if !due {
            return;
        }
        if let Some(prev) = self.ballot_known(peer, peer.next.before()) {
            self.send_append(to, peer, prev, Entries::default());
        } else if peer.poke {
            // Memory no longer reaches to where it would ask: it begins again behind what the follower is known to hold, which the
            // log is read for. Otherwise messages that were lost while the window was full would never be asked after.
            peer.poke = false;
            peer.probe_from(peer.matched.next());
            self.send_to(to, peer);
        }
    }

    fn ballot_known(&self, peer: &Peer, slot: Slot) -> Option<Ballot> {
        let snapshot = (slot == self.state.slot).then_some(self.state.ballot);
        let read = peer.known.and_then(|(at, ballot)| (at == slot).then_some(ballot));
        self.log.ballot_at(slot).or(snapshot).or(read)
    }

    fn next_for(&self, peer: &Peer) -> Next {
        let (next, prev) = (peer.next, peer.next.before());
        if next < self.log.first() {
            return Next::Snapshot;
        }
        if peer.read.is_some() {
            return Next::Nothing;
        }
        let known = self.ballot_known(peer, prev);
        if let Some(prev) = known
            && next >= self.log.cached_from()
        {
            let entries = self.log.run(next, self.log.last(), self.config.message_bytes_max);
            return Next::Entries { prev, entries };
        }
        let from = if known.is_some() { next } else { prev };
        if from < self.log.first() {
            return Next::Snapshot;
        }
        Next::Read(SlotRange { from, to: self.log.cached_from() })
    }

    fn send_append(&mut self, to: ReplicaId, peer: &mut Peer, prev: Ballot, entries: Entries) {
        let prev_slot = peer.next.before();
        let last = Slot(prev_slot.0 + entries.len() as u64);
        let bytes = entries.iter().map(Entry::size_bytes).sum();
        let quiet = entries.is_empty() && peer.mode == Mode::Replicate && !peer.poke;
        let (prev_slot, prev_term, committed) = (prev_slot.0, prev.round, self.committed.0);
        let append = Append { prev_slot, prev_term, committed, quiet };
        peer.told = self.committed;
        peer.sent(last, bytes);
        self.outbox.send(wire::message(self.id, to, self.meta.term, Body::Append(append), entries));
    }

    /// Entries that memory no longer held are here.
    pub(crate) fn on_log_read_for_peer(
        &mut self,
        id: conclave_consensus::LogReadId,
        result: LogSlice,
    ) -> Result<(), StepError> {
        let Role::Leader(leader) = &mut self.role else { return Ok(()) };
        let mut peers = std::mem::take(&mut leader.peers);
        let reader = peers.iter_mut().find(|(_, peer)| peer.read.is_some_and(|(asked, _)| asked == id));
        let done = reader.map_or(Ok(()), |(to, peer)| self.on_read_for(*to, peer, result));
        if let Role::Leader(leader) = &mut self.role {
            leader.peers = peers;
        }
        done
    }

    fn on_read_for(&mut self, to: ReplicaId, peer: &mut Peer, result: LogSlice) -> Result<(), StepError> {
        let Some((_, from)) = peer.read.take() else { return Ok(()) };
        let mut entries = match result {
            LogSlice::Entries(entries) => entries,
            LogSlice::Compacted => {
                peer.await_snapshot(self.log.first());
                self.offer_snapshot(to);
                return Ok(());
            }
        };
        let contiguous = (from.0..).zip(&entries).all(|(slot, entry)| entry.slot == Slot(slot));
        if entries.is_empty() || !contiguous {
            return Err(StepError::Broken("a read of the log gave other slots than those asked for"));
        }
        if from == peer.next.before() {
            let prev = entries.remove(0);
            peer.known = Some((prev.slot, prev.ballot));
        } else if from != peer.next {
            return Ok(()); // The follower was found to need something else meanwhile.
        }
        let (messages_max, bytes_max) = (self.config.inflight_messages_max, self.config.inflight_bytes_max);
        if let Some(prev) = self.ballot_known(peer, peer.next.before())
            && let Some(last) = entries.last().map(|entry| (entry.slot, entry.ballot))
            && peer.may_send(messages_max, bytes_max)
        {
            self.send_append(to, peer, prev, entries.into());
            peer.known = Some(last);
        }
        Ok(())
    }

    /// A leader said what follows on `prev` (Figure 2, AppendEntries, receiver implementation).
    pub(crate) fn on_append(&mut self, append: Append, mut entries: Entries) -> Result<(), StepError> {
        let Some(leader) = self.leader else { return Ok(()) };
        if self.fetch.is_installing() {
            return Ok(()); // The log is about to start anew; the leader will ask again.
        }
        let (prev, prev_ballot) = (Slot(append.prev_slot), Ballot::term(append.prev_term));
        let tail = Slot(prev.0 + entries.len() as u64);
        // What is committed here is committed there: a leader's log holds it (section 5.4.3).
        if prev > self.committed && self.log.ballot_at(prev) != Some(prev_ballot) {
            self.reject(leader, prev, prev_ballot);
            return Ok(());
        }
        if let Some(first_new) = self.first_new(&entries) {
            let slot = entries[first_new].slot;
            if slot <= self.log.last() {
                self.truncate_from(slot);
            }
            entries.advance(first_new);
            self.append_run(entries);
        }
        let matched = tail.max(self.committed.min(self.log.last()));
        if !append.quiet {
            let before = self.acknowledge.map_or(Slot(0), |(_, slot)| slot);
            self.acknowledge = Some((leader, matched.max(before)));
        }
        self.commit_to(Slot(append.committed).min(matched));
        Ok(())
    }

    /// Which of the entries is the first that this log does not hold.
    fn first_new(&self, entries: &[Entry]) -> Option<usize> {
        entries.iter().position(|entry| {
            entry.slot > self.committed && self.log.ballot_at(entry.slot) != Some(entry.ballot)
        })
    }

    /// Whether accepting the entries would make terms fall along the log, which no leader's log does. Where the entry before them
    /// is compared, it cannot happen.
    pub(crate) fn would_fall(&self, append: &Append, entries: &[Entry]) -> bool {
        if Slot(append.prev_slot) > self.committed {
            return false;
        }
        let Some(first) = self.first_new(entries).map(|place| &entries[place]) else { return false };
        self.log.ballot_at(first.slot.before()).is_some_and(|before| first.ballot < before)
    }

    fn reject(&mut self, leader: ReplicaId, prev: Slot, prev_ballot: Ballot) {
        // Skips every entry of a term that the leader's log cannot have here (end of section 5.3).
        let hint =
            self.log.last_at_most(prev.before(), prev_ballot).unwrap_or(self.committed).max(self.committed);
        let hint_ballot = self.log.ballot_at(hint).unwrap_or_default();
        let reply =
            AppendReply { slot: prev.0, rejected: true, hint_slot: hint.0, hint_term: hint_ballot.round };
        let message = self.message(leader, Body::AppendReply(reply));
        self.outbox.promise_term(message);
    }

    fn truncate_from(&mut self, slot: Slot) {
        assert!(slot > self.committed, "a committed entry is never truncated");
        let removed = self.log.truncate_from(slot);
        self.uncommitted_bytes -= removed.iter().map(Entry::size_bytes).sum::<usize>();
        self.persisted = self.persisted.min(slot.before());
        self.outbox.truncate_from(slot);
        self.doubt(&removed);
        if self.members.truncate_from(slot) {
            let (at, config) = self.members.in_force().clone();
            self.outbox.push(Effect::Membership {
                config: config.into(),
                at,
                committed: self.members.is_settled(),
            });
        }
    }

    /// Puts the acknowledgement of everything accepted since the last drain behind the writes it depends on.
    pub(crate) fn flush_acknowledgement(&mut self) {
        let Some((leader, matched)) = self.acknowledge.take() else { return };
        if self.leader == Some(leader) {
            let reply = AppendReply { slot: matched.0, ..AppendReply::default() };
            let message = self.message(leader, Body::AppendReply(reply));
            #[cfg(feature = "mutants")]
            if Mutant::AcknowledgedBeforeDurable.is_on() {
                self.outbox.send(message);
                return;
            }
            self.outbox.promise(message);
        }
    }

    pub(crate) fn on_append_reply(&mut self, from: ReplicaId, reply: AppendReply) {
        let (log, state, now) = (&self.log, self.state.slot, self.now);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        peer.heard = now;
        if !reply.rejected {
            if peer.accepted(Slot(reply.slot), || log.floor(state)) {
                if Slot(reply.slot) > self.committed {
                    self.advance_commit();
                }
                self.hand_over_if_ready(from);
            }
            return;
        }
        if !peer.is_news(Slot(reply.slot)) {
            return;
        }
        let hint = Slot(reply.hint_slot).min(log.last());
        // Where memory does not reach, the hint itself is tried: each one is lower than the slot before.
        let found = log.last_at_most(hint, Ballot::term(reply.hint_term)).unwrap_or(hint);
        peer.probe_from(found.next());
    }

    pub(crate) fn on_beat(&mut self, from: ReplicaId, beat: Beat) {
        if !self.fetch.is_installing() {
            self.commit_to(Slot(beat.committed).min(self.log.last()));
        }
        let asleep = beat.sleep && self.sleep_if_idle();
        let priority = u32::from(self.config.priority);
        let message = self.message(from, Body::BeatReply(BeatReply { round: beat.round, priority, asleep }));
        self.outbox.promise_term(message);
    }

    pub(crate) fn on_beat_reply(&mut self, from: ReplicaId, reply: BeatReply) {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        peer.heard = now;
        peer.round = peer.round.max(reply.round);
        peer.priority = u8::try_from(reply.priority).unwrap_or(u8::MAX);
        peer.sleeps_since = reply.asleep.then_some(reply.round);
        peer.vouches_from = peer.vouches_from.max(leader.lease.sent_by(reply.round));
        match &mut peer.mode {
            Mode::Probe { paused } => *paused = false,
            Mode::Replicate => peer.poke |= peer.awaits_acknowledgement() && peer.overdue,
            Mode::Snapshot => {}
        }
        self.confirm_reads();
        if reply.asleep {
            self.sleep_if_all_do();
        } else {
            self.wake();
        }
    }

    /// Tells everyone that this replica leads, in time.
    pub(crate) fn beat_if_due(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        if self.now < leader.beat_due {
            return;
        }
        // Here alone: were it put off by the beats of read rounds, steady reading would put off for ever what follows.
        leader.beat_due = self.now.after(self.config.timing.heartbeat);
        for peer in leader.peers.values_mut() {
            peer.overdue = peer.awaits_acknowledgement();
        }
        if self.config.lease_drift_ppm.is_some() {
            let round = leader.reads.begin();
            leader.lease.note(round, self.now);
        }
        self.grow_drowsy();
        let Role::Leader(leader) = &self.role else { return };
        let waiting: Vec<ReplicaId> = leader
            .peers
            .iter()
            .filter(|(_, peer)| peer.mode == Mode::Snapshot)
            .map(|(replica, _)| *replica)
            .collect();
        self.beat();
        for to in waiting {
            self.offer_snapshot(to);
        }
        self.retry_hand_over();
        self.let_go();
        self.promote_who_is_ready();
        self.hand_to_preferred();
    }

    /// Sends a beat to everyone.
    pub(crate) fn beat(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let (round, sleep) = (leader.reads.round(), leader.drowsy.asks());
        let promise_us = u64::try_from(self.promise_asked().as_micros()).unwrap_or(u64::MAX);
        for (to, peer) in &leader.peers {
            let beat = Beat { committed: self.committed.min(peer.matched).0, round, promise_us, sleep };
            self.outbox.send(wire::message(
                self.id,
                *to,
                self.meta.term,
                Body::Beat(beat),
                Entries::default(),
            ));
        }
    }

    fn offer_snapshot(&mut self, to: ReplicaId) {
        let offer = SnapshotOffer { at_least: self.log.floor(self.state.slot).0 };
        let message = self.message(to, Body::SnapshotOffer(offer));
        self.outbox.send(message);
    }

    /// Commits what a quorum holds durably, itself included, if it is of the own term (section 5.4.2).
    pub(crate) fn advance_commit(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let persisted = self.persisted;
        #[cfg(feature = "mutants")]
        let persisted = if Mutant::CommittedBeforeOwnDurable.is_on() { self.log.last() } else { persisted };
        let held = self.members.config().committed(|replica| {
            if replica == self.id {
                persisted
            } else {
                leader.peers.get(&replica).map_or(Slot(0), |peer| peer.matched)
            }
        });
        if let Some(slot) = held
            && slot >= leader.began_at
        {
            self.commit_to(slot);
            self.leave_joint_if_committed();
        }
    }
}
