//! A bound on bytes a second: what was spent is paid off by time before anything more is.

use std::time::Duration;

use conclave_consensus::Time;

/// Bytes that may be spent as time goes by; never more than the last spending runs ahead.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_per_second: Option<u64>,
    paid_off: Time,
}

impl Budget {
    /// Without a bound everything is free.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, paid_off: Time(0) }
    }

    /// How long it takes until more may be spent; `None` if it may at once.
    pub(crate) fn wait(&self, now: Time) -> Option<Duration> {
        (now < self.paid_off).then(|| self.paid_off.since(now))
    }

    pub(crate) fn spend(&mut self, now: Time, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
        let span = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid_off = self.paid_off.max(now).after(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_is_paid_off_by_time_and_idleness_saves_nothing_up() {
        let mut budget = Budget::new(Some(1_000));
        let at = |ms: u64| Time(0).after(Duration::from_millis(ms));
        assert_eq!(budget.wait(at(10_000)), None);
        budget.spend(at(10_000), 500);
        assert_eq!(budget.wait(at(10_000)), Some(Duration::from_millis(500)));
        assert_eq!(budget.wait(at(10_400)), Some(Duration::from_millis(100)));
        assert_eq!(budget.wait(at(10_500)), None);
        let mut sent = 0;
        for ms in 20_000..30_000 {
            if budget.wait(at(ms)).is_none() {
                budget.spend(at(ms), 70);
                sent += 70;
            }
        }
        assert!((9_900..=10_070).contains(&sent), "{sent} bytes in ten seconds");
    }

    #[test]
    fn without_a_bound_nothing_waits() {
        let mut budget = Budget::new(None);
        budget.spend(Time(5), usize::MAX);
        assert_eq!(budget.wait(Time(5)), None);
    }
}
