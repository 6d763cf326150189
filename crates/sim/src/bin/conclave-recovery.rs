//! Loses links and leaders, seed after seed, and says how long writes stood still: a table, and a chart of the partitions.

#![forbid(unsafe_code)]

use std::{fmt::Write as _, fs, path::PathBuf, process::ExitCode};

use conclave_consensus::Quorums;
use conclave_sim::{
    check::Violation,
    engine::Engine,
    recovery::{Case, NODES, PATIENCE_ELECTIONS, latencies_ms, recover},
};

const USAGE: &str = "\
Loses links or the leader of five simulated nodes and says after how many election timeouts the next write is acknowledged.

Usage: conclave-recovery [--seeds N] [--svg FILE]

  --seeds N     so many seeds a row (default 100)
  --svg FILE    draw the partitions there";

/// Writes a seed, where latency is measured, and the seeds.
const WRITES: u32 = 200;
const LATENCY_SEEDS: u64 = 10;

struct Arguments {
    seeds: u64,
    svg: Option<PathBuf>,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments { seeds: 100, svg: None };
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--seeds" => {
                parsed.seeds =
                    value.parse().ok().filter(|seeds| *seeds > 0).ok_or("--seeds wants a number")?;
            }
            "--svg" => parsed.svg = Some(value.into()),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(parsed)
}

/// What the seeds of a row came to.
struct Row {
    engine: Engine,
    case: Case,
    quorums: Option<Quorums>,
    /// Those that wrote on, ascending, in election timeouts.
    after: Vec<f64>,
    /// Those that did not.
    stuck: usize,
    ballots_max: u64,
}

impl Row {
    fn run(engine: Engine, case: Case, quorums: Option<Quorums>, seeds: u64) -> Result<Self, Violation> {
        let mut row = Self { engine, case, quorums, after: Vec::new(), stuck: 0, ballots_max: 0 };
        for seed in 0..seeds {
            let seen = recover(engine, case, quorums, seed)?;
            match seen.after {
                Some(after) => row.after.push(after),
                None => row.stuck += 1,
            }
            row.ballots_max = row.ballots_max.max(seen.ballots);
        }
        row.after.sort_by(f64::total_cmp);
        Ok(row)
    }

    /// The median of all; `None` if that is one that did not write on.
    fn median(&self) -> Option<f64> {
        self.after.get((self.after.len() + self.stuck) / 2).copied()
    }

    fn worst(&self) -> Option<f64> {
        if self.stuck > 0 { None } else { self.after.last().copied() }
    }

    fn engine(&self) -> String {
        let sizes = self.quorums.map(|sizes| format!(" {}/{}", sizes.elect, sizes.commit));
        self.engine.name().to_owned() + &sizes.unwrap_or_default()
    }
}

fn shown(elections: Option<f64>) -> String {
    elections.map_or_else(|| format!("> {PATIENCE_ELECTIONS}"), |elections| format!("{elections:.2}"))
}

fn print(rows: &[Row]) {
    println!(
        "{:<26}{:<12}{:>8}{:>8}{:>8}{:>20}",
        "case", "engine", "median", "worst", "stuck", "ballots at most"
    );
    for row in rows {
        let (median, worst) = (shown(row.median()), shown(row.worst()));
        let (case, engine) = (row.case.to_string(), row.engine());
        println!("{case:<26}{engine:<12}{median:>8}{worst:>8}{:>8}{:>20}", row.stuck, row.ballots_max);
    }
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("{why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{NODES} nodes, {} seeds a row: election timeouts until the next write is acknowledged",
        arguments.seeds
    );
    let mut partitions = Vec::new();
    for case in Case::PARTITIONS {
        for engine in Engine::ALL {
            partitions.push(Row::run(engine, case, None, arguments.seeds)?);
        }
    }
    print(&partitions);
    if let Some(path) = &arguments.svg {
        fs::write(path, chart(&partitions, arguments.seeds)?)?;
    }
    println!("\nwith so many that elect / so many that commit");
    let sizes = [(3, 3), (4, 2)].map(|(elect, commit)| Some(Quorums { elect, commit }));
    let mut losses = Vec::new();
    for case in Case::LOSSES {
        losses.push(Row::run(Engine::Raft, case, None, arguments.seeds)?);
        for quorums in sizes {
            losses.push(Row::run(Engine::Paxos, case, quorums, arguments.seeds)?);
        }
    }
    print(&losses);
    println!(
        "\n{:<12}{:>10}{:>10}{:>10}   a write at the leader, ms from its client and back",
        "engine", "mean", "median", "p99"
    );
    for (engine, quorums) in
        [(Engine::Raft, None)].into_iter().chain(sizes.map(|sizes| (Engine::Paxos, sizes)))
    {
        let mut all = Vec::new();
        for seed in 0..LATENCY_SEEDS {
            all.extend(latencies_ms(engine, quorums, WRITES, seed)?);
        }
        all.sort_by(f64::total_cmp);
        let row =
            Row { engine, case: Case::LeaderLost, quorums, after: Vec::new(), stuck: 0, ballots_max: 0 };
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        println!(
            "{:<12}{mean:>10.2}{:>10.2}{:>10.2}",
            row.engine(),
            all[all.len() / 2],
            all[all.len() * 99 / 100]
        );
    }
    Ok(())
}

