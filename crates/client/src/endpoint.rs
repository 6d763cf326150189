//! Which endpoint is asked: the one that answered last, and another when it fails.
//!
//! 1. A client stays with an endpoint for as long as that answers.
//! 2. One that failed is left alone for a pause that grows with each failure in a row.
//! 3. When all failed, the one whose pause ends first is next.
//! 4. Requests that were under way together and fail together count as one failure.

use std::time::Duration;

use crate::{backoff::Backoff, moment::Moment};

#[derive(Debug)]
struct Health {
    backoff: Backoff,
    usable_from: Moment,
    failed_at: Option<Moment>,
}

/// The endpoints of a client and what is known of each.
#[derive(Debug)]
pub(crate) struct Endpoints {
    all: Vec<Health>,
    current: usize,
}

/// Whom to ask, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The endpoint, by its place in the configuration.
    pub(crate) endpoint: usize,
    /// How long to wait before.
    pub(crate) pause: Duration,
}

impl Endpoints {
    /// `count` endpoints, at least one, of which none failed. `seed` says which is first, so that clients spread.
    pub(crate) fn new(count: usize, backoff_min: Duration, backoff_max: Duration, seed: u64) -> Self {
        let count = count.max(1);
        let seeds =
            (0..count as u64).map(|number| seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let all = seeds.map(|seed| Health {
            backoff: Backoff::new(backoff_min, backoff_max, seed),
            usable_from: Moment::default(),
            failed_at: None,
        });
        Self { all: all.collect(), current: (seed % count as u64) as usize }
    }

    /// Whom to ask next.
    pub(crate) fn choose(&mut self, now: Moment) -> Choice {
        let count = self.all.len();
        let order = (0..count).map(|step| (self.current + step) % count);
        // The first of the earliest: the current one, if all of them can be asked.
        let next = order.min_by_key(|&endpoint| self.all[endpoint].usable_from.max(now));
        self.current = next.unwrap_or(self.current);
        let pause = self.all[self.current].usable_from.since(now);
        Choice { endpoint: self.current, pause }
    }

    /// It answered, whatever the answer.
    pub(crate) fn answered(&mut self, endpoint: usize) {
        let health = &mut self.all[endpoint];
        health.backoff.reset();
        health.usable_from = Moment::default();
    }

    /// It did not answer what it was asked at `asked`, or said that it cannot serve.
    pub(crate) fn failed(&mut self, endpoint: usize, asked: Moment, now: Moment) {
        let health = &mut self.all[endpoint];
        if health.failed_at.is_some_and(|failed| asked <= failed) {
            return;
        }
        health.failed_at = Some(now);
        health.usable_from = now + health.backoff.pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(20);
    const MAX: Duration = Duration::from_secs(2);

    fn at(milliseconds: u64) -> Moment {
        Moment::default() + Duration::from_millis(1_000 + milliseconds)
    }

    #[test]
    fn who_answers_is_stayed_with() {
        let mut endpoints = Endpoints::new(3, MIN, MAX, 1);
        for time in 0..9 {
            let choice = endpoints.choose(at(time));
            assert_eq!(choice, Choice { endpoint: 1, pause: Duration::ZERO });
            endpoints.answered(choice.endpoint);
        }
    }

    #[test]
    fn after_a_failure_the_next_is_asked_at_once_and_the_failed_one_later() {
        let mut endpoints = Endpoints::new(2, MIN, MAX, 0);
        endpoints.failed(0, at(0), at(1));
        assert_eq!(endpoints.choose(at(2)), Choice { endpoint: 1, pause: Duration::ZERO });
        endpoints.failed(1, at(3), at(3));
        let choice = endpoints.choose(at(4));
        assert!(choice.pause > Duration::ZERO && choice.pause <= MIN, "{choice:?}");
        assert_eq!(endpoints.choose(at(4) + choice.pause).pause, Duration::ZERO);
    }

    #[test]
    fn requests_that_fail_together_are_one_failure() {
        let mut endpoints = Endpoints::new(1, MIN, MAX, 0);
        for _ in 0..100 {
            endpoints.failed(0, at(0), at(5));
        }
        assert!(endpoints.choose(at(5)).pause <= MIN);
        endpoints.failed(0, at(6), at(7));
        assert!(endpoints.choose(at(7)).pause <= 2 * MIN);
    }

    #[test]
    fn an_only_endpoint_is_waited_for_at_most_the_longest_pause() {
        let mut endpoints = Endpoints::new(1, MIN, MAX, 7);
        for time in 0..60 {
            endpoints.failed(0, at(time), at(time));
            assert!(endpoints.choose(at(time)).pause <= MAX);
        }
        endpoints.answered(0);
        assert_eq!(endpoints.choose(at(61)).pause, Duration::ZERO);
    }
}
