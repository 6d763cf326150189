//! The log against the disk: batches a second that the write-ahead log makes durable, beside raw write and `fdatasync` of as many bytes
//! by the same thread into a preallocated file on the same file system.
//!
//! `cargo run --release -p conclave-storage --example log_rate -- [directory] [seconds a measurement]`
//!
//! The two take turns, so that a disk that changes its mind changes it for both.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use conclave_consensus::{Ballot, Entry, GroupId, Kind, LogOp, NodeId, ProposalId, Slot};
use conclave_storage::{Disk, LogStore, RealDisk, Wal, WalOptions};

const ENTRY_BYTES: usize = 256;
const FILE_BYTES: u64 = 64 << 20;
const TURNS: u32 = 50;
/// Entries kept behind the last, in batches: the rest is cut, as a node does.
const KEPT_BATCHES: u64 = 4;
/// Entries in a batch until the log is in its stride.
const WARM_UP_ENTRIES: u64 = 8192;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let seconds: f64 = arguments.next().map_or(Ok(2.0), |text| text.parse())?;
    let directory = tempfile::tempdir_in(parent)?;
    let turn = Duration::from_secs_f64(seconds / f64::from(TURNS));
    println!("{:>10} {:>14} {:>14} {:>8}", "batch", "raw/s", "log/s", "ratio");
    for batch_bytes in [4 << 10, 64 << 10] {
        let mut raw = Raw::create(&directory.path().join(format!("raw-{batch_bytes}")), batch_bytes)?;
        let mut log = Log::create(&directory.path().join(format!("log-{batch_bytes}")), batch_bytes)?;
        let mut turns = Vec::new();
        for _ in 0..TURNS {
            turns.push((rate(turn, || raw.step())?, rate(turn, || log.step())?));
        }
        let raw_rate = median(turns.iter().map(|(raw, _)| *raw));
        let log_rate = median(turns.iter().map(|(_, log)| *log));
        let ratio = median(turns.iter().map(|(raw, log)| log / raw));
        println!("{:>6} KiB {raw_rate:>14.0} {log_rate:>14.0} {:>7.1}%", batch_bytes >> 10, ratio * 100.0);
    }
    Ok(())
}

/// What one neighbour's burst of writing does not move.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Steps a second for as long as a turn lasts.
fn rate(turn: Duration, mut step: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let (began, mut steps) = (Instant::now(), 0);
    while began.elapsed() < turn {
        step()?;
        steps += 1;
    }
    Ok(f64::from(steps) / began.elapsed().as_secs_f64())
}

/// A file written from start to end, again and again.
#[derive(Debug)]
struct Raw {
    file: Arc<dyn conclave_storage::DiskFile>,
    batch: Vec<u8>,
    offset: u64,
}

impl Raw {
    fn create(path: &Path, batch_bytes: usize) -> Result<Self, Failure> {
        let disk = RealDisk::open(path)?;
        let file = disk.create("raw", FILE_BYTES)?;
        file.sync()?;
        disk.sync_names()?;
        Ok(Self { file, batch: vec![0x5a; batch_bytes], offset: 0 })
    }

    fn step(&mut self) -> Result<(), Failure> {
        self.file.write_at(self.offset, &self.batch)?;
        self.file.sync()?;
        self.offset = (self.offset + self.batch.len() as u64) % FILE_BYTES;
        Ok(())
    }
}

/// A log with one group, whose entries fill a batch.
#[derive(Debug)]
struct Log {
    log: Wal,
    payload: Bytes,
    entries: u64,
    slot: u64,
}

impl Log {
    fn create(path: &Path, batch_bytes: usize) -> Result<Self, Failure> {
        let disk = Arc::new(RealDisk::open(path)?);
        let log =
            Wal::open(disk, WalOptions { log_id: 1, segment_bytes: FILE_BYTES, ..WalOptions::default() })?;
        let payload = Bytes::from(vec![0x5a; ENTRY_BYTES]);
        let mut this = Self { log, payload, entries: WARM_UP_ENTRIES, slot: 1 };
        // The raw file's blocks were written before; so are the log's once it uses its segments again.
        while this.log.stats().segments_recycled < 2 {
            this.step()?;
        }
        this.entries = (batch_bytes / ENTRY_BYTES) as u64;
        Ok(this)
    }

    fn step(&mut self) -> Result<(), Failure> {
        let end = self.slot + self.entries;
        let entry = |slot| Entry {
            slot: Slot(slot),
            ballot: Ballot::term(1),
            kind: Kind::Command,
            id: ProposalId { node: NodeId(1), sequence: slot },
            payload: self.payload.clone(),
        };
        let puts = LogOp::Put((self.slot..end).map(entry).collect());
        let ops = vec![puts, LogOp::CutBelow(Slot(end.saturating_sub(KEPT_BATCHES * self.entries)))];
        self.log.append(&[(GroupId(1), ops)])?;
        self.log.sync()?;
        self.slot = end;
        Ok(())
    }
}
