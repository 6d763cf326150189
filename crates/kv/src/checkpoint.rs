//! Making the head durable, and removing what compaction made unreadable, in one atomic run.
//!
//! Removal walks the engine's generations a stretch at each checkpoint, so that neither its time nor its memory depends on how much
//! there is to remove. A walk serves the compaction revision of the *last completed* checkpoint: every generation that it
//! can concern is in the engine by then.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use bytes::{Bytes, BytesMut};
use conclave_api::conclave::kv::v1::CheckpointRecord;
use conclave_consensus::SnapshotMeta;
use conclave_storage::{Checkpoint, Job, StateError, StateStore};
use prost::Message;

use crate::{
    head::HeadEntry,
    history::{self, Blocks, OpenBlock},
    keymap,
    layout::{self, GENERATION_OVERHEAD_BYTES, GENERATIONS, INDEX_BYTES_MAX},
    outcomes::Frozen,
    state::read_record,
};

/// How many generations a checkpoint looks at, beyond twice those it writes, to find what can be removed.
const REMOVAL_STEPS_MIN: usize = 64 << 10;
/// Keys and values of a run are cut from pieces of this size, in bytes.
const ARENA_BYTES: usize = 64 << 10;

/// A checkpoint on its way.
#[derive(Debug)]
pub(crate) struct CheckpointJob {
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) meta: SnapshotMeta,
    pub(crate) record: CheckpointRecord,
    pub(crate) entries: Arc<Vec<HeadEntry>>,
    pub(crate) outcomes: Arc<Frozen>,
    /// Pairs of leases to replace and remove, ascending.
    pub(crate) leases: Vec<(Bytes, Option<Bytes>)>,
}

impl Job for CheckpointJob {
    fn run(self: Box<Self>) -> Result<(), StateError> {
        let Self { store, mut meta, mut record, entries, outcomes, leases } = *self;
        meta.generation = store.generation();
        let removed = walk(&*store, &mut record, REMOVAL_STEPS_MIN + 2 * entries.len())?;
        let order = order_of(&entries);
        let (superfluous, left) =
            history::superfluous(&*store, record.history_revision, record.compact_target)?;
        record.history_revision = left;
        let checkpoint = Checkpoint { meta, record: record.encode_to_vec().into() };
        let open = history::open_block(&*store)?;
        let mut run =
            Run::new(&entries, &order, (removed, superfluous), open).chain(outcomes.pairs()).chain(leases);
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::AppliedIndexNotAtomic.is_on()
            && let Some(last) = store.checkpoint()
        {
            store.ingest(Checkpoint { meta: last.meta, ..checkpoint.clone() }, &mut run)?;
            return store.ingest(checkpoint, &mut std::iter::empty());
        }
        store.ingest(checkpoint, &mut run)
    }
}

/// The places of the entries in order of key and revision. Of several generations of a key in one revision the last comes last.
fn order_of(entries: &[HeadEntry]) -> Vec<u32> {
    let Some(first) = entries.first() else { return Vec::new() };
    let shared_bytes = entries
        .iter()
        .fold(first.key().len(), |shared, entry| keymap::common_bytes(&first.key()[..shared], entry.key()));
    // Whole keys are all over memory; most comparisons are settled by the eight bytes at hand.
    let mut order: Vec<(u64, u32)> =
        (0..).zip(entries).map(|(at, entry)| (keymap::digest(entry.key(), shared_bytes), at)).collect();
    order.sort_by(|(a_digest, a), (b_digest, b)| {
        a_digest.cmp(b_digest).then_with(|| {
            let (a, b) = (&entries[*a as usize], &entries[*b as usize]);
            (a.key(), a.numbers.modified).cmp(&(b.key(), b.numbers.modified))
        })
    });
    order.into_iter().map(|(_, at)| at).collect()
}

/// Looks for generations to remove, from where the last checkpoint left off, and notes in the record where it got to.
fn walk(
    store: &dyn StateStore,
    record: &mut CheckpointRecord,
    steps_max: usize,
) -> Result<Vec<Bytes>, StateError> {
    let Some(last) = store.checkpoint() else {
        record.compact_target = record.compact_revision.min(record.compact_target);
        return Ok(Vec::new());
    };
    let last = read_record(&last.record)?;
    record.history_revision = record.history_revision.max(last.history_revision);
    record.compact_target = last.compact_target;
    record.compact_cursor = last.compact_cursor;
    if record.compact_cursor.is_empty() {
        if last.compact_revision <= last.compact_target {
            return Ok(Vec::new());
        }
        record.compact_target = last.compact_revision;
        record.compact_cursor = Bytes::from_static(&[GENERATIONS]);
    }
    let target = record.compact_target;
    let mut removed = Vec::new();
    // The newest generation so far of the present key at or below the target, and whether it is a deletion.
    let mut candidate: Option<(Bytes, bool)> = None;
    let scan =
        store.scan(Bound::Included(&record.compact_cursor), Bound::Excluded(&[GENERATIONS + 1]), false);
    let mut cursor = Bytes::new();
    for (steps, pair) in scan.enumerate() {
        let (stored_key, stored) = pair?;
        let (prefix, modified) = layout::split_generation_key(&stored_key)?;
        let same_key = candidate.as_ref().is_some_and(|(candidate, _)| {
            candidate.len() == stored_key.len() && candidate.starts_with(prefix)
        });
        if steps >= steps_max {
            // The walk goes on with the candidate, whose fate is not known yet, or with this pair.
            cursor = match candidate.take() {
                Some((candidate, _)) if same_key => candidate,
                other => {
                    candidate = other;
                    stored_key
                }
            };
            break;
        }
        if modified > target {
            if !same_key {
                remove_deletion(&mut candidate, &mut removed);
            }
            continue;
        }
        match candidate.take() {
            Some((superseded, _)) if same_key => removed.push(superseded),
            other => {
                candidate = other;
                remove_deletion(&mut candidate, &mut removed);
            }
        }
        let (numbers, ..) = layout::read_generation(&stored, modified)?;
        candidate = Some((stored_key, numbers.is_deletion()));
    }
    remove_deletion(&mut candidate, &mut removed);
    record.compact_cursor = cursor;
    removed.sort_unstable();
    Ok(removed)
}

