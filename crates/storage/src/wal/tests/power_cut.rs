//! Power is cut inside every operation of a small log's life, with every kind of outcome: nothing synced is lost, what is
//! found is a prefix of what was appended, and the log is never refused.

use super::{
    fault_disk::{FaultDisk, OUTCOMES, Outcome},
    workload::{Element, Workload, open},
};
use crate::{LogStore, Wal};

/// Runs until the cut, which may come while the log is opened.
fn run_until_cut(workload: &Workload, cut_at: u64) -> (FaultDisk, usize, usize) {
    let disk = FaultDisk::default();
    disk.cut_at(cut_at);
    let (synced, begun) = open(&disk).map_or((0, 0), |log| workload.run(&log));
    (disk, synced, begun)
}

fn operations(workload: &Workload) -> u64 {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    let elements = workload.elements().len();
    assert_eq!(workload.run(&log), (elements, elements));
    let stats = log.stats();
    assert!(stats.rotations >= 8 && stats.segments_recycled >= 2 && stats.entries_copied >= 2, "{stats:?}");
    disk.operations()
}

/// Opens what a cut left, and returns how much of the workload it holds.
fn reopen(
    workload: &Workload,
    disk: &FaultDisk,
    synced: usize,
    begun: usize,
    what: &dyn std::fmt::Debug,
) -> usize {
    let log = open(disk).unwrap_or_else(|error| panic!("{what:?}: refused: {error}"));
    workload
        .position(&log, synced, begun)
        .unwrap_or_else(|| panic!("{what:?}: not a prefix of {synced}..={begun}"))
}

#[test]
fn nothing_synced_is_lost_whenever_power_fails() {
    let workload = Workload::busy(24);
    for cut_at in 0..operations(&workload) {
        let (disk, synced, begun) = run_until_cut(&workload, cut_at);
        for outcome in OUTCOMES {
            let what = (cut_at, outcome);
            let disk = disk.after_power_cut(outcome);
            let held = reopen(&workload, &disk, synced, begun, &what);
            // It goes on from there, and no remains of what was cut come back.
            let log = open(&disk).unwrap();
            assert_eq!(
                workload.position(&log, held, held),
                Some(held),
                "{what:?}: a second boot finds the same"
            );
            let elements = workload.elements();
            let rest = &elements[held..];
            if let [next, ..] = rest {
                // Alone: what stood behind it before the cut, its number and place the next, must not follow it again.
                log.append(std::slice::from_ref(next)).unwrap();
                log.sync().unwrap();
                reopen(&workload, &disk.after_power_cut(Outcome::Lost), held + 1, held + 1, &what);
            }
            finish(&workload, &log, rest.get(1..).unwrap_or_default());
            drop(log);
            let all = elements.len();
            reopen(&workload, &disk.after_power_cut(Outcome::Lost), all, all, &what);
        }
    }
}

fn finish(workload: &Workload, log: &Wal, rest: &[Element]) {
    for element in rest {
        log.append(std::slice::from_ref(element)).unwrap();
    }
    log.sync().unwrap();
    let all = workload.history.len() - 1;
    assert_eq!(workload.position(log, all, all), Some(all));
}

/// `kill -9` leaves names and bytes to be seen that no sync has made durable; power fails later.
#[test]
fn nothing_is_lost_when_a_process_dies_and_power_fails_later() {
    let workload = Workload::busy(24);
    for dies_at in 0..operations(&workload) {
        let (disk, synced, begun) = run_until_cut(&workload, dies_at);
        let disk = disk.after_process_death();
        let log = open(&disk).unwrap_or_else(|error| panic!("{dies_at}: refused: {error}"));
        let held = workload.position(&log, synced, begun).unwrap();
        finish(&workload, &log, &workload.elements()[held..]);
        drop(log);
        let all = workload.history.len() - 1;
        for outcome in [Outcome::Lost, Outcome::Reordered(dies_at), Outcome::Torn(dies_at)] {
            reopen(&workload, &disk.after_power_cut(outcome), all, all, &(dies_at, outcome));
        }
    }
}

#[test]
fn power_may_fail_again_while_the_log_is_opened() {
    let workload = Workload::busy(14);
    for cut_at in (0..).map(|step| step * 3 + 1).take_while(|cut_at| *cut_at < 150) {
        let (disk, synced, begun) = run_until_cut(&workload, cut_at);
        for outcome in [Outcome::Torn(7), Outcome::Reordered(8), Outcome::Kept] {
            let first = disk.after_power_cut(outcome);
            let probe = disk.after_power_cut(outcome);
            drop(open(&probe).unwrap());
            for again in 0..probe.operations() {
                let second = disk.after_power_cut(outcome);
                second.cut_at(again);
                assert!(open(&second).is_err(), "every failure while opening is told");
                for outcome in [Outcome::Lost, Outcome::Torn(again), Outcome::Reordered(again), Outcome::Kept]
                {
                    let third = second.after_power_cut(outcome);
                    reopen(&workload, &third, synced, begun, &(cut_at, again, outcome));
                }
            }
            reopen(&workload, &first, synced, begun, &(cut_at, outcome));
        }
    }
}

#[test]
fn what_boot_hands_out_is_durable_though_it_was_not_synced_before() {
    let workload = Workload::busy(6);
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    for element in workload.elements() {
        log.append(&[element]).unwrap();
    }
    // The process dies, the machine does not: the page cache keeps what no sync has seen.
    drop(log);
    let all = workload.history.len() - 1;
    let held = reopen(&workload, &disk, 0, all, &"process crash");
    assert_eq!(held, all);
    let held = reopen(&workload, &disk.after_power_cut(Outcome::Lost), 0, all, &"power cut after it");
    assert_eq!(held, all, "what a boot had shown is there at the next");
}

#[test]
fn what_boot_hands_out_is_durable_though_its_sync_had_failed() {
    let workload = Workload::busy(3);
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    for element in workload.elements() {
        log.append(&[element]).unwrap();
    }
    disk.fail_next_sync();
    assert!(log.sync().is_err());
    drop(log);
    let all = workload.history.len() - 1;
    let disk = disk.after_process_death();
    let held = reopen(&workload, &disk, 0, all, &"after the failure");
    reopen(&workload, &disk.after_power_cut(Outcome::Lost), held, held, &"power cut after it");
}

#[test]
fn a_torn_tail_is_counted() {
    let workload = Workload::busy(3);
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    workload.run(&log);
    for element in workload.elements() {
        log.append(&[element]).unwrap();
    }
    drop(log);
    let cut: Vec<u64> = (0..20)
        .map(|seed| open(&disk.after_power_cut(Outcome::Torn(seed))).unwrap().stats().tail_bytes_cut)
        .collect();
    assert!(cut.iter().any(|bytes| *bytes > 0), "{cut:?}");
    assert_eq!(open(&disk.after_power_cut(Outcome::Lost)).unwrap().stats().tail_bytes_cut, 0);
}
