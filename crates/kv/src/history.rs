//! Which keys changed in which revision, for who reads the history by revision.
//!
//! The engine's generations are ordered by key. So each checkpoint writes, beside them, *blocks* that name the keys it contains in the order in
//! which they changed: a reader goes through the blocks from a revision on and looks up those generations alone that it wants.
//!
//! ```text
//! key    `h`, revision (8 bytes, big-endian) and operation index (4 bytes, big-endian) of the first change named
//! value  for each change: (revisions since the one before << 1 | is a deletion), bytes shared with the key before, bytes that follow, those bytes
//! ```
//! Numbers are LEB128 varints. A block ends once it has [`BLOCK_BYTES`], wherever that is within a revision; a checkpoint goes on with the last block of the one
//! before. So what the blocks are hangs on the changes alone, not on when each replica took its checkpoints. Of several changes of one key in one
//! revision the last is named, as it alone is in the engine.
//!
//! A compaction makes blocks superfluous whose changes are all older; each checkpoint removes some, oldest first.

use std::{collections::BTreeSet, ops::Bound};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use conclave_storage::{StateError, StateStore};
use prost::encoding::{decode_varint, encode_varint};

use crate::{head::HeadEntry, keymap::common_bytes, layout::damaged};

/// The first byte of every block's key.
pub(crate) const HISTORY: u8 = b'h';
/// A block is closed once it is this long.
const BLOCK_BYTES: usize = 1 << 10;
/// The most blocks that one checkpoint removes.
const REMOVED_MAX: usize = 16 << 10;
/// What a name costs in memory beside its key.
const NAME_COST_BYTES: usize = 56;

/// One change, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) revision: i64,
    pub(crate) key: Bytes,
    pub(crate) is_deletion: bool,
}

fn block_key(revision: i64, index: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(13);
    key.put_u8(HISTORY);
    key.put_i64(revision);
    key.put_u32(index);
    key.freeze()
}

fn split_block_key(key: &[u8]) -> Result<(i64, u32), StateError> {
    match key.split_first() {
        Some((&HISTORY, mut rest)) if rest.len() == 12 => Ok((rest.get_i64(), rest.get_u32())),
        _ => Err(damaged("the key of a block of the history")),
    }
}

/// A block that has room for more.
#[derive(Clone, Debug)]
pub(crate) struct OpenBlock {
    key: Bytes,
    block: Bytes,
    /// The last change's.
    revision: i64,
    before: Vec<u8>,
}

/// The last block, if it has room.
pub(crate) fn open_block(store: &dyn StateStore) -> Result<Option<OpenBlock>, StateError> {
    let mut last = store.scan(Bound::Included(&[HISTORY]), Bound::Excluded(&[HISTORY + 1]), true);
    let Some((key, block)) = last.next().transpose()? else { return Ok(None) };
    if block.len() >= BLOCK_BYTES {
        return Ok(None);
    }
    let mut names = Names::new(&key, block.clone())?;
    while names.step()?.is_some() {}
    Ok(Some(OpenBlock { key, block, revision: names.revision, before: names.before }))
}

/// The blocks of a checkpoint, in order.
pub(crate) struct Blocks<'a> {
    open: Option<OpenBlock>,
    entries: &'a [HeadEntry],
    /// The places of entries that others of the same revision and key follow.
    superseded: BTreeSet<u32>,
    at: usize,
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(open: Option<OpenBlock>, entries: &'a [HeadEntry], superseded: BTreeSet<u32>) -> Self {
        Self { open, entries, superseded, at: 0 }
    }

    fn entry(&mut self) -> Option<&'a HeadEntry> {
        while self.superseded.contains(&(self.at as u32)) {
            self.at += 1;
        }
        let entry = self.entries.get(self.at);
        self.at += 1;
        entry
    }
}

impl Iterator for Blocks<'_> {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.entry()?;
        let open = self.open.take();
        let mut block = open.as_ref().map_or_else(BytesMut::new, |open| open.block.as_ref().into());
        let (mut revision, mut before): (i64, &[u8]) =
            open.as_ref().map_or((first.numbers.modified, &[]), |open| (open.revision, &open.before));
        let mut next = Some(first);
        while let Some(entry) = next {
            let key = entry.key();
            let gap = (entry.numbers.modified - revision).cast_unsigned();
            encode_varint(gap << 1 | u64::from(entry.numbers.is_deletion()), &mut block);
            let shared = common_bytes(before, key);
            encode_varint(shared as u64, &mut block);
            encode_varint((key.len() - shared) as u64, &mut block);
            block.put_slice(&key[shared..]);
            (revision, before) = (entry.numbers.modified, key);
            next = if block.len() < BLOCK_BYTES { self.entry() } else { None };
        }
        let key = open
            .as_ref()
            .map_or_else(|| block_key(first.numbers.modified, first.index), |open| open.key.clone());
        Some((key, block.freeze()))
    }
}

/// Reads the names of a block.
struct Names {
    block: Bytes,
    revision: i64,
    before: Vec<u8>,
}

