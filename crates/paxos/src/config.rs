//! What can be set, in which unit, and within which bounds.

use std::time::Duration;

use conclave_consensus::Timing;

/// The settings of one replica. Replicas of a group may differ in all but the timing, where a difference costs
/// availability and never safety. The sizes of quorums are no setting of a replica: all must agree on them, so they are in the group's
/// configuration ([`Quorums`](conclave_consensus::Quorums)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaxosConfig {
    /// Heartbeat interval and election timeout. The election timeout is at least five heartbeats.
    pub timing: Timing,
    /// Unacknowledged `Accept` messages a follower may have under way. Default 256.
    pub inflight_messages_max: usize,
    /// Bytes in them, after which the follower is sent nothing more (one message may overshoot). Default 8 MiB.
    pub inflight_bytes_max: usize,
    /// Entries of one message, in bytes; an entry larger than this travels alone. Default 1 MiB.
    pub message_bytes_max: usize,
    /// Slots of a leader that are not chosen, before it refuses proposals as `Busy`; twice as many beyond its first gap a follower
    /// accepts. Default 65,536.
    pub unchosen_entries_max: u64,
    /// The same in bytes. A batch is always taken while everything is chosen. Default 64 MiB.
    pub unchosen_bytes_max: usize,
    /// Entries a leader's log may be ahead of its own state machine before it refuses proposals as `Busy`: the
    /// back-pressure of a slow apply. Default 262,144.
    pub unapplied_entries_max: u64,
    /// Entries of one `Persist`, in bytes, after which the next begins (one entry may be larger): a log writes it atomically and bounds what it
    /// takes. Default 8 MiB.
    pub batch_bytes_max: usize,
    /// The payload of one proposal; a larger one is refused as `TooLarge`. Default 4 MiB.
    pub entry_bytes_max: usize,
    /// Local read barriers that may wait; more are refused as `Busy`. Default 65,536.
    pub reads_max: usize,
    /// Confirmation rounds a leader (and requests for a read slot a follower) may have under way at once; reads that
    /// arrive meanwhile share the next one. Default 4.
    pub read_rounds_max: usize,
    /// Entries handed out in `Commit` beyond the last `Applied`. Default 16,384.
    pub apply_window_entries: u64,
    /// The same in bytes (one run of entries may overshoot by one). Default 32 MiB.
    pub apply_window_bytes: usize,
    /// Entries kept in memory although they are applied here and replicated to all live followers, in bytes. Default 1 MiB.
    pub cache_kept_bytes: usize,
    /// Entries kept in memory at all, in bytes. What is committed and durable here gives way above it, needed or not, and is
    /// read back from the log when its turn comes. Default 32 MiB.
    pub cache_bytes_max: usize,
    /// Entries below a checkpoint that stay in the log for followers that lag. Default 5,000.
    pub compaction_margin_entries: u64,
    /// How far below a checkpoint the log is kept, at most, for a live follower that still needs it. Default 100,000.
    pub compaction_lag_entries_max: u64,
    /// Who should lead: of those that look for a leader and hear a quorum the one of the highest priority stands first, and a leader hands over,
    /// once in four election timeouts at most, to a voter of higher priority that answers. Default 0.
    pub priority: u8,
    /// Reads may rely on a lease ([`ReadMode::Lease`](conclave_consensus::ReadMode::Lease)), on the operator's word that no clock of the group
    /// runs faster or slower than true by more than so many parts in a million; the lease lasts a little less than an election timeout.
    /// At most 100,000. `None`, the default: such reads are confirmed by a quorum, and no clock is trusted.
    pub lease_drift_ppm: Option<u32>,
    /// The leader makes a learner a voter by itself, once that answers and lacks at most so many of its entries. `None`, the default: learners
    /// stay until someone promotes them.
    pub promote_within_entries: Option<u64>,
}

impl Default for PaxosConfig {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            inflight_messages_max: 256,
            inflight_bytes_max: 8 << 20,
            message_bytes_max: 1 << 20,
            unchosen_entries_max: 65_536,
            unchosen_bytes_max: 64 << 20,
            unapplied_entries_max: 262_144,
            batch_bytes_max: 8 << 20,
            entry_bytes_max: 4 << 20,
            reads_max: 65_536,
            read_rounds_max: 4,
            apply_window_entries: 16_384,
            apply_window_bytes: 32 << 20,
            cache_kept_bytes: 1 << 20,
            cache_bytes_max: 32 << 20,
            compaction_margin_entries: 5_000,
            compaction_lag_entries_max: 100_000,
            priority: 0,
            lease_drift_ppm: None,
            promote_within_entries: None,
        }
    }
}

