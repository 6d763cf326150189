//! A closed loop: each client has one request under way and sends the next when the answer has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::connection::Connection;
use crate::process::{self, Sample};
use crate::workload::{Random, Workload};

/// The longest latency that is told apart, in microseconds.
const LATENCY_MAX_US: u64 = 60_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
/// A client that sees so many errors in a row gives up: the servers are not what is measured any more.
const ERRORS_IN_A_ROW_MAX: u32 = 100;

/// How one workload is driven.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What is asked.
    pub workload: Workload,
    /// How many clients.
    pub clients: usize,
    /// How many keys are there, written before.
    pub keys: u64,
    /// Not measured: connections, caches and batch sizes settle.
    pub warm_up: Duration,
    /// Measured.
    pub duration: Duration,
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// Answers per second.
    pub operations_per_second: f64,
    /// Latencies in microseconds.
    pub latencies_us: Histogram<u32>,
    /// CPU time of all servers together, in microseconds an operation.
    pub server_cpu_us: f64,
    /// The same by what threads do, with waits an operation.
    pub threads: Vec<(String, f64, f64)>,
    /// CPU time of the load generator, in microseconds an operation.
    pub client_cpu_us: f64,
    /// Resident memory of each server right after, in bytes.
    pub resident_bytes: Vec<u64>,
    /// Requests that were answered with an error or with less than asked.
    pub errors: u64,
    /// One of these errors.
    pub error: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
enum Phase {
    WarmUp,
    Measure,
    Stop,
}

/// Drives a workload over `connections` and reads what it costs the processes `pids`.
///
/// # Errors
/// When a server is gone or nothing was answered.
pub async fn run(plan: Plan, connections: &[Connection], pids: &[u32]) -> Result<Measured> {
    let phase = Arc::new(AtomicU8::new(Phase::WarmUp as u8));
    let clients: Vec<_> = (0..plan.clients)
        .map(|index| tokio::spawn(client(plan, index, connections.to_vec(), Arc::clone(&phase))))
        .collect();

    tokio::time::sleep(plan.warm_up).await;
    let (before, own_before, started) = (Sample::of(pids)?, process::own_cpu_us()?, Instant::now());
    phase.store(Phase::Measure as u8, Ordering::Relaxed);
    tokio::time::sleep(plan.duration).await;
    phase.store(Phase::Stop as u8, Ordering::Relaxed);
    let elapsed = started.elapsed();
    let used = Sample::of(pids)?.since(&before);
    let own_used = process::own_cpu_us()? - own_before;

    let mut seen = Seen::new()?;
    for client in clients {
        seen.merge(client.await??)?;
    }
    let operations = seen.latencies_us.len();
    ensure!(operations > 0, "nothing was answered: {}", seen.error.unwrap_or_default());
    let each = |amount: f64| amount / operations as f64;
    let mut threads: Vec<(String, f64, f64)> =
        used.threads.into_iter().map(|(name, u)| (name, each(u.cpu_us), each(u.waits as f64))).collect();
    threads.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(Measured {
        operations_per_second: operations as f64 / elapsed.as_secs_f64(),
        latencies_us: seen.latencies_us,
        server_cpu_us: each(used.total.cpu_us),
        threads,
        client_cpu_us: each(own_used),
        resident_bytes: process::resident_bytes(pids)?,
        errors: seen.errors,
        error: seen.error,
    })
}

/// What one client saw.
struct Seen {
    latencies_us: Histogram<u32>,
    errors: u64,
    error: Option<String>,
}

impl Seen {
    fn new() -> Result<Seen> {
        let latencies_us =
            Histogram::new_with_bounds(1, LATENCY_MAX_US, SIGNIFICANT_DIGITS).context("histogram")?;
        Ok(Seen { latencies_us, errors: 0, error: None })
    }

    fn merge(&mut self, other: Seen) -> Result<()> {
        self.latencies_us.add(&other.latencies_us)?;
        self.errors += other.errors;
        self.error = self.error.take().or(other.error);
        Ok(())
    }
}

/// Requests go over all connections in turn, so that every client meets the leader as often as the others.
async fn client(
    plan: Plan,
    index: usize,
    mut connections: Vec<Connection>,
    phase: Arc<AtomicU8>,
) -> Result<Seen> {
    let mut random = Random::new(index as u64 + 1);
    let mut seen = Seen::new()?;
    let mut errors_in_a_row = 0;
    let mut turn = index;
    loop {
        let request = plan.workload.request(&mut random, plan.keys);
        turn = (turn + 1) % connections.len();
        let begun = phase.load(Ordering::Relaxed);
        if begun == Phase::Stop as u8 || errors_in_a_row == ERRORS_IN_A_ROW_MAX {
            return Ok(seen);
        }
        let sent = Instant::now();
        let answer = connections[turn].call(plan.workload.call(), &request).await;
        let latency = sent.elapsed();
        let error = match answer {
            Ok(answer) if plan.workload.accepts(&answer, plan.keys) => {
                errors_in_a_row = 0;
                // An answer counts if it came while measuring: then the count belongs to the time and CPU measured.
                if phase.load(Ordering::Relaxed) == Phase::Measure as u8 {
                    let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_MAX_US);
                    seen.latencies_us.saturating_record(us.clamp(1, LATENCY_MAX_US));
                }
                continue;
            }
            Ok(answer) => format!("an answer of only {} bytes", answer.len()),
            Err(error) => error.to_string(),
        };
        errors_in_a_row += 1;
        seen.errors += 1;
        seen.error = Some(error);
    }
}
