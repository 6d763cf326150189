//! Rotation, recycling, and who may keep old segments alive.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use conclave_consensus::{GroupId, LogOp, LogSlice, Slot, SlotRange};

use super::{
    fault_disk::{FaultDisk, Outcome},
    workload::{open, options, put},
};
use crate::{
    HOST_GROUP, LogStore, Preparation, RealDisk, Wal, WalOptions,
    conformance::log_contents,
    wal::{frame, segment},
};

const BUSY: GroupId = GroupId(1);
const IDLE: GroupId = GroupId(2);

/// Writes entries of one size and cuts behind them.
fn write(log: &Wal, slots: std::ops::Range<u64>, kept: u64) {
    for slot in slots {
        let cut = LogOp::CutBelow(Slot(slot.saturating_sub(kept)));
        log.append(&[(BUSY, vec![put(slot, 1, 100), cut])]).unwrap();
        log.sync().unwrap();
    }
}

fn segments(disk: &FaultDisk) -> usize {
    disk.files().keys().filter(|name| name.ends_with(".wal")).count()
}

#[test]
fn old_segments_are_let_go_and_used_again() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    write(&log, 1..500, 3);
    let stats = log.stats();
    assert!(stats.rotations > 30, "{stats:?}");
    assert!(stats.segments_freed >= stats.rotations - 2, "{stats:?}");
    assert!(stats.segments_recycled >= stats.rotations - 3, "{stats:?}");
    assert!(disk.files().len() <= 3, "{:?}", disk.files().keys());
    assert_eq!(log.size_bytes(), disk.files().len() as u64 * options().segment_bytes);
}

#[test]
fn a_group_that_only_cuts_frees_segments_without_a_rotation() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    write(&log, 1..100, 1000);
    assert!(segments(&disk) > 5);
    log.append(&[(BUSY, vec![LogOp::CutBelow(Slot(98))])]).unwrap();
    log.sync().unwrap();
    assert!(segments(&disk) <= 2, "{:?}", disk.files().keys());
}

#[test]
fn an_idle_group_does_not_pin_the_log() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    log.append(&[
        (HOST_GROUP, vec![LogOp::Meta(Bytes::from_static(b"who I am"))]),
        (IDLE, vec![LogOp::Meta(Bytes::from_static(b"vote")), put(5, 1, 40), put(6, 1, 40)]),
    ])
    .unwrap();
    let before = log_contents(&log)[&IDLE].clone();
    write(&log, 1..400, 3);
    assert!(segments(&disk) <= options().pinned_segments_max + 1, "{:?}", disk.files().keys());
    assert!(log.stats().entries_copied >= 4);
    drop(log);
    let log = open(&disk.after_power_cut(Outcome::Lost)).unwrap();
    assert_eq!(log_contents(&log)[&IDLE], before);
    assert_eq!(log.state(HOST_GROUP).meta, Bytes::from_static(b"who I am"));
    let LogSlice::Entries(entries) = log.read(IDLE, SlotRange { from: Slot(5), to: Slot(9) }, 9999).unwrap()
    else {
        panic!("it was never cut");
    };
    assert_eq!(entries.len(), 2);
}

#[test]
fn an_idle_group_with_much_in_its_log_is_moved_bit_by_bit() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    for slot in 1..=40 {
        log.append(&[(IDLE, vec![put(slot, 1, 100)])]).unwrap();
    }
    log.sync().unwrap();
    let (before, held) = (log_contents(&log)[&IDLE].clone(), segments(&disk));
    write(&log, 1..1000, 3);
    assert!(segments(&disk) <= 6 * held, "{:?}", disk.files().keys());
    let settled = segments(&disk);
    write(&log, 1000..3000, 3);
    assert!(segments(&disk) <= settled + 4, "the log does not grow with history");
    assert_eq!(log_contents(&log)[&IDLE], before);
}

#[test]
fn a_log_that_is_all_alive_is_not_copied_around() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    write(&log, 1..300, 1000);
    assert_eq!(log.stats().entries_copied, 0);
}

/// All frames have one size, so behind the end of a recycled segment stands, whole and valid but for its number, a frame of its
/// earlier life.
#[test]
fn stale_frames_of_a_recycled_segment_never_pass() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    let mut met = 0;
    for slot in 1..300 {
        write(&log, slot..slot + 1, 3);
        let contents = log_contents(&log);
        let files: BTreeMap<_, _> =
            disk.files().into_iter().filter(|(name, _)| name.ends_with(".wal")).collect();
        let (newest, bytes) = files.last_key_value().unwrap();
        let number = u32::from_str_radix(&newest[..8], 16).unwrap();
        let stale = (1..number).any(|earlier| {
            let stamp = frame::Stamp { log_id: log.log_id(), segment: earlier };
            (segment::HEADER_BYTES..bytes.len()).step_by(8).any(|at| frame::at(bytes, at, stamp).is_some())
        });
        met += u32::from(stale);
        let again = open(&FaultDisk::holding(&files)).unwrap();
        assert_eq!(log_contents(&again), contents);
        assert_eq!(again.stats().tail_bytes_cut, 0);
    }
    assert!(met > 100, "only {met} logs had stale frames behind their end");
}

#[test]
fn the_size_of_segments_may_change_between_boots() {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    write(&log, 1..60, 3);
    drop(log);
    let larger = WalOptions { segment_bytes: 8192, ..options() };
    let log = Wal::open(Arc::new(disk.clone()), larger).unwrap();
    log.append(&[(BUSY, vec![put(60, 1, 3000)])]).unwrap();
    write(&log, 61..200, 3);
    drop(log);
    let log = open(&disk).unwrap();
    write(&log, 200..300, 3);
    assert_eq!(log.state(BUSY).last, Slot(299));
}

#[test]
fn the_worker_keeps_ahead_on_a_real_disk() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
    let options = WalOptions { preparation: Preparation::Background, segment_bytes: 16 << 10, ..options() };
    let log = Wal::open(disk, options.clone()).unwrap();
    write(&log, 1..800, 3);
    assert!(log.stats().rotations > 3);
    let contents = log_contents(&log);
    drop(log);
    let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
    assert_eq!(log_contents(&Wal::open(disk, options).unwrap()), contents);
}