/// Why a [`PaxosConfig`] cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaxosConfigError {
    /// A bound of zero would let nothing through.
    #[error("{0} must not be zero")]
    Zero(&'static str),
    /// Fewer than five heartbeats in an election timeout: one lost message could depose a leader.
    #[error("election timeout of {election_ms} ms is less than five heartbeats of {heartbeat_ms} ms")]
    ElectionTooShort {
        /// The election timeout.
        election_ms: u128,
        /// The heartbeat interval.
        heartbeat_ms: u128,
    },
    /// An election timeout so long that deadlines would leave the clock's range.
    #[error("election timeout of {election_ms} ms is more than an hour")]
    ElectionTooLong {
        /// The election timeout.
        election_ms: u128,
    },
    /// A clock that is off by more than a tenth is no clock.
    #[error("lease_drift_ppm of {0} is more than 100000")]
    DriftTooLarge(u32),
    /// A read of the log asks for at most `u32::MAX` bytes.
    #[error("message_bytes_max of {0} is more than 1 GiB")]
    MessageTooLarge(usize),
    /// One bound contradicts another.
    #[error("{smaller} must not be larger than {larger}")]
    Order {
        /// The setting that is too large.
        smaller: &'static str,
        /// The setting it must not exceed.
        larger: &'static str,
    },
}

impl PaxosConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// The first setting that cannot work, by name.
    pub fn validate(&self) -> Result<(), PaxosConfigError> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        for (name, value) in [
            ("inflight_messages_max", count(self.inflight_messages_max)),
            ("inflight_bytes_max", count(self.inflight_bytes_max)),
            ("message_bytes_max", count(self.message_bytes_max)),
            ("unchosen_entries_max", self.unchosen_entries_max),
            ("unchosen_bytes_max", count(self.unchosen_bytes_max)),
            ("unapplied_entries_max", self.unapplied_entries_max),
            ("batch_bytes_max", count(self.batch_bytes_max)),
            ("entry_bytes_max", count(self.entry_bytes_max)),
            ("reads_max", count(self.reads_max)),
            ("read_rounds_max", count(self.read_rounds_max)),
            ("apply_window_entries", self.apply_window_entries),
            ("apply_window_bytes", count(self.apply_window_bytes)),
            ("cache_bytes_max", count(self.cache_bytes_max)),
        ] {
            if value == 0 {
                return Err(PaxosConfigError::Zero(name));
            }
        }
        let Timing { heartbeat, election } = self.timing;
        if heartbeat.is_zero() {
            return Err(PaxosConfigError::Zero("timing.heartbeat"));
        }
        let (election_ms, heartbeat_ms) = (election.as_millis(), heartbeat.as_millis());
        if election.as_nanos() < heartbeat.as_nanos().saturating_mul(5) {
            return Err(PaxosConfigError::ElectionTooShort { election_ms, heartbeat_ms });
        }
        if election.as_secs() > 3_600 {
            return Err(PaxosConfigError::ElectionTooLong { election_ms });
        }
        if let Some(drift) = self.lease_drift_ppm.filter(|drift| *drift > 100_000) {
            return Err(PaxosConfigError::DriftTooLarge(drift));
        }
        if self.message_bytes_max > 1 << 30 {
            return Err(PaxosConfigError::MessageTooLarge(self.message_bytes_max));
        }
        for (smaller, low, larger, high) in [
            (
                "cache_kept_bytes",
                count(self.cache_kept_bytes),
                "cache_bytes_max",
                count(self.cache_bytes_max),
            ),
            (
                "compaction_margin_entries",
                self.compaction_margin_entries,
                "compaction_lag_entries_max",
                self.compaction_lag_entries_max,
            ),
            (
                "apply_window_entries",
                self.apply_window_entries,
                "unapplied_entries_max",
                self.unapplied_entries_max,
            ),
        ] {
            if low > high {
                return Err(PaxosConfigError::Order { smaller, larger });
            }
        }
        Ok(())
    }
}

impl PaxosConfig {
    /// How long a lease lasts on the leader's clock; `None` if it keeps none. See [`crate::lease`].
    pub(crate) fn lease_span(&self) -> Option<Duration> {
        self.lease_drift_ppm.map(|drift_ppm| self.timing.lease_span(drift_ppm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_shorter_than_the_promise_by_the_drift_of_both_clocks() {
        let span = |drift| PaxosConfig { lease_drift_ppm: drift, ..PaxosConfig::default() }.lease_span();
        assert_eq!((span(None), span(Some(0))), (None, Some(Duration::from_secs(1))));
        assert_eq!(span(Some(100_000)), Some(Duration::from_nanos(818_181_818)));
        let config = PaxosConfig { lease_drift_ppm: Some(100_001), ..PaxosConfig::default() };
        assert_eq!(config.validate(), Err(PaxosConfigError::DriftTooLarge(100_001)));
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(PaxosConfig::default().validate(), Ok(()));
    }

    #[test]
    fn an_election_timeout_under_five_heartbeats_is_refused() {
        let timing = Timing { heartbeat: Duration::from_millis(100), election: Duration::from_millis(499) };
        let error = PaxosConfig { timing, ..PaxosConfig::default() }.validate().unwrap_err();
        assert_eq!(error.to_string(), "election timeout of 499 ms is less than five heartbeats of 100 ms");
    }

    #[test]
    fn a_bound_of_zero_is_refused_by_name() {
        let error = PaxosConfig { reads_max: 0, ..PaxosConfig::default() }.validate().unwrap_err();
        assert_eq!(error, PaxosConfigError::Zero("reads_max"));
    }

    #[test]
    fn bounds_that_contradict_each_other_are_refused() {
        let error =
            PaxosConfig { cache_kept_bytes: 64 << 20, ..PaxosConfig::default() }.validate().unwrap_err();
        assert_eq!(error.to_string(), "cache_kept_bytes must not be larger than cache_bytes_max");
    }
}
