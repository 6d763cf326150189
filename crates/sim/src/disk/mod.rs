//! A disk in memory that fails as disks do.
//!
//! It implements [`conclave_storage::Disk`], so the log's own code runs on it unchanged. What is not synced is
//! kept apart, per 512-byte sector, and names apart from content; [`SimDisk::power_cut`] decides under the
//! seed what of it survives. A cut can also be armed to strike *inside* the n-th operation from now, so that every write, sync, rename and
//! removal of the log is a place where it may have died.
//!
//! Beyond what power does, a disk may refuse (a failing sync, no space) and deceive: bits that rot, writes that were confirmed and never
//! reached their place or reached another.
//!
//! Handles belong to one boot: what was opened before a cut, or before the process ended, answers with errors after it.

mod image;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use conclave_storage::{Disk, DiskFile};

use image::Image;
pub use image::{Fate, Lie, OpNumber, Outcome, SECTOR};

use crate::rng::Rng;

type FileId = u64;

#[derive(Clone, Debug)]
enum NameOp {
    Create(String, FileId),
    Rename(String, String),
    Remove(String),
}

/// What a disk has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Writes of content.
    pub writes: u64,
    /// Syncs of content.
    pub syncs: u64,
    /// Syncs of names.
    pub name_syncs: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Sectors that a power cut took back to their durable version.
    pub sectors_lost: u64,
    /// Sectors that a power cut left between their durable and their last version.
    pub sectors_torn: u64,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    /// Counts boots: a handle of another boot is dead.
    boot: u64,
    ops: OpNumber,
    next_file: FileId,
    files: BTreeMap<FileId, Image>,
    names: BTreeMap<String, FileId>,
    names_durable: BTreeMap<String, FileId>,
    names_pending: Vec<(OpNumber, NameOp)>,
    capacity_bytes: u64,
    /// The power goes inside the operation of this number.
    cut_at: Option<OpNumber>,
    dead: bool,
    syncs_to_failure: Option<u64>,
    /// A sync failed in this boot.
    sync_failed: bool,
    /// The write of this number from now is lied about.
    lie_in: Option<(u64, Lie)>,
    /// What was durable is no longer what was written.
    damaged: bool,
    counters: DiskCounters,
}

/// A simulated disk. Cloning shares it.
#[derive(Clone, Debug)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct Mounted {
    disk: SimDisk,
    boot: u64,
}

#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    boot: u64,
    file: FileId,
}

fn power_is_off() -> io::Error {
    io::Error::other("the simulated power is off")
}

