//! Phase 2: what a leader sends, what an acceptor answers, and when a slot is chosen.
//!
//! A leader does not send where it learns something but once per drain ([`Paxos::send_accepts`]): whatever was proposed and acknowledged since the last
//! drain leaves in one message a follower, and tells what is chosen on its way.
//!
//! Slots are accepted in any order, become durable in any order, and are chosen in any order: each stands for itself. A message that is lost holds up
//! what comes after it in delivery alone. What a follower lacks of slots that were chosen before, the leader proposes to it as well, in its own
//! ballot: any ballot after the one that chose a value can only propose that value, so a leader that knows it need not ask anyone. So there is one way
//! for a follower to come by an entry, and one rule for what it knows to be chosen: a slot up to the leader's chosen one at which it accepted in
//! the leader's ballot. What it accepted in an earlier one may be another value.
//!
//! # Invariants
//! 1. In a ballot one value is proposed at a slot: its leader appends, and appends no second time.
//! 2. An acknowledgement leaves when everything it names is durable, in the `then` of the write.
//! 3. A slot is chosen when a commit quorum of the configuration that governs it holds it durably in one ballot of that configuration. The leader
//!    counts itself when its own disk has it.

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{
    Effect, Entries, Entry, LogReadId, LogSlice, ReplicaId, Slot, SlotRange, StepError,
};

use crate::{
    core::{Paxos, Role},
    progress::{Mode, Peer},
    wire::{self, Accept, Accepted, Beat, BeatReply, Body, RUNS_MAX},
};

/// How many times what a leader may have open a follower takes beyond its first gap.
const WINDOW: u64 = 2;