impl Names {
    fn new(key: &[u8], block: Bytes) -> Result<Self, StateError> {
        let (revision, _) = split_block_key(key)?;
        Ok(Self { block, revision, before: Vec::new() })
    }

    /// Moves to the next name: its revision, and whether it is a deletion; the key is then in `before`.
    fn step(&mut self) -> Result<Option<(i64, bool)>, StateError> {
        if self.block.is_empty() {
            return Ok(None);
        }
        let cut_off = || damaged("a block of the history is cut off");
        let mut number = || decode_varint(&mut self.block).map_err(|_| cut_off());
        let (gap, shared, rest) = (number()?, number()?, number()?);
        let (shared, rest) =
            (usize::try_from(shared).map_err(|_| cut_off())?, usize::try_from(rest).map_err(|_| cut_off())?);
        if shared > self.before.len() || rest > self.block.len() {
            return Err(cut_off());
        }
        self.before.truncate(shared);
        self.before.extend_from_slice(&self.block.split_to(rest));
        let passed = i64::try_from(gap >> 1).ok().and_then(|gap| self.revision.checked_add(gap));
        self.revision = passed.ok_or_else(|| damaged("a block of the history counts too far"))?;
        Ok(Some((self.revision, gap & 1 == 1)))
    }
}

/// The changes from revision `from` on and before `to`, in order, and the revision up to which these are all: whole revisions, and no more than take
/// `bytes_max` of memory, but for the first. The caller checks afterwards that nothing of it was compacted meanwhile.
pub(crate) fn names(
    store: &dyn StateStore,
    from: i64,
    to: i64,
    bytes_max: usize,
) -> Result<(Vec<Name>, i64), StateError> {
    let (first, start) = ([HISTORY], block_key(from, 0));
    // Changes of `from` may be named by the last block that begins before it.
    let mut before = store.scan(Bound::Included(&first), Bound::Excluded(&start), true);
    let start = before.next().transpose()?.map_or(start, |(key, _)| key);
    drop(before);
    let mut found: Vec<Name> = Vec::new();
    let mut size_bytes = 0;
    for pair in store.scan(Bound::Included(&start), Bound::Excluded(&block_key(to, 0)), false) {
        let (key, block) = pair?;
        let mut names = Names::new(&key, block)?;
        while let Some((revision, is_deletion)) = names.step()? {
            if revision < from {
                continue;
            }
            if revision >= to {
                break;
            }
            if let Some(last) = found.last()
                && last.revision < revision
                && size_bytes >= bytes_max
            {
                return Ok((found, revision - 1));
            }
            size_bytes += names.before.len() + NAME_COST_BYTES;
            found.push(Name { revision, key: Bytes::copy_from_slice(&names.before), is_deletion });
        }
    }
    Ok((found, to - 1))
}

