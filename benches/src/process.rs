//! What the kernel says a process used: CPU time, task switches, resident memory, by thread name too.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// CPU time and task switches since the start of a process or thread.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time in microseconds, in steps of the kernel's clock tick (10 ms).
    pub cpu_us: f64,
    /// How often the thread gave the processor up to wait.
    pub waits: u64,
}

impl Usage {
    fn add(&mut self, other: Usage) {
        self.cpu_us += other.cpu_us;
        self.waits += other.waits;
    }

    fn since(self, earlier: Usage) -> Usage {
        Usage {
            cpu_us: (self.cpu_us - earlier.cpu_us).max(0.0),
            waits: self.waits.saturating_sub(earlier.waits),
        }
    }
}

/// The use of several processes together at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Of the processes, threads that have ended included; `waits` is left 0.
    pub total: Usage,
    /// By what threads do: their names without a number at the end.
    pub threads: BTreeMap<String, Usage>,
}

impl Sample {
    /// Reads it from `/proc`.
    ///
    /// # Errors
    /// When a process is gone.
    pub fn of(pids: &[u32]) -> Result<Sample> {
        let mut sample = Sample::default();
        for pid in pids {
            sample.total.cpu_us += cpu_us(&format!("/proc/{pid}/stat"))?;
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?.path();
                // A thread may end while it is read; the total has its time.
                let Ok(usage) = thread_usage(&task.display().to_string()) else { continue };
                let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
                sample.threads.entry(role(&name)).or_default().add(usage);
            }
        }
        Ok(sample)
    }

    /// What was used between an earlier sample and this one.
    #[must_use]
    pub fn since(&self, earlier: &Sample) -> Sample {
        let threads = self
            .threads
            .iter()
            .map(|(name, usage)| {
                (name.clone(), usage.since(earlier.threads.get(name).copied().unwrap_or_default()))
            })
            .collect();
        Sample { total: self.total.since(earlier.total), threads }
    }
}

/// The resident memory of each process in bytes.
///
/// # Errors
/// When a process is gone.
pub fn resident_bytes(pids: &[u32]) -> Result<Vec<u64>> {
    pids.iter()
        .map(|pid| {
            Ok(number(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:").context("no VmRSS")?
                * 1024)
        })
        .collect()
}

/// The CPU time of this process in microseconds.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn own_cpu_us() -> Result<f64> {
    cpu_us("/proc/self/stat")
}

fn thread_usage(task: &str) -> Result<Usage> {
    let status = fs::read_to_string(format!("{task}/status"))?;
    Ok(Usage {
        cpu_us: cpu_us(&format!("{task}/stat"))?,
        waits: number(&status, "\nvoluntary_ctxt_switches:").unwrap_or(0),
    })
}

fn cpu_us(stat_path: &str) -> Result<f64> {
    let stat = fs::read_to_string(stat_path).with_context(|| format!("reading {stat_path}"))?;
    let ticks = ticks(&stat).with_context(|| format!("{stat_path} is not as proc(5) says"))?;
    Ok(ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time of a line of `/proc/PID/stat`. Fields are counted from behind the name, which may hold blanks.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn number(status: &str, label: &str) -> Option<u64> {
    let (_, rest) = status.split_once(label)?;
    rest.split_whitespace().next()?.parse().ok()
}

/// `tokio-0` and `tokio-1` do the same.
fn role(comm: &str) -> String {
    comm.trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_name_with_blanks() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 1 0 5 0 0";
        assert_eq!(ticks(stat), Some(42));
    }

    #[test]
    fn threads_are_grouped_by_role() {
        assert_eq!(role("tokio-0\n"), "tokio");
        assert_eq!(role("log\n"), "log");
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        let earlier = Sample::of(&[pid]).unwrap();
        assert!(!Sample::of(&[pid]).unwrap().since(&earlier).threads.is_empty());
        assert!(resident_bytes(&[pid]).unwrap()[0] > 100_000);
    }
}