impl Paxos {
    /// Sends each follower what it lacks, within its bounds.
    pub(crate) fn send_accepts(&mut self) {
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
            if peer.next < self.log.first() {
                peer.await_snapshot(self.log.first());
                self.offer_snapshot(to);
                return;
            }
            if peer.next < self.log.cached_from() {
                if peer.read.is_none() {
                    let id = self.next_log_read();
                    peer.read = Some((id, peer.next));
                    let range = SlotRange { from: peer.next, to: self.log.cached_from() };
                    let bytes_max = u32::try_from(self.config.message_bytes_max).unwrap_or(u32::MAX);
                    self.outbox.push(Effect::ReadLog { id, range, bytes_max });
                }
                return;
            }
            let entries = self.log.run(peer.next, self.log.last(), self.config.message_bytes_max);
            if entries.is_empty() {
                return;
            }
            self.send_accept(to, peer, entries);
        }
        let is_behind = peer.told < self.chosen && peer.next > self.log.last();
        if peer.mode == Mode::Replicate && (is_behind || peer.poke) {
            self.send_accept(to, peer, Entries::default());
        }
    }

    fn send_accept(&mut self, to: ReplicaId, peer: &mut Peer, mut entries: Entries) {
        let ballot = self.ballot();
        if entries.iter().any(|entry| entry.ballot != ballot) {
            entries = entries.iter().map(|entry| Entry { ballot, ..entry.clone() }).collect();
        }
        if let Some(last) = entries.last().map(|entry| entry.slot) {
            peer.sent(last, entries.iter().map(Entry::size_bytes).sum());
        }
        peer.told = self.chosen;
        let quiet = entries.is_empty() && !std::mem::take(&mut peer.poke);
        let accept = Accept { chosen: self.chosen.0, settled: self.members.settled(), quiet };
        self.outbox.send(wire::message(self.id, to, ballot, Body::Accept(accept), entries));
    }

    /// Entries that memory no longer held are here.
    pub(crate) fn on_log_read_for_peer(&mut self, id: LogReadId, result: LogSlice) -> Result<(), StepError> {
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
        let entries = match result {
            LogSlice::Entries(entries) => entries,
            LogSlice::Compacted => {
                peer.await_snapshot(self.log.first());
                self.offer_snapshot(to);
                return Ok(());
            }
        };
        if entries.is_empty() || (from.0..).zip(&entries).any(|(slot, entry)| entry.slot != Slot(slot)) {
            return Err(StepError::Broken("a read of the log gave other slots than those asked for"));
        }
        let (messages_max, bytes_max) = (self.config.inflight_messages_max, self.config.inflight_bytes_max);
        if from == peer.next && peer.may_send(messages_max, bytes_max) {
            self.send_accept(to, peer, entries.into());
        }
        Ok(())
    }

    /// The leader proposes: accepts what is not there yet, in whatever order it comes.
    pub(crate) fn on_accept(&mut self, accept: Accept, entries: &Entries) {
        if self.fetch.is_installing() {
            return; // The log is about to start anew; the leader will ask again.
        }
        let ballot = self.ballot();
        let run = entries.first().map(|entry| entry.slot);
        let mut end = Slot(0);
        // From where on entries are not here yet, and the bytes of these.
        let (mut from, mut bytes) = (0, 0);
        for (place, entry) in entries.iter().enumerate() {
            if entry.slot <= self.chosen || self.log.ballot_at(entry.slot) == Some(ballot) {
                self.accept(entries.slice(from..place));
                (from, bytes) = (place + 1, 0);
            } else if self.is_beyond_window(entry, bytes) {
                break;
            } else {
                bytes += entry.size_bytes();
            }
            end = entry.slot;
        }
        let until = run.map_or(0, |first| (end.next().0.saturating_sub(first.0)) as usize);
        if from < until {
            self.accept(entries.slice(from..until));
        }
        self.advance_received();
        if let Some(first) = run.filter(|first| *first <= end) {
            self.note_acknowledgement(first, end);
        } else if !accept.quiet {
            self.acknowledge.get_or_insert_default();
        }
        self.chosen_to(Slot(accept.chosen).min(self.received));
        self.hear_settled(accept.settled);
    }

    /// Whether a follower does not take an entry yet, after so many bytes that it is about to take.
    fn is_beyond_window(&self, entry: &Entry, taking: usize) -> bool {
        let slots_max = self.config.unchosen_entries_max.saturating_mul(WINDOW);
        let bytes_max = self.config.unchosen_bytes_max.saturating_mul(WINDOW as usize);
        let unchosen_bytes = self.unchosen_bytes + taking;
        entry.slot.0 > self.received.0.saturating_add(slots_max)
            || (unchosen_bytes > 0 && unchosen_bytes + entry.size_bytes() > bytes_max)
    }

    pub(crate) fn advance_received(&mut self) {
        let ballot = self.ballot();
        self.received = self.received.max(self.chosen);
        self.received = self.log.accepted_to(self.received.next(), ballot);
    }

    fn note_acknowledgement(&mut self, first: Slot, last: Slot) {
        let runs = self.acknowledge.get_or_insert_default();
        match runs.last_mut() {
            Some((begin, end)) if first <= end.next() && first >= *begin => *end = last.max(*end),
            _ => runs.push((first, last)),
        }
    }

    /// Puts the acknowledgement of everything accepted since the last drain behind the writes it depends on.
    pub(crate) fn flush_acknowledgement(&mut self) {
        let Some(mut runs) = self.acknowledge.take() else { return };
        let Some(leader) = self.leader.filter(|leader| *leader != self.id) else { return };
        let upto = self.received.0;
        let mut accepted = Accepted { upto, chosen: self.chosen.0, ..Accepted::default() };
        runs.sort_unstable();
        for (first, last) in runs {
            let first = first.0.max(accepted.lasts.last().copied().unwrap_or(upto) + 1);
            if first <= last.0 && accepted.lasts.len() < RUNS_MAX {
                accepted.firsts.push(first);
                accepted.lasts.push(last.0);
            }
        }
        let message = self.message(leader, Body::Accepted(accepted));
        #[cfg(feature = "mutants")]
        if Mutant::AcknowledgedBeforeDurable.is_on() {
            self.outbox.send(message);
            return;
        }
        self.outbox.promise(message);
    }

    /// The lowest slot on which the log can follow: what a follower must hold, or a snapshot contain.
    pub(crate) fn floor(&self) -> Slot {
        self.log.first().before()
    }

    pub(crate) fn on_accepted(&mut self, from: ReplicaId, accepted: &Accepted) {
        let (floor, now) = (self.floor(), self.now);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        (peer.heard, peer.follows) = (now, true);
        let learned = Slot(accepted.chosen) > peer.knows;
        peer.knows = peer.knows.max(Slot(accepted.chosen));
        let is_news = peer.accepted(Slot(accepted.upto), accepted.runs(), floor);
        if is_news {
            self.advance_chosen();
            self.hand_over_if_ready(from);
        }
        if is_news || learned {
            self.settle_if_held();
        }
        self.stand_anew_if_refused();
    }

    pub(crate) fn on_beat(&mut self, from: ReplicaId, beat: Beat) {
        if !self.fetch.is_installing() {
            self.chosen_to(Slot(beat.chosen).min(self.received));
        }
        self.hear_settled(beat.settled);
        let reply = BeatReply {
            round: beat.round,
            free: true,
            received: self.received.0,
            // Of a snapshot it is true only when that is the state.
            chosen: if self.fetch.is_installing() { 0 } else { self.chosen.0 },
            priority: u32::from(self.config.priority),
        };
        let message = self.message(from, Body::BeatReply(reply));
        self.outbox.after_promise(message);
    }

    pub(crate) fn on_beat_reply(&mut self, from: ReplicaId, reply: BeatReply) {
        let now = self.now;
        let (floor, last) = (self.floor(), self.log.last());
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        (peer.heard, peer.follows) = (now, true);
        peer.round = peer.round.max(reply.round);
        peer.knows = peer.knows.max(Slot(reply.chosen));
        peer.priority = u8::try_from(reply.priority).unwrap_or(u8::MAX);
        peer.vouches_from = peer.vouches_from.max(leader.lease.sent_by(reply.round));
        let received = Slot(reply.received).min(last);
        if peer.mode == Mode::Snapshot && received >= floor {
            peer.mode = Mode::Probe; // An earlier snapshot arrived after all.
        }
        peer.says_received(received);
        self.confirm_reads();
        self.stand_anew_if_refused();
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
            peer.beaten();
        }
        let waiting: Vec<ReplicaId> = leader
            .peers
            .iter()
            .filter(|(_, peer)| peer.mode == Mode::Snapshot)
            .map(|(replica, _)| *replica)
            .collect();
        self.beat_anew();
        for to in waiting {
            self.offer_snapshot(to);
        }
        self.retry_hand_over();
        self.let_go();
        self.settle_if_held();
        self.promote_who_is_ready();
        self.hand_to_preferred();
    }

    /// Beats in a round of its own, from whose sending a lease may count.
    pub(crate) fn beat_anew(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        if self.config.lease_drift_ppm.is_some() {
            let round = leader.reads.begin();
            leader.lease.note(round, self.now);
        }
        self.beat();
    }

    /// Sends a beat to everyone.
    pub(crate) fn beat(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let beat = Beat {
            round: leader.reads.round(),
            stage: wire::LEADS,
            hears_quorum: true,
            chosen: self.chosen.0,
            settled: self.members.settled(),
            promise_us: u64::try_from(self.lease_asked().as_micros()).unwrap_or(u64::MAX),
            priority: u32::from(self.config.priority),
        };
        for to in leader.peers.keys() {
            self.outbox.send(wire::message(
                self.id,
                *to,
                self.ballot(),
                Body::Beat(beat),
                Entries::default(),
            ));
        }
    }

    pub(crate) fn offer_snapshot(&mut self, to: ReplicaId) {
        let offer = wire::SnapshotOffer { at_least: self.floor().0 };
        let message = self.message(to, Body::SnapshotOffer(offer));
        self.outbox.send(message);
    }

    /// Finds what a commit quorum holds durably in this ballot, slot by slot where runs differ.
    pub(crate) fn advance_chosen(&mut self) {
        let mut moved = false;
        loop {
            let Role::Leader(leader) = &self.role else { return };
            if leader.is_over {
                break;
            }
            let from = self.chosen.next();
            let own = self.persisted;
            #[cfg(feature = "mutants")]
            let own = if Mutant::CommittedBeforeOwnDurable.is_on() { self.log.last() } else { own };
            let held = |replica| {
                if replica == self.id {
                    own
                } else {
                    leader.peers.get(&replica).map_or(Slot(0), |peer| peer.covers(from))
                }
            };
            let config = self.members.config();
            let reached = config.committed(held);
            #[cfg(feature = "mutants")]
            let reached = if Mutant::CommitQuorumTooSmall.is_on() && config.number > 0 {
                // Counted as if only those voted that did before the change.
                let enough = config.voters.len() / 2;
                let mut all: Vec<Slot> = config.voters.iter().map(|replica| held(*replica)).collect();
                all.sort_unstable_by(|one, other| other.cmp(one));
                all.get(enough.saturating_sub(1)).copied()
            } else {
                reached
            };
            let end = leader.stop.unwrap_or(self.log.last()).min(self.log.last());
            #[cfg(feature = "mutants")]
            let end = if Mutant::RecoveredBeyondStop.is_on() { self.log.last() } else { end };
            match reached.map(|slot| slot.min(end)) {
                Some(slot) if slot >= from => self.chosen_to(slot),
                _ => break,
            }
            moved = true;
        }
        if moved {
            self.succeed_if_over();
        }
    }
}