fn not_found() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl SimDisk {
    /// An empty disk whose faults are drawn from `rng`.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        let state = State {
            rng,
            boot: 1,
            ops: 0,
            next_file: 1,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            names_pending: Vec::new(),
            capacity_bytes: u64::MAX,
            cut_at: None,
            dead: false,
            syncs_to_failure: None,
            sync_failed: false,
            lie_in: None,
            damaged: false,
            counters: DiskCounters::default(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk as a program of the present boot sees it.
    #[must_use]
    pub fn mount(&self) -> Arc<dyn Disk> {
        let boot = self.lock().boot;
        Arc::new(Mounted { disk: self.clone(), boot })
    }

    /// Cuts the power: pending writes and names fare as drawn from the seed, and every handle dies.
    pub fn power_cut(&self) -> Outcome {
        let fate = self.lock().draw_fate();
        self.power_cut_with(fate)
    }

    /// Cuts the power with a given fate for what is pending.
    pub fn power_cut_with(&self, fate: Fate) -> Outcome {
        self.lock().power_cut(fate)
    }

    /// Arms a power cut inside the `ops`-th operation from now (1 is the next).
    pub fn cut_in(&self, ops: u64) {
        let mut state = self.lock();
        state.cut_at = Some(state.ops + ops.max(1));
    }

    /// Whether an armed power cut has struck. The disk answers only errors until [`power_cut`](Self::power_cut) is called.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Bounds the sum of all files' lengths. Below what they have, not even what is allocated can be written, as where a file system
    /// copies on write.
    pub fn limit(&self, capacity_bytes: u64) {
        self.lock().capacity_bytes = capacity_bytes;
    }

    /// Makes the `syncs`-th sync from now (1 is the next) fail: what it was to make durable is lost at the next power cut, yet reads as written
    /// until then.
    pub fn fail_sync_in(&self, syncs: u64) {
        self.lock().syncs_to_failure = Some(syncs.max(1));
    }

    /// Forgets what it was told to do wrong; what is damaged stays damaged.
    pub fn behave(&self) {
        let mut state = self.lock();
        (state.cut_at, state.syncs_to_failure, state.lie_in) = (None, None, None);
    }

    /// Whether a sync failed since the disk was last mounted anew.
    #[must_use]
    pub fn has_failed_sync(&self) -> bool {
        self.lock().sync_failed
    }

    /// Whether it has a bound on its files' lengths.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.lock().capacity_bytes != u64::MAX
    }

    /// Bytes that all files take.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Lies about the `writes`-th write from now (1 is the next): it comes to light at a power cut, if something written after it was
    /// synced by then.
    pub fn lie_in(&self, writes: u64, lie: Lie) {
        self.lock().lie_in = Some((writes.max(1), lie));
    }

    /// Whether anything durable was damaged: bits rotted, or a lie came to light.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.lock().damaged
    }

    /// Flips a bit drawn from the seed in a file drawn from the seed, in a sector that was written and after which something else was
    /// synced: name and byte, or `None` if there is no such sector.
    pub fn rot(&self) -> Option<(String, u64)> {
        let mut state = self.lock();
        let names: Vec<(String, FileId)> = state.names.iter().map(|(n, f)| (n.clone(), *f)).collect();
        if names.is_empty() {
            return None;
        }
        let (name, file) = state.rng.pick(&names).clone();
        let settled = state.files.get(&file)?.settled();
        if settled.is_empty() {
            return None;
        }
        let sector = *state.rng.pick(&settled);
        let byte = sector * SECTOR as u64 + state.rng.below(SECTOR as u64);
        let bit = state.rng.below(8) as u8;
        state.files.get_mut(&file)?.flip(byte as usize, bit);
        state.damaged = true;
        Some((name, byte))
    }

    /// The process ends and the power stays: every handle dies, and what was written is there still, synced or not.
    pub fn exit(&self) {
        self.lock().unmount();
    }

    /// An empty disk takes its place.
    pub fn replace(&self) {
        let mut state = self.lock();
        state.unmount();
        state.files.clear();
        state.names.clear();
        state.names_durable.clear();
        state.names_pending.clear();
        (state.capacity_bytes, state.damaged) = (u64::MAX, false);
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> DiskCounters {
        self.lock().counters
    }

    fn of_boot(&self, boot: u64) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.boot != boot || state.dead { Err(power_is_off()) } else { Ok(state) }
    }
}

impl State {
    /// Numbers an operation that changes something. An armed cut strikes after the operation was begun and before it is done.
    fn begin(&mut self) -> OpNumber {
        self.ops += 1;
        if self.cut_at.is_some_and(|at| self.ops >= at) {
            self.dead = true;
        }
        self.ops
    }

    fn ended(&self) -> io::Result<()> {
        if self.dead { Err(power_is_off()) } else { Ok(()) }
    }

    fn draw_fate(&mut self) -> Fate {
        match self.rng.below(8) {
            0 | 1 => Fate::Lost,
            2 => Fate::Kept,
            3 | 4 => {
                let upto = self.ops.saturating_sub(self.rng.below(4));
                Fate::Prefix { upto, sector: self.rng.below(256) }
            }
            _ => Fate::Scattered,
        }
    }

    fn power_cut(&mut self, fate: Fate) -> Outcome {
        let mut total = Outcome::default();
        for image in self.files.values_mut() {
            let outcome = image.power_cut(fate, &mut self.rng);
            total.lost += outcome.lost;
            total.kept += outcome.kept;
            total.between += outcome.between;
            total.lied |= outcome.lied;
        }
        let mut names = std::mem::take(&mut self.names_durable);
        for (op, change) in std::mem::take(&mut self.names_pending) {
            let kept = match fate {
                Fate::Lost => false,
                Fate::Kept => true,
                Fate::Prefix { upto, .. } => op < upto,
                Fate::Scattered => self.rng.bits() & 1 == 0,
            };
            if kept {
                change.apply(&mut names);
            }
        }
        self.files.retain(|file, _| names.values().any(|named| named == file));
        self.names = names.clone();
        self.names_durable = names;
        self.unmount();
        self.damaged |= total.lied;
        self.counters.cuts += 1;
        self.counters.sectors_lost += total.lost;
        self.counters.sectors_torn += total.between;
        total
    }

    /// A boot ends.
    fn unmount(&mut self) {
        self.boot += 1;
        (self.dead, self.sync_failed) = (false, false);
        (self.cut_at, self.syncs_to_failure, self.lie_in) = (None, None, None);
    }

    fn name_changed(&mut self, op: OpNumber, change: NameOp) {
        change.apply(&mut self.names);
        self.names_pending.push((op, change));
    }

