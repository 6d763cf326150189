//! One file as a power cut sees it: what is durable, and every version a sector has had since.
//!
//! A disk writes whole sectors, in any order, each at any moment between two syncs. So after a power cut each sector that was
//! written since the last sync holds one of its versions: the durable one, the last, or any between; and the length is one
//! that the file had.
//!
//! A disk may also *lie*: a write that it confirmed and synced never reached its place, or reached another. Who asks it gets what was
//! written, until the next power cut. A sector is *settled* once something written after it was synced too; only settled ones are lied
//! about, since no log can tell the loss of its last synced batch from a torn tail.

use std::collections::BTreeMap;

use crate::rng::Rng;

/// Bytes that a disk writes as a whole.
pub const SECTOR: usize = 512;

/// The number of one operation on a disk; operations are numbered through over all files.
pub type OpNumber = u64;

/// How pending writes fare in a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// All are lost.
    Lost,
    /// All are kept.
    Kept,
    /// Those before the operation are kept; of the operation itself the sectors below `sector`; later ones are lost.
    Prefix {
        /// The operation that was under way.
        upto: OpNumber,
        /// Where it was torn, counted from the file's beginning.
        sector: u64,
    },
    /// Each sector on its own keeps any of its versions: reordered and torn.
    Scattered,
}

/// Content of a sector as of an operation.
#[derive(Debug)]
struct Version {
    op: OpNumber,
    bytes: Box<[u8; SECTOR]>,
}

/// How a disk lies about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It never happened.
    Lost,
    /// It happened so many sectors further on, round the file's end.
    Misdirected(u64),
}

#[derive(Debug)]
struct Lied {
    lie: Lie,
    /// The sync that confirmed it.
    batch: u64,
    /// Each sector as it was, and as it ought to be.
    sectors: Vec<(u64, [Box<[u8; SECTOR]>; 2])>,
}

/// A file's bytes, and what is pending.
#[derive(Debug, Default)]
pub(super) struct Image {
    live: Vec<u8>,
    /// For each sector written since the last sync its versions, the durable one (operation 0) first.
    dirty: BTreeMap<u64, Vec<Version>>,
    /// The lengths since the last sync, the durable one (operation 0) first; empty if unchanged.
    lengths: Vec<(OpNumber, usize)>,
    /// What the disk really holds of sectors that a failed sync marked clean.
    forsaken: BTreeMap<u64, Version>,
    /// Syncs that had something to do.
    batches: u64,
    /// For each sector the number of the sync that covers its last write; 0 if it was never written.
    written: Vec<u64>,
    lies: Vec<Lied>,
}

impl Image {
    /// A file of zeros whose length is not durable yet.
    pub(super) fn zeros(op: OpNumber, size: usize) -> Self {
        Self { live: vec![0; size], lengths: vec![(0, 0), (op, size)], ..Self::default() }
    }

    /// The content as a program sees it.
    pub(super) fn live(&self) -> &[u8] {
        &self.live
    }

    /// Writes, growing the file if need be.
    pub(super) fn write(&mut self, op: OpNumber, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if end > self.live.len() {
            self.resize(op, end);
        }
        let sectors = (offset / SECTOR) as u64..=((end - 1) / SECTOR) as u64;
        for sector in sectors.clone() {
            self.soil(sector);
        }
        self.live[offset..end].copy_from_slice(bytes);
        for sector in sectors {
            let version = Version { op, bytes: self.sector(sector) };
            self.dirty.entry(sector).or_default().push(version);
            if self.written.len() <= sector as usize {
                self.written.resize(self.live.len().div_ceil(SECTOR).max(sector as usize + 1), 0);
            }
            self.written[sector as usize] = self.batches + 1;
        }
    }

    /// As [`write`](Self::write), about which the disk lies.
    pub(super) fn write_lying(&mut self, op: OpNumber, offset: usize, bytes: &[u8], lie: Lie) {
        if bytes.is_empty() {
            return;
        }
        let sectors = (offset / SECTOR) as u64..=((offset + bytes.len() - 1) / SECTOR) as u64;
        let before: Vec<_> = sectors.clone().map(|sector| self.sector(sector)).collect();
        self.write(op, offset, bytes);
        let sectors = sectors.zip(before).map(|(sector, before)| (sector, [before, self.sector(sector)]));
        let lied = Lied { lie, batch: self.batches + 1, sectors: sectors.collect() };
        self.lies.push(lied);
    }

    fn is_settled(&self, sector: u64) -> bool {
        self.written.get(sector as usize).is_some_and(|batch| *batch < self.batches)
    }

    /// The sectors that were written and are settled.
    pub(super) fn settled(&self) -> Vec<u64> {
        (0..self.written.len() as u64)
            .filter(|sector| self.written[*sector as usize] > 0 && self.is_settled(*sector))
            .collect()
    }