/// The keys of blocks whose changes are all older than `compacted`, oldest first, as many as one checkpoint removes; and the revision from which blocks are
/// left. What begins before `from`, the answer of the last time, is gone already.
pub(crate) fn superfluous(
    store: &dyn StateStore,
    from: i64,
    compacted: i64,
) -> Result<(Vec<Bytes>, i64), StateError> {
    let mut removed = Vec::new();
    // Never compacted is a number below all revisions, and would be above them all in a key.
    if compacted <= from.max(0) {
        return Ok((removed, from));
    }
    let (first, end) = (block_key(from, 0), block_key(compacted, 1));
    let mut last: Option<(Bytes, i64)> = None;
    for pair in store.scan(Bound::Included(&first), Bound::Excluded(&end), false) {
        let (key, _) = pair?;
        let (revision, _) = split_block_key(&key)?;
        // Whatever a block names is at or before the beginning of the next.
        removed.extend(last.replace((key, revision)).map(|(key, _)| key));
        if removed.len() == REMOVED_MAX {
            break;
        }
    }
    let left = last.filter(|_| !removed.is_empty()).map_or(from, |(_, revision)| revision);
    Ok((removed, left))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use conclave_consensus::GroupId;
    use conclave_storage::{Checkpoint, MemoryEngine, StateEngine};

    use super::*;
    use crate::{head::NOWHERE, layout::Numbers};

    fn entry(revision: i64, index: u32, key: &str, is_deletion: bool) -> HeadEntry {
        let numbers = Numbers { modified: revision, version: i64::from(!is_deletion), ..Numbers::default() };
        HeadEntry {
            payload: Arc::from(key.as_bytes()),
            key_bytes: key.len() as u32,
            index,
            numbers,
            previous: NOWHERE,
        }
    }

    fn name(entry: &HeadEntry) -> Name {
        Name {
            revision: entry.numbers.modified,
            key: Bytes::copy_from_slice(entry.key()),
            is_deletion: entry.numbers.is_deletion(),
        }
    }

    /// Revisions 2 to 4001, every tenth with three changes, every hundredth with a thousand.
    fn entries() -> Vec<HeadEntry> {
        let width = |revision| match revision {
            revision if revision % 100 == 0 => 1000,
            revision if revision % 10 == 0 => 3,
            _ => 1,
        };
        (2..=4001)
            .flat_map(|revision| (0..width(revision)).map(move |index| (revision, index)))
            .map(|(revision, index)| {
                entry(
                    revision,
                    index,
                    &format!("/registry/pods/{:05}/{index}", revision * 7919 % 4001),
                    index % 3 == 2,
                )
            })
            .collect()
    }

    fn store_of(entries: &[HeadEntry]) -> Arc<dyn StateStore> {
        let store = MemoryEngine::new().store(GroupId(1), 0).unwrap();
        add(&*store, entries);
        store
    }

    fn add(store: &dyn StateStore, entries: &[HeadEntry]) {
        let checkpoint =
            Checkpoint { meta: conclave_consensus::SnapshotMeta::default(), record: Bytes::new() };
        let open = open_block(store).unwrap();
        let mut run = Blocks::new(open, entries, BTreeSet::new()).map(|(key, block)| (key, Some(block)));
        store.ingest(checkpoint, &mut run).unwrap();
    }

    #[test]
    fn blocks_are_the_same_whenever_checkpoints_were_taken() {
        let entries = entries();
        let whole = store_of(&entries);
        for step in [1, 7, 4000] {
            let parts = MemoryEngine::new().store(GroupId(1), 0).unwrap();
            let mut rest = &entries[..];
            while let Some(last) = rest.get(step.min(rest.len()) - 1) {
                let revision = last.numbers.modified;
                let (part, behind) =
                    rest.split_at(rest.partition_point(|entry| entry.numbers.modified <= revision));
                add(&*parts, part);
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            let all = |store: &dyn StateStore| {
                let pairs = store.scan(Bound::Included(&[HISTORY]), Bound::Excluded(&[HISTORY + 1]), false);
                pairs.collect::<Result<Vec<_>, _>>().unwrap()
            };
            assert_eq!(all(&*parts), all(&*whole), "checkpoints of {step}");
        }
    }

    #[test]
    fn blocks_name_every_change_in_order_from_any_revision_to_any_other() {
        let entries = entries();
        let store = store_of(&entries);
        let all: Vec<Name> = entries.iter().map(name).collect();
        for (from, to) in [
            (0, 9000),
            (2, 4002),
            (3, 4001),
            (700, 701),
            (701, 702),
            (1999, 2001),
            (4001, 4002),
            (4002, 5000),
        ] {
            let expected: Vec<Name> =
                all.iter().filter(|name| (from..to).contains(&name.revision)).cloned().collect();
            assert_eq!(names(&*store, from, to, usize::MAX).unwrap(), (expected, to - 1), "{from}..{to}");
        }
    }

    #[test]
    fn pages_are_whole_revisions_and_join_without_a_seam() {
        let entries = entries();
        let store = store_of(&entries);
        let (mut from, mut joined, mut pages) = (1, Vec::new(), 0);
        while from < 4002 {
            let (page, through) = names(&*store, from, 4002, 10_000).unwrap();
            assert!(page.iter().all(|name| (from..=through).contains(&name.revision)) && through >= from);
            joined.extend(page);
            (from, pages) = (through + 1, pages + 1);
        }
        assert_eq!(joined, entries.iter().map(name).collect::<Vec<_>>());
        assert!(pages > 30, "{pages} pages");
    }

    #[test]
    fn what_is_superfluous_names_nothing_that_can_still_be_read() {
        let entries = entries();
        for compacted in [-1, 0, 1, 2, 3, 600, 601, 2000, 4001, 4002] {
            let store = store_of(&entries);
            let (removed, left) = superfluous(&*store, 0, compacted).unwrap();
            assert!(left <= compacted.max(0), "{left}");
            let checkpoint =
                Checkpoint { meta: conclave_consensus::SnapshotMeta::default(), record: Bytes::new() };
            store.ingest(checkpoint, &mut removed.iter().map(|key| (key.clone(), None))).unwrap();
            let expected: Vec<Name> =
                entries.iter().map(name).filter(|name| name.revision >= compacted).collect();
            let found = names(&*store, compacted.max(0), 4002, usize::MAX).unwrap().0;
            assert_eq!(found, expected, "{compacted}");
            assert!(compacted < 600 || !removed.is_empty());
        }
    }

    #[test]
    fn garbage_is_damage_not_a_panic() {
        assert!(split_block_key(b"h1234567").is_err() && split_block_key(b"").is_err());
        let key = block_key(7, 0);
        for block in [
            &b"\x02"[..],
            b"\x02\x00\x05abc",
            b"\x02\x03\x01a",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00\x01a",
            b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01a",
        ] {
            let mut names = Names::new(&key, Bytes::copy_from_slice(block)).unwrap();
            let outcome = names.step();
            assert!(outcome.is_err() || matches!(outcome, Ok(Some(_)) if block.len() > 9), "{block:?}");
        }
    }
}
