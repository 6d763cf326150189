//! The state engine's twin in memory: the same contract, deterministic, for simulators and tests.
//!
//! A [`MemoryEngine`] is the disk that survives, and a store opened from it is the process that does not: a crash is to drop every
//! store and to open it again. What was ingested and what was built is there, half-built generations are
//! not, and a handle from before the crash can change nothing.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use conclave_consensus::GroupId;
use parking_lot::Mutex;

use crate::{
    Checkpoint, Pair, STATE_KEY_BYTES_MAX, Scan, StateBuilder, StateEngine, StateError, StateStore, StateView,
};

/// What survives a crash. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    groups: BTreeMap<GroupId, BTreeMap<u64, Arc<Generation>>>,
    /// Which opening of a group is the living one.
    lives: BTreeMap<GroupId, u64>,
    full: bool,
    /// The lives end inside the operation of this number from now.
    crash_in: Option<u64>,
    crashed: bool,
}

/// A generation as of its last ingestion. Copied on write while a view or a scan holds it.
#[derive(Clone, Default)]
struct Generation {
    pairs: BTreeMap<Bytes, Bytes>,
    checkpoint: Option<Checkpoint>,
}

impl MemoryEngine {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on, whether every ingestion and every builder fails with [`StateError::Full`].
    pub fn set_full(&self, full: bool) {
        self.disk.lock().full = full;
    }

    /// Ends the lives of all stores, as a crash does: whatever they still try to change fails with [`StateError::Closed`].
    pub fn crash(&self) {
        let mut disk = self.disk.lock();
        disk.end_lives();
        (disk.crash_in, disk.crashed) = (None, false);
    }

    /// Arms a crash before the `operations`-th change from now (1 is the next): an ingestion, a step of a builder, a switch.
    pub fn crash_in(&self, operations: u64) {
        self.disk.lock().crash_in = Some(operations.max(1));
    }

    /// Whether an armed crash has struck since the last [`crash`](Self::crash).
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.disk.lock().crashed
    }
}

impl StateEngine for MemoryEngine {
    fn store(&self, group: GroupId, generation: u64) -> Result<Arc<dyn StateStore>, StateError> {
        let mut disk = self.disk.lock();
        let generations = disk.groups.entry(group).or_default();
        if generation == 0 {
            generations.entry(0).or_default();
        }
        if !generations.contains_key(&generation) {
            return Err(StateError::NoGeneration(generation));
        }
        generations.retain(|number, _| *number == generation);
        let life = disk.lives.entry(group).or_default();
        *life += 1;
        Ok(Arc::new(MemoryState {
            disk: self.disk.clone(),
            group,
            life: *life,
            generation: AtomicU64::new(generation),
        }))
    }
}

impl fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryEngine").field("groups", &self.disk.lock().groups.len()).finish()
    }
}

/// A group's state in a [`MemoryEngine`].
pub struct MemoryState {
    disk: Arc<Mutex<Disk>>,
    group: GroupId,
    life: u64,
    generation: AtomicU64,
}

impl Disk {
    fn end_lives(&mut self) {
        for life in self.lives.values_mut() {
            *life += 1;
        }
    }

    /// Begins an operation that changes something, unless the life has ended.
    fn begin(&mut self, group: GroupId, life: u64) -> Result<(), StateError> {
        if let Some(left) = self.crash_in.as_mut() {
            *left -= 1;
            if *left == 0 {
                (self.crash_in, self.crashed) = (None, true);
                self.end_lives();
            }
        }
        if self.lives.get(&group) == Some(&life) { Ok(()) } else { Err(StateError::Closed) }
    }

    fn writable(&mut self, group: GroupId, life: u64) -> Result<(), StateError> {
        self.begin(group, life)?;
        if self.full {
            return Err(StateError::Full);
        }
        Ok(())
    }
}

impl MemoryState {
    /// The present generation; an empty one for a handle whose generation a newer opening has deleted.
    fn present(&self) -> Arc<Generation> {
        let disk = self.disk.lock();
        disk.groups
            .get(&self.group)
            .and_then(|generations| generations.get(&self.generation()))
            .cloned()
            .unwrap_or_default()
    }
}

impl StateStore for MemoryState {
    fn checkpoint(&self) -> Option<Checkpoint> {
        self.present().checkpoint.clone()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.present().pairs.get(key).cloned())
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'static> {
        scan(self.present(), from, to, reverse)
    }

    fn ingest(
        &self,
        checkpoint: Checkpoint,
        run: &mut dyn Iterator<Item = (Bytes, Option<Bytes>)>,
    ) -> Result<(), StateError> {
        let mut changes = Vec::new();
        let mut order = Order::default();
        for (key, value) in run {
            order.check(&key)?;
            changes.push((key, value));
        }
        let mut disk = self.disk.lock();
        disk.writable(self.group, self.life)?;
        let generations = disk.groups.entry(self.group).or_default();
        let generation = Arc::make_mut(generations.entry(self.generation()).or_default());
        for (key, value) in changes {
            match value {
                Some(value) => generation.pairs.insert(key, value),
                None => generation.pairs.remove(&key),
            };
        }
        generation.checkpoint = Some(checkpoint);
        Ok(())
    }

    fn view(&self) -> Arc<dyn StateView> {
        Arc::new(MemoryView(self.present()))
    }

    fn built(&self, generation: u64) -> Result<Arc<dyn StateView>, StateError> {
        let disk = self.disk.lock();
        let generations =
            disk.groups.get(&self.group).filter(|_| disk.lives.get(&self.group) == Some(&self.life));
        let built = generations.and_then(|generations| generations.get(&generation));
        Ok(Arc::new(MemoryView(built.cloned().ok_or(StateError::NoGeneration(generation))?)))
    }

    fn build(&self, generation: u64) -> Result<Box<dyn StateBuilder>, StateError> {
        if generation == self.generation() {
            return Err(StateError::InUse(generation));
        }
        let mut disk = self.disk.lock();
        disk.writable(self.group, self.life)?;
        let present = self.generation();
        disk.groups.entry(self.group).or_default().retain(|number, _| *number == present);
        Ok(Box::new(MemoryBuilder {
            disk: self.disk.clone(),
            group: self.group,
            life: self.life,
            number: generation,
            order: Order::default(),
            pairs: BTreeMap::new(),
        }))
    }

    fn switch(&self, generation: u64) -> Result<(), StateError> {
        let mut disk = self.disk.lock();
        disk.begin(self.group, self.life)?;
        let generations = disk.groups.entry(self.group).or_default();
        if !generations.contains_key(&generation) {
            return Err(StateError::NoGeneration(generation));
        }
        generations.retain(|number, _| *number == generation);
        self.generation.store(generation, Ordering::SeqCst);
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn size_bytes(&self) -> u64 {
        let bytes: usize = self.present().pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        bytes as u64
    }
}