    /// What the disk lied about comes to light where it is settled and was not written again; says whether anything did.
    fn reveal(&mut self) -> bool {
        let mut revealed = false;
        for Lied { lie, batch, sectors } in std::mem::take(&mut self.lies) {
            for (sector, [before, after]) in sectors {
                if self.written.get(sector as usize) != Some(&batch) || !self.is_settled(sector) {
                    continue;
                }
                self.put_back(sector, &before);
                revealed = true;
                if let Lie::Misdirected(shift) = lie {
                    let elsewhere = (sector + shift) % self.written.len() as u64;
                    if self.is_settled(elsewhere) {
                        self.put_back(elsewhere, &after);
                    }
                }
            }
        }
        revealed
    }

    /// Changes the length; new bytes are zeros.
    pub(super) fn resize(&mut self, op: OpNumber, size: usize) {
        if self.lengths.is_empty() {
            self.lengths.push((0, self.live.len()));
        }
        self.lengths.push((op, size));
        if size < self.live.len() {
            // What was cut off must read as zeros should the file grow again before the cut is durable.
            let zeros = vec![0; self.live.len() - size];
            let end = self.live.len();
            let first = (size / SECTOR) as u64;
            for sector in first..=((end - 1) / SECTOR) as u64 {
                self.soil(sector);
            }
            self.live[size..].copy_from_slice(&zeros);
            for sector in first..=((end - 1) / SECTOR) as u64 {
                let version = Version { op, bytes: self.sector(sector) };
                self.dirty.entry(sector).or_default().push(version);
            }
        }
        self.live.resize(size, 0);
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self) {
        self.batches += u64::from(!self.dirty.is_empty());
        self.dirty.clear();
        self.lengths.clear();
    }

    /// A sync that failed: the kernel marks the pages clean, so a later sync that succeeds does not write them, and only the next power
    /// cut shows that the disk never held them.
    pub(super) fn fail_sync(&mut self) {
        for (sector, mut versions) in std::mem::take(&mut self.dirty) {
            self.forsaken.insert(sector, versions.swap_remove(0));
        }
    }

    /// Remembers the durable version of a sector that is about to change.
    fn soil(&mut self, sector: u64) {
        if !self.dirty.contains_key(&sector) {
            let live = |image: &Self| Version { op: 0, bytes: image.sector(sector) };
            let durable = self.forsaken.remove(&sector).unwrap_or_else(|| live(self));
            self.dirty.insert(sector, vec![durable]);
        }
    }

    /// Decides what is left of everything pending.
    pub(super) fn power_cut(&mut self, fate: Fate, rng: &mut Rng) -> Outcome {
        let mut outcome = Outcome::default();
        let sizes = std::mem::take(&mut self.lengths);
        if let Some(last) = sizes.len().checked_sub(1) {
            let at = match fate {
                Fate::Lost => 0,
                Fate::Kept => last,
                Fate::Prefix { upto, .. } => sizes.iter().rposition(|(op, _)| *op <= upto).unwrap_or(0),
                Fate::Scattered => rng.index(sizes.len()),
            };
            let whole = sizes.iter().map(|(_, size)| *size).max().unwrap_or(0);
            self.live.resize(whole.max(self.live.len()), 0);
            self.restore(fate, rng, &mut outcome);
            self.live.truncate(sizes[at].1);
            self.live.resize(sizes[at].1, 0);
        } else {
            self.restore(fate, rng, &mut outcome);
        }
        outcome.lied = self.reveal();
        outcome
    }

    fn restore(&mut self, fate: Fate, rng: &mut Rng, outcome: &mut Outcome) {
        for (sector, version) in std::mem::take(&mut self.forsaken) {
            self.put_back(sector, &version.bytes);
            outcome.lost += 1;
        }
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            let last = versions.len() - 1;
            let at = match fate {
                Fate::Lost => 0,
                Fate::Kept => last,
                Fate::Prefix { upto, sector: torn } => {
                    let kept = |v: &Version| v.op < upto || (v.op == upto && sector < torn);
                    versions.iter().rposition(kept).unwrap_or(0)
                }
                Fate::Scattered => rng.index(versions.len()),
            };
            match at {
                0 => outcome.lost += 1,
                at if at == last => outcome.kept += 1,
                _ => outcome.between += 1,
            }
            self.put_back(sector, &versions[at].bytes);
        }
    }

    fn put_back(&mut self, sector: u64, bytes: &[u8; SECTOR]) {
        let from = sector as usize * SECTOR;
        if from < self.live.len() {
            let to = (from + SECTOR).min(self.live.len());
            self.live[from..to].copy_from_slice(&bytes[..to - from]);
        }
    }

    /// Flips one bit of what is stored, unnoticed.
    pub(super) fn flip(&mut self, byte: usize, bit: u8) {
        if let Some(byte) = self.live.get_mut(byte) {
            *byte ^= 1 << (bit & 7);
        }
    }

    fn sector(&self, sector: u64) -> Box<[u8; SECTOR]> {
        let mut bytes = Box::new([0; SECTOR]);
        let from = sector as usize * SECTOR;
        let to = (from + SECTOR).min(self.live.len());
        if from < to {
            bytes[..to - from].copy_from_slice(&self.live[from..to]);
        }
        bytes
    }
}

