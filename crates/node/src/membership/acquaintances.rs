//! By which data directory each other member is known: who comes with another is not let in under its name.
//!
//! A member that lost its disk has lost what it promised: were it to vote again, a second leader could be elected, and what a quorum with it
//! had acknowledged be forgotten. So each data directory has a number of its own, drawn when it is made; members show it when
//! they meet, and each notes the others' before it hears their first word. The loser comes back as a new member.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{OnceLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use conclave_consensus::NodeId;
use conclave_transport::Doorkeeper;
use parking_lot::Mutex;

use super::Members;
use crate::datadir::replace;

const FILE: &str = "PEERS";
const FILE_NEW: &str = "PEERS.new";
/// More than a cluster can have had members: whoever comes beyond is not let in.
const KNOWN_MAX: usize = 4_096;
/// How long one waits for another to be noted: longer, and whoever dialed has given up.
const NOTING_MAX: Duration = Duration::from_secs(2);

/// The others' data directories, by member.
#[derive(Debug, Default)]
pub(crate) struct Acquaintances {
    /// What is noted durably, and nothing else. Never held while the disk is at work.
    known: Mutex<BTreeMap<u64, u64>>,
    /// Held by who notes.
    noting: Mutex<()>,
    directory: OnceLock<PathBuf>,
    members: OnceLock<Weak<Members>>,
}

impl Acquaintances {
    /// Reads what is noted in a data directory, and notes there from now on.
    pub(crate) fn open(&self, directory: &Path) -> io::Result<()> {
        match fs::read(directory.join(FILE)) {
            Ok(text) => *self.known.lock() = read(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Called once.
        let _ = self.directory.set(directory.to_owned());
        Ok(())
    }

    /// Who answers those that enquire.
    pub(crate) fn speak_for(&self, members: Weak<Members>) {
        let _ = self.members.set(members);
    }
}

fn read(text: &[u8]) -> io::Result<BTreeMap<u64, u64>> {
    let noted: BTreeMap<String, String> = serde_json::from_slice(text)?;
    let number = |text: &str| u64::from_str_radix(text, 16).map_err(io::Error::other);
    noted.iter().map(|(node, directory)| Ok((number(node)?, number(directory)?))).collect()
}

/// Durable on return.
fn write(directory: &Path, known: &BTreeMap<u64, u64>) -> io::Result<()> {
    let noted: BTreeMap<String, String> =
        known.iter().map(|(node, number)| (format!("{node:x}"), format!("{number:x}"))).collect();
    replace(&directory.join(FILE_NEW), &directory.join(FILE), &noted)?;
    File::open(directory)?.sync_all()
}

impl Doorkeeper for Acquaintances {
    fn recognises(&self, node: NodeId, incarnation: u64) -> io::Result<bool> {
        if incarnation == 0 {
            // A version that does not say.
            return Ok(true);
        }
        let Some(directory) = self.directory.get() else {
            return Err(io::Error::other("the data directory is not open yet"));
        };
        if let Some(noted) = self.known.lock().get(&node.0) {
            return Ok(*noted == incarnation);
        }
        let late = || io::Error::other("another member is being noted, and the disk takes its time");
        let _one_at_a_time = self.noting.try_lock_for(NOTING_MAX).ok_or_else(late)?;
        let mut known = self.known.lock().clone();
        if let Some(noted) = known.get(&node.0) {
            return Ok(*noted == incarnation);
        }
        if known.len() >= KNOWN_MAX {
            return Err(io::Error::other("too many members were ever met"));
        }
        known.insert(node.0, incarnation);
        write(directory, &known)?;
        *self.known.lock() = known;
        Ok(true)
    }

    fn admits(&self, node: NodeId) -> bool {
        self.members.get().and_then(Weak::upgrade).is_none_or(|members| members.admits(node))
    }

    fn knows_otherwise(&self, node: NodeId, incarnation: u64) -> bool {
        incarnation != 0 && self.known.lock().get(&node.0).is_some_and(|noted| *noted != incarnation)
    }

    fn about(&self) -> Bytes {
        self.members.get().and_then(Weak::upgrade).map(|members| members.about()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_of_a_member_is_the_one_it_is_known_by() {
        let directory = tempfile::tempdir().unwrap();
        let door = Acquaintances::default();
        assert!(door.recognises(NodeId(1), 7).is_err(), "nothing can be noted yet");
        door.open(directory.path()).unwrap();
        assert!(door.recognises(NodeId(1), 7).unwrap() && door.recognises(NodeId(2), 7).unwrap());
        assert!(!door.recognises(NodeId(1), 8).unwrap());
        assert!(door.knows_otherwise(NodeId(1), 8) && !door.knows_otherwise(NodeId(3), 8));
        assert!(door.recognises(NodeId(3), 9).unwrap(), "who only enquired is not noted");
        assert!(door.recognises(NodeId(1), 0).unwrap(), "an older version does not say");
        let again = Acquaintances::default();
        again.open(directory.path()).unwrap();
        assert!(!again.recognises(NodeId(1), 8).unwrap() && again.recognises(NodeId(1), 7).unwrap());
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(Acquaintances::default().open(directory.path()).is_err());
    }
}
