//! What a big store costs: memory after filling, after a restart, and how long the restart takes.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process;
use crate::subject::{Running, Subject};

/// Background work (checkpoints, garbage collection) settles for so long before memory is read a second time.
const SETTLE: Duration = Duration::from_secs(10);

/// Fills each subject with `keys` keys in turn and prints what it holds.
///
/// # Errors
/// When a server fails.
pub async fn run(subjects: &[Subject], keys: u64) -> Result<()> {
    println!("{:<10}{:>10}{:>10}  resident MiB of each node", "subject", "keys", "seconds");
    for subject in subjects {
        let mut running = subject.start()?;
        let started = Instant::now();
        running.fill(keys).await?;
        show(subject.name, keys, started.elapsed(), &running, "filled")?;
        tokio::time::sleep(SETTLE).await;
        show(subject.name, keys, SETTLE, &running, "settled")?;
        let took = running.restart()?;
        show(subject.name, keys, took, &running, "killed, restarted, serving")?;
        running.stop()?;
    }
    Ok(())
}

fn show(name: &str, keys: u64, took: Duration, running: &Running, what: &str) -> Result<()> {
    let resident = process::resident_bytes(&running.pids())?;
    let each: Vec<String> =
        resident.iter().map(|bytes| format!("{:.0}", *bytes as f64 / f64::from(1 << 20))).collect();
    let sum = resident.iter().sum::<u64>() as f64 / f64::from(1 << 20);
    println!("{name:<10}{keys:>10}{:>10.1}  {} = {sum:.0}  {what}", took.as_secs_f64(), each.join(" + "));
    Ok(())
}
