//! The write-ahead log: batches made durable, beside raw write and `fdatasync` of as many bytes by the same thread into a
//! preallocated file on the same file system.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use conclave_consensus::{Ballot, Entry, GroupId, Kind, LogOp, NodeId, ProposalId, Slot};
use conclave_storage::{Disk, DiskFile, LogStore, RealDisk, Wal, WalOptions};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use xtask::workspace;

const BATCH_BYTES: [usize; 2] = [4 << 10, 64 << 10];
const ENTRY_BYTES: usize = 256;
const FILE_BYTES: u64 = 64 << 20;
/// Entries are kept for so many batches and cut below, as a node does.
const KEPT_BATCHES: u64 = 4;
/// Entries in a batch until the log uses its segments a second time: only then are their blocks written, like the file's.
const WARM_UP_ENTRIES: u64 = 8192;

struct Raw {
    file: Arc<dyn DiskFile>,
    batch: Vec<u8>,
    offset: u64,
}

impl Raw {
    fn create(dir: &Path, batch_bytes: usize) -> Raw {
        let disk = RealDisk::open(dir).expect("a folder of our own");
        let file = disk.create("raw", FILE_BYTES).expect("room for a file");
        let mut raw = Raw { file, batch: vec![0x5a; 1 << 20], offset: 0 };
        while raw.step() != 0 {}
        raw.batch.truncate(batch_bytes);
        raw
    }

    /// Writes and syncs a batch; returns where the next one goes.
    fn step(&mut self) -> u64 {
        self.file.write_at(self.offset, &self.batch).expect("write");
        self.file.sync().expect("sync");
        self.offset = (self.offset + self.batch.len() as u64) % FILE_BYTES;
        self.offset
    }
}

struct Log {
    log: Wal,
    payload: Bytes,
    entries: u64,
    slot: u64,
}

impl Log {
    fn create(dir: &Path, batch_bytes: usize) -> Log {
        let disk = Arc::new(RealDisk::open(dir).expect("a folder of our own"));
        let options = WalOptions { log_id: 1, segment_bytes: FILE_BYTES, ..WalOptions::default() };
        let log = Wal::open(disk, options).expect("an empty folder");
        let payload = Bytes::from(vec![0x5a; ENTRY_BYTES]);
        let mut log = Log { log, payload, entries: WARM_UP_ENTRIES, slot: 1 };
        while log.log.stats().segments_recycled < 2 {
            log.step();
        }
        log.entries = (batch_bytes / ENTRY_BYTES) as u64;
        log
    }

    fn step(&mut self) {
        let end = self.slot + self.entries;
        let puts = LogOp::Put((self.slot..end).map(|slot| self.entry(slot)).collect());
        let ops = vec![puts, LogOp::CutBelow(Slot(end.saturating_sub(KEPT_BATCHES * self.entries)))];
        self.log.append(&[(GroupId(1), ops)]).expect("append");
        self.log.sync().expect("sync");
        self.slot = end;
    }

    fn entry(&self, slot: u64) -> Entry {
        Entry {
            slot: Slot(slot),
            ballot: Ballot::term(1),
            kind: Kind::Command,
            id: ProposalId { node: NodeId(1), sequence: slot },
            payload: self.payload.clone(),
        }
    }
}

fn durable_batches(c: &mut Criterion) {
    let parent = workspace::target().join("bench");
    fs::create_dir_all(&parent).expect("a folder under target");
    let dir = tempfile::tempdir_in(parent).expect("a folder under target");
    let mut group = c.benchmark_group("log");
    group.sample_size(20);
    for bytes in BATCH_BYTES {
        group.throughput(Throughput::Bytes(bytes as u64));
        let name = |what: &str| dir.path().join(format!("{what}-{bytes}"));
        let mut raw = Raw::create(&name("raw"), bytes);
        group.bench_function(BenchmarkId::new("raw write and fdatasync", bytes), |b| b.iter(|| raw.step()));
        let mut log = Log::create(&name("log"), bytes);
        group.bench_function(BenchmarkId::new("append and sync", bytes), |b| b.iter(|| log.step()));
    }
    group.finish();
}

criterion_group!(benches, durable_batches);
criterion_main!(benches);
