//! The host's clock.

use conclave_consensus::Time;

/// CLOCK_BOOTTIME: monotonic, and it goes on while the machine is suspended, so that a lease cannot outlive a nap.
pub(crate) fn now() -> Time {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
    Time(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(at.tv_nsec).unwrap_or(0)))
}
