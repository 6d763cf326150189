//! What many groups cost in one process: idle, in CPU and memory, and a put where one or a hundred of them are active.
//!
//! `cargo run --release -p conclave-replica --example many_groups`
//!
//! Three hosts in one thread, with a network and a log that take no time: what is measured is hosts and cores alone, and what moves packets
//! between them. Every put is stepped and drained by itself, so that nothing is won by batches. The first figure of a put tells what a group
//! costs more for having neighbours; the second also what a group wins by being asked often, since commits ride on the next entries.

#[path = "../tests/support/cluster.rs"]
mod cluster;

use std::time::Duration;

use cluster::Cluster;
use conclave_consensus::GroupId;

const NODES: u64 = 3;
const IDLE: Duration = Duration::from_mins(1);
const PUTS: u64 = 200_000;
/// So many are put in all groups before a millisecond passes.
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

/// A put in each of so many active groups, or so many at once in all of them in turn, every millisecond.
fn put(hosted: u64, active: u64, at_once: u64) -> f64 {
    let mut cluster = Cluster::new(NODES, hosted, true);
    cluster.run(Duration::from_secs(20));
    let leaders: Vec<_> =
        (1..=active).filter_map(|group| Some((GroupId(group), cluster.leader(GroupId(group))?))).collect();
    let (mut used, mut turns) = (Duration::ZERO, 0);
    // The first round wakes them.
    for _ in 0..2 {
        cluster.take_tally();
        turns = PUTS / at_once;
        let mut turn = leaders.iter().cycle();
        let began = cpu();
        for _ in 0..turns {
            for (group, leader) in turn.by_ref().take(at_once as usize) {
                cluster.propose(*leader, *group);
            }
            cluster.run(Duration::from_millis(1));
        }
        used = cpu() - began;
    }
    let (applied, expected) = (cluster.take_tally().commands, turns * at_once * NODES);
    assert!(applied.abs_diff(expected) <= at_once * NODES, "{applied} of {expected} were applied");
    used.as_secs_f64() * 1e6 / (turns * at_once) as f64
}

fn main() {
    println!("{NODES} nodes, each with a replica of each group");
    println!(" groups | sleep | CPU of a node | packets/s | bytes/replica |    led");
    for groups in [1, 100, 10_000] {
        for quiesce in [true, false] {
            idle(groups, quiesce);
        }
    }
    println!("\nCPU of a put on all nodes, us");
    println!(" hosted | active | one a ms in each | {AT_ONCE} a ms in all");
    for (hosted, active) in [(1, 1), (100, 1), (100, 100), (10_000, 100)] {
        let (each, all) = (put(hosted, active, active), put(hosted, active, AT_ONCE));
        println!("{hosted:>7} | {active:>6} | {each:>16.2} | {all:>12.2}");
    }
}
