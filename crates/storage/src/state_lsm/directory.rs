//! The directory an engine owns: its marker, its lock, and the names in it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use conclave_consensus::GroupId;

use super::from_io;
use crate::StateError;

const MARKER: &str = "CONCLAVE-STATE";
const MARKER_NEW: &str = "CONCLAVE-STATE.new";
const LOCK: &str = "LOCK";
const MARKER_TEXT: &str = "conclave state directory, format 1\n";

/// A locked state directory. The lock ends with it.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Takes possession of a directory: an existing state directory, or a new or empty one.
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        if !path.try_exists().map_err(from_io)? {
            fs::create_dir_all(path).map_err(from_io)?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync_directory(parent).map_err(from_io)?;
            }
        }
        let marker = path.join(MARKER);
        let marked = marker.try_exists().map_err(from_io)?;
        if marked {
            let text = fs::read_to_string(&marker).map_err(from_io)?;
            if text != MARKER_TEXT {
                return Err(foreign(path, format!("{MARKER} says {:?}", text.trim_end())));
            }
        } else if let Some(stranger) = stranger(path).map_err(from_io)? {
            return Err(foreign(path, format!("it holds {stranger:?} and no {MARKER}")));
        }
        let lock = lock(path)?;
        if !marked {
            write_marker(path).map_err(from_io)?;
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn group(&self, group: GroupId) -> PathBuf {
        self.path.join(format!("group-{}", group.0))
    }

    /// Where a generation is, or will be.
    pub(super) fn generation(&self, group: GroupId, generation: u64) -> PathBuf {
        self.group(group).join(generation_name(generation))
    }

    /// Makes sure that a group has a directory whose name is durable.
    pub(super) fn create_group(&self, group: GroupId) -> Result<(), StateError> {
        match fs::create_dir(self.group(group)) {
            Ok(()) => sync_directory(&self.path).map_err(from_io),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(from_io(error)),
        }
    }

    /// Makes the names of a group's generations durable.
    pub(super) fn sync_group(&self, group: GroupId) -> Result<(), StateError> {
        sync_directory(&self.group(group)).map_err(from_io)
    }

    /// Deletes a generation if there is one.
    pub(super) fn remove_generation(&self, group: GroupId, generation: u64) -> Result<(), StateError> {
        match fs::remove_dir_all(self.generation(group, generation)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(from_io(error)),
            _ => Ok(()),
        }
    }

    /// Deletes every generation of a group but one.
    pub(super) fn retain_generation(&self, group: GroupId, generation: u64) -> Result<(), StateError> {
        let group = self.group(group);
        let entries = match fs::read_dir(&group) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(from_io(error)),
        };
        for entry in entries {
            let entry = entry.map_err(from_io)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("generation-") && name != generation_name(generation) {
                tracing::info!(path = %entry.path().display(), "deleting a state generation that the log does not name");
                fs::remove_dir_all(entry.path()).map_err(from_io)?;
            }
        }
        Ok(())
    }
}

fn generation_name(generation: u64) -> String {
    format!("generation-{generation}")
}

fn foreign(path: &Path, why: String) -> StateError {
    StateError::Foreign { path: path.display().to_string(), why }
}

/// A name that an engine does not leave behind before its marker is written.
fn stranger(path: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != LOCK && name != MARKER_NEW {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn lock(path: &Path) -> Result<File, StateError> {
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(from_io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StateError::Locked(path.display().to_string())),
        Err(TryLockError::Error(error)) => Err(from_io(error)),
    }
}

fn write_marker(path: &Path) -> io::Result<()> {
    let new = path.join(MARKER_NEW);
    let mut file = File::create(&new)?;
    file.write_all(MARKER_TEXT.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path.join(MARKER))?;
    sync_directory(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
