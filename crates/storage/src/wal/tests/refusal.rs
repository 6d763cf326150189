//! What the log refuses, and how it says so.

use std::{collections::BTreeMap, sync::Arc};

use conclave_consensus::{GroupId, LogOp, Slot, SlotRange};

use super::{
    fault_disk::{FaultDisk, Outcome},
    workload::{Workload, open, options, put},
};
use crate::{LogError, LogStore, Preparation, Wal, WalOptions, conformance::log_contents, wal::segment};

const GROUP: GroupId = GroupId(1);

fn small_log() -> BTreeMap<String, Vec<u8>> {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    log.append(&[(GROUP, vec![put(1, 1, 10)])]).unwrap();
    log.sync().unwrap();
    disk.files()
}

fn refused(files: &BTreeMap<String, Vec<u8>>, name: &str) -> String {
    let disk = FaultDisk::holding(files);
    match open(&disk) {
        Err(LogError::Foreign { file, why }) => {
            assert_eq!(file, name);
            assert_eq!(&disk.files(), files, "a refused log is left alone");
            why
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_foreign_file_is_refused_by_name() {
    let mut files = small_log();
    files.insert("0000000000000000-0000000000000000.wal".to_owned(), vec![0; 64]);
    let why = refused(&files, "0000000000000000-0000000000000000.wal");
    assert_eq!(why, "no segment has such a name");
}

#[test]
fn a_segment_of_something_else_is_refused() {
    let mut files = small_log();
    files.insert(segment::segment_name(2), vec![b'x'; 2048]);
    assert_eq!(refused(&files, &segment::segment_name(2)), "it does not begin as one");
}

#[test]
fn a_segment_of_another_log_is_refused() {
    let mut files = small_log();
    let disk = FaultDisk::default();
    let other = Wal::open(Arc::new(disk.clone()), WalOptions { log_id: 99, ..options() }).unwrap();
    for slot in 1..30 {
        other.append(&[(GROUP, vec![put(slot, 1, 100)])]).unwrap();
    }
    let second = segment::segment_name(2);
    files.insert(second.clone(), disk.files()[&second].clone());
    assert!(refused(&files, &second).contains("belongs to log 0000000000000063"));
}

#[test]
fn a_renamed_segment_is_refused() {
    let mut files = small_log();
    let first = files[&segment::segment_name(1)].clone();
    files.insert(segment::segment_name(2), first);
    assert_eq!(refused(&files, &segment::segment_name(2)), "by its header it is segment 00000001");
}

#[test]
fn scrap_of_an_unfinished_segment_is_cleared_away() {
    let mut files = small_log();
    files.insert(segment::temporary_name(2), vec![1; 7]);
    files.insert(segment::spare_name(9), vec![0; 2048]);
    let disk = FaultDisk::holding(&files);
    open(&disk).unwrap();
    assert_eq!(disk.files().into_keys().collect::<Vec<_>>(), [segment::segment_name(1)]);
}

#[test]
fn a_failed_sync_closes_the_log_for_good() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    log.append(&[(GROUP, vec![put(1, 1, 10)])]).unwrap();
    disk.fail_next_sync();
    assert!(matches!(log.sync(), Err(LogError::Io { operation: "sync", .. })));
    assert!(matches!(log.sync(), Err(LogError::Failed)), "a second sync would succeed and prove nothing");
    assert!(matches!(log.append(&[(GROUP, vec![put(2, 1, 10)])]), Err(LogError::Failed)));
    let read = log.read(GROUP, SlotRange { from: Slot(1), to: Slot(2) }, 10);
    assert!(matches!(read, Err(LogError::Failed)));
}

#[test]
fn a_failed_sync_between_segments_closes_the_log_too() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    log.append(&[(GROUP, vec![put(1, 1, 700)])]).unwrap();
    log.append(&[(GROUP, vec![put(2, 1, 700)])]).unwrap();
    disk.fail_next_sync();
    assert!(matches!(log.append(&[(GROUP, vec![put(3, 1, 700)])]), Err(LogError::Io { .. })));
    assert!(matches!(log.sync(), Err(LogError::Failed)));
}

#[test]
fn a_full_disk_loses_nothing_that_was_acknowledged() {
    for preparation in [Preparation::Inline, Preparation::Background] {
        let options = WalOptions { preparation, ..options() };
        let workload =
            Workload::of((1..200).map(|slot| (vec![(GROUP, vec![put(slot, 1, 100)])], true)).collect());
        let disk = FaultDisk::default();
        disk.hold_at_most(4);
        let log = Wal::open(Arc::new(disk.clone()), options.clone()).unwrap();
        let (synced, begun) = workload.run(&log);
        assert!((20..199).contains(&synced), "{synced}");
        assert!(matches!(log.sync(), Err(LogError::Failed)));
        drop(log);
        for outcome in [Outcome::Lost, Outcome::Kept, Outcome::Torn(3)] {
            let disk = disk.after_power_cut(outcome);
            disk.hold_at_most(4);
            let log = Wal::open(Arc::new(disk.clone()), options.clone()).unwrap();
            let held = workload.position(&log, synced, begun).expect("all that was acknowledged");
            // With room made by a cut it goes on.
            log.append(&[(GROUP, vec![LogOp::CutBelow(Slot(held as u64))])]).unwrap();
            log.sync().unwrap();
        }
    }
}

#[test]
fn a_full_disk_is_told_as_such() {
    let disk = FaultDisk::default();
    disk.hold_at_most(1);
    let log = open(&disk).unwrap();
    let failure = (1..).find_map(|slot| log.append(&[(GROUP, vec![put(slot, 1, 100)])]).err());
    assert!(matches!(failure, Some(LogError::Full)), "{failure:?}");
    disk.hold_at_most(0);
    let none = FaultDisk::default();
    none.hold_at_most(0);
    assert!(matches!(open(&none), Err(LogError::Full)), "nor can a log begin on one");
}

#[test]
fn an_element_that_no_segment_could_hold_is_refused() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    log.append(&[(GROUP, vec![put(1, 1, 10)])]).unwrap();
    log.sync().unwrap();
    let before = log_contents(&log);
    assert!(matches!(log.append(&[(GROUP, vec![put(2, 1, 1500)])]), Err(LogError::Misuse(_))));
    drop(log);
    assert_eq!(log_contents(&open(&disk).unwrap()), before);
}

#[test]
fn options_out_of_range_are_refused() {
    for options in [
        WalOptions { segment_bytes: 1024, ..options() },
        WalOptions { segment_bytes: 2 << 30, ..options() },
        WalOptions { segment_bytes: 4100, ..options() },
        WalOptions { pinned_segments_max: 0, ..options() },
    ] {
        assert!(matches!(Wal::open(Arc::new(FaultDisk::default()), options), Err(LogError::Misuse(_))));
    }
}
