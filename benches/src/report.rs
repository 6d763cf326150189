//! Figures beside each other: medians over the rounds, and the first subject's ratio to each other.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crate::load::Measured;
use crate::side_by_side::Point;
use crate::workload::Workload;

/// The medians of one workload at one number of clients.
#[derive(Clone, Copy, Debug)]
struct Row {
    operations_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    server_cpu_us: f64,
    resident_mib: f64,
    client_cpu_us: f64,
    errors: f64,
}

impl Row {
    fn medians(of: &[&Measured]) -> Row {
        let quantile = |q: f64| move |m: &Measured| m.latencies_us.value_at_quantile(q) as f64 / 1000.0;
        Row {
            operations_per_second: median(of, |m| m.operations_per_second),
            p50_ms: median(of, quantile(0.5)),
            p99_ms: median(of, quantile(0.99)),
            server_cpu_us: median(of, |m| m.server_cpu_us),
            resident_mib: median(of, |m| m.resident_bytes.iter().sum::<u64>() as f64 / f64::from(1 << 20)),
            client_cpu_us: median(of, |m| m.client_cpu_us),
            errors: median(of, |m| m.errors as f64),
        }
    }
}

fn median(of: &[&Measured], figure: impl Fn(&Measured) -> f64) -> f64 {
    let mut figures: Vec<f64> = of.iter().map(|m| figure(m)).collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => figures[n / 2],
        n => f64::midpoint(figures[n / 2 - 1], figures[n / 2]),
    }
}

/// All figures as a table, in the order of measurement.
pub fn table(points: &[Point]) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_table(&mut text, points);
    text
}

fn write_table(out: &mut String, points: &[Point]) -> fmt::Result {
    writeln!(
        out,
        "{:<17}{:>8}  {:<15}{:>10}{:>10}{:>10}{:>12}{:>11}{:>12}",
        "workload", "clients", "subject", "op/s", "p50 ms", "p99 ms", "CPU us/op", "RSS MiB", "client us"
    )?;
    for (workload, clients) in cases(points) {
        let mut rows = Vec::new();
        for subject in subjects(points) {
            let measured = select(points, subject, workload, clients);
            if measured.is_empty() {
                continue;
            }
            let row = Row::medians(&measured);
            write!(
                out,
                "{workload:<17}{clients:>8}  {subject:<15}{:>10.0}{:>10.2}{:>10.2}{:>12.1}{:>11.0}{:>12.1}",
                row.operations_per_second,
                row.p50_ms,
                row.p99_ms,
                row.server_cpu_us,
                row.resident_mib,
                row.client_cpu_us
            )?;
            if row.errors > 0.0 {
                let error = measured.iter().find_map(|m| m.error.as_deref()).unwrap_or_default();
                write!(out, "  {} errors, such as `{error}`", row.errors)?;
            }
            writeln!(out)?;
            rows.push((subject, row));
        }
        let Some((&(_, a), others)) = rows.split_first() else { continue };
        for (other, b) in others {
            writeln!(
                out,
                "{:<17}{:>8}  {:<15}{:>9.2}x{:>9.2}x{:>9.2}x{:>11.2}x{:>10.2}x",
                "",
                "ratio to",
                other,
                a.operations_per_second / b.operations_per_second,
                a.p50_ms / b.p50_ms,
                a.p99_ms / b.p99_ms,
                a.server_cpu_us / b.server_cpu_us,
                a.resident_mib / b.resident_mib
            )?;
        }
    }
    Ok(())
}

/// Where the CPU of a workload goes, thread by thread, for `subject`.
pub fn breakdown(points: &[Point], subject: &str, workload: Workload) -> String {
    let mut text = String::new();
    let _ = write_breakdown(&mut text, points, subject, workload);
    text
}

fn write_breakdown(out: &mut String, points: &[Point], subject: &str, workload: Workload) -> fmt::Result {
    for (_, clients) in cases(points).into_iter().filter(|(w, _)| *w == workload) {
        let measured = select(points, subject, workload, clients);
        if measured.is_empty() {
            continue;
        }
        let mut threads: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for (name, cpu_us, waits) in measured.iter().flat_map(|m| &m.threads) {
            let sum = threads.entry(name).or_default();
            *sum = (sum.0 + cpu_us, sum.1 + waits);
        }
        let rounds = measured.len() as f64;
        let mut threads: Vec<_> = threads.into_iter().collect();
        threads.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        writeln!(out, "a {workload} of {subject} by {clients} clients, all nodes together:")?;
        writeln!(out, "  {:<16}{:>10}{:>12}  what it does", "thread", "CPU us", "waits")?;
        for (name, (cpu_us, waits)) in threads {
            if cpu_us / rounds >= 0.05 {
                writeln!(
                    out,
                    "  {name:<16}{:>10.1}{:>12.3}  {}",
                    cpu_us / rounds,
                    waits / rounds,
                    duty(name)
                )?;
            }
        }
    }
    Ok(())
}

/// What a thread of Conclave does, in the words of the budget of a put.
fn duty(thread: &str) -> &'static str {
    match thread {
        "tokio" | "conclave-io" => "wire: gRPC, and the network between nodes",
        "host" => "consensus and forwarding",
        "log" => "log and fsync",
        "apply" => "apply",
        "checkpoint" => "checkpoint",
        _ => "",
    }
}

fn cases(points: &[Point]) -> Vec<(Workload, usize)> {
    let mut cases = Vec::new();
    for point in points {
        if !cases.contains(&(point.workload, point.clients)) {
            cases.push((point.workload, point.clients));
        }
    }
    cases
}

fn subjects(points: &[Point]) -> Vec<&'static str> {
    let mut subjects = Vec::new();
    for point in points {
        if !subjects.contains(&point.subject) {
            subjects.push(point.subject);
        }
    }
    subjects
}

fn select<'a>(points: &'a [Point], subject: &str, workload: Workload, clients: usize) -> Vec<&'a Measured> {
    points
        .iter()
        .filter(|p| p.subject == subject && p.workload == workload && p.clients == clients)
        .map(|p| &p.measured)
        .collect()
}
