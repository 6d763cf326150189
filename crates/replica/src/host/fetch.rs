//! Fetching a snapshot: a few pieces asked for at a time, from one source, until one is found that goes on.
//!
//! Pieces may arrive in any order and are handed to storage in theirs; asked for and not yet stored are at most [`PIECES_INFLIGHT_MAX`] pieces and
//! [`BYTES_INFLIGHT_MAX`] bytes (by the longest piece so far), so that the receiver sets the pace and a long link is used well. Until
//! a source has given its first piece it is asked for one.
//!
//! # When a source fails
//! - A piece that does not come is asked for again: after a `timeout`, or twice the time that pieces take if that is longer, and then
//!   after twice as long each time, up to eight times; after sixteen timeouts in any case.
//! - A source that is silent for [`PATIENCE`] timeouts, or twice as long as between its last pieces, gives way to another, first to whoever offered last; where there is
//!   no other, it is given up after [`SILENCE_MAX`] while nothing was received.
//! - The next source goes on where the last one ended if it has the same snapshot. If those that answer have not, it begins anew with one of them, and with the silent ones last; but
//!   before much is thrown away, the silent ones are asked again for as long as it takes to fetch that much at 16 MiB a second, 60 timeouts at most.
//! - A transfer that stores nothing for [`STANDSTILL_MAX`] timeouts is given up, and so is one of which nothing was received and that no source serves. The core
//!   asks again when it still sees need; what was received is kept for [`KEPT_FOR`] timeouts, for it to go on with.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use conclave_consensus::{NodeId, Slot, Time};
use conclave_transport::SnapshotPrefix;

use crate::snapshot::{BYTES_INFLIGHT_MAX, PIECES_INFLIGHT_MAX};

/// Timeouts of silence after which another source is tried.
const PATIENCE: u32 = 4;
/// Timeouts of silence after which the only source is given up, if nothing was received.
const SILENCE_MAX: u32 = 10;
/// Timeouts without a piece stored after which a transfer is given up, whoever answers.
const STANDSTILL_MAX: u32 = 60;
/// Timeouts for which what was received is kept after that.
pub(super) const KEPT_FOR: u32 = 120;
/// What was received is worth a second of waiting for each so many bytes.
const WORTH_A_SECOND_BYTES: u64 = 16 << 20;
/// How many sources are remembered; beyond, those go that were offered first.
const SOURCES_MAX: usize = 8;
/// By how much the wait for a piece grows at most.
const BACKOFF_MAX: u32 = 8;

/// One fetch under way.
#[derive(Debug)]
pub(super) struct Fetch {
    id: u64,
    generation: u64,
    at_least: Slot,
    /// Those offered last first.
    sources: Vec<Source>,
    /// Which of them is asked.
    current: usize,
    /// Whether it has given a piece since it is asked.
    open: bool,
    /// What is stored.
    have: SnapshotPrefix,
    /// Pieces before this one were handed to storage.
    handed: u64,
    /// What arrived before its turn.
    early: BTreeMap<u64, Piece>,
    /// What was asked for and is not here.
    asked: BTreeMap<u64, Asked>,
    /// The last piece, once it arrived.
    end: Option<u64>,
    piece_bytes: usize,
    /// How long pieces take to come, by the last few, from being asked for.
    latency: Duration,
    /// The same from the one before.
    pace: Duration,
    timeout: Duration,
    /// Of the pieces handed to storage.
    bytes: u64,
    /// When a piece was stored, or the fetch was begun or gone on with.
    progressed: Time,
    /// When the source said anything, or was first asked.
    heard: Time,
    /// Until when silent sources are asked again for the sake of what was received.
    hope: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    node: NodeId,
    standing: Standing,
}

/// How a source stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is asked, or may be.
    Fresh,
    /// It did not answer.
    Silent,
    /// It answered that it cannot serve.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    first: Time,
    again: Time,
    times: u32,
}

#[derive(Debug)]
struct Piece {
    after: SnapshotPrefix,
    body: Bytes,
    last: bool,
}

/// What the host is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FetchStep {
    /// Ask for a piece.
    Pull { from: NodeId, piece: u64 },
    /// Hand a piece to storage.
    Store { after: SnapshotPrefix, body: Bytes, last: bool },
    /// Another stream goes on where one ended.
    Resumed,
    /// End it, and begin another with these sources.
    Anew { sources: Vec<NodeId> },
    /// End it.
    GiveUp,
}

