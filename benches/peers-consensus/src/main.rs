//! Consensus cores side by side: three replicas in one process, one thread, everything in memory. `raft` compares Raft libraries, `paxos` those of
//! Multi-Paxos.
//!
//! Each system is driven as its own documentation says. Each decides the same commands of 16 bytes, has them applied on all
//! three replicas, and every one is checked there. What is measured is the library: no disk, no socket, no clock that ticks, no logging.

#![forbid(unsafe_code)]

mod load;
mod omni_paxos;
mod open_raft;
mod ours;
mod raft_rs;

use std::time::Duration;

use anyhow::{Result, bail};
use load::Load;

/// A library under measure.
struct System {
    name: &'static str,
    run: fn(&Load) -> Result<Duration>,
    /// Commands a round; one of many under way, a tenth of it with one.
    commands: u64,
}

/// Ours first.
const RAFT: &[System] = &[
    System { name: "conclave-raft", run: ours::run_raft, commands: 400_000 },
    System { name: "raft 0.7", run: raft_rs::run, commands: 200_000 },
    System { name: "openraft 0.9.25", run: open_raft::run, commands: 100_000 },
];

/// Ours first.
const PAXOS: &[System] = &[
    System { name: "conclave-paxos", run: ours::run_paxos, commands: 400_000 },
    System { name: "omnipaxos 0.2.4", run: omni_paxos::run_any_size, commands: 400_000 },
    System { name: "the same, arrays", run: omni_paxos::run_one_size, commands: 400_000 },
];

/// Rounds in which each system runs once; the median counts.
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("raft") => compare(RAFT),
        Some("paxos") => compare(PAXOS),
        _ => bail!("which protocol: raft or paxos?"),
    }
}

fn compare(systems: &[System]) -> Result<()> {
    println!("{:<18}{:>10}{:>10}{:>16}{:>12}", "system", "messages", "window", "commands/s", "ours is");
    for encoded in [true, false] {
        for window in [1, load::BATCH_MAX] {
            let mut rates = vec![Vec::new(); systems.len()];
            for _ in 0..ROUNDS {
                for (system, rates) in systems.iter().zip(&mut rates) {
                    let commands = if window == 1 { system.commands / 10 } else { system.commands };
                    let took = (system.run)(&Load { commands, window, encoded })?;
                    rates.push(commands as f64 / took.as_secs_f64());
                }
            }
            let medians: Vec<f64> = rates
                .into_iter()
                .map(|mut rates| {
                    rates.sort_by(f64::total_cmp);
                    rates[ROUNDS / 2]
                })
                .collect();
            for (system, rate) in systems.iter().zip(&medians) {
                let messages = if encoded { "bytes" } else { "values" };
                let ratio = format!("{:.2} x", medians[0] / rate);
                println!("{:<18}{messages:>10}{window:>10}{rate:>16.0}{ratio:>12}", system.name);
            }
        }
    }
    Ok(())
}
