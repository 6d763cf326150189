//! The text of `/metrics`: etcd's names, and the process's own figures.

use std::sync::atomic::Ordering::Relaxed;

use super::endpoints::{CHECKS, CheckCounts};
use crate::config::{API_VERSION, CONCLAVE_VERSION};
use crate::metrics::{BackendMetrics, Exposition};
use crate::service::Serving;
use crate::service::methods::Calls;

pub(super) fn text(serving: &Serving, calls: &Calls, checks: &[CheckCounts; CHECKS.len()]) -> String {
    let mut out = Exposition::default();
    let backend = serving.backend.metrics();
    server(&mut out, serving, &backend);
    health(&mut out, serving, checks);
    disk(&mut out, serving, &backend);
    store(&mut out, serving, &backend);
    leases(&mut out, &backend);
    watches(&mut out, serving);
    network(&mut out, serving, &backend);
    calls.expose(&mut out);
    process(&mut out);
    out.finish()
}

fn server(out: &mut Exposition, serving: &Serving, backend: &BackendMetrics) {
    let (raft, identity) = (serving.backend.raft(), serving.backend.identity());
    out.family("conclave_build_info", "gauge", "Conclave's own version. 1 for the running one.");
    out.sample("conclave_build_info", &[("version", &CONCLAVE_VERSION)], 1);
    out.family(
        "etcd_server_version",
        "gauge",
        "Which version of the API is served. 1 for 'server_version' label with current version.",
    );
    out.sample("etcd_server_version", &[("server_version", &API_VERSION)], 1);
    out.family(
        "etcd_cluster_version",
        "gauge",
        "Which version is running. 1 for 'cluster_version' label with current cluster version.",
    );
    out.sample("etcd_cluster_version", &[("cluster_version", &"3.7")], 1);
    out.family(
        "etcd_server_id",
        "gauge",
        "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
    );
    out.sample("etcd_server_id", &[("server_id", &format_args!("{:x}", identity.member_id))], 1);
    let leads = raft.leader == Some(identity.member_id);
    out.gauge(
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
        u8::from(raft.leader.is_some()),
    );
    out.gauge(
        "etcd_server_is_leader",
        "Whether or not this member is a leader. 1 if is, 0 otherwise.",
        u8::from(leads),
    );
    out.gauge(
        "etcd_server_is_learner",
        "Whether or not this member is a learner. 1 if is, 0 otherwise.",
        u8::from(raft.is_learner),
    );
    out.counter(
        "etcd_server_leader_changes_seen_total",
        "The number of leader changes seen.",
        backend.leader_changes,
    );
    out.gauge(
        "etcd_server_proposals_committed_total",
        "The total number of consensus proposals committed.",
        raft.committed_index,
    );
    out.gauge(
        "etcd_server_proposals_applied_total",
        "The total number of consensus proposals applied.",
        raft.applied_index,
    );
    out.gauge(
        "etcd_server_proposals_pending",
        "The current number of pending proposals to commit.",
        backend.proposals_pending,
    );
    out.counter(
        "etcd_server_proposals_failed_total",
        "The total number of failed proposals seen.",
        backend.proposals_failed,
    );
    out.counter("etcd_server_slow_read_indexes_total", "The total number of pending read indexes not in sync with leader's or timed out read index requests.", serving.metrics.slow_read_barriers.value());
    out.counter(
        "etcd_server_read_indexes_failed_total",
        "The total number of failed read indexes seen.",
        backend.read_barriers_failed,
    );
}

fn health(out: &mut Exposition, serving: &Serving, checks: &[CheckCounts; CHECKS.len()]) {
    out.counter(
        "etcd_server_health_success",
        "The total number of successful health checks.",
        serving.metrics.health_successes.value(),
    );
    out.counter(
        "etcd_server_health_failures",
        "The total number of failed health checks.",
        serving.metrics.health_failures.value(),
    );
    let ran = || {
        CHECKS
            .iter()
            .zip(checks)
            .map(|(&(kind, check), counts)| {
                (
                    kind,
                    check.name(),
                    counts.passed.load(Relaxed),
                    counts.failed.load(Relaxed),
                    counts.passes.load(Relaxed),
                )
            })
            .filter(|(_, _, passed, failed, _)| passed + failed > 0)
    };
    out.family("etcd_server_healthcheck", "gauge", "The result of each kind of healthcheck.");
    for (kind, name, _, _, passes) in ran() {
        out.sample("etcd_server_healthcheck", &[("type", &kind), ("name", &name)], passes);
    }
    out.family("etcd_server_healthchecks_total", "counter", "The total number of each kind of healthcheck.");
    for (kind, name, passed, failed, _) in ran() {
        for (status, count) in [("success", passed), ("error", failed)] {
            let labels: [(&str, &dyn std::fmt::Display); 3] =
                [("type", &kind), ("name", &name), ("status", &status)];
            out.sample("etcd_server_healthchecks_total", &labels, count);
        }
    }
}

fn disk(out: &mut Exposition, serving: &Serving, backend: &BackendMetrics) {
    out.histogram(
        "etcd_disk_wal_fsync_duration_seconds",
        "The latency distributions of fsync called by WAL.",
        &backend.wal_fsync,
    );
    out.histogram(
        "etcd_disk_backend_commit_duration_seconds",
        "The latency distributions of commit called by backend.",
        &backend.backend_commit,
    );
    out.counter(
        "etcd_disk_wal_write_bytes_total",
        "Total number of bytes written in WAL.",
        backend.wal_written_bytes,
    );
    let storage = serving.backend.storage();
    out.gauge(
        "etcd_mvcc_db_total_size_in_bytes",
        "Total size of the underlying database physically allocated in bytes.",
        storage.size_bytes,
    );
    out.gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Total size of the underlying database logically in use in bytes.",
        storage.in_use_bytes,
    );
}

