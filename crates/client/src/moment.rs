//! The local clock by which deadlines are measured.
//!
//! A lease runs on while a machine is suspended, so the clock that judges it must, too: CLOCK_BOOTTIME where there is one, else the
//! monotonic clock of the system. Two machines' clocks are never compared.

use std::{fmt, time::Duration};

/// A point on the local monotonic clock. Its origin is arbitrary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment {
    nanoseconds: u64,
}

impl Moment {
    /// Reads the clock.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[must_use]
    pub fn now() -> Self {
        let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
        let rest = u64::try_from(at.tv_nsec).unwrap_or(0);
        Self { nanoseconds: seconds.saturating_mul(1_000_000_000).saturating_add(rest) }
    }

    /// Reads the clock.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    #[must_use]
    pub fn now() -> Self {
        use std::{sync::LazyLock, time::Instant};
        static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self::default() + ORIGIN.elapsed()
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanoseconds.saturating_sub(earlier.nanoseconds))
    }
}

/// Saturates at the end of time.
impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Self { nanoseconds: self.nanoseconds.saturating_add(span) }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.nanoseconds / 1_000_000_000, self.nanoseconds / 1_000_000 % 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_saturates() {
        let before = Moment::now();
        let after = Moment::now();
        assert!(after >= before);
        assert_eq!(before.since(before + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!((before + Duration::from_secs(1)).since(before), Duration::from_secs(1));
        assert_eq!((before + Duration::MAX) + Duration::MAX, before + Duration::MAX);
    }
}
