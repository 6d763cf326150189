//! When leases run out, as their leader finds: a value that is stepped with the time and decides nothing by itself.
//!
//! A lease ends when a command of its leader's is applied ([`command::expire_leases`](crate::command::expire_leases)). Renewals cost the log
//! nothing: the leader alone keeps the deadlines, in memory.
//!
//! # Vocabulary
//! A lease is *due* when its deadline has passed, and *expiring* once its end was proposed. The *checkpoint* of a lease is what the log knows of the
//! time it has left.
//!
//! # Invariants
//! 1. Never early: while its leader leads, a lease ends no sooner than its time after the last renewal that was answered. A new leader begins with all
//!    of its time, or what its checkpoint left of it, plus [`new`](Lessor::new)'s `extension`: what the leader before it answered was answered before.
//! 2. A lease that is expiring is not renewed: whoever asks waits until it is gone, or until it is certain that the decision came to nothing.
//! 3. A lease whose checkpoint may be less than all of its time is renewed only after the log has forgotten the checkpoint. Else the next leader would
//!    take the checkpoint for what is left after the renewal.
//! 4. A deadline is an entry of an ordered set: nothing is scanned, however many leases there are.
//!
//! # How to drive it
//! Made by a leader for its ballot, once it serves and has applied what the leaders before it proposed: then none of their decisions is under way. Dropped
//! with the ballot. It hears of grants and ends as they are applied ([`changed`](Lessor::changed)). Before a renewal, and before an expiry is
//! proposed, leadership is confirmed by a round that began after the request arrived, or the deadline passed: time is read after that.
//!
//! ```text
//!            grant                  deadline              expiring()             Ended
//! (nothing) ──────► held ─────────────────────► due ───────────────► expiring ─────────► (nothing)
//!                    ▲        renew()            │                       │
//!                    └───────────────────────────┘◄──────────────────────┘ not_expired(), unless in doubt
//! ```
//! Commands about checkpoints and ends are proposed one after the other, each only in the lessor's ballot, so that the log has them in this order.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use conclave_consensus::Time;

use crate::leases::{Granted, LeaseChange, LeaseInfo};

/// How often the log is told how long a lease has left; shorter leases are never checkpointed.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(5 * 60);

/// The answer to who renews a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It has all of its time again.
    Renewed {
        /// Which that is, in seconds.
        ttl_seconds: i64,
    },
    /// There is no such lease.
    Unknown,
    /// It cannot be said yet: the lease may be about to end, or its checkpoint has to be forgotten first. To be asked again in a moment.
    Later,
}

#[derive(Debug)]
struct Held {
    granted: Granted,
    ttl_seconds: i64,
    deadline: Time,
    /// Where [`Lessor::deadlines`] has it: at its deadline, or when an end that was proposed is to be proposed again.
    at: Time,
    expiring: bool,
    /// Whether an end was proposed of which nobody knows what became.
    in_doubt: bool,
    /// Whether the log may know of less than all of its time.
    checkpointed: bool,
    /// Where [`Lessor::checkpoints`] has it.
    checkpoint_at: Option<Time>,
}

/// The deadlines of all leases, under one leader.
#[derive(Debug, Default)]
pub struct Lessor {
    leases: BTreeMap<i64, Held>,
    deadlines: BTreeSet<(Time, i64)>,
    checkpoints: BTreeSet<(Time, i64)>,
    /// Leases whose renewal waits until their checkpoints are forgotten.
    wanted: BTreeSet<i64>,
}

impl Lessor {
    /// Takes over all leases. `extension`, of at least an election timeout, makes up for what no one but their last leader knew.
    #[must_use]
    pub fn new(now: Time, extension: Duration, leases: &[LeaseInfo]) -> Self {
        let mut lessor = Self::default();
        for lease in leases {
            let left = if lease.remaining_seconds > 0 { lease.remaining_seconds } else { lease.ttl_seconds };
            lessor.insert(now, *lease, now.after(seconds(left)).after(extension));
        }
        lessor
    }

    fn insert(&mut self, now: Time, lease: LeaseInfo, deadline: Time) {
        let LeaseInfo { granted, ttl_seconds, remaining_seconds } = lease;
        let is_long = seconds(ttl_seconds) > CHECKPOINT_EVERY;
        let held = Held {
            granted,
            ttl_seconds,
            deadline,
            at: deadline,
            expiring: false,
            in_doubt: false,
            checkpointed: remaining_seconds > 0,
            checkpoint_at: is_long.then(|| now.after(CHECKPOINT_EVERY)),
        };
        self.deadlines.insert((held.at, granted.id));
        self.checkpoints.extend(held.checkpoint_at.map(|at| (at, granted.id)));
        self.leases.insert(granted.id, held);
    }

    /// A lease was granted, or has ended, as applied here. May be told twice.
    pub fn changed(&mut self, now: Time, change: &LeaseChange) {
        match change {
            LeaseChange::Granted(lease) => {
                let known = self.leases.get(&lease.granted.id).map(|held| held.granted);
                if known.is_none_or(|known| known.slot < lease.granted.slot) {
                    self.remove(lease.granted.id);
                    self.insert(now, *lease, now.after(seconds(lease.ttl_seconds)));
                }
            }
            LeaseChange::Ended(granted) => {
                if self.leases.get(&granted.id).is_some_and(|held| held.granted == *granted) {
                    self.remove(granted.id);
                }
            }
        }
    }