impl fmt::Debug for MemoryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryState")
            .field("group", &self.group)
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

struct MemoryView(Arc<Generation>);

impl StateView for MemoryView {
    fn checkpoint(&self) -> Option<Checkpoint> {
        self.0.checkpoint.clone()
    }

    fn scan(&self, from: Bound<&[u8]>) -> Scan<'static> {
        scan(self.0.clone(), from, Bound::Unbounded, false)
    }
}

impl fmt::Debug for MemoryView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryView").field("checkpoint", &self.0.checkpoint).finish()
    }
}

struct MemoryBuilder {
    disk: Arc<Mutex<Disk>>,
    group: GroupId,
    life: u64,
    number: u64,
    order: Order,
    pairs: BTreeMap<Bytes, Bytes>,
}

impl StateBuilder for MemoryBuilder {
    fn add(&mut self, pairs: &mut dyn Iterator<Item = Pair>) -> Result<(), StateError> {
        self.disk.lock().writable(self.group, self.life)?;
        for (key, value) in pairs {
            self.order.check(&key)?;
            self.pairs.insert(key, value);
        }
        Ok(())
    }

    fn finish(self: Box<Self>, checkpoint: Checkpoint) -> Result<(), StateError> {
        let mut disk = self.disk.lock();
        disk.writable(self.group, self.life)?;
        let built = Generation { pairs: self.pairs, checkpoint: Some(checkpoint) };
        disk.groups.entry(self.group).or_default().insert(self.number, Arc::new(built));
        Ok(())
    }
}

impl fmt::Debug for MemoryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBuilder").field("group", &self.group).field("number", &self.number).finish()
    }
}

/// Checks that keys ascend strictly and are short enough to be stored.
#[derive(Debug, Default)]
pub(crate) struct Order {
    last: Option<Bytes>,
}

impl Order {
    pub(crate) fn check(&mut self, key: &Bytes) -> Result<(), StateError> {
        if key.len() > STATE_KEY_BYTES_MAX {
            return Err(StateError::KeyTooLong(key.len()));
        }
        if self.last.as_ref().is_some_and(|last| last >= key) {
            return Err(StateError::Unsorted);
        }
        self.last = Some(key.clone());
        Ok(())
    }
}

/// Whether no key can lie between two bounds.
pub(crate) fn is_empty_range(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
            from >= to
        }
    }
}

/// Walks a generation that the scan keeps alive, one search a step.
fn scan(generation: Arc<Generation>, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'static> {
    if is_empty_range(from, to) {
        return Box::new(std::iter::empty());
    }
    let mut from = from.map(Bytes::copy_from_slice);
    let mut to = to.map(Bytes::copy_from_slice);
    Box::new(std::iter::from_fn(move || {
        let bounds = (from.as_ref().map(AsRef::as_ref), to.as_ref().map(AsRef::as_ref));
        if is_empty_range(bounds.0, bounds.1) {
            return None;
        }
        let mut range = generation.pairs.range::<[u8], _>(bounds);
        let (key, value) = if reverse { range.next_back() } else { range.next() }?;
        let pair = (key.clone(), value.clone());
        if reverse {
            to = Bound::Excluded(pair.0.clone());
        } else {
            from = Bound::Excluded(pair.0.clone());
        }
        Some(Ok(pair))
    }))
}

#[cfg(test)]
mod tests {
    use conclave_consensus::SnapshotMeta;

    use super::*;

    #[test]
    fn an_armed_crash_strikes_before_an_operation_and_ends_the_life() {
        let engine = MemoryEngine::new();
        let store = engine.store(GroupId(1), 0).unwrap();
        let ingest = |record: &'static [u8]| {
            let record = Bytes::from_static(record);
            let checkpoint = Checkpoint { meta: SnapshotMeta::default(), record };
            store.ingest(checkpoint, &mut std::iter::empty())
        };
        engine.crash_in(2);
        ingest(b"a").unwrap();
        assert!(!engine.has_crashed());
        assert!(matches!(ingest(b"b"), Err(StateError::Closed)));
        assert!(engine.has_crashed() && matches!(ingest(b"c"), Err(StateError::Closed)));
        engine.crash();
        let kept = engine.store(GroupId(1), 0).unwrap().checkpoint();
        assert!(kept.is_some_and(|kept| kept.record == "a") && !engine.has_crashed());
    }
}
