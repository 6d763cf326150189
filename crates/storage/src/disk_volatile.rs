//! A test-only disk on which `kill -9` is a power cut.
//!
//! A killed process leaves its writes in the page cache, so killing proves nothing about syncs. Here writes stay in the process
//! until [`DiskFile::sync`], and names until [`Disk::sync_names`]: what was not synced dies with the process.
//!
//! Each file's synced bytes lie in a hidden subdirectory from its creation on; its name is a hard link that `sync_names` makes. The real
//! disk is not synced, since only the process is ever killed.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};

use crate::{Disk, DiskFile, RealDisk};

const HIDDEN: &str = ".volatile";

/// See the module's text: a [`RealDisk`] that keeps what is not synced in memory.
pub struct VolatileDisk {
    path: PathBuf,
    names: Mutex<Names>,
    next_hidden: AtomicU64,
    real: RealDisk,
}

#[derive(Default)]
struct Names {
    visible: BTreeMap<String, Arc<VolatileFile>>,
    pending: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Create { hidden: String, name: String },
    Rename { from: String, to: String },
    Remove { name: String },
}

impl VolatileDisk {
    /// Opens the directory, which is created if need be, with what was synced in it.
    ///
    /// # Errors
    /// As [`RealDisk::open`].
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let real = RealDisk::open(&path)?;
        let hidden = path.join(HIDDEN);
        if hidden.exists() {
            fs::remove_dir_all(&hidden)?;
        }
        fs::create_dir(&hidden)?;
        let mut visible = BTreeMap::new();
        for name in real.list()? {
            let file = real.open(&name)?;
            let contents = RwLock::new(Contents { size_bytes: file.size_bytes()?, writes: BTreeMap::new() });
            visible.insert(name, Arc::new(VolatileFile { file, contents }));
        }
        let names = Mutex::new(Names { visible, pending: Vec::new() });
        Ok(Self { path, names, next_hidden: AtomicU64::new(0), real })
    }
}

impl fmt::Debug for VolatileDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolatileDisk").field("path", &self.path).finish_non_exhaustive()
    }
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name} does not exist"))
}

impl Disk for VolatileDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names.lock().visible.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.names.lock().visible.get(name).cloned();
        file.map(|file| file as Arc<dyn DiskFile>).ok_or_else(|| not_found(name))
    }

    fn create(&self, name: &str, size_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = self.names.lock();
        if names.visible.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let hidden = format!("{HIDDEN}/{}", self.next_hidden.fetch_add(1, Ordering::Relaxed));
        let file = self.real.create(&hidden, 0)?;
        let contents = RwLock::new(Contents { size_bytes, writes: BTreeMap::new() });
        let file = Arc::new(VolatileFile { file, contents });
        names.visible.insert(name.to_owned(), Arc::clone(&file));
        names.pending.push(Change::Create { hidden, name: name.to_owned() });
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.names.lock();
        let file = names.visible.remove(from).ok_or_else(|| not_found(from))?;
        names.visible.insert(to.to_owned(), file);
        names.pending.push(Change::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut names = self.names.lock();
        names.visible.remove(name).ok_or_else(|| not_found(name))?;
        names.pending.push(Change::Remove { name: name.to_owned() });
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut names = self.names.lock();
        for change in std::mem::take(&mut names.pending) {
            match change {
                Change::Create { hidden, name } => fs::rename(self.path.join(hidden), self.path.join(name))?,
                Change::Rename { from, to } => self.real.rename(&from, &to)?,
                Change::Remove { name } => self.real.remove(&name)?,
            }
        }
        Ok(())
    }
}

struct VolatileFile {
    file: Arc<dyn DiskFile>,
    contents: RwLock<Contents>,
}

impl fmt::Debug for VolatileFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolatileFile").field("file", &self.file).finish_non_exhaustive()
    }
}

/// What a process sees beyond what is synced: the length, and disjoint runs of bytes by offset.
#[derive(Debug)]
struct Contents {
    size_bytes: u64,
    writes: BTreeMap<u64, Vec<u8>>,
}

