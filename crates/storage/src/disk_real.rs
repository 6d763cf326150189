//! A directory of the file system as a [`Disk`], and the lock that keeps a second process out of it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{Disk, DiskFile};

/// Zeros are written in pieces, each synced, so that a new segment's zeros never stand in a long queue before a commit's sync.
const ZEROS_BYTES: usize = 1 << 20;
const ZEROS_UNSYNCED_BYTES_MAX: u64 = 1 << 20;
const LOCK_NAME: &str = "LOCK";

/// Keeps a directory for this process as long as it lives. The file stays; the lock on it ends with the process, however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Creates the directory if need be, its name durable, and locks it.
    ///
    /// # Errors
    /// `ResourceBusy` if another process (or another part of this one) holds it, and whatever the operating system says.
    pub fn acquire(directory: &Path) -> io::Result<Self> {
        create_directory(directory)?;
        let path = directory.join(LOCK_NAME);
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is locked by a running node", directory.display()),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Creates a directory and its parents, each name durable.
fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_directory(parent)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(parent)?.sync_all(),
    }
}

/// One directory of the file system, locked against other processes. Subdirectories and the lock file are not files of it.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    directory: File,
    _lock: DirectoryLock,
}

impl RealDisk {
    /// Opens the directory, which is created if need be, and locks it until the disk is dropped.
    ///
    /// # Errors
    /// `ResourceBusy` if a running node holds it, and whatever the operating system says.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let lock = DirectoryLock::acquire(&path)?;
        let directory = File::open(&path)?;
        Ok(Self { path, directory, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != LOCK_NAME {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(RealFile { file }))
    }

    fn create(&self, name: &str, size_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(self.path.join(name))?;
        // Allocating alone leaves extents marked unwritten, and the first write to each would change metadata: zeros it is.
        let zeros = vec![0; ZEROS_BYTES];
        let (mut offset, mut unsynced_bytes) = (0, 0);
        while offset < size_bytes {
            let piece = (size_bytes - offset).min(ZEROS_BYTES as u64);
            file.write_all_at(&zeros[..piece as usize], offset)?;
            offset += piece;
            unsynced_bytes += piece;
            if unsynced_bytes >= ZEROS_UNSYNCED_BYTES_MAX {
                file.sync_data()?;
                unsynced_bytes = 0;
            }
        }
        Ok(Arc::new(RealFile { file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.directory.sync_all()
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
}

impl DiskFile for RealFile {
    fn size_bytes(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn truncate(&self, size_bytes: u64) -> io::Result<()> {
        self.file.set_len(size_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_directory_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let disk = RealDisk::open(&path).unwrap();
        let error = RealDisk::open(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(error.to_string().ends_with("a/b is locked by a running node"), "{error}");
        drop(disk);
        RealDisk::open(&path).unwrap();
    }

    #[test]
    fn files_are_created_whole_and_the_lock_is_not_among_them() {
        let directory = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(directory.path()).unwrap();
        let file = disk.create("b", 3 << 20).unwrap();
        assert_eq!(file.size_bytes().unwrap(), 3 << 20);
        assert_eq!(disk.create("b", 1).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs::create_dir(directory.path().join("subdirectory")).unwrap();
        disk.create("a", 0).unwrap();
        assert_eq!(disk.list().unwrap(), ["a", "b"]);
        file.write_at(5, b"xyz").unwrap();
        file.sync().unwrap();
        disk.rename("b", "c").unwrap();
        disk.remove("a").unwrap();
        disk.sync_names().unwrap();
        let mut read = [1; 5];
        disk.open("c").unwrap().read_at(4, &mut read).unwrap();
        assert_eq!(&read, b"\0xyz\0");
        assert_eq!(file.read_at((3 << 20) - 2, &mut read).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(disk.open("a").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
