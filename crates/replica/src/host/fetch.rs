//! Fetching a snapshot: one piece asked for at a time, so that the receiver sets the pace.
//!
//! A piece that does not come in time is asked for again; a source that cannot serve, or is silent for
//! [`TRIES_MAX`] askings, ends the fetch, and the core asks anew when it still sees need.

use std::time::Duration;

use bytes::Bytes;
use conclave_consensus::{NodeId, Slot, Time};

/// How often a piece is asked for before the fetch is given up.
const TRIES_MAX: u32 = 10;

/// One fetch under way.
#[derive(Debug)]
pub(super) struct Fetch {
    id: u64,
    generation: u64,
    at_least: Slot,
    source: NodeId,
    others: Vec<NodeId>,
    /// The piece asked for, or being stored.
    piece: u64,
    storing: bool,
    tries: u32,
    asked: Time,
    timeout: Duration,
}

/// What the host is to do next.
#[derive(Debug)]
pub(super) enum FetchStep {
    Nothing,
    Pull { from: NodeId, at_least: Slot, piece: u64 },
    Store { piece: u64, body: Bytes, last: bool },
    GiveUp,
}

impl Fetch {
    pub(super) fn new(
        id: u64,
        generation: u64,
        at_least: Slot,
        mut sources: Vec<NodeId>,
        now: Time,
        timeout: Duration,
    ) -> Self {
        let source = sources.remove(0);
        Self {
            id,
            generation,
            at_least,
            source,
            others: sources,
            piece: 0,
            storing: false,
            tries: 1,
            asked: now,
            timeout,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn deadline(&self) -> Time {
        if self.storing { Time(u64::MAX) } else { self.asked.after(self.timeout) }
    }

    pub(super) fn pull(&self) -> FetchStep {
        FetchStep::Pull { from: self.source, at_least: self.at_least, piece: self.piece }
    }

    pub(super) fn arrived(
        &mut self,
        now: Time,
        from: NodeId,
        fetch: u64,
        piece: u64,
        body: Bytes,
        last: bool,
    ) -> FetchStep {
        if fetch != self.id || from != self.source || piece != self.piece || self.storing {
            return FetchStep::Nothing;
        }
        if body.is_empty() {
            return self.next_source(now);
        }
        self.storing = true;
        FetchStep::Store { piece, body, last }
    }

    pub(super) fn stored(&mut self, now: Time) -> FetchStep {
        (self.storing, self.tries, self.asked) = (false, 1, now);
        self.piece += 1;
        self.pull()
    }

    pub(super) fn tick(&mut self, now: Time) -> FetchStep {
        if self.storing || now < self.asked.after(self.timeout) {
            return FetchStep::Nothing;
        }
        if self.tries >= TRIES_MAX {
            return self.next_source(now);
        }
        self.tries += 1;
        self.asked = now;
        self.pull()
    }

    /// Another source serves another state, so only a fetch that has stored nothing may change over.
    fn next_source(&mut self, now: Time) -> FetchStep {
        if self.piece > 0 || self.others.is_empty() {
            return FetchStep::GiveUp;
        }
        self.source = self.others.remove(0);
        (self.tries, self.asked) = (1, now);
        self.pull()
    }
}
