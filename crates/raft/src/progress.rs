//! What a leader knows of one follower, and how much it may send it.
//!
//! ```text
//!            accepted                      log no longer holds it
//!  Probe ───────────────▶ Replicate ─────────────────────────────▶ Snapshot
//!    ▲  ◀───────────────                                               │
//!    │       rejected                                                  │
//!    └──────────────── accepted at or above the cut ───────────────────┘  (to Replicate)
//! ```

use std::collections::VecDeque;

use conclave_consensus::{Ballot, LogReadId, Slot, Time};

/// How entries go to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is not known where its log leaves ours: one message at a time.
    Probe {
        /// One is under way; the next beat's answer allows another.
        paused: bool,
    },
    /// Optimistic: many messages are under way.
    Replicate,
    /// What it needs is gone from the log: it fetches a snapshot.
    Snapshot,
}

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) mode: Mode,
    /// Durable there and equal to our log up to here.
    pub(crate) matched: Slot,
    /// The next slot to send.
    pub(crate) next: Slot,
    /// The commit slot it was told last.
    pub(crate) told: Slot,
    /// When it was last heard in this term.
    pub(crate) heard: Time,
    /// The last confirmation round it answered.
    pub(crate) round: u64,
    /// When the last beat left that it answered with a promise: from then on it votes for nobody else ([`crate::lease`]).
    pub(crate) vouches_from: Option<Time>,
    /// The round in answer to which it said that it sleeps ([`crate::quiescence`]).
    pub(crate) sleeps_since: Option<u64>,
    /// Who should lead, as it says itself.
    pub(crate) priority: u8,
    /// Send something even if there is nothing new: an acknowledgement is overdue.
    pub(crate) poke: bool,
    /// At the last beat an acknowledgement was awaited, and none has come since.
    pub(crate) overdue: bool,
    /// A read of the log for it, and the slot it began at.
    pub(crate) read: Option<(LogReadId, Slot)>,
    /// Where the log began when the follower was sent for a snapshot: from there on it is kept, or a snapshot on its way would be out of
    /// date when it arrives, and the next one too.
    pub(crate) awaits: Slot,
    /// The ballot of a slot that is no longer in memory.
    pub(crate) known: Option<(Slot, Ballot)>,
    /// The last slot and the bytes of each message that is not acknowledged.
    inflight: VecDeque<(Slot, usize)>,
    inflight_bytes: usize,
}

impl Peer {
    pub(crate) fn new(next: Slot, now: Time) -> Self {
        Self {
            mode: Mode::Probe { paused: false },
            matched: Slot(0),
            next,
            told: Slot(0),
            heard: now,
            round: 0,
            vouches_from: None,
            sleeps_since: None,
            priority: 0,
            poke: false,
            overdue: false,
            read: None,
            awaits: Slot(0),
            known: None,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    pub(crate) fn may_send(&self, messages_max: usize, bytes_max: usize) -> bool {
        match self.mode {
            Mode::Probe { paused } => !paused,
            Mode::Replicate => self.inflight.len() < messages_max && self.inflight_bytes < bytes_max,
            Mode::Snapshot => false,
        }
    }

    pub(crate) fn awaits_acknowledgement(&self) -> bool {
        !self.inflight.is_empty()
    }

    /// Entries up to `last` were sent.
    pub(crate) fn sent(&mut self, last: Slot, bytes: usize) {
        self.poke = false;
        match &mut self.mode {
            Mode::Probe { paused } => *paused = true,
            Mode::Replicate if last >= self.next => {
                self.inflight.push_back((last, bytes));
                self.inflight_bytes += bytes;
                self.next = last.next();
            }
            Mode::Replicate | Mode::Snapshot => {}
        }
    }

    /// It holds everything up to `matched`; the log can follow on `floor`, which is asked for where it matters. Says whether that is news.
    pub(crate) fn accepted(&mut self, matched: Slot, floor: impl FnOnce() -> Slot) -> bool {
        let news = matched > self.matched;
        self.overdue = false;
        self.matched = self.matched.max(matched);
        while let Some((_, bytes)) = self.inflight.pop_front_if(|(last, _)| *last <= matched) {
            self.inflight_bytes -= bytes;
        }
        match self.mode {
            Mode::Replicate => self.next = self.next.max(self.matched.next()),
            Mode::Snapshot if self.matched < floor() => {}
            Mode::Probe { .. } | Mode::Snapshot => {
                self.enter(Mode::Replicate);
                self.next = self.matched.next();
            }
        }
        news
    }

    /// It does not hold `slot` as we do. Says whether that is news, so that the caller finds the next slot to try.
    pub(crate) fn is_news(&self, rejected: Slot) -> bool {
        match self.mode {
            Mode::Probe { .. } => rejected == self.next.before(),
            Mode::Replicate => rejected > self.matched && rejected < self.next,
            Mode::Snapshot => false,
        }
    }

    pub(crate) fn probe_from(&mut self, next: Slot) {
        self.enter(Mode::Probe { paused: false });
        self.next = next.max(self.matched.next());
    }

    /// The lowest slot that the follower may still ask for of a log that begins at `first`.
    pub(crate) fn needs(&self, first: Slot) -> Slot {
        match self.mode {
            // What it awaits may be gone, if it took longer than the log is kept for anyone.
            Mode::Snapshot => self.awaits.max(first),
            Mode::Probe { .. } | Mode::Replicate => self.matched.next(),
        }
    }

    /// It is sent for a snapshot; the log begins at `first`.
    pub(crate) fn await_snapshot(&mut self, first: Slot) {
        self.enter(Mode::Snapshot);
        self.awaits = first;
    }

    pub(crate) fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.read = None;
        self.inflight.clear();
        self.inflight_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inflight_is_bounded_in_messages_and_in_bytes() {
        let mut peer = Peer::new(Slot(1), Time(0));
        assert!(peer.accepted(Slot(0), || Slot(0)) || peer.mode == Mode::Replicate);
        peer.sent(Slot(4), 100);
        peer.sent(Slot(8), 100);
        assert!(!peer.may_send(2, 1_000) && !peer.may_send(9, 200) && peer.may_send(3, 201));
        peer.accepted(Slot(4), || Slot(0));
        assert!(peer.may_send(2, 1_000));
        assert_eq!((peer.matched, peer.next), (Slot(4), Slot(9)));
    }

    #[test]
    fn late_rejections_are_no_news() {
        let mut peer = Peer::new(Slot(5), Time(0));
        assert!(peer.is_news(Slot(4)) && !peer.is_news(Slot(3)));
        peer.accepted(Slot(4), || Slot(0));
        assert!(!peer.is_news(Slot(4)));
    }

    #[test]
    fn a_follower_leaves_the_snapshot_only_where_the_log_can_follow_on() {
        let mut peer = Peer::new(Slot(5), Time(0));
        peer.await_snapshot(Slot(10));
        assert_eq!((peer.needs(Slot(10)), peer.needs(Slot(12))), (Slot(10), Slot(12)));
        peer.accepted(Slot(3), || Slot(9));
        assert_eq!(peer.mode, Mode::Snapshot);
        peer.accepted(Slot(9), || Slot(9));
        assert_eq!((peer.mode, peer.next), (Mode::Replicate, Slot(10)));
    }
}