/// A deletion that is the newest generation at or below the target is not readable: the key does not exist either way. The history still names it.
fn remove_deletion(candidate: &mut Option<(Bytes, bool)>, removed: &mut Vec<Bytes>) {
    if let Some((deletion, true)) = candidate.take() {
        removed.push(deletion);
    }
}

/// What is ingested before outcomes and leases: first the generations, new ones and removals merged, then the history, then the index.
struct Run<'a> {
    entries: &'a [HeadEntry],
    order: &'a [u32],
    removed: std::iter::Peekable<std::vec::IntoIter<Bytes>>,
    /// Blocks of the history to remove; all are older than those to write.
    superfluous: std::vec::IntoIter<Bytes>,
    /// The places of generations that others of the same key follow in the same revision.
    superseded: BTreeSet<u32>,
    /// The block of the history to go on with.
    open: Option<OpenBlock>,
    /// The blocks of the history, once the generations are written.
    blocks: Option<Blocks<'a>>,
    /// The next new generation, encoded.
    next: Option<(Bytes, Bytes)>,
    generations_at: usize,
    index_at: usize,
    arena: BytesMut,
}

impl<'a> Run<'a> {
    fn new(
        entries: &'a [HeadEntry],
        order: &'a [u32],
        (removed, superfluous): (Vec<Bytes>, Vec<Bytes>),
        open: Option<OpenBlock>,
    ) -> Self {
        let mut run = Self {
            entries,
            order,
            removed: removed.into_iter().peekable(),
            superfluous: superfluous.into_iter(),
            superseded: BTreeSet::new(),
            open,
            blocks: None,
            next: None,
            generations_at: 0,
            index_at: 0,
            arena: BytesMut::new(),
        };
        run.advance();
        run
    }

    fn entry(&self, at: usize) -> Option<&'a HeadEntry> {
        self.order.get(at).map(|entry| &self.entries[*entry as usize])
    }

    fn reserve(&mut self, bytes: usize) {
        if self.arena.capacity() < bytes {
            self.arena = BytesMut::with_capacity(bytes.max(ARENA_BYTES));
        }
    }

    /// Encodes the next generation.
    fn advance(&mut self) {
        self.next = loop {
            let Some(entry) = self.entry(self.generations_at) else { break None };
            self.generations_at += 1;
            let is_superseded = self.entry(self.generations_at).is_some_and(|next| {
                next.numbers.modified == entry.numbers.modified && next.key() == entry.key()
            });
            if is_superseded {
                self.superseded.extend(self.order.get(self.generations_at - 1));
                continue;
            }
            self.reserve(2 * entry.key().len() + 16 + GENERATION_OVERHEAD_BYTES + entry.value().len());
            layout::put_generation_key(&mut self.arena, entry.key(), entry.numbers.modified);
            let key = self.arena.split().freeze();
            layout::put_generation(&mut self.arena, &entry.numbers, entry.index, entry.value());
            break Some((key, self.arena.split().freeze()));
        };
    }

    fn index(&mut self) -> Option<(Bytes, Option<Bytes>)> {
        loop {
            let entry = self.entry(self.index_at)?;
            self.index_at += 1;
            if self.entry(self.index_at).is_some_and(|next| next.key() == entry.key()) {
                continue;
            }
            self.reserve(2 * entry.key().len() + 16 + INDEX_BYTES_MAX);
            layout::put_index_key(&mut self.arena, entry.key());
            let key = self.arena.split().freeze();
            if entry.numbers.is_deletion() {
                return Some((key, None));
            }
            layout::put_index(&mut self.arena, &entry.numbers, entry.value());
            return Some((key, Some(self.arena.split().freeze())));
        }
    }
}

impl Iterator for Run<'_> {
    type Item = (Bytes, Option<Bytes>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((key, _)) = &self.next {
            if let Some(removed) = self.removed.next_if(|removed| removed < key) {
                return Some((removed, None));
            }
            let (key, value) = self.next.take()?;
            self.advance();
            return Some((key, Some(value)));
        }
        if let Some(removed) = self.removed.next().or_else(|| self.superfluous.next()) {
            return Some((removed, None));
        }
        let (entries, superseded) = (self.entries, &mut self.superseded);
        let open = &mut self.open;
        let blocks =
            self.blocks.get_or_insert_with(|| Blocks::new(open.take(), entries, std::mem::take(superseded)));
        if let Some((key, block)) = blocks.next() {
            return Some((key, Some(block)));
        }
        self.index()
    }
}
