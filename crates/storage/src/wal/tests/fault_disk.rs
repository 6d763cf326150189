//! A small disk in memory that can lose power inside any operation, run full, and fail to sync.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use crate::{Disk, DiskFile};

const SECTOR_BYTES: usize = 512;

/// What a power cut does with what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Lost,
    Kept,
    /// Any sectors of any writes, any names; by the seed.
    Torn(u64),
    /// Any writes, each whole or not at all, any names; by the seed.
    Reordered(u64),
}

pub(super) const OUTCOMES: [Outcome; 8] = [
    Outcome::Lost,
    Outcome::Kept,
    Outcome::Torn(1),
    Outcome::Torn(2),
    Outcome::Torn(3),
    Outcome::Reordered(4),
    Outcome::Reordered(5),
    Outcome::Reordered(6),
];

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, usize),
    Rename(String, String, usize),
    Unlink(String),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    visible: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug, Default)]
struct Model {
    inodes: Vec<Inode>,
    visible: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<NameChange>,
    operations: u64,
    cut_at: Option<u64>,
    files_max: Option<usize>,
    fail_next_sync: bool,
}

#[derive(Clone, Default)]
pub(super) struct FaultDisk(Arc<Mutex<Model>>);

impl std::fmt::Debug for FaultDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultDisk")
    }
}

struct Coin(u64);

impl Coin {
    fn toss(&mut self) -> bool {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 40 & 1 == 1
    }
}

fn apply(bytes: &mut Vec<u8>, at: usize, written: &[u8]) {
    if bytes.len() < at + written.len() {
        bytes.resize(at + written.len(), 0);
    }
    bytes[at..at + written.len()].copy_from_slice(written);
}

impl FaultDisk {
    /// A disk that holds these files, all durable.
    pub(super) fn holding(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let disk = Self::default();
        let mut model = disk.0.lock().unwrap();
        for (at, (name, bytes)) in files.iter().enumerate() {
            model.inodes.push(Inode { durable: bytes.clone(), visible: bytes.clone(), pending: Vec::new() });
            model.visible.insert(name.clone(), at);
        }
        model.durable = model.visible.clone();
        drop(model);
        disk
    }