/// What became of the sectors that were pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Back at their durable version.
    pub lost: u64,
    /// At their last version.
    pub kept: u64,
    /// At one between.
    pub between: u64,
    /// Whether a lie came to light.
    pub lied: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Image {
        let mut image = Image::zeros(1, 4 * SECTOR);
        image.sync();
        image.write(2, 100, &[1; 600]);
        image.write(3, 600, &[2; 1000]);
        image
    }

    #[test]
    fn lost_and_kept_are_the_two_ends() {
        let mut rng = Rng::new(0);
        let mut lost = written();
        lost.power_cut(Fate::Lost, &mut rng);
        assert!(lost.live().iter().all(|byte| *byte == 0));
        let (mut kept, before) = (written(), written());
        kept.power_cut(Fate::Kept, &mut rng);
        assert_eq!(kept.live(), before.live());
    }

    #[test]
    fn a_torn_write_ends_at_a_sector() {
        let mut image = written();
        image.power_cut(Fate::Prefix { upto: 3, sector: 2 }, &mut Rng::new(0));
        assert!(image.live()[100..600].iter().all(|byte| *byte == 1));
        assert!(image.live()[600..1024].iter().all(|byte| *byte == 2));
        assert!(
            image.live()[1024..].iter().all(|byte| *byte == 0),
            "sectors from the second on were not reached"
        );
    }

    #[test]
    fn scattered_sectors_hold_any_version() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let mut image = written();
            image.power_cut(Fate::Scattered, &mut Rng::new(seed));
            seen.insert((image.live()[100], image.live()[650], image.live()[1100]));
        }
        // Sector 1 has three versions, sectors 0 and 2 have two each.
        assert_eq!(seen.len(), 2 * 3 * 2);
    }

    #[test]
    fn a_sync_that_succeeds_after_one_that_failed_proves_nothing() {
        let mut image = written();
        image.fail_sync();
        assert!(image.live()[100] == 1, "the program still reads what it wrote");
        image.sync();
        image.power_cut(Fate::Kept, &mut Rng::new(0));
        assert!(image.live().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_lie_comes_to_light_once_its_sector_is_settled() {
        let lied = |lie, later: bool| {
            let mut image = Image::zeros(1, 4 * SECTOR);
            image.sync();
            image.write(2, 0, &[1; SECTOR]);
            image.write(2, 2 * SECTOR, &[4; SECTOR]);
            image.sync();
            image.write_lying(3, SECTOR, &[2; SECTOR], lie);
            image.sync();
            if later {
                image.write(4, 3 * SECTOR, &[3; SECTOR]);
                image.sync();
            }
            assert_eq!(image.live()[SECTOR], 2, "who asks is told what was written");
            let outcome = image.power_cut(Fate::Kept, &mut Rng::new(0));
            let sectors: Vec<u8> = (0..4).map(|sector| image.live()[sector * SECTOR]).collect();
            (outcome.lied, sectors)
        };
        assert_eq!(lied(Lie::Lost, true), (true, vec![1, 0, 4, 3]));
        assert_eq!(lied(Lie::Misdirected(1), true), (true, vec![1, 0, 2, 3]));
        assert_eq!(lied(Lie::Lost, false), (false, vec![1, 2, 4, 0]), "the last batch is not lied about");
    }

    #[test]
    fn what_is_written_again_heals_a_lie() {
        let mut image = Image::zeros(1, 2 * SECTOR);
        image.write_lying(2, 0, &[1; 100], Lie::Lost);
        image.sync();
        image.write(3, 100, &[2; 100]);
        image.sync();
        image.write(4, SECTOR, &[3; 100]);
        image.sync();
        assert_eq!(image.settled(), [0]);
        assert!(!image.power_cut(Fate::Lost, &mut Rng::new(0)).lied);
        assert_eq!((image.live()[0], image.live()[100]), (1, 2));
    }

    #[test]
    fn a_length_that_was_not_synced_may_be_lost() {
        let mut image = Image::zeros(1, SECTOR);
        image.power_cut(Fate::Lost, &mut Rng::new(0));
        assert_eq!(image.live().len(), 0);
        let mut image = Image::zeros(1, SECTOR);
        image.sync();
        image.write(2, 0, &[7; SECTOR]);
        image.sync();
        image.resize(3, 10);
        image.resize(4, SECTOR);
        assert!(image.live()[10..].iter().all(|byte| *byte == 0), "a cut tail reads as zeros");
        image.power_cut(Fate::Lost, &mut Rng::new(0));
        assert!(image.live().iter().all(|byte| *byte == 7), "the cut was not durable");
    }
}
