//! A log at rest whose bytes change: every bit, every length, every zeroed end. Never does the log serve other than what was written
//! without an error that names the place. What it cannot tell from a torn tail, and cuts, lies in the last synced batch.

use std::collections::BTreeMap;

use conclave_sim::{disk::SimDisk, rng::Rng};
use conclave_storage::{LogError, Wal};

use crate::workload::{Reached, Workload};

/// A log's files by name.
type Files = BTreeMap<String, Vec<u8>>;

fn read(disk: &SimDisk) -> Files {
    let mounted = disk.mount();
    let read = |name: String| {
        let file = mounted.open(&name).unwrap();
        let mut bytes = vec![0; file.size_bytes().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        (name, bytes)
    };
    mounted.list().unwrap().into_iter().map(read).collect()
}

fn holding(files: &Files) -> SimDisk {
    let disk = SimDisk::new(Rng::new(0));
    let mounted = disk.mount();
    for (name, bytes) in files {
        let file = mounted.create(name, bytes.len() as u64).unwrap();
        file.write_at(0, bytes).unwrap();
        file.sync().unwrap();
    }
    mounted.sync_names().unwrap();
    disk
}

/// A log of at least three segments that was closed with everything synced.
fn written() -> (Workload, Files) {
    let logs = (12..).map(|rounds| {
        let workload = Workload::new(2048, rounds);
        let disk = SimDisk::new(Rng::new(0));
        workload.run(&workload.open(&disk).unwrap());
        let files: Files = read(&disk).into_iter().filter(|(name, _)| name.ends_with(".wal")).collect();
        (workload, files)
    });
    logs.take(20).find(|(_, files)| files.len() >= 3).unwrap()
}

/// What became of a damaged log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Told {
    /// Refused with the place.
    refused: u32,
    /// Cut as a tail.
    cut: u32,
    /// Nothing that counts was damaged.
    whole: u32,
}

/// Holds a log, damaged at `at` of `name`, to what may be said of it.
fn judge(workload: &Workload, opened: Result<Wal, LogError>, name: &str, at: usize, told: &mut Told) {
    match opened {
        Ok(log) => {
            let allowed = Reached { synced: workload.proven(), begun: workload.len() };
            match workload.position(&log, allowed) {
                Some(held) if held == workload.len() => told.whole += 1,
                Some(_) => told.cut += 1,
                None => panic!("{name} damaged at {at}: silently other than what was written"),
            }
        }
        Err(LogError::Damaged { segment, offset, .. }) => {
            assert_eq!(segment, name, "damaged at {at}");
            assert!(offset as usize <= at, "{name} damaged at {at}, told as {offset}");
            told.refused += 1;
        }
        Err(LogError::Foreign { file, .. }) => {
            assert_eq!(file, name, "damaged at {at}");
            told.refused += 1;
        }
        Err(other) => panic!("{name} damaged at {at}: {other}"),
    }
}

#[test]
fn every_flipped_bit_is_told_or_in_an_unproven_tail() {
    let (workload, files) = written();
    let mut told = Told::default();
    for (name, bytes) in &files {
        for bit in 0..bytes.len() * 8 {
            let mut files = files.clone();
            files.get_mut(name).unwrap()[bit / 8] ^= 1 << (bit % 8);
            judge(&workload, workload.open(&holding(&files)), name, bit / 8, &mut told);
        }
    }
    println!("flipped bits: {told:?}");
    assert!(told.refused > 20_000 && told.cut > 100 && told.whole > 100, "{told:?}");
}

#[test]
fn every_cut_length_is_told() {
    let (workload, files) = written();
    for (name, bytes) in &files {
        for length in 0..bytes.len() {
            let mut files = files.clone();
            files.get_mut(name).unwrap().truncate(length);
            match workload.open(&holding(&files)) {
                Err(LogError::Damaged { segment, offset, .. }) => {
                    assert_eq!((&segment, offset), (name, length as u64));
                }
                other => panic!("{name} cut to {length}: {other:?}"),
            }
        }
    }
}

/// Where a later segment stands, it proves what was lost before it. Of the last, frames behind the loss would have to: so what is
/// found is an earlier state of the log, never a changed one.
#[test]
fn every_zeroed_end_is_told_or_an_earlier_state() {
    let (workload, files) = written();
    let (last, _) = files.last_key_value().unwrap();
    let (mut refused, mut earlier) = (0, 0);
    for (name, bytes) in &files {
        for length in 0..bytes.len() {
            let Some(changed) = (length..bytes.len()).find(|at| bytes[*at] != 0) else { break };
            let mut files = files.clone();
            files.get_mut(name).unwrap()[length..].fill(0);
            match workload.open(&holding(&files)) {
                Ok(log) => {
                    let earliest = if name == last { 0 } else { workload.len() };
                    let allowed = Reached { synced: earliest, begun: workload.len() };
                    assert!(workload.position(&log, allowed).is_some(), "{name} zeroed from {length}");
                    earlier += 1;
                }
                Err(LogError::Damaged { segment, offset, .. }) => {
                    assert!(
                        segment == *name && offset as usize <= changed,
                        "{name} zeroed from {length}: {segment} {offset}"
                    );
                    refused += 1;
                }
                Err(LogError::Foreign { file, .. }) => assert_eq!(file, *name),
                Err(other) => panic!("{name} zeroed from {length}: {other}"),
            }
        }
    }
    assert!(refused > 1000 && earlier > 100, "{refused} refused, {earlier} earlier");
}
