//! Until when a lease is certainly held: arithmetic on the local clock.
//!
//! 1. A server counts a lease's time from when it carries out the grant or the renewal. That is after it was *sent*, so the time is counted
//!    from the sending here, and ends before it does there.
//! 2. It ends earlier by a margin, for two clocks do not run alike and a waiting task takes a while to wake: a tenth of the lease's time,
//!    at most a second.
//! 3. What was lost stays lost. An answer that comes after the end does not bring it back, for somebody may have been told.

use std::time::Duration;

use crate::moment::Moment;

/// The most that the local end is before the server's.
const MARGIN_MAX: Duration = Duration::from_secs(1);

/// Why a lease is no longer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// No renewal was answered in time. The server may still have the lease for a moment.
    #[error("the lease was not renewed in time")]
    NotRenewed,
    /// The server does not know the lease: it expired, or was revoked.
    #[error("the lease expired or was revoked")]
    Gone,
    /// The key that stands for the lock or the office was deleted.
    #[error("the owner's key was deleted")]
    KeyDeleted,
    /// It was released by its holder.
    #[error("it was released")]
    Released,
}

/// A lease as its holder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenure {
    /// From the sending on; what the server granted.
    ttl: Duration,
    /// When the last answered request was sent.
    sent: Moment,
    lost: Option<Loss>,
}

impl Tenure {
    /// A lease that was asked for at `sent`.
    pub(crate) fn granted(sent: Moment, ttl: Duration) -> Self {
        Self { ttl, sent, lost: None }
    }

    /// The end, on the local clock.
    pub(crate) fn deadline(&self) -> Moment {
        self.sent + (self.ttl - margin(self.ttl))
    }

    /// When to renew: after a third of the time, so that two renewals may fail.
    pub(crate) fn renew_at(&self) -> Moment {
        self.sent + self.ttl / 3
    }

    /// A renewal sent at `sent` was answered with `ttl`, zero if the server does not know the lease, and the answer came at `now`.
    pub(crate) fn renewed(&mut self, sent: Moment, ttl: Duration, now: Moment) {
        if self.loss(now).is_some() {
            return;
        }
        if ttl.is_zero() {
            self.lost = Some(Loss::Gone);
        } else if sent + (ttl - margin(ttl)) > self.deadline() {
            (self.sent, self.ttl) = (sent, ttl);
        }
    }

    /// It is known to be lost otherwise.
    pub(crate) fn lose(&mut self, loss: Loss) {
        self.lost.get_or_insert(loss);
    }

    /// Why it is lost at `now`, if it is. Once it is, it remains so.
    pub(crate) fn loss(&mut self, now: Moment) -> Option<Loss> {
        if self.lost.is_none() && now >= self.deadline() {
            self.lost = Some(Loss::NotRenewed);
        }
        self.lost
    }
}

fn margin(ttl: Duration) -> Duration {
    (ttl / 10).min(MARGIN_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(6);

    fn at(milliseconds: u64) -> Moment {
        Moment::default() + Duration::from_millis(milliseconds)
    }

    #[test]
    fn time_is_counted_from_the_sending() {
        let mut tenure = Tenure::granted(at(1_000), TTL);
        assert_eq!(tenure.deadline(), at(6_400));
        assert_eq!(tenure.renew_at(), at(3_000));
        tenure.renewed(at(3_000), TTL, at(5_900));
        assert_eq!(tenure.deadline(), at(8_400));
        assert_eq!(tenure.loss(at(8_399)), None);
        assert_eq!(tenure.loss(at(8_400)), Some(Loss::NotRenewed));
    }

    #[test]
    fn an_answer_after_the_end_does_not_bring_it_back() {
        let mut tenure = Tenure::granted(at(0), TTL);
        tenure.renewed(at(2_000), TTL, at(5_400));
        assert_eq!(tenure.loss(at(5_401)), Some(Loss::NotRenewed));
    }

    #[test]
    fn an_answer_that_was_overtaken_shortens_nothing() {
        let mut tenure = Tenure::granted(at(0), TTL);
        tenure.renewed(at(4_000), TTL, at(4_100));
        tenure.renewed(at(2_000), TTL, at(4_200));
        assert_eq!(tenure.deadline(), at(9_400));
    }

    #[test]
    fn the_first_reason_is_kept() {
        let mut tenure = Tenure::granted(at(0), TTL);
        tenure.renewed(at(2_000), Duration::ZERO, at(2_001));
        tenure.lose(Loss::Released);
        assert_eq!(tenure.loss(at(9_000)), Some(Loss::Gone));
    }

    #[test]
    fn the_margin_of_a_long_lease_is_a_second() {
        assert_eq!(Tenure::granted(at(0), Duration::from_secs(3_600)).deadline(), at(3_599_000));
    }

    proptest! {
        /// Against a server whose clock runs up to a twentieth faster, with requests and answers delayed or lost at will: while the holder
        /// believes that it holds the lease, the server has it.
        #[test]
        fn never_held_here_and_expired_there(
            rate_percent in 95_u64..=105,
            rounds in prop::collection::vec((0_u64..3_000, 0_u64..2_000, 0_u64..2_000, any::<bool>()), 1..30),
        ) {
            // On the server's clock, in local milliseconds: its time is over after `span`.
            let span = TTL.as_millis() as u64 * 100 / rate_percent;
            let (mut now, mut expires) = (500, 200 + span);
            let mut tenure = Tenure::granted(at(0), TTL);
            for (pause, there, back, answered) in rounds {
                // Held here, it is held there, to its very end.
                prop_assert!(tenure.loss(at(now)).is_some() || tenure.deadline() <= at(expires));
                let sent = now + pause;
                prop_assert!(tenure.loss(at(sent)).is_some() || sent < expires);
                let arrives = sent + there;
                let ttl = if arrives < expires { expires = arrives + span; TTL } else { expires = 0; Duration::ZERO };
                now = arrives + back;
                if answered {
                    tenure.renewed(at(sent), ttl, at(now));
                }
                prop_assert!(tenure.loss(at(now)).is_some() || tenure.deadline() <= at(expires));
            }
        }
    }
}
