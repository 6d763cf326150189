//! Bytes that change after they were synced: told by segment and offset, or, in the last synced batch only, cut as a tail.

use std::collections::BTreeMap;

use super::{
    fault_disk::FaultDisk,
    workload::{Workload, open, options, put},
};
use crate::{
    LogError, LogStore, Wal,
    wal::{frame, segment},
};

/// A log of some segments, its files, and how many elements the log itself proves to be synced.
fn written(workload: Workload) -> (Workload, BTreeMap<String, Vec<u8>>, usize) {
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    workload.run(&log);
    assert!(log.stats().rotations >= 3);
    let proven = workload.history.len() - 1 - workload.batches.last().unwrap().0.len();
    let files = disk.files().into_iter().filter(|(name, _)| name.ends_with(".wal")).collect();
    (workload, files, proven)
}

fn busy() -> (Workload, BTreeMap<String, Vec<u8>>, usize) {
    written(Workload::busy(12))
}

/// One that never cut anything.
fn whole() -> (Workload, BTreeMap<String, Vec<u8>>, usize) {
    let group = conclave_consensus::GroupId(1);
    written(Workload::of((1..50).map(|slot| (vec![(group, vec![put(slot, 1, 100)])], true)).collect()))
}

fn judge(
    workload: &Workload,
    proven: usize,
    opened: Result<Wal, LogError>,
    what: &dyn std::fmt::Debug,
) -> bool {
    match opened {
        Ok(log) => {
            let held = workload.position(&log, proven, workload.history.len() - 1);
            assert!(held.is_some(), "{what:?}: silently other than what was written");
            false
        }
        Err(LogError::Damaged { .. } | LogError::Foreign { .. }) => true,
        Err(other) => panic!("{what:?}: {other}"),
    }
}

#[test]
fn every_flipped_byte_is_told_or_cut_as_an_unproven_tail() {
    let (workload, files, proven) = busy();
    let mut told = 0;
    for (name, bytes) in &files {
        for at in 0..bytes.len() {
            for mask in [0x01, 0xff] {
                let mut files = files.clone();
                files.get_mut(name).unwrap()[at] ^= mask;
                told += usize::from(judge(
                    &workload,
                    proven,
                    open(&FaultDisk::holding(&files)),
                    &(name, at, mask),
                ));
            }
        }
    }
    assert!(told > 3000, "{told} flips were told: the log is mostly proven");
}

#[test]
fn every_cut_length_is_told() {
    let (_, files, _) = busy();
    for (name, bytes) in &files {
        for len in 0..bytes.len() {
            let mut files = files.clone();
            files.get_mut(name).unwrap().truncate(len);
            match open(&FaultDisk::holding(&files)) {
                Err(LogError::Damaged { segment, offset, .. }) => {
                    assert_eq!((&segment, offset), (name, len as u64))
                }
                other => panic!("{name} cut to {len}: {other:?}"),
            }
        }
    }
}

#[test]
fn zeroed_sectors_are_told_or_cut_as_an_unproven_tail() {
    let (workload, files, proven) = whole();
    for (name, bytes) in &files {
        for sector in 0..bytes.len() / 512 {
            for sectors in 1..=4 {
                let mut files = files.clone();
                let bytes = files.get_mut(name).unwrap();
                let end = ((sector + sectors) * 512).min(bytes.len());
                bytes[sector * 512..end].fill(0);
                judge(&workload, proven, open(&FaultDisk::holding(&files)), &(name, sector, sectors));
            }
        }
    }
}

#[test]
fn a_missing_segment_is_named() {
    let (_, files, _) = whole();
    let names: Vec<&String> = files.keys().collect();
    assert!(names.len() >= 3, "{names:?}");
    for name in &names[..names.len() - 1] {
        let mut files = files.clone();
        files.remove(*name);
        match open(&FaultDisk::holding(&files)) {
            Err(LogError::Damaged { segment, why, .. }) => {
                assert_eq!((&segment, &*why), (*name, "the file is missing"));
            }
            other => panic!("without {name}: {other:?}"),
        }
    }
}