    fn remove(&mut self, id: i64) {
        if let Some(held) = self.leases.remove(&id) {
            self.deadlines.remove(&(held.at, id));
            if let Some(at) = held.checkpoint_at {
                self.checkpoints.remove(&(at, id));
            }
            self.wanted.remove(&id);
        }
    }

    /// Gives a lease all of its time again. Leadership was confirmed after the request arrived, and `now` was read after that.
    pub fn renew(&mut self, now: Time, id: i64) -> Renewal {
        let Some(held) = self.leases.get_mut(&id) else { return Renewal::Unknown };
        if held.expiring {
            return Renewal::Later;
        }
        if held.checkpointed {
            self.wanted.insert(id);
            return Renewal::Later;
        }
        self.deadlines.remove(&(held.at, id));
        held.deadline = held.deadline.max(now.after(seconds(held.ttl_seconds)));
        held.at = held.deadline;
        self.deadlines.insert((held.at, id));
        if let Some(at) = held.checkpoint_at {
            self.checkpoints.remove(&(at, id));
            let at = now.after(CHECKPOINT_EVERY);
            held.checkpoint_at = Some(at);
            self.checkpoints.insert((at, id));
        }
        Renewal::Renewed { ttl_seconds: held.ttl_seconds }
    }

    /// How many whole seconds a lease has left; none are left to one that is due.
    #[must_use]
    pub fn left_seconds(&self, now: Time, id: i64) -> Option<i64> {
        let held = self.leases.get(&id)?;
        let left = i64::try_from(held.deadline.since(now).as_secs()).unwrap_or(i64::MAX);
        Some(left.min(held.ttl_seconds))
    }

    /// When there is something to be done: a lease is due, or a checkpoint.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        if !self.wanted.is_empty() {
            return Some(Time(0));
        }
        [self.deadlines.first(), self.checkpoints.first()].into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// At most `leases_max` leases that are due, those that have been for longest first.
    #[must_use]
    pub fn due(&self, now: Time, leases_max: usize) -> Vec<Granted> {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now).take(leases_max);
        due.filter_map(|(_, id)| self.leases.get(id)).map(|held| held.granted).collect()
    }

    /// The end of these leases is about to be proposed: they are not renewed any more. Unless they end until `again`, they are due anew.
    pub fn expiring(&mut self, leases: &[Granted], again: Time) {
        self.put_off(leases, |held| {
            held.expiring = true;
            again
        });
    }

    /// It is certain that the end of these leases, as proposed last, was not chosen and never will be: they may be renewed, unless another that was
    /// proposed before still may be.
    pub fn not_expired(&mut self, leases: &[Granted]) {
        self.put_off(leases, |held| {
            held.expiring = held.in_doubt;
            if held.in_doubt { held.at } else { held.deadline }
        });
    }

    /// Nobody knows whether the end of these leases will be chosen.
    pub fn in_doubt(&mut self, leases: &[Granted]) {
        self.put_off(leases, |held| {
            held.in_doubt = true;
            held.at
        });
    }

    fn put_off(&mut self, leases: &[Granted], until: impl Fn(&mut Held) -> Time) {
        for granted in leases {
            if let Some(held) = self.leases.get_mut(&granted.id).filter(|held| held.granted == *granted) {
                self.deadlines.remove(&(held.at, granted.id));
                held.at = until(held);
                self.deadlines.insert((held.at, granted.id));
            }
        }
    }

    /// What the log is to be told of how long leases have left, in seconds, 0 for all of their time: of at most `leases_max`, those first that
    /// somebody waits for.
    pub fn checkpoints_due(&mut self, now: Time, leases_max: usize) -> Vec<(Granted, i64)> {
        let mut told = Vec::new();
        while told.len() < leases_max
            && let Some(id) = self.wanted.pop_first()
        {
            told.extend(self.leases.get(&id).map(|held| (held.granted, 0)));
        }
        while told.len() < leases_max
            && let Some(id) = pop_due(&mut self.checkpoints, now)
        {
            let Some(held) = self.leases.get_mut(&id) else { continue };
            let at = now.after(CHECKPOINT_EVERY);
            held.checkpoint_at = Some(at);
            self.checkpoints.insert((at, id));
            // A second more than is left: what is told must not be less.
            let left =
                i64::try_from(held.deadline.since(now).as_secs()).unwrap_or(i64::MAX).saturating_add(1);
            if left < held.ttl_seconds && !held.expiring {
                held.checkpointed = true;
                told.push((held.granted, left));
            }
        }
        told
    }

    /// What [`checkpoints_due`](Self::checkpoints_due) gave last was applied.
    pub fn checkpointed(&mut self, told: &[(Granted, i64)]) {
        for (granted, remaining_seconds) in told {
            if let Some(held) = self.leases.get_mut(&granted.id).filter(|held| held.granted == *granted) {
                held.checkpointed = *remaining_seconds > 0;
            }
        }
    }

    /// How many leases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds.max(0).unsigned_abs())
}

/// Takes the first of an ordered set of times once it has come.
fn pop_due(times: &mut BTreeSet<(Time, i64)>, now: Time) -> Option<i64> {
    if times.first().is_some_and(|(at, _)| *at <= now) { times.pop_first().map(|(_, id)| id) } else { None }
}
