//! Figures for `/metrics`, under etcd's names, in Prometheus' text form.
//!
//! The services count into [`Metrics`]; the composition fills [`BackendMetrics`] when it is asked. Counting is a
//! relaxed atomic addition, so nobody waits for it.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds an amount.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    /// The sum so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How many buckets a [`Histogram`] has below infinity.
const BUCKETS: usize = 14;

/// A distribution of durations in etcd's buckets for disks: 1 ms, doubling, up to 8.192 s.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    count: AtomicU64,
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = (0..BUCKETS).find(|&bucket| nanos <= 1_000_000 << bucket) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.sum_nanos.fetch_add(nanos, Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    /// The distribution so far.
    #[must_use]
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            buckets: self.buckets.each_ref().map(|bucket| bucket.load(Relaxed)),
            count: self.count.load(Relaxed),
            sum_nanos: self.sum_nanos.load(Relaxed),
        }
    }
}

/// A [`Histogram`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    buckets: [u64; BUCKETS],
    count: u64,
    sum_nanos: u64,
}

/// How many buckets a [`TtlHistogram`] has below infinity.
const TTL_BUCKETS: usize = 24;

/// A distribution of leases' times to live in etcd's buckets: 1 s, doubling, up to 97 days.
#[derive(Debug, Default)]
pub struct TtlHistogram {
    buckets: [AtomicU64; TTL_BUCKETS],
    count: AtomicU64,
    sum_seconds: AtomicU64,
}

impl TtlHistogram {
    /// Counts one lease.
    pub fn observe(&self, seconds: u64) {
        if let Some(bucket) = (0..TTL_BUCKETS).find(|&bucket| seconds <= 1 << bucket) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.sum_seconds.fetch_add(seconds, Relaxed);
        self.count.fetch_add(1, Relaxed);
    }

    /// The distribution so far.
    #[must_use]
    pub fn snapshot(&self) -> TtlSnapshot {
        TtlSnapshot {
            buckets: self.buckets.each_ref().map(|bucket| bucket.load(Relaxed)),
            count: self.count.load(Relaxed),
            sum_seconds: self.sum_seconds.load(Relaxed),
        }
    }
}

/// A [`TtlHistogram`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TtlSnapshot {
    buckets: [u64; TTL_BUCKETS],
    count: u64,
    sum_seconds: u64,
}

/// What this member applied to leases, and did as their leader, since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseMetrics {
    /// Leases granted.
    pub granted: u64,
    /// Leases revoked or expired.
    pub ended: u64,
    /// Renewals by this member as the leader.
    pub renewed: u64,
    /// The times to live of those granted.
    pub ttl: TtlSnapshot,
}

/// The composition's figures at one moment.
#[derive(Clone, Debug, Default)]
pub struct BackendMetrics {
    /// How often a leader was seen to change.
    pub leader_changes: u64,
    /// Commands proposed here and not answered yet.
    pub proposals_pending: u64,
    /// Commands proposed here that got no reply.
    pub proposals_failed: u64,
    /// Read barriers that were not passed.
    pub read_barriers_failed: u64,
    /// Durations of the log's syncs.
    pub wal_fsync: HistogramSnapshot,
    /// Bytes appended to the log.
    pub wal_written_bytes: u64,
    /// Durations of the state's checkpoints.
    pub backend_commit: HistogramSnapshot,
    /// Traffic with each other member.
    pub peers: Vec<PeerMetrics>,
    /// Snapshots of other members that this one takes in.
    pub snapshots: SnapshotMetrics,
    /// Keys that exist.
    pub keys: u64,
    /// Leases.
    pub leases: LeaseMetrics,
}

/// Snapshots taken in from other members since this one started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMetrics {
    /// Begun to be fetched, those begun anew included.
    pub begun: u64,
    /// Gone on with where they had ended, after a source failed or changed.
    pub resumed: u64,
    /// Given up, or not to be stored.
    pub failed: u64,
    /// Bytes that arrived.
    pub bytes: u64,
}