fn store(out: &mut Exposition, serving: &Serving, backend: &BackendMetrics) {
    let metrics = &serving.metrics;
    out.counter("etcd_mvcc_put_total", "Total number of puts seen by this member.", metrics.puts.value());
    out.counter(
        "etcd_mvcc_range_total",
        "Total number of ranges seen by this member.",
        metrics.ranges.value(),
    );
    out.counter(
        "etcd_mvcc_delete_total",
        "Total number of deletes seen by this member.",
        metrics.deletes.value(),
    );
    out.counter("etcd_mvcc_txn_total", "Total number of txns seen by this member.", metrics.txns.value());
    let reader = serving.backend.reader();
    out.gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.", backend.keys);
    out.gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", reader.revision());
    out.gauge(
        "etcd_debugging_mvcc_compact_revision",
        "The revision of the last compaction in store.",
        reader.compact_revision(),
    );
}

fn leases(out: &mut Exposition, backend: &BackendMetrics) {
    let leases = &backend.leases;
    for (name, help, value) in [
        ("etcd_debugging_lease_granted_total", "The total number of granted leases.", leases.granted),
        ("etcd_debugging_lease_revoked_total", "The total number of revoked leases.", leases.ended),
        (
            "etcd_debugging_lease_renewed_total",
            "The number of renewed leases seen by the leader.",
            leases.renewed,
        ),
    ] {
        out.counter(name, help, value);
    }
    out.ttl_histogram("etcd_debugging_lease_ttl_total", "Bucketed histogram of lease TTLs.", &leases.ttl);
}

fn watches(out: &mut Exposition, serving: &Serving) {
    let stats = serving.watches.stats();
    out.gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.", stats.streams);
    out.gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.", stats.watches);
    out.gauge(
        "etcd_debugging_mvcc_slow_watcher_total",
        "Total number of unsynced slow watchers.",
        stats.behind,
    );
    out.gauge(
        "etcd_debugging_mvcc_pending_events_total",
        "Total number of pending events to be sent.",
        stats.pending_events,
    );
    out.counter(
        "etcd_debugging_mvcc_events_total",
        "Total number of events sent by this member.",
        stats.events,
    );
}

fn network(out: &mut Exposition, serving: &Serving, backend: &BackendMetrics) {
    let metrics = &serving.metrics;
    out.counter(
        "etcd_network_client_grpc_received_bytes_total",
        "The total number of bytes received from grpc clients.",
        metrics.client_received_bytes.value(),
    );
    out.counter(
        "etcd_network_client_grpc_sent_bytes_total",
        "The total number of bytes sent to grpc clients.",
        metrics.client_sent_bytes.value(),
    );
    let local = serving.backend.identity().member_id;
    let name = "etcd_network_active_peers";
    out.family(name, "gauge", "The current number of active peer connections.");
    for peer in &backend.peers {
        let labels: [(&str, &dyn std::fmt::Display); 2] =
            [("Local", &format_args!("{local:x}")), ("Remote", &format_args!("{:x}", peer.id))];
        out.sample(name, &labels, u8::from(peer.connected));
    }
    let name = "etcd_network_peer_sent_bytes_total";
    out.family(name, "counter", "The total number of bytes sent to peers.");
    for peer in &backend.peers {
        out.sample(name, &[("To", &format_args!("{:x}", peer.id))], peer.sent_bytes);
    }
    let name = "etcd_network_peer_received_bytes_total";
    out.family(name, "counter", "The total number of bytes received from peers.");
    for peer in &backend.peers {
        out.sample(name, &[("From", &format_args!("{:x}", peer.id))], peer.received_bytes);
    }
    let name = "etcd_network_peer_sent_failures_total";
    out.family(name, "counter", "The total number of send failures from peers.");
    for peer in &backend.peers {
        out.sample(name, &[("To", &format_args!("{:x}", peer.id))], peer.sent_failures);
    }
    let snapshots = backend.snapshots;
    out.counter(
        "conclave_snapshot_fetches_total",
        "Snapshots of other members that were begun to be fetched.",
        snapshots.begun,
    );
    out.counter(
        "conclave_snapshot_fetches_resumed_total",
        "Times that a fetch went on where it had ended, after its source had failed or changed.",
        snapshots.resumed,
    );
    out.counter(
        "conclave_snapshot_fetches_failed_total",
        "Fetches that were given up, or whose snapshot could not be stored.",
        snapshots.failed,
    );
    out.counter("conclave_snapshot_fetched_bytes_total", "Bytes of snapshots that arrived.", snapshots.bytes);
}

/// The names that every Prometheus client exports of its process, where the platform tells.
#[cfg(target_os = "linux")]
fn process(out: &mut Exposition) {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // The name in parentheses may hold anything; the numbers follow it. proc(5) counts fields from 1, and the
    // first after the name is the third.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field =
        |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    // Both units are fixed where Rust's Linux targets are tested: 100 ticks a second, pages of 4 KiB on x86 and
    // most ARM kernels; the resident size in kilobytes comes from a file that needs no unit.
    let cpu_seconds = (field(14) + field(15)) as f64 / 100.0;
    out.counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", cpu_seconds);
    out.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", field(23));
    if let Some(resident) = resident_bytes() {
        out.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", resident);
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        out.gauge("process_open_fds", "Number of open file descriptors.", descriptors.count());
    }
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(not(target_os = "linux"))]
fn process(_out: &mut Exposition) {}