    /// The files as a process sees them.
    pub(super) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let model = self.0.lock().unwrap();
        model.visible.iter().map(|(name, at)| (name.clone(), model.inodes[*at].visible.clone())).collect()
    }

    pub(super) fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }

    /// Power is cut inside the operation with this number, counted from 0.
    pub(super) fn cut_at(&self, operation: u64) {
        self.0.lock().unwrap().cut_at = Some(operation);
    }

    pub(super) fn hold_at_most(&self, files: usize) {
        self.0.lock().unwrap().files_max = Some(files);
    }

    pub(super) fn fail_next_sync(&self) {
        self.0.lock().unwrap().fail_next_sync = true;
    }

    /// The disk as it is found when power is back.
    pub(super) fn after_power_cut(&self, outcome: Outcome) -> Self {
        let model = self.0.lock().unwrap();
        let (seed, torn) = match outcome {
            Outcome::Lost | Outcome::Kept => (0, false),
            Outcome::Torn(seed) => (seed, true),
            Outcome::Reordered(seed) => (seed, false),
        };
        let mut coin = Coin(seed ^ model.operations << 20);
        let mut keep = || match outcome {
            Outcome::Lost => false,
            Outcome::Kept => true,
            Outcome::Torn(_) | Outcome::Reordered(_) => coin.toss(),
        };
        let mut inodes = Vec::new();
        for inode in &model.inodes {
            let mut bytes = inode.durable.clone();
            for change in &inode.pending {
                match change {
                    Change::Resize(len) if keep() => bytes.resize(*len, 0),
                    Change::Resize(_) => {}
                    Change::Write(at, written) if torn => {
                        let (mut from, end) = (*at, at + written.len());
                        while from < end {
                            let to = ((from / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                            if keep() {
                                apply(&mut bytes, from, &written[from - at..to - at]);
                            }
                            from = to;
                        }
                    }
                    Change::Write(at, written) if keep() => apply(&mut bytes, *at, written),
                    Change::Write(..) => {}
                }
            }
            inodes.push(Inode { durable: bytes.clone(), visible: bytes, pending: Vec::new() });
        }
        let mut names = model.durable.clone();
        for change in &model.pending {
            if !keep() {
                continue;
            }
            match change {
                NameChange::Link(name, inode) => {
                    names.insert(name.clone(), *inode);
                }
                NameChange::Rename(from, to, inode) => {
                    names.remove(from);
                    names.insert(to.clone(), *inode);
                }
                NameChange::Unlink(name) => {
                    names.remove(name);
                }
            }
        }
        let after = Model { inodes, visible: names.clone(), durable: names, ..Model::default() };
        Self(Arc::new(Mutex::new(after)))
    }

    /// The disk as the next process finds it: with everything that the page cache holds, none of it more durable than before.
    pub(super) fn after_process_death(&self) -> Self {
        let model = Model { cut_at: None, operations: 0, ..self.0.lock().unwrap().clone() };
        Self(Arc::new(Mutex::new(model)))
    }

    /// Does an operation. One that the cut strikes may have had its effect, unsynced; one after it has none.
    fn run<T>(&self, operation: impl FnOnce(&mut Model) -> io::Result<T>) -> io::Result<T> {
        let mut model = self.0.lock().unwrap();
        let number = model.operations;
        let cut = || io::Error::other("the power is cut");
        if model.cut_at.is_some_and(|cut_at| number > cut_at) {
            return Err(cut());
        }
        model.operations += 1;
        if model.cut_at == Some(number) {
            let _ = operation(&mut model);
            return Err(cut());
        }
        operation(&mut model)
    }
}

impl Model {
    /// Whether the operation under way is the one that the cut strikes: then nothing becomes durable by it.
    fn is_cut(&self) -> bool {
        self.cut_at.is_some_and(|cut_at| self.operations > cut_at)
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.visible.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for FaultDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let model = self.0.lock().unwrap();
        Ok(model.visible.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.0.lock().unwrap().find(name)?;
        Ok(Arc::new(FaultFile { disk: self.clone(), inode }))
    }

    fn create(&self, name: &str, size_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.run(|model| {
            if model.visible.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if model.files_max.is_some_and(|files_max| model.visible.len() >= files_max) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let len = size_bytes as usize;
            model.inodes.push(Inode {
                durable: Vec::new(),
                visible: vec![0; len],
                pending: vec![Change::Resize(len)],
            });
            let inode = model.inodes.len() - 1;
            model.visible.insert(name.to_owned(), inode);
            model.pending.push(NameChange::Link(name.to_owned(), inode));
            Ok(inode)
        })?;
        Ok(Arc::new(FaultFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.run(|model| {
            let inode = model.find(from)?;
            model.visible.remove(from);
            model.visible.insert(to.to_owned(), inode);
            model.pending.push(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.run(|model| {
            model.find(name)?;
            model.visible.remove(name);
            model.pending.push(NameChange::Unlink(name.to_owned()));
            Ok(())
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.run(|model| {
            if !model.is_cut() {
                model.durable = model.visible.clone();
                model.pending.clear();
            }
            Ok(())
        })
    }
}

#[derive(Debug)]
struct FaultFile {
    disk: FaultDisk,
    inode: usize,
}

impl DiskFile for FaultFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().unwrap().inodes[self.inode].visible.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let model = self.disk.0.lock().unwrap();
        let offset = offset as usize;
        let bytes = model.inodes[self.inode].visible.get(offset..offset + into.len());
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.run(|model| {
            let inode = &mut model.inodes[self.inode];
            apply(&mut inode.visible, offset as usize, bytes);
            inode.pending.push(Change::Write(offset as usize, bytes.to_vec()));
            Ok(())
        })
    }

    fn truncate(&self, size_bytes: u64) -> io::Result<()> {
        self.disk.run(|model| {
            let inode = &mut model.inodes[self.inode];
            inode.visible.resize(size_bytes as usize, 0);
            inode.pending.push(Change::Resize(size_bytes as usize));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.run(|model| {
            if std::mem::take(&mut model.fail_next_sync) {
                // As Linux does: the pages stay to be read, marked clean, and no later sync writes them.
                model.inodes[self.inode].pending.clear();
                return Err(io::Error::other("the medium failed"));
            }
            if !model.is_cut() {
                let inode = &mut model.inodes[self.inode];
                inode.durable = inode.visible.clone();
                inode.pending.clear();
            }
            Ok(())
        })
    }
}
