//! Reads under a lease (Ongaro's thesis, section 6.4.1; *Paxos Made Live*, section 5.2): no message at all, where clocks can be trusted so far.
//!
//! # The promise
//! Who answers a beat promises to promise no other replica a ballot for a span from then on, unless the leader itself asks it to
//! ([`crate::transfer`]). The span is the *leader's* election timeout, which its beats carry; a replica keeps to it whatever its own is. So if
//! replicas that meet every elect quorum answered beats that left at *t* or later, nobody else is elected before the shortest of
//! their spans is over, and until then nothing is chosen that this leader does not know of.
//!
//! # The clocks
//! The leader counts from the *sending* of a beat, on its own clock; a follower from its arrival, on its own. With clocks whose rates are
//! within *d* of the true one, a span *E* takes a follower at least *E* / (1 + *d*), and the leader sees (1 − *d*) of
//! that at least. So the lease lasts *E* (1 − *d*) / (1 + *d*). `RaftConfig::lease_drift_ppm` is *d*: the operator's word, and
//! beyond it reads may be stale (and nothing else breaks).
//!
//! # Invariants
//! 1. A lease is used only while the leader serves, and hands leadership to nobody.
//! 2. Once it told an heir to stand, it holds no lease for the rest of its ballot: the heir may stand at any time after, since the message may
//!    be late, and who promises it need not wait.
//! 3. A promise longer than any before is durable before it is made. A booted replica keeps the longest it may have made, counted
//!    from its boot.
//! 4. A promise binds whatever ballot the replica enters meanwhile, and it binds a sole voter too: it may have become that by a change
//!    of membership its former leader made. Accepting in the ballot of a leader that was elected all the same is not against it: some of those who elected
//!    it had promised the same, and waited.
//! 5. A lease ends with the configuration it was held in: the leader that learns that its stop is chosen leads no more, and nobody else can know
//!    that before unless it was elected.
//! 6. A replica that stands has waited until its promises were over (or was told to stand): it starts with none.

use std::{collections::VecDeque, time::Duration};

use conclave_consensus::Time;

use crate::core::{Paxos, Role};

/// Beats whose sending time is kept; an answer to an older one extends nothing.
const SENT_MAX: usize = 64;

/// A leader's side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    /// When the beats of these rounds left, in order.
    sent: VecDeque<(u64, Time)>,
    /// An heir was told to stand.
    barred: bool,
}

impl Lease {
    /// When the last beat left that an answer to `round` vouches for: a later round was sent later.
    pub(crate) fn sent_by(&self, round: u64) -> Option<Time> {
        self.sent.iter().rev().find(|(number, _)| *number <= round).map(|(_, at)| *at)
    }

    pub(crate) fn bar(&mut self) {
        self.barred = true;
        self.sent.clear();
    }

    pub(crate) fn note(&mut self, round: u64, at: Time) {
        if self.sent.len() >= SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((round, at));
    }
}

impl Paxos {
    /// What a beat asks for; zero if the leader keeps no lease.
    pub(crate) fn lease_asked(&self) -> Duration {
        if self.config.lease_drift_ppm.is_some() { self.config.timing.election } else { Duration::ZERO }
    }

    /// A leader asks for a promise. The answer waits for what is written here.
    pub(crate) fn promise_to_lease(&mut self, asked: Duration) {
        let longer = asked > self.meta.lease;
        // A shorter one counts only when the last of the longer ones is over.
        if longer || (asked < self.meta.lease && self.now >= self.promised_until) {
            self.meta.lease = asked;
            self.write_meta();
        }
        if asked >= self.meta.lease {
            self.promised_until = self.promised_until.max(self.now.after(asked));
        }
    }

    /// Whether nobody else can have been elected up to this moment.
    pub(crate) fn holds_lease(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let Some(span) = self.config.lease_span() else { return false };
        #[cfg(feature = "mutants")]
        let span =
            if conclave_consensus::Mutant::LeaseIgnoresDrift.is_on() { self.lease_asked() } else { span };
        let handed_over = leader.lease.barred || leader.transfer.is_some();
        #[cfg(feature = "mutants")]
        let handed_over = handed_over && !conclave_consensus::Mutant::LeaseKeptInTransfer.is_on();
        if handed_over || !self.is_serving() {
            return false;
        }
        let since = self.members.config().heard_since(|replica| {
            if replica == self.id { Some(self.now) } else { leader.peers.get(&replica)?.vouches_from }
        });
        since.is_some_and(|since| self.now < since.after(span))
    }
}
