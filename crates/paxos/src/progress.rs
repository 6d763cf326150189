//! What a leader knows of one follower, and how much it may send it.
//!
//! ```text
//!          answers a beat                  log no longer holds what it lacks
//!  Probe ────────────────▶ Replicate ───────────────────────────────────────▶ Snapshot
//!                              ▲                                                 │
//!                              └─────── holds what the log can follow on ────────┘
//! ```

use std::collections::VecDeque;

use conclave_consensus::{LogReadId, Slot, Time};

/// Runs beyond the first gap that are remembered of a follower; what else it holds is sent again.
const RUNS_MAX: usize = 64;

/// How entries go to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is not known what it holds: it is asked by beats.
    Probe,
    /// Many messages are under way.
    Replicate,
    /// What it needs is gone from the log: it fetches a snapshot.
    Snapshot,
}

#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) mode: Mode,
    /// Each slot up to here is durable there: accepted in our ballot, or known chosen.
    pub(crate) matched: Slot,
    /// Runs beyond, accepted in our ballot, in order and apart.
    above: Vec<(Slot, Slot)>,
    /// The next slot to send.
    pub(crate) next: Slot,
    /// The chosen slot it was told last.
    pub(crate) told: Slot,
    /// What it says to know to be chosen: it remembers a configuration that came in force by it.
    pub(crate) knows: Slot,
    /// When it was last heard in this ballot.
    pub(crate) heard: Time,
    /// The last round it answered.
    pub(crate) round: u64,
    /// When the last beat left that it answered: from then on it promises nothing to another ([`crate::lease`]).
    pub(crate) vouches_from: Option<Time>,
    /// It answered in this ballot as a follower: while it hears the leader it promises nothing to another.
    pub(crate) follows: bool,
    /// It promised a higher ballot.
    pub(crate) refused: bool,
    /// Who should lead, as it says itself.
    pub(crate) priority: u8,
    /// It is to say what it holds durably, although there is nothing to send.
    pub(crate) poke: bool,
    /// At the last beat an acknowledgement was awaited, and none has come since.
    pub(crate) overdue: bool,
    /// What was known to be matched at the last beat: an answer with less is of a replica that booted since.
    expected: Slot,
    /// A read of the log for it, and the slot it began at.
    pub(crate) read: Option<(LogReadId, Slot)>,
    /// Where the log began when the follower was sent for a snapshot: from there on it is kept, or a snapshot on its way would be out of
    /// date when it arrives, and the next one too.
    pub(crate) awaits: Slot,
    /// The first and the last slot, and the bytes, of each message that is not acknowledged.
    inflight: VecDeque<(Slot, Slot, usize)>,
    inflight_bytes: usize,
}

