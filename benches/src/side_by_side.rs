//! Subjects in turn: each round starts the first, measures everything, ends it, then the next. Only one is ever running,
//! so that none is disturbed by what another does in the background; rounds spread what the machine does over time.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::load::{self, Measured, Plan};
use crate::subject::Subject;
use crate::workload::Workload;

/// A connection carries about so many clients.
const CLIENTS_A_CONNECTION: usize = 32;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Course {
    /// The workloads, in this order.
    pub workloads: Vec<Workload>,
    /// The numbers of clients.
    pub clients: Vec<usize>,
    /// How many keys are written first.
    pub keys: u64,
    /// How long each measurement lasts.
    pub duration: Duration,
    /// How long it runs before.
    pub warm_up: Duration,
    /// How often all is repeated.
    pub rounds: usize,
    /// Connections to each node, where not by the number of clients.
    pub connections: Option<usize>,
}

/// One measurement of one subject.
#[derive(Debug)]
pub struct Point {
    /// Its name.
    pub subject: &'static str,
    /// What was asked.
    pub workload: Workload,
    /// By how many clients.
    pub clients: usize,
    /// The result.
    pub measured: Measured,
}

/// Measures all subjects.
///
/// # Errors
/// When a server does not start or dies.
pub async fn run(subjects: &[Subject], course: &Course) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    for round in 1..=course.rounds {
        for subject in subjects {
            eprintln!("round {round} of {}: {}", course.rounds, subject.name);
            measure(subject, course, &mut points)
                .await
                .with_context(|| format!("measuring {}", subject.name))?;
        }
    }
    Ok(points)
}

async fn measure(subject: &Subject, course: &Course, points: &mut Vec<Point>) -> Result<()> {
    let running = subject.start()?;
    running.fill(course.keys).await?;
    let pids = running.pids();
    for &workload in &course.workloads {
        for &clients in &course.clients {
            let nodes = running.cluster.servers().len();
            let each = course.connections.unwrap_or(clients.div_ceil(nodes * CLIENTS_A_CONNECTION));
            let connections = running.connect(each).await?;
            let plan = Plan {
                workload,
                clients,
                keys: course.keys,
                warm_up: course.warm_up,
                duration: course.duration,
            };
            let measured = load::run(plan, &connections, &pids)
                .await
                .with_context(|| format!("{workload} by {clients} clients"))?;
            eprintln!(
                "  {workload:<17}{clients:>4} clients {:>9.0}/s  p99 {:>7.2} ms  server CPU {:>6.1} us  own CPU {:>5.1} us",
                measured.operations_per_second,
                measured.latencies_us.value_at_quantile(0.99) as f64 / 1000.0,
                measured.server_cpu_us,
                measured.client_cpu_us
            );
            points.push(Point { subject: subject.name, workload, clients, measured });
        }
    }
    running.stop()
}
