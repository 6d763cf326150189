//! What goes out: effects, and above all the pipeline of durable writes.
//!
//! Between two drains everything to be written gathers in one batch, which becomes one `Persist` with one mark. A message that
//! promises something durable is put into the batch ([`Outbox::promise`]) unless nothing is on its way to the disk; so it
//! leaves only after the sync that covers it, whatever was stepped in between.

use std::collections::VecDeque;

use bytes::Bytes;
#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{Ballot, Effect, Entries, Entry, LogOp, Mark, Message, Time};

#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox {
    effects: Vec<Effect>,
    meta: Option<Bytes>,
    ops: Vec<LogOp>,
    /// The entries among them.
    bytes: usize,
    then: Vec<Message>,
    /// What is on its way to the disk, and since when.
    outstanding: VecDeque<(Mark, Time)>,
    /// The sequence of the last mark given out, and of the last known durable.
    issued: u64,
    durable: u64,
    /// The sequence of the last batch that holds a promise.
    promised_in: u64,
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

    /// Sends once what was promised last is durable.
    pub(crate) fn after_promise(&mut self, message: Message) {
        #[cfg(feature = "mutants")]
        if Mutant::VoteBeforeDurable.is_on() {
            self.send(message);
            return;
        }
        if self.promised_in > self.durable { self.then.push(message) } else { self.send(message) }
    }

    /// Adds the replica's record to the batch and says in which sequence it will be.
    pub(crate) fn write_meta(&mut self, meta: Bytes) -> u64 {
        self.meta = Some(meta);
        self.promised_in = self.issued + 1;
        self.promised_in
    }

    /// Adds a record that promises nothing anew, if the batch has none.
    pub(crate) fn note(&mut self, meta: impl FnOnce() -> Bytes) {
        self.meta.get_or_insert_with(meta);
    }

    /// The sequence of the batch that gathers.
    pub(crate) fn sequence(&self) -> u64 {
        self.issued + 1
    }

    /// How many of the entries the batch has room for before it has to be closed; of a batch without any, one at least.
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
        self.ops.push(LogOp::Put(entries));
    }

    pub(crate) fn writes_entries(&self) -> bool {
        !self.ops.is_empty()
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
        self.outstanding.push_back((mark, now));
        self.effects.push(Effect::Persist { mark, ops, then: std::mem::take(&mut self.then) });
    }

    /// A mark for something that is awaited elsewhere. Nothing may gather.
    pub(crate) fn next_mark(&mut self, ballot: Ballot) -> Mark {
        self.issued += 1;
        Mark { ballot, sequence: self.issued }
    }

    /// Takes a completion; says whether it is of a write that is awaited.
    pub(crate) fn complete(&mut self, mark: Mark) -> bool {
        let Some(place) = self.outstanding.iter().position(|(awaited, _)| *awaited == mark) else {
            return false;
        };
        self.durable = self.durable.max(mark.sequence);
        self.outstanding.drain(..=place);
        true
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
        self.outstanding.front().map(|(_, since)| *since)
    }

    pub(crate) fn drain(&mut self, out: &mut Vec<Effect>) {
        if out.is_empty() { std::mem::swap(out, &mut self.effects) } else { out.append(&mut self.effects) }
    }
}
