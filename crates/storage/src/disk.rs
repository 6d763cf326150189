//! The file operations the log needs, behind a trait so that the same log runs on a real and on a simulated disk.
//!
//! A disk is one flat directory. Nothing is durable before it is synced: a file's bytes by [`DiskFile::sync`], its
//! *name* (creation, rename, removal) by [`Disk::sync_names`]. A power cut keeps any subset of what was not.

use std::{fmt, io, sync::Arc};

/// One flat directory of files.
pub trait Disk: Send + Sync + fmt::Debug {
    /// The names of all files, in order.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens an existing file.
    ///
    /// # Errors
    /// `NotFound` if there is none, and whatever the operating system says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a file of `size_bytes` zeros with its blocks allocated, so that writing into it changes no metadata and later
    /// syncs move data only. The content is durable after `sync`, the name after `sync_names`.
    ///
    /// # Errors
    /// `AlreadyExists`, `StorageFull`, and whatever the operating system says.
    fn create(&self, name: &str, size_bytes: u64) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file, replacing what has the new name.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes every creation, rename and removal so far durable.
    ///
    /// # Errors
    /// A failure is fatal to whoever relies on the names: do not retry.
    fn sync_names(&self) -> io::Result<()>;
}

/// One open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// The file's length.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn size_bytes(&self) -> io::Result<u64>;

    /// Reads exactly `into.len()` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end, and whatever the operating system says.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`. Durable only after `sync`.
    ///
    /// # Errors
    /// `StorageFull`, and whatever the operating system says; part of the bytes may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Changes the length.
    ///
    /// # Errors
    /// Whatever the operating system says.
    fn truncate(&self, size_bytes: u64) -> io::Result<()>;

    /// Makes every write so far durable (`fdatasync`).
    ///
    /// # Errors
    /// A failure is fatal: the kernel may have dropped the pages and marked them clean, so a retry that succeeds proves
    /// nothing (Rebello et al., *Can Applications Recover from fsync Failures?*, ATC '20).
    fn sync(&self) -> io::Result<()>;
}