#[test]
fn damage_changes_nothing_on_the_disk() {
    let (_, mut files, _) = whole();
    files.insert("000000ff.new".to_owned(), vec![1; 9]);
    let first = files.values_mut().next().unwrap();
    first[segment::HEADER_BYTES + 40] ^= 1;
    let disk = FaultDisk::holding(&files);
    assert!(matches!(open(&disk), Err(LogError::Damaged { .. })));
    assert_eq!(disk.files(), files);
}

#[test]
fn damage_names_segment_and_offset() {
    let (_, mut files, _) = whole();
    let (name, bytes) = files.iter_mut().next().unwrap();
    let name = name.clone();
    bytes[segment::HEADER_BYTES + frame::HEADER_BYTES] ^= 1;
    let error = open(&FaultDisk::holding(&files)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("log segment {name} is damaged at offset {}", segment::HEADER_BYTES)),
        "{error}"
    );
}

/// The segment before it is whole, so it is not the one to name.
#[test]
fn damage_of_a_segments_first_frame_is_told_where_it_stands() {
    let (_, files, _) = whole();
    let names: Vec<&String> = files.keys().collect();
    for (name, emptied) in names[..names.len() - 1].iter().flat_map(|name| [(*name, false), (*name, true)]) {
        let mut files = files.clone();
        let bytes = files.get_mut(name).unwrap();
        if emptied {
            bytes[segment::HEADER_BYTES..].fill(0);
        } else {
            bytes[segment::HEADER_BYTES] ^= 1;
        }
        match open(&FaultDisk::holding(&files)) {
            Err(LogError::Damaged { segment, offset, .. }) => {
                assert_eq!((&segment, offset), (name, segment::HEADER_BYTES as u64));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// No version writes such a record; a log that believed it would let live entries go.
#[test]
fn a_floor_above_live_entries_is_damage() {
    let group = conclave_consensus::GroupId(1);
    let disk = FaultDisk::default();
    let log = open(&disk).unwrap();
    log.append(&[(group, vec![put(1, 1, 50)])]).unwrap();
    log.sync().unwrap();
    let stamp = frame::Stamp { log_id: log.log_id(), segment: 1 };
    drop(log);
    let mut files = disk.files();
    let bytes = files.values_mut().next().unwrap();
    let (header, _) = frame::at(bytes, segment::HEADER_BYTES, stamp).unwrap();
    let end = segment::HEADER_BYTES + header.frame_bytes();
    let mut lie = Vec::new();
    let start = frame::begin(&mut lie, crate::HOST_GROUP);
    crate::wal::record::encode_floor(&mut lie, 7);
    frame::finish(&mut lie, start, stamp, header.lsn + 1, header.lsn);
    bytes[end..end + lie.len()].copy_from_slice(&lie);
    match open(&FaultDisk::holding(&files)) {
        Err(LogError::Damaged { offset, .. }) => assert_eq!(offset, end as u64),
        other => panic!("{other:?}"),
    }
}

#[test]
fn damage_is_found_while_reading_too() {
    use conclave_consensus::{GroupId, Slot, SlotRange};
    let directory = tempfile::tempdir().unwrap();
    let disk = std::sync::Arc::new(crate::RealDisk::open(directory.path()).unwrap());
    let log = Wal::open(disk, options()).unwrap();
    log.append(&[(GroupId(1), vec![put(1, 1, 50)])]).unwrap();
    log.sync().unwrap();
    let path = directory.path().join(segment::segment_name(1));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[segment::HEADER_BYTES + frame::HEADER_BYTES + 30] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let read = log.read(GroupId(1), SlotRange { from: Slot(1), to: Slot(2) }, 100);
    assert!(matches!(read, Err(LogError::Damaged { .. })), "{read:?}");
}