impl Contents {
    /// Lays `bytes` over what is there.
    fn overlay(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let touching: Vec<u64> = self
            .writes
            .range(..end)
            .rev()
            .take_while(|(at, run)| **at + run.len() as u64 > offset)
            .map(|(at, _)| *at)
            .collect();
        for at in touching {
            let Some(run) = self.writes.remove(&at) else { continue };
            if at + run.len() as u64 > end {
                self.writes.insert(end, run[(end - at) as usize..].to_vec());
            }
            if at < offset {
                self.writes.insert(at, run[..(offset - at) as usize].to_vec());
            }
        }
        self.writes.insert(offset, bytes.to_vec());
        self.size_bytes = self.size_bytes.max(end);
    }
}

impl DiskFile for VolatileFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.contents.read().size_bytes)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let contents = self.contents.read();
        let end = offset + into.len() as u64;
        if end > contents.size_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into.fill(0);
        let synced = self.file.size_bytes()?.saturating_sub(offset).min(into.len() as u64);
        self.file.read_at(offset, &mut into[..synced as usize])?;
        for (at, run) in contents.writes.range(..end).rev() {
            let run_end = at + run.len() as u64;
            if run_end <= offset {
                break;
            }
            let (from, to) = (offset.max(*at), end.min(run_end));
            into[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&run[(from - at) as usize..(to - at) as usize]);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.contents.write().overlay(offset, bytes);
        Ok(())
    }

    fn truncate(&self, size_bytes: u64) -> io::Result<()> {
        let mut contents = self.contents.write();
        let old_bytes = contents.size_bytes;
        if size_bytes < old_bytes {
            // What lies beyond reads as zeros if the file grows again.
            contents.overlay(size_bytes, &vec![0; (old_bytes - size_bytes) as usize]);
        }
        contents.size_bytes = size_bytes;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut contents = self.contents.write();
        if self.file.size_bytes()? != contents.size_bytes {
            self.file.truncate(contents.size_bytes)?;
        }
        for (offset, bytes) in std::mem::take(&mut contents.writes) {
            let kept = contents.size_bytes.saturating_sub(offset).min(bytes.len() as u64);
            self.file.write_at(offset, &bytes[..kept as usize])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_synced_dies_with_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let disk = VolatileDisk::open(directory.path()).unwrap();
        let kept = disk.create("kept.new", 16).unwrap();
        kept.write_at(0, b"synced").unwrap();
        kept.sync().unwrap();
        disk.rename("kept.new", "kept").unwrap();
        disk.sync_names().unwrap();
        kept.write_at(2, b"lost").unwrap();
        kept.write_at(4, b"!").unwrap();
        disk.create("nameless", 4).unwrap().sync().unwrap();
        let mut bytes = [0; 8];
        kept.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"sylo!t\0\0");
        assert_eq!(disk.list().unwrap(), ["kept", "nameless"]);
        drop(disk);
        let disk = VolatileDisk::open(directory.path()).unwrap();
        assert_eq!(disk.list().unwrap(), ["kept"]);
        let kept = disk.open("kept").unwrap();
        kept.read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"synced\0\0");
        assert_eq!(kept.size_bytes().unwrap(), 16);
    }

    #[test]
    fn overlays_agree_with_plain_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let disk = VolatileDisk::open(directory.path()).unwrap();
        let file = disk.create("file", 64).unwrap();
        let (mut model, mut random) = ([0u8; 64], 7u64);
        for step in 0..2000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = (random >> 33) as usize % 60;
            let len = 1 + (random >> 50) as usize % (64 - offset);
            let bytes = vec![step as u8; len];
            file.write_at(offset as u64, &bytes).unwrap();
            model[offset..offset + len].copy_from_slice(&bytes);
            if step % 17 == 0 {
                file.sync().unwrap();
            }
            let mut read = [0; 64];
            file.read_at(0, &mut read).unwrap();
            assert_eq!(read, model);
        }
    }
}
