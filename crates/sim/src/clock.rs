//! A node's clock: a line over simulated time, with its own origin and rate, that may jump forward.

use conclave_consensus::Time;

/// Simulated time, in nanoseconds since the beginning of a run. Only the world knows it.
pub type SimTime = u64;

/// One millisecond of simulated time.
pub const MS: SimTime = 1_000_000;
/// One second of simulated time.
pub const SECOND: SimTime = 1_000 * MS;

/// A monotonic clock that begins anywhere and runs a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    since: SimTime,
    origin: u64,
    /// Parts per million by which it runs fast (or slow, if negative).
    drift_ppm: i64,
}

impl NodeClock {
    /// A clock that shows `origin` at `since` and then drifts.
    ///
    /// # Panics
    /// If it would run backwards or more than twice as fast as time.
    #[must_use]
    pub fn new(since: SimTime, origin: u64, drift_ppm: i64) -> Self {
        assert!(drift_ppm.abs() < 1_000_000, "a clock runs forward");
        Self { since, origin, drift_ppm }
    }

    /// What it shows at a simulated time.
    #[must_use]
    pub fn read(&self, at: SimTime) -> Time {
        let local = u128::from(at.saturating_sub(self.since)) * self.rate() / 1_000_000;
        Time(self.origin.saturating_add(u64::try_from(local).unwrap_or(u64::MAX)))
    }

    /// By how much it advances in a million nanoseconds.
    fn rate(&self) -> u128 {
        u128::from(1_000_000_u64.saturating_add_signed(self.drift_ppm))
    }

    /// The first simulated time at which it shows `local` or later.
    #[must_use]
    pub fn when(&self, local: Time) -> SimTime {
        let ahead = u128::from(local.0.saturating_sub(self.origin));
        let span = (ahead * 1_000_000).div_ceil(self.rate());
        self.since.saturating_add(u64::try_from(span).unwrap_or(u64::MAX))
    }

    /// From now on it runs fast (or slow) by this.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn drift(&mut self, at: SimTime, drift_ppm: i64) {
        *self = Self::new(at, self.read(at).0, drift_ppm);
    }

    /// Moves it forward at once, as after a suspend.
    pub fn jump(&mut self, by: u64) {
        self.origin += by;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_the_inverse_of_read() {
        for drift in [-200_000, -37, 0, 1, 499, 200_000] {
            let clock = NodeClock::new(5 * SECOND, 12_345, drift);
            for local in [12_345, 12_346, 99_999_999, 60 * SECOND] {
                let at = clock.when(Time(local));
                assert!(clock.read(at) >= Time(local), "drift {drift}, local {local}");
                assert!(
                    at == clock.since || clock.read(at - 1) < Time(local),
                    "drift {drift}, local {local}"
                );
            }
        }
    }

    #[test]
    fn another_rate_begins_where_the_one_before_ended() {
        let mut clock = NodeClock::new(0, 7, 100_000);
        clock.drift(10 * SECOND, -100_000);
        assert_eq!(clock.read(10 * SECOND), Time(7 + 11 * SECOND));
        assert_eq!(clock.read(20 * SECOND), Time(7 + 20 * SECOND));
    }

    #[test]
    fn a_jump_is_forward_only() {
        let mut clock = NodeClock::new(0, 0, 0);
        clock.jump(SECOND);
        assert_eq!(clock.read(SECOND), Time(2 * SECOND));
    }
}