impl Fetch {
    /// `sources` is not empty.
    pub(super) fn new(
        id: u64,
        generation: u64,
        at_least: Slot,
        sources: &[NodeId],
        now: Time,
        timeout: Duration,
    ) -> Self {
        let mut fetch = Self {
            id,
            generation,
            at_least,
            sources: Vec::new(),
            current: 0,
            open: false,
            have: SnapshotPrefix::default(),
            handed: 0,
            early: BTreeMap::new(),
            asked: BTreeMap::new(),
            end: None,
            piece_bytes: 0,
            latency: Duration::ZERO,
            pace: Duration::ZERO,
            timeout,
            bytes: 0,
            progressed: now,
            heard: now,
            hope: None,
        };
        fetch.prefer(sources);
        fetch
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn at_least(&self) -> Slot {
        self.at_least
    }

    pub(super) fn have(&self) -> SnapshotPrefix {
        self.have
    }

    pub(super) fn deadline(&self) -> Time {
        let again = self.asked.values().map(|asked| asked.again).min();
        let ends = (!self.is_storing()).then(|| self.patience_ends().min(self.standstill_ends()));
        again.into_iter().chain(ends).min().unwrap_or(Time(u64::MAX))
    }

    /// Asks for what may be under way and is not.
    pub(super) fn ask(&mut self, now: Time, steps: &mut Vec<FetchStep>) {
        let window = if self.open {
            (BYTES_INFLIGHT_MAX / self.piece_bytes.max(1)).clamp(1, PIECES_INFLIGHT_MAX as usize) as u64
        } else {
            1
        };
        for piece in self.handed..self.have.pieces + window {
            if self.end.is_some_and(|end| piece > end) {
                return;
            }
            if !self.asked.contains_key(&piece) && !self.early.contains_key(&piece) {
                let again = now.after(self.wait(1));
                self.asked.insert(piece, Asked { first: now, again, times: 1 });
                steps.push(FetchStep::Pull { from: self.sources[self.current].node, piece });
            }
        }
    }

    pub(super) fn arrived(
        &mut self,
        now: Time,
        from: NodeId,
        after: SnapshotPrefix,
        body: Bytes,
        last: bool,
        steps: &mut Vec<FetchStep>,
    ) {
        let Some(source) = self.sources.iter().position(|source| source.node == from) else { return };
        if source != self.current {
            // One that was left answers after all, before the one that it was left for.
            if self.open || body.is_empty() || !self.asked.contains_key(&after.pieces) {
                return;
            }
            self.current = source;
            self.sources[source].standing = Standing::Fresh;
        }
        let silence = now.since(std::mem::replace(&mut self.heard, now));
        if body.is_empty() {
            // Of what is here, not of what was when an earlier question was underway.
            if last && after == self.have {
                self.leave(now, Standing::Refused, steps);
            }
            return;
        }
        let piece = after.pieces;
        let Some(asked) = self.asked.remove(&piece) else { return };
        self.latency = (self.latency * 3 + now.since(asked.first)) / 4;
        self.pace = (self.pace * 3 + silence) / 4;
        self.piece_bytes = self.piece_bytes.max(body.len());
        if !self.open {
            self.open = true;
            self.hope = None;
            if self.have.pieces > 0 {
                steps.push(FetchStep::Resumed);
            }
        }
        if last {
            self.end = Some(piece);
            self.asked.retain(|asked, _| *asked < piece);
        }
        self.early.insert(piece, Piece { after, body, last });
        while let Some(Piece { after, body, last }) = self.early.remove(&self.handed) {
            self.handed += 1;
            self.bytes += body.len() as u64;
            steps.push(FetchStep::Store { after, body, last });
        }
        self.ask(now, steps);
    }

    /// A piece was stored.
    pub(super) fn stored(&mut self, now: Time, have: SnapshotPrefix, steps: &mut Vec<FetchStep>) {
        self.have = have;
        self.handed = self.handed.max(have.pieces);
        (self.progressed, self.heard) = (now, now);
        self.ask(now, steps);
    }

    /// A piece did not continue what is stored: it, and what came after it, are asked for again in a while.
    pub(super) fn strange(&mut self, now: Time, piece: u64) {
        if piece >= self.handed {
            return;
        }
        self.handed = self.have.pieces;
        self.end = None;
        self.early.clear();
        self.asked.clear();
        self.asked.insert(self.handed, Asked { first: now, again: now.after(self.timeout), times: 0 });
    }

    pub(super) fn tick(&mut self, now: Time, steps: &mut Vec<FetchStep>) {
        if !self.is_storing() {
            if now >= self.standstill_ends() {
                return steps.push(FetchStep::GiveUp);
            }
            if now >= self.patience_ends() {
                return self.leave(now, Standing::Silent, steps);
            }
        }
        let from = self.sources[self.current].node;
        let due: Vec<u64> =
            self.asked.iter().filter(|(_, a)| a.again <= now).map(|(piece, _)| *piece).collect();
        for piece in due {
            let times = self.asked.get(&piece).map_or(0, |asked| asked.times) + 1;
            let again = now.after(self.wait(times));
            self.asked.entry(piece).and_modify(|asked| (asked.again, asked.times) = (again, times));
            steps.push(FetchStep::Pull { from, piece });
        }
    }

    /// Others can serve too.
    pub(super) fn offered(&mut self, at_least: Slot, sources: &[NodeId]) {
        self.at_least = self.at_least.max(at_least);
        self.prefer(sources);
    }

    /// It was given up, and the core asks for it again: these sources first, then those that it had.
    pub(super) fn resume(
        &mut self,
        now: Time,
        at_least: Slot,
        sources: &[NodeId],
        steps: &mut Vec<FetchStep>,
    ) {
        self.offered(at_least, sources);
        for source in &mut self.sources {
            source.standing = Standing::Fresh;
        }
        (self.progressed, self.hope) = (now, None);
        self.turn_to(0, now, steps);
    }

    /// These are asked before others that are not asked now: who offers last lives, and has what the core asks for.
    fn prefer(&mut self, nodes: &[NodeId]) {
        let current = self.sources.get(self.current).map(|source| source.node);
        let mut known = std::mem::take(&mut self.sources);
        known.retain(|source| !nodes.contains(&source.node));
        for &node in nodes {
            if !self.sources.iter().any(|source| source.node == node) {
                self.sources.push(Source { node, standing: Standing::Fresh });
            }
        }
        self.sources.append(&mut known);
        while self.sources.len() > SOURCES_MAX
            && let Some(last) = self.sources.iter().rposition(|source| Some(source.node) != current)
        {
            self.sources.remove(last);
        }
        self.current = self.sources.iter().position(|source| Some(source.node) == current).unwrap_or(0);
    }

    /// The present source fails: on to another, or to the end.
    fn leave(&mut self, now: Time, standing: Standing, steps: &mut Vec<FetchStep>) {
        self.sources[self.current].standing = standing;
        if let Some(next) = self.with(Standing::Fresh) {
            return self.turn_to(next, now, steps);
        }
        if self.handed == 0 {
            return steps.push(FetchStep::GiveUp);
        }
        if self.with(Standing::Refused).is_some() {
            let worth = Duration::from_millis(self.bytes.saturating_mul(1_000) / WORTH_A_SECOND_BYTES);
            let hope = *self.hope.get_or_insert(now.after(worth.min(self.timeout * STANDSTILL_MAX)));
            if now >= hope || self.with(Standing::Silent).is_none() {
                let standing = |silent| {
                    let of = |source: &&Source| (source.standing == Standing::Silent) == silent;
                    self.sources.iter().filter(of).map(|source| source.node).collect::<Vec<_>>()
                };
                let sources = [standing(false), standing(true)].concat();
                return steps.push(FetchStep::Anew { sources });
            }
        }
        for source in &mut self.sources {
            if source.standing == Standing::Silent {
                source.standing = Standing::Fresh;
            }
        }
        if let Some(next) = self.with(Standing::Fresh) {
            self.turn_to(next, now, steps);
        }
    }

    fn with(&self, standing: Standing) -> Option<usize> {
        self.sources.iter().position(|source| source.standing == standing)
    }

    fn turn_to(&mut self, source: usize, now: Time, steps: &mut Vec<FetchStep>) {
        (self.current, self.open, self.heard) = (source, false, now);
        self.end = self.end.filter(|end| *end < self.handed);
        self.early.clear();
        self.asked.clear();
        self.ask(now, steps);
    }

    fn is_storing(&self) -> bool {
        self.handed > self.have.pieces
    }

    fn patience_ends(&self) -> Time {
        let timeouts = if self.sources.len() == 1 { SILENCE_MAX } else { PATIENCE };
        let ends = self.heard.after((self.timeout * timeouts).max(self.pace * 2));
        // Who offers again when it is over is asked as anyone is.
        self.hope.filter(|hope| *hope > self.heard).map_or(ends, |hope| ends.min(hope))
    }

    fn standstill_ends(&self) -> Time {
        self.progressed.after(self.timeout * STANDSTILL_MAX)
    }

    /// How long a piece is waited for that was asked for so many times.
    fn wait(&self, times: u32) -> Duration {
        let factor = 2_u32.saturating_pow(times - 1).min(BACKOFF_MAX);
        (self.timeout.max(self.latency * 2) * factor).min(self.timeout * (2 * BACKOFF_MAX))
    }
}