/// A point a seed, a line of them a case and engine, and a bar at the median; those that never wrote on stand at the right.
fn chart(rows: &[Row], seeds: u64) -> Result<String, std::fmt::Error> {
    const LEFT: f64 = 270.0;
    const UNIT: f64 = 90.0;
    /// So many election timeouts are drawn.
    const SHOWN: u32 = 6;
    let (right, height) = (LEFT + UNIT * f64::from(SHOWN), 90 + rows.len() * 34 + 20);
    let mut svg = String::new();
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="960" height="{height}" font-family="sans-serif" font-size="13">"##
    )?;
    writeln!(svg, r##"<rect width="100%" height="100%" fill="#ffffff"/>"##)?;
    writeln!(
        svg,
        r##"<text x="20" y="26" font-size="15">{NODES} nodes, {seeds} seeds: election timeouts until the next write; the bar is the median</text>"##
    )?;
    for at in 0..=SHOWN {
        let x = LEFT + UNIT * f64::from(at);
        let (color, bottom) = (if at == 4 { "#c05050" } else { "#dddddd" }, height - 20);
        writeln!(svg, r##"<line x1="{x}" y1="62" x2="{x}" y2="{bottom}" stroke="{color}"/>"##)?;
        writeln!(svg, r##"<text x="{x}" y="56" text-anchor="middle" fill="#444444">{at}</text>"##)?;
    }
    writeln!(svg, r##"<text x="{}" y="56" text-anchor="middle" fill="#444444">never</text>"##, right + 55.0)?;
    for (at, row) in rows.iter().enumerate() {
        let middle = 84.0 + at as f64 * 34.0;
        let color = if row.engine == Engine::Paxos { "#4878a8" } else { "#c08040" };
        writeln!(
            svg,
            r##"<text x="{}" y="{}" text-anchor="end">{}, {}</text>"##,
            LEFT - 16.0,
            middle + 4.0,
            row.case,
            row.engine()
        )?;
        for (place, after) in row.after.iter().enumerate() {
            let (x, y) = (LEFT + UNIT * after.min(f64::from(SHOWN)), middle - 9.0 + (place % 7) as f64 * 3.0);
            writeln!(svg, r##"<circle cx="{x:.1}" cy="{y:.1}" r="2" fill="{color}" fill-opacity="0.4"/>"##)?;
        }
        if let Some(median) = row.median() {
            let x = LEFT + UNIT * median.min(f64::from(SHOWN)) - 1.5;
            writeln!(
                svg,
                r##"<rect x="{x:.1}" y="{:.1}" width="3" height="26" fill="{color}"/>"##,
                middle - 13.0
            )?;
        }
        if row.stuck > 0 {
            let of = format!("{} of {seeds}", row.stuck);
            writeln!(
                svg,
                r##"<text x="{}" y="{}" text-anchor="middle" fill="{color}">{of}</text>"##,
                right + 55.0,
                middle + 4.0
            )?;
        }
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}
