//! The public suite, on every log and disk of this crate.

use std::sync::Arc;

use crate::{Disk, LogStore, MemoryLog, Preparation, RealDisk, VolatileDisk, Wal, WalOptions, conformance};

fn options(segment_bytes: u64, preparation: Preparation) -> WalOptions {
    WalOptions { log_id: 7, segment_bytes, preparation, ..WalOptions::default() }
}

fn on_real_disks(segment_bytes: u64, preparation: Preparation) {
    conformance::log_store(&|| {
        let directory = tempfile::tempdir().unwrap();
        Box::new(move || {
            let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
            Arc::new(Wal::open(disk, options(segment_bytes, preparation)).unwrap())
        })
    });
}

#[test]
fn in_memory() {
    conformance::log_store(&|| {
        let log: Arc<dyn LogStore> = Arc::new(MemoryLog::new());
        Box::new(move || Arc::clone(&log))
    });
}

#[test]
fn on_a_real_disk() {
    on_real_disks(1 << 20, Preparation::Background);
}

#[test]
fn on_a_real_disk_with_many_rotations() {
    on_real_disks(40 << 10, Preparation::Background);
}

#[test]
fn on_a_real_disk_without_a_thread() {
    on_real_disks(33 << 10, Preparation::Inline);
}

#[test]
fn on_a_volatile_disk() {
    conformance::log_store(&|| {
        let directory = tempfile::tempdir().unwrap();
        Box::new(move || {
            let disk: Arc<dyn Disk> = Arc::new(VolatileDisk::open(directory.path()).unwrap());
            Arc::new(Wal::open(disk, options(32 << 10, Preparation::Background)).unwrap())
        })
    });
}