    fn used_bytes(&self) -> u64 {
        self.names
            .values()
            .filter_map(|file| self.files.get(file))
            .map(|image| image.live().len() as u64)
            .sum()
    }

    fn has_room(&self, more: u64) -> io::Result<()> {
        if self.capacity_bytes != u64::MAX && self.used_bytes() + more > self.capacity_bytes {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn image(&mut self, file: FileId) -> io::Result<&mut Image> {
        self.files.get_mut(&file).ok_or_else(not_found)
    }

    fn sync(&mut self, file: FileId) -> io::Result<()> {
        self.begin();
        self.ended()?;
        self.counters.syncs += 1;
        if let Some(left) = self.syncs_to_failure.as_mut() {
            *left -= 1;
            if *left == 0 {
                self.syncs_to_failure = None;
                self.sync_failed = true;
                self.image(file)?.fail_sync();
                return Err(io::Error::other("simulated sync failure"));
            }
        }
        self.image(file)?.sync();
        Ok(())
    }
}

impl NameOp {
    /// Does it where it can be done: a rename whose source's creation was lost changes nothing.
    fn apply(&self, names: &mut BTreeMap<String, FileId>) {
        match self {
            Self::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl Disk for Mounted {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.disk.of_boot(self.boot)?.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.disk.of_boot(self.boot)?;
        let file = *state.names.get(name).ok_or_else(not_found)?;
        Ok(Arc::new(Handle { disk: self.disk.clone(), boot: self.boot, file }))
    }

    fn create(&self, name: &str, size_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.disk.of_boot(self.boot)?;
        if state.names.contains_key(name) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        state.has_room(size_bytes)?;
        let op = state.begin();
        let file = state.next_file;
        state.next_file += 1;
        state.files.insert(file, Image::zeros(op, size_bytes as usize));
        state.name_changed(op, NameOp::Create(name.to_owned(), file));
        state.ended()?;
        Ok(Arc::new(Handle { disk: self.disk.clone(), boot: self.boot, file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.disk.of_boot(self.boot)?;
        if !state.names.contains_key(from) {
            return Err(not_found());
        }
        let op = state.begin();
        state.name_changed(op, NameOp::Rename(from.to_owned(), to.to_owned()));
        state.ended()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.disk.of_boot(self.boot)?;
        if !state.names.contains_key(name) {
            return Err(not_found());
        }
        let op = state.begin();
        state.name_changed(op, NameOp::Remove(name.to_owned()));
        state.ended()
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.disk.of_boot(self.boot)?;
        state.begin();
        state.ended()?;
        state.counters.name_syncs += 1;
        state.names_pending.clear();
        state.names_durable = state.names.clone();
        Ok(())
    }
}

impl DiskFile for Handle {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.of_boot(self.boot)?.image(self.file)?.live().len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.of_boot(self.boot)?;
        let live = state.image(self.file)?.live();
        let from = offset as usize;
        let bytes = from.checked_add(into.len()).and_then(|to| live.get(from..to));
        into.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.of_boot(self.boot)?;
        let size = state.image(self.file)?.live().len() as u64;
        state.has_room((offset + bytes.len() as u64).saturating_sub(size))?;
        let op = state.begin();
        let lie = state.lie_in.take_if(|(writes, _)| *writes <= 1);
        if let Some((writes, _)) = state.lie_in.as_mut() {
            *writes -= 1;
        }
        match lie {
            Some((_, lie)) => state.image(self.file)?.write_lying(op, offset as usize, bytes, lie),
            None => state.image(self.file)?.write(op, offset as usize, bytes),
        }
        state.ended()?;
        state.counters.writes += 1;
        Ok(())
    }

    fn truncate(&self, size_bytes: u64) -> io::Result<()> {
        let mut state = self.disk.of_boot(self.boot)?;
        let op = state.begin();
        state.image(self.file)?.resize(op, size_bytes as usize);
        state.ended()
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.of_boot(self.boot)?.sync(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(disk: &SimDisk, name: &str) -> io::Result<Vec<u8>> {
        let file = disk.mount().open(name)?;
        let mut bytes = vec![0; file.size_bytes()? as usize];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn content_and_name_are_durable_apart() {
        let disk = SimDisk::new(Rng::new(1));
        let mounted = disk.mount();
        let file = mounted.create("a", 1024).unwrap();
        file.write_at(0, b"hello").unwrap();
        file.sync().unwrap();
        disk.power_cut_with(Fate::Lost);
        assert_eq!(
            file_of(&disk, "a").unwrap_err().kind(),
            io::ErrorKind::NotFound,
            "the name was not synced"
        );

        let mounted = disk.mount();
        let file = mounted.create("a", 1024).unwrap();
        file.write_at(0, b"hello").unwrap();
        mounted.sync_names().unwrap();
        file.sync().unwrap();
        file.write_at(0, b"HELLO").unwrap();
        disk.power_cut_with(Fate::Lost);
        assert_eq!(&file_of(&disk, "a").unwrap()[..5], b"hello");
    }

    #[test]
    fn handles_of_an_earlier_boot_are_dead() {
        let disk = SimDisk::new(Rng::new(1));
        let mounted = disk.mount();
        let file = mounted.create("a", 16).unwrap();
        disk.power_cut_with(Fate::Kept);
        assert!(file.write_at(0, b"x").is_err() && file.sync().is_err() && mounted.list().is_err());
        assert_eq!(disk.mount().list().unwrap(), ["a"]);
    }

    #[test]
    fn an_armed_cut_strikes_inside_the_operation() {
        for ops in 1..=3 {
            let disk = SimDisk::new(Rng::new(1));
            let mounted = disk.mount();
            disk.cut_in(ops);
            let done = mounted
                .create("a", 16)
                .and_then(|file| file.write_at(0, b"x").map(|()| file))
                .and_then(|file| file.sync());
            assert!(done.is_err() && disk.is_dead(), "cut in operation {ops}");
            disk.power_cut_with(Fate::Kept);
            assert_eq!(disk.mount().list().unwrap().len(), 1);
        }
    }

    #[test]
    fn renames_and_removals_wait_for_their_sync() {
        let disk = SimDisk::new(Rng::new(1));
        let mounted = disk.mount();
        for name in ["a", "b"] {
            mounted.create(name, 0).unwrap();
        }
        mounted.sync_names().unwrap();
        mounted.rename("a", "c").unwrap();
        mounted.remove("b").unwrap();
        disk.power_cut_with(Fate::Lost);
        assert_eq!(disk.mount().list().unwrap(), ["a", "b"]);
    }

    #[test]
    fn a_full_disk_refuses_and_a_failed_sync_keeps_nothing() {
        let disk = SimDisk::new(Rng::new(1));
        disk.limit(1000);
        let mounted = disk.mount();
        let file = mounted.create("a", 900).unwrap();
        assert_eq!(mounted.create("b", 200).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.write_at(950, &[1; 100]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.sync().unwrap();
        mounted.sync_names().unwrap();
        disk.fail_sync_in(1);
        file.write_at(0, b"x").unwrap();
        assert!(file.sync().is_err());
        disk.power_cut_with(Fate::Lost);
        assert_eq!(file_of(&disk, "a").unwrap()[0], 0);
    }

    #[test]
    fn a_process_that_ends_leaves_what_it_wrote() {
        let disk = SimDisk::new(Rng::new(1));
        let file = disk.mount().create("a", 900).unwrap();
        file.write_at(0, b"x").unwrap();
        disk.exit();
        assert!(file.write_at(0, b"y").is_err());
        assert_eq!(file_of(&disk, "a").unwrap()[0], b'x');
        disk.replace();
        assert!(disk.mount().list().unwrap().is_empty());
    }

    #[test]
    fn a_write_that_was_lied_about_reads_well_until_power_is_cut() {
        let disk = SimDisk::new(Rng::new(1));
        let mounted = disk.mount();
        let file = mounted.create("a", 4096).unwrap();
        mounted.sync_names().unwrap();
        disk.lie_in(2, Lie::Lost);
        for sector in 0..3 {
            file.write_at(sector * SECTOR as u64, b"x").unwrap();
            file.sync().unwrap();
        }
        assert_eq!(file_of(&disk, "a").unwrap()[SECTOR], b'x');
        assert!(!disk.is_damaged());
        disk.power_cut_with(Fate::Kept);
        let bytes = file_of(&disk, "a").unwrap();
        assert_eq!((bytes[0], bytes[SECTOR], bytes[2 * SECTOR]), (b'x', 0, b'x'));
        assert!(disk.is_damaged());
    }

    #[test]
    fn rot_changes_one_bit() {
        let disk = SimDisk::new(Rng::new(1));
        let file = disk.mount().create("a", 1024).unwrap();
        for offset in [0, 512] {
            assert_eq!(disk.rot(), None, "nothing is settled");
            file.write_at(offset, &[0; 512]).unwrap();
            file.sync().unwrap();
        }
        let (name, byte) = disk.rot().unwrap();
        let bytes = file_of(&disk, &name).unwrap();
        assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
        assert!(bytes[byte as usize] != 0 && byte < 512 && disk.is_damaged());
    }
}
