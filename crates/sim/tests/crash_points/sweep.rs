//! Every operation of a log's life × every outcome of a power cut inside it.
//!
//! After each: nothing that was synced is missing, what is found is a prefix of what was appended, the log is not refused, a second
//! boot finds the same, and the log goes on from there. Outcomes that leave the same bytes under the same names are one state.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    time::Instant,
};

use conclave_sim::{
    disk::{Fate, SECTOR, SimDisk},
    rng::Rng,
};
use conclave_storage::{LogStore, Wal};

use crate::workload::{Element, Reached, Workload};

/// How much of the sweep is done.
struct Extent {
    segment_bytes: u64,
    rounds: u64,
    /// Every so-many-th operation is cut.
    stride: u64,
    /// Seeds for which sector goes where.
    scattered: u64,
    /// Every so-many-th of those cuts is followed by cuts inside the boot after it.
    boot_stride: u64,
}

/// How far before the cut a write may have been pending: more than the log writes between two syncs.
const PENDING_OPS_MAX: u64 = 8;

/// The ways in which what is pending may fare when operation `cut_at` of the disk is cut.
fn outcomes(extent: &Extent, cut_at: u64) -> Vec<(Fate, u64)> {
    let mut fates = vec![(Fate::Lost, 0), (Fate::Kept, 0)];
    let sectors = extent.segment_bytes.div_ceil(SECTOR as u64);
    for upto in cut_at.saturating_sub(PENDING_OPS_MAX)..=cut_at {
        fates.extend((0..=sectors).map(|sector| (Fate::Prefix { upto, sector }, 0)));
    }
    fates.extend((1..=extent.scattered).map(|seed| (Fate::Scattered, seed)));
    fates
}