/// Traffic with another member since this one started.
#[derive(Clone, Debug, Default)]
pub struct PeerMetrics {
    /// The other member's id.
    pub id: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets that could not be sent.
    pub sent_failures: u64,
    /// Whether there is a connection now.
    pub connected: bool,
}

/// What the services count.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Bytes read from client connections.
    pub client_received_bytes: Counter,
    /// Bytes written to client connections.
    pub client_sent_bytes: Counter,
    /// Puts answered well, those inside transactions not included. So are the next three.
    pub puts: Counter,
    /// Ranges answered well.
    pub ranges: Counter,
    /// Deletions answered well.
    pub deletes: Counter,
    /// Transactions answered well.
    pub txns: Counter,
    /// Linearizable reads that waited for a barrier too long.
    pub slow_read_barriers: Counter,
    /// `/health` answered true.
    pub health_successes: Counter,
    /// `/health` answered false.
    pub health_failures: Counter,
}

/// Writes families of Prometheus' text form.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    text: String,
}

impl Exposition {
    pub(crate) fn finish(self) -> String {
        self.text
    }

    pub(crate) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        let _ = writeln!(self.text, "{name} {value}");
    }

    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        let _ = writeln!(self.text, "{name} {value}");
    }

    /// Opens a family whose samples have labels.
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample of the family opened last. Labels must need no escaping.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.text.push_str(name);
        for (i, (label, of)) in labels.iter().enumerate() {
            let _ = write!(self.text, "{}{label}=\"{of}\"", if i == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    pub(crate) fn histogram(&mut self, name: &str, help: &str, of: &HistogramSnapshot) {
        let bounds = (0..BUCKETS).map(|bucket| f64::from(1u32 << bucket) / 1e3);
        self.buckets(name, help, bounds.zip(of.buckets), of.count, of.sum_nanos as f64 / 1e9);
    }

    pub(crate) fn ttl_histogram(&mut self, name: &str, help: &str, of: &TtlSnapshot) {
        let bounds = (0..TTL_BUCKETS).map(|bucket| f64::from(1u32 << bucket));
        self.buckets(name, help, bounds.zip(of.buckets), of.count, of.sum_seconds as f64);
    }

    fn buckets(
        &mut self,
        name: &str,
        help: &str,
        buckets: impl Iterator<Item = (f64, u64)>,
        count: u64,
        sum: f64,
    ) {
        self.family(name, "histogram", help);
        let mut cumulative = 0;
        for (bound, bucket) in buckets {
            cumulative += bucket;
            let _ = writeln!(self.text, "{name}_bucket{{le=\"{bound}\"}} {cumulative}");
        }
        // A scrape between two additions must not see more below a bound than altogether.
        let count = count.max(cumulative);
        let _ = writeln!(self.text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(self.text, "{name}_sum {sum}\n{name}_count {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_in_prometheus_text() {
        let histogram = Histogram::default();
        for millis in [1, 3, 3, 20_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut out = Exposition::default();
        out.histogram("h_seconds", "Help.", &histogram.snapshot());
        let ttl = TtlHistogram::default();
        [1, 60, 9_000_000_000].into_iter().for_each(|seconds| ttl.observe(seconds));
        out.ttl_histogram("ttl", "Help.", &ttl.snapshot());
        out.family("x", "gauge", "Labels.");
        out.sample("x", &[("a", &"b"), ("c", &1)], 2);
        out.sample("x", &[], 3);
        let text = out.finish();
        for line in [
            "h_seconds_bucket{le=\"0.001\"} 1",
            "h_seconds_bucket{le=\"0.002\"} 1",
            "h_seconds_bucket{le=\"0.004\"} 3",
            "h_seconds_bucket{le=\"8.192\"} 3",
            "h_seconds_bucket{le=\"+Inf\"} 4",
            "h_seconds_sum 20.007",
            "h_seconds_count 4",
            "ttl_bucket{le=\"1\"} 1",
            "ttl_bucket{le=\"64\"} 2",
            "ttl_bucket{le=\"8388608\"} 2",
            "ttl_bucket{le=\"+Inf\"} 3",
            "ttl_sum 9000000061",
            "# TYPE x gauge",
            "x{a=\"b\",c=\"1\"} 2",
            "x 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
