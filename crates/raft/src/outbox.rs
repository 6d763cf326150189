//! What goes out: effects, and above all the pipeline of durable writes.
//!
//! Between two drains everything to be written gathers in one batch, which becomes one `Persist` with one mark. A message that
//! promises something durable is put into the batch ([`Outbox::promise`]) unless nothing is on its way to the disk; so it
//! leaves only after the sync that covers it, whatever was stepped in between.

use std::collections::VecDeque;

use bytes::Bytes;
#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Ballot, Effect, Entries, Entry, LogOp, Mark, Message, Slot, Time};

#[derive(Clone, Debug)]
struct Outstanding {
    mark: Mark,
    /// Once it completes, the log is durable up to here. Lowered by truncations that come after it.
    upto: Slot,
    since: Time,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox {
    effects: Vec<Effect>,
    meta: Option<Bytes>,
    ops: Vec<LogOp>,
    /// The entries among them.
    bytes: usize,
    then: Vec<Message>,
    /// The last slot of the batch that gathers.
    upto: Slot,
    outstanding: VecDeque<Outstanding>,
    /// The sequence of the last mark given out, and of the last known durable.
    issued: u64,
    durable: u64,
    /// The sequence of the last batch that holds a `Meta`.
    meta_in: u64,
}

impl Outbox {
    pub(crate) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.effects.push(Effect::Send(message));
    }

    /// Sends once everything written so far is durable.
    pub(crate) fn promise(&mut self, message: Message) {
        if self.gathers() || !self.outstanding.is_empty() {
            self.then.push(message)
        } else {
            self.send(message)
        }
    }

    /// Sends once the term and vote written last are durable.
    pub(crate) fn promise_term(&mut self, message: Message) {
        #[cfg(feature = "mutants")]
        if Mutant::VoteBeforeDurable.is_on() {
            self.send(message);
            return;
        }
        if self.meta_in > self.durable { self.then.push(message) } else { self.send(message) }
    }

    /// Adds the replica's record to the batch and says in which sequence it will be.
    pub(crate) fn write_meta(&mut self, meta: Bytes) -> u64 {
        self.meta = Some(meta);
        self.meta_in = self.issued + 1;
        self.meta_in
    }

    /// How many of the entries the batch still takes; none, if it has to be closed first.
    pub(crate) fn room_for(&self, entries: &[Entry], batch_bytes_max: usize) -> usize {
        let mut bytes = self.bytes;
        let fits = |entry: &&Entry| {
            let is_first = bytes == 0;
            bytes += entry.size_bytes();
            is_first || bytes <= batch_bytes_max
        };
        entries.iter().take_while(fits).count()
    }

    pub(crate) fn put(&mut self, entries: Entries) {
        self.bytes += entries.iter().map(Entry::size_bytes).sum::<usize>();
        self.upto = entries.last().map_or(self.upto, |last| last.slot);
        self.ops.push(LogOp::Put(entries));
    }

    /// Takes entries from `slot` on back, those on their way to the disk too.
    pub(crate) fn truncate_from(&mut self, slot: Slot) {
        self.forget_above(slot.before());
        self.ops.push(LogOp::TruncateFrom(slot));
    }

    /// No completion says anything about slots above this one any more.
    pub(crate) fn forget_above(&mut self, slot: Slot) {
        for write in &mut self.outstanding {
            #[cfg(feature = "mutants")]
            if Mutant::LateDurableOfOldTerm.is_on() {
                continue;
            }
            write.upto = write.upto.min(slot);
        }
        self.upto = self.upto.min(slot);
    }

    fn gathers(&self) -> bool {
        self.meta.is_some() || !self.ops.is_empty() || !self.then.is_empty()
    }

    /// Closes the batch, if there is one.
    pub(crate) fn flush(&mut self, ballot: Ballot, now: Time) {
        if !self.gathers() {
            return;
        }
        let mark = self.next_mark(ballot);
        self.bytes = 0;
        let mut ops = std::mem::take(&mut self.ops);
        if let Some(meta) = self.meta.take() {
            // The batch is atomic, so its last record stands for all of them, wherever it stands in it.
            ops.insert(0, LogOp::Meta(meta));
        }
        self.outstanding.push_back(Outstanding { mark, upto: self.upto, since: now });
        self.effects.push(Effect::Persist { mark, ops, then: std::mem::take(&mut self.then) });
    }

    /// A mark for something that is awaited elsewhere. Nothing may gather.
    pub(crate) fn next_mark(&mut self, ballot: Ballot) -> Mark {
        self.issued += 1;
        Mark { ballot, sequence: self.issued }
    }

    /// Takes a completion and says up to where the log is durable by it; `None` if the mark is not one that is awaited.
    pub(crate) fn complete(&mut self, mark: Mark) -> Option<Slot> {
        let place = self.outstanding.iter().position(|write| write.mark == mark)?;
        self.durable = self.durable.max(mark.sequence);
        (0..=place).filter_map(|_| self.outstanding.pop_front()).map(|write| write.upto).max()
    }

    /// The sequence of the last write known durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Since when the oldest write has been on its way.
    pub(crate) fn waits_since(&self) -> Option<Time> {
        #[cfg(feature = "mutants")]
        if Mutant::HangingDiskKeepsLeadership.is_on() {
            return None;
        }
        self.outstanding.front().map(|write| write.since)
    }

    pub(crate) fn drain(&mut self, out: &mut Vec<Effect>) {
        if out.is_empty() { std::mem::swap(out, &mut self.effects) } else { out.append(&mut self.effects) }
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::{Kind, ProposalId};

    use super::*;

    #[test]
    fn a_batch_is_bounded_and_parts_complete_in_order() {
        const BATCH_BYTES: usize = 1_000;
        let mut outbox = Outbox::default();
        let payload = Bytes::from(vec![0; BATCH_BYTES / 2]);
        let entry = |slot| Entry {
            slot: Slot(slot),
            ballot: Ballot::term(1),
            kind: Kind::Command,
            id: ProposalId::NONE,
            payload: payload.clone(),
        };
        let mut entries: Entries = (1..=4).map(entry).collect();
        assert_eq!(outbox.room_for(&entries, 2 * entries[0].size_bytes()), 2);
        while !entries.is_empty() {
            let room = outbox.room_for(&entries, BATCH_BYTES);
            if room == 0 {
                outbox.flush(Ballot::term(1), Time(0));
            } else {
                outbox.put(entries.split_to(room));
            }
        }
        outbox.flush(Ballot::term(1), Time(0));
        let mut effects = Vec::new();
        outbox.drain(&mut effects);
        let marks: Vec<Mark> = effects
            .iter()
            .map(|effect| match effect {
                Effect::Persist { mark, ops, .. } if ops.len() == 1 => *mark,
                other => panic!("expected a batch of one entry, got {other:?}"),
            })
            .collect();
        assert_eq!(marks.len(), 4);
        assert_eq!(outbox.complete(marks[1]), Some(Slot(2)));
        assert_eq!(outbox.complete(marks[3]), Some(Slot(4)));
    }
}