/// What a disk holds, as one number.
fn image(disk: &SimDisk) -> u64 {
    let mounted = disk.mount();
    let mut hasher = DefaultHasher::new();
    for name in mounted.list().unwrap() {
        let file = mounted.open(&name).unwrap();
        let mut bytes = vec![0; file.size_bytes().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        (name, bytes).hash(&mut hasher);
    }
    hasher.finish()
}

/// Opens what a cut left, and returns the log and how much of the workload it holds.
fn reopen(workload: &Workload, disk: &SimDisk, reached: Reached, what: &dyn std::fmt::Debug) -> (Wal, usize) {
    let log = workload.open(disk).unwrap_or_else(|error| panic!("{what:?}: refused: {error}"));
    let held = workload.position(&log, reached);
    let held = held.unwrap_or_else(|| panic!("{what:?}: not a prefix of {reached:?}"));
    (log, held)
}

fn exactly(held: usize) -> Reached {
    Reached { synced: held, begun: held }
}

/// Holds what a cut left to every promise, and goes on writing.
fn check(
    workload: &Workload,
    elements: &[Element],
    disk: &SimDisk,
    reached: Reached,
    what: &dyn std::fmt::Debug,
) {
    let (log, held) = reopen(workload, disk, reached, what);
    drop(log);
    let (log, _) = reopen(workload, disk, exactly(held), what);
    let mut rest = elements[held..].iter();
    if let Some(next) = rest.next() {
        // Alone: what stood behind it before the cut, its number and place the next, must not follow it again.
        log.append(std::slice::from_ref(next)).unwrap();
        log.sync().unwrap();
        drop(log);
        disk.power_cut_with(Fate::Lost);
        let (log, _) = reopen(workload, disk, exactly(held + 1), what);
        for element in rest {
            log.append(std::slice::from_ref(element)).unwrap();
        }
        log.sync().unwrap();
    }
    disk.power_cut_with(Fate::Lost);
    reopen(workload, disk, exactly(elements.len()), what);
}

/// How many operations the whole workload asks of a disk.
fn operations(workload: &Workload) -> u64 {
    let disk = SimDisk::new(Rng::new(0));
    let log = workload.open(&disk).unwrap();
    assert_eq!(workload.run(&log), exactly(workload.len()));
    let stats = log.stats();
    assert!(stats.rotations >= 5 && stats.segments_recycled >= 2 && stats.entries_copied >= 2, "{stats:?}");
    drop(log);
    (1..).find(|cut_at| !workload.run_until_cut(*cut_at, 0).0.is_dead()).unwrap() - 1
}

/// Cuts as far as `extent` says and returns how many different states were left by it.
fn sweep(extent: &Extent) -> u64 {
    let workload = Workload::new(extent.segment_bytes, extent.rounds);
    let elements = workload.elements();
    let (operations, started) = (operations(&workload), Instant::now());
    let (mut cuts, mut states) = (0, 0);
    for cut_at in (1..=operations).step_by(extent.stride as usize) {
        cuts += 1;
        let mut seen = BTreeSet::new();
        for (fate, seed) in outcomes(extent, cut_at) {
            let (disk, reached) = workload.run_until_cut(cut_at, seed);
            disk.power_cut_with(fate);
            if !seen.insert(image(&disk)) {
                continue;
            }
            states += 1;
            check(&workload, &elements, &disk, reached, &(cut_at, fate, seed));
            if states % extent.boot_stride == 0 {
                states += cuts_inside_boot(&workload, &elements, cut_at, fate, seed);
            }
        }
    }
    println!(
        "crash points: {states} states from {cuts} of {operations} operations in segments of {} bytes, {:.1} s",
        extent.segment_bytes,
        started.elapsed().as_secs_f64()
    );
    states
}

/// The power goes again while the log is opened after a cut.
fn cuts_inside_boot(workload: &Workload, elements: &[Element], cut_at: u64, fate: Fate, seed: u64) -> u64 {
    let mut states = 0;
    for again in 1.. {
        let mut seen = BTreeSet::new();
        for second in [Fate::Lost, Fate::Kept, Fate::Scattered] {
            let (disk, reached) = workload.run_until_cut(cut_at, seed);
            disk.power_cut_with(fate);
            disk.cut_in(again);
            if workload.open(&disk).is_ok() {
                // The boot asks for fewer operations than that.
                return states;
            }
            disk.power_cut_with(second);
            if seen.insert(image(&disk)) {
                states += 1;
                check(workload, elements, &disk, reached, &(cut_at, fate, seed, again, second));
            }
        }
    }
    states
}

#[test]
fn nothing_synced_is_lost_at_a_part_of_all_crash_points() {
    let small = Extent { segment_bytes: 2048, rounds: 60, stride: 1, scattered: 16, boot_stride: 5 };
    let large = Extent { segment_bytes: 8192, rounds: 120, stride: 7, scattered: 16, boot_stride: 5 };
    let states = sweep(&small) + sweep(&large);
    assert!(states > 4000, "{states} states");
}

#[test]
#[ignore = "minutes: cargo xtask prove crash-points"]
fn nothing_synced_is_lost_at_any_crash_point() {
    let small = Extent { segment_bytes: 2048, rounds: 100, stride: 1, scattered: 64, boot_stride: 5 };
    let large = Extent { segment_bytes: 8192, rounds: 300, stride: 1, scattered: 64, boot_stride: 5 };
    let states = sweep(&small) + sweep(&large);
    println!("crash points: {states} states in all");
    assert!(states > 20_000, "{states} states");
}

#[cfg(feature = "mutants")]
#[test]
#[should_panic(expected = "not a prefix")]
fn a_disk_whose_syncs_do_nothing_is_seen() {
    let workload = Workload::new(2048, 6);
    let disk = SimDisk::new(Rng::new(0));
    let log = workload.open(&disk).unwrap();
    conclave_consensus::Mutant::choose_here(Some(conclave_consensus::Mutant::LogSyncDoesNothing));
    let reached = workload.run(&log);
    conclave_consensus::Mutant::choose_here(None);
    drop(log);
    disk.power_cut_with(Fate::Lost);
    check(&workload, &workload.elements(), &disk, reached, &"syncs ignored");
}
