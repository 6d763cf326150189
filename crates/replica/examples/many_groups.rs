//! What many groups cost in one process: idle, in CPU and memory, and a put where one or a hundred of them are active.
//!
//! `cargo run --release -p conclave-replica --example many_groups`
//!
//! Three hosts in one thread, with a network and a log that take no time: what is measured is hosts and cores alone, and what moves packets
//! between them. Every put is stepped and drained by itself, so that nothing is won by batches.

#[path = "../tests/support/cluster.rs"]
mod cluster;

use std::time::Duration;

use cluster::Cluster;
use conclave_consensus::GroupId;

const NODES: u64 = 3;
const IDLE: Duration = Duration::from_mins(1);
const PUTS: u64 = 200_000;
/// So many are put before a millisecond passes.
const AT_ONCE: u64 = 32;

/// The CPU that this process has used.
fn cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// What this process holds in memory, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn idle(groups: u64, quiesce: bool) {
    let before = resident_bytes();
    let mut cluster = Cluster::new(NODES, groups, quiesce);
    cluster.run(Duration::from_secs(20));
    let bytes = resident_bytes().saturating_sub(before) / (NODES * groups);
    cluster.take_tally();
    let began = cpu();
    cluster.run(IDLE);
    let share = (cpu() - began).as_secs_f64() / IDLE.as_secs_f64() / NODES as f64 * 100.0;
    let tally = cluster.take_tally();
    let packets = (tally.alive + tally.other) / IDLE.as_secs();
    let led = (1..=groups).filter(|group| cluster.leader(GroupId(*group)).is_some()).count();
    println!("{groups:>7} | {quiesce:>5} | {share:>11.4} % | {packets:>9} | {bytes:>13} | {led:>6}");
}

fn put(hosted: u64, active: u64) -> Duration {
    let mut cluster = Cluster::new(NODES, hosted, true);
    cluster.run(Duration::from_secs(20));
    let leaders: Vec<_> =
        (1..=active).filter_map(|group| Some((GroupId(group), cluster.leader(GroupId(group))?))).collect();
    let mut took = Duration::ZERO;
    // The first round wakes them.
    for _ in 0..2 {
        cluster.take_tally();
        let mut turn = leaders.iter().cycle();
        let began = cpu();
        for _ in 0..PUTS / AT_ONCE {
            for (group, leader) in turn.by_ref().take(AT_ONCE as usize) {
                cluster.propose(*leader, *group);
            }
            cluster.run(Duration::from_millis(1));
        }
        took = cpu() - began;
    }
    let (applied, expected) = (cluster.take_tally().commands, PUTS / AT_ONCE * AT_ONCE * NODES);
    assert!(applied.abs_diff(expected) <= AT_ONCE * NODES, "{applied} of {expected} were applied");
    took / u32::try_from(PUTS).unwrap_or(u32::MAX)
}

fn main() {
    println!("{NODES} nodes, each with a replica of each group");
    println!(" groups | sleep | CPU of a node | packets/s | bytes/replica |    led");
    for groups in [1, 100, 10_000] {
        for quiesce in [true, false] {
            idle(groups, quiesce);
        }
    }
    println!("\n hosted | active | CPU of a put, all nodes");
    let mut one = None;
    for (hosted, active) in [(1, 1), (100, 1), (100, 100), (10_000, 100)] {
        let took = put(hosted, active).as_secs_f64() * 1e6;
        let first = *one.get_or_insert(took);
        println!("{hosted:>7} | {active:>6} | {took:>6.2} us ({:+.0} %)", (took / first - 1.0) * 100.0);
    }
}