impl Peer {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            mode: Mode::Probe,
            matched: Slot(0),
            above: Vec::new(),
            next: Slot(1),
            told: Slot(0),
            knows: Slot(0),
            heard: now,
            round: 0,
            vouches_from: None,
            follows: false,
            refused: false,
            priority: 0,
            poke: false,
            overdue: false,
            expected: Slot(0),
            read: None,
            awaits: Slot(0),
            inflight: VecDeque::new(),
            inflight_bytes: 0,
        }
    }

    pub(crate) fn may_send(&self, messages_max: usize, bytes_max: usize) -> bool {
        self.mode == Mode::Replicate && self.inflight.len() < messages_max && self.inflight_bytes < bytes_max
    }

    /// Entries up to `last` were sent.
    pub(crate) fn sent(&mut self, last: Slot, bytes: usize) {
        self.inflight.push_back((self.next, last, bytes));
        self.inflight_bytes += bytes;
        (self.next, self.poke) = (last.next(), false);
    }

    /// The last slot of an unbroken run of accepted ones that begins at `from`; the one before it if it is not accepted.
    pub(crate) fn covers(&self, from: Slot) -> Slot {
        if self.matched >= from {
            return self.matched;
        }
        let run = self.above.iter().find(|(first, last)| *first <= from && from <= *last);
        run.map_or(from.before(), |(_, last)| *last)
    }

    /// It holds everything up to `upto`, and those runs; the log can follow on `floor`. Says whether that is news.
    pub(crate) fn accepted(
        &mut self,
        upto: Slot,
        runs: impl Iterator<Item = (Slot, Slot)>,
        floor: Slot,
    ) -> bool {
        let mut news = upto > self.matched;
        self.overdue = false;
        self.matched = self.matched.max(upto);
        for (first, last) in runs {
            news |= self.note_run(first, last);
        }
        self.absorb();
        let (matched, above) = (self.matched, &self.above);
        let is_there = |first: Slot, last: Slot| {
            last <= matched || above.iter().any(|(begin, end)| *begin <= first && last <= *end)
        };
        while let Some((_, _, bytes)) = self.inflight.pop_front_if(|(first, last, _)| is_there(*first, *last))
        {
            self.inflight_bytes -= bytes;
        }
        if self.mode != Mode::Replicate && self.matched >= floor {
            self.enter(Mode::Replicate);
            self.next = self.matched.next();
        }
        self.next = self.next.max(self.matched.next());
        news
    }

    /// A beat is sent to it.
    pub(crate) fn beaten(&mut self) {
        self.overdue = self.next > self.matched.next();
        self.expected = self.matched;
    }

    /// How far it says that it accepted in our ballot, or knows what is chosen; perhaps not yet durably.
    pub(crate) fn says_received(&mut self, received: Slot) {
        match self.mode {
            // Where sending begins. That it is durable has to be said too.
            Mode::Probe => {
                self.enter(Mode::Replicate);
                self.next = received.max(self.matched).next();
                self.poke = received > self.matched;
            }
            // After a boot it holds what it acknowledged but may not know that this was chosen: it is told again.
            Mode::Replicate if received < self.expected => {
                (self.matched, self.expected) = (received, received);
                self.above.clear();
                self.send_from(received.next());
            }
            Mode::Replicate if self.overdue => {
                self.overdue = false;
                if received.next() < self.next {
                    self.send_from(received.max(self.matched).next());
                } else {
                    self.poke = true; // All arrived, and the word that it is durable has not.
                }
            }
            Mode::Replicate | Mode::Snapshot => {}
        }
    }

    fn send_from(&mut self, next: Slot) {
        self.enter(Mode::Replicate);
        self.next = next;
    }

    fn note_run(&mut self, first: Slot, last: Slot) -> bool {
        if last <= self.matched || self.above.iter().any(|(begin, end)| *begin <= first && last <= *end) {
            return false;
        }
        let (mut first, mut last) = (first, last);
        self.above.retain(|(begin, end)| {
            let touches = *begin <= last.next() && first <= end.next();
            if touches {
                (first, last) = (first.min(*begin), last.max(*end));
            }
            !touches
        });
        let place = self.above.partition_point(|(begin, _)| *begin < first);
        self.above.insert(place, (first, last));
        self.above.truncate(RUNS_MAX);
        true
    }

    fn absorb(&mut self) {
        while let Some((first, last)) = self.above.first().copied() {
            if first > self.matched.next() {
                return;
            }
            self.matched = self.matched.max(last);
            self.above.remove(0);
        }
    }

    /// The lowest slot that the follower may still ask for of a log that begins at `first`.
    pub(crate) fn needs(&self, first: Slot) -> Slot {
        match self.mode {
            // What it awaits may be gone, if it took longer than the log is kept for anyone.
            Mode::Snapshot => self.awaits.max(first),
            Mode::Probe | Mode::Replicate => self.matched.next(),
        }
    }

    /// It is sent for a snapshot; the log begins at `first`.
    pub(crate) fn await_snapshot(&mut self, first: Slot) {
        self.enter(Mode::Snapshot);
        self.awaits = first;
    }

    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.read = None;
        self.inflight.clear();
        self.inflight_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        let mut peer = Peer::new(Time(0));
        peer.says_received(Slot(0));
        peer
    }

    #[test]
    fn inflight_is_bounded_in_messages_and_in_bytes() {
        let mut peer = peer();
        peer.sent(Slot(4), 100);
        peer.sent(Slot(8), 100);
        assert!(!peer.may_send(2, 1_000) && !peer.may_send(9, 200) && peer.may_send(3, 201));
        assert!(peer.accepted(Slot(4), std::iter::empty(), Slot(0)));
        assert!(peer.may_send(2, 1_000));
        assert_eq!((peer.matched, peer.next), (Slot(4), Slot(9)));
    }

    #[test]
    fn runs_beyond_a_gap_count_and_join() {
        let mut peer = peer();
        peer.sent(Slot(9), 1);
        assert!(peer.accepted(Slot(1), [(Slot(4), Slot(5)), (Slot(8), Slot(9))].into_iter(), Slot(0)));
        assert_eq!([1, 2, 3, 4, 5, 6, 8].map(|slot| peer.covers(Slot(slot)).0), [1, 1, 2, 5, 5, 5, 9]);
        assert!(!peer.accepted(Slot(0), [(Slot(4), Slot(4))].into_iter(), Slot(0)), "no news");
        assert!(peer.accepted(Slot(2), [(Slot(3), Slot(3))].into_iter(), Slot(0)));
        assert_eq!((peer.matched, peer.covers(Slot(8))), (Slot(5), Slot(9)));
        assert!(peer.accepted(Slot(7), std::iter::empty(), Slot(0)));
        assert_eq!(peer.matched, Slot(9));
    }

    #[test]
    fn a_message_is_acknowledged_when_all_of_it_is() {
        let mut peer = peer();
        peer.sent(Slot(3), 100);
        peer.accepted(Slot(0), [(Slot(3), Slot(3))].into_iter(), Slot(0));
        assert!(!peer.may_send(1, 1_000), "it may be of an earlier sending");
        peer.accepted(Slot(2), std::iter::empty(), Slot(0));
        assert!(peer.may_send(1, 1_000));
    }

    #[test]
    fn what_did_not_arrive_is_sent_again_and_what_did_is_asked_after() {
        let mut peer = peer();
        peer.sent(Slot(4), 100);
        peer.sent(Slot(8), 100);
        peer.accepted(Slot(4), std::iter::empty(), Slot(0));
        peer.says_received(Slot(4));
        assert_eq!(peer.next, Slot(9), "it may be on its way");
        peer.beaten();
        peer.says_received(Slot(8));
        assert!(peer.next == Slot(9) && peer.poke);
        peer.beaten();
        peer.says_received(Slot(5));
        assert_eq!(peer.next, Slot(6));
        peer.accepted(Slot(8), std::iter::empty(), Slot(0));
        peer.beaten();
        peer.says_received(Slot(8));
        assert!((peer.matched, peer.next, peer.overdue) == (Slot(8), Slot(9), false));
        peer.says_received(Slot(3));
        assert_eq!((peer.matched, peer.next), (Slot(3), Slot(4)), "it booted, and knows less");
    }

    #[test]
    fn a_follower_leaves_the_snapshot_only_where_the_log_can_follow_on() {
        let mut peer = peer();
        peer.await_snapshot(Slot(10));
        assert_eq!((peer.needs(Slot(10)), peer.needs(Slot(12))), (Slot(10), Slot(12)));
        peer.accepted(Slot(3), std::iter::empty(), Slot(9));
        assert_eq!(peer.mode, Mode::Snapshot);
        peer.accepted(Slot(9), std::iter::empty(), Slot(9));
        assert_eq!((peer.mode, peer.next), (Mode::Replicate, Slot(10)));
    }
}
