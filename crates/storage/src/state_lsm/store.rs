//! A group's state as its users see it: the present generation, views of it, and the switch to another.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use lsm_tree::SeqNo;
use parking_lot::{Mutex, RwLock};

use super::{OpenGroup, Shared, builder::LsmBuilder, generation::Generation};
use crate::{Checkpoint, Scan, StateBuilder, StateError, StateStore, StateView};

/// A group's state in an [`LsmEngine`](super::LsmEngine).
pub(super) struct LsmState {
    group: Arc<OpenGroup>,
    present: RwLock<Arc<Generation>>,
    /// Generations beside the present one.
    others: Arc<Mutex<Others>>,
    shared: Arc<Shared>,
}

/// What is being built, and what was built and not yet switched to.
#[derive(Default)]
pub(super) struct Others {
    pub(super) building: BTreeMap<u64, Weak<Generation>>,
    pub(super) finished: BTreeMap<u64, Arc<Generation>>,
}

impl LsmState {
    pub(super) fn new(shared: Arc<Shared>, group: Arc<OpenGroup>, present: Arc<Generation>) -> Self {
        Self { group, present: RwLock::new(present), others: Arc::default(), shared }
    }

    fn present(&self) -> Arc<Generation> {
        self.present.read().clone()
    }
}

impl StateStore for LsmState {
    fn checkpoint(&self) -> Option<Checkpoint> {
        self.present().checkpoint()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        self.present().get(key)
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, reverse: bool) -> Scan<'static> {
        self.present().scan(from, to, reverse, None)
    }

    fn ingest(
        &self,
        checkpoint: Checkpoint,
        run: &mut dyn Iterator<Item = (Bytes, Option<Bytes>)>,
    ) -> Result<(), StateError> {
        let present = self.present();
        present.ingest(Some(checkpoint), run)?;
        self.shared.compactor.request(&present);
        Ok(())
    }

    fn view(&self) -> Arc<dyn StateView> {
        LsmView::of(self.present())
    }

    fn built(&self, generation: u64) -> Result<Arc<dyn StateView>, StateError> {
        // Looked for before the present one, so that a switch meanwhile is not missed.
        let finished = self.others.lock().finished.get(&generation).cloned();
        let present = || Some(self.present()).filter(|present| present.number() == generation);
        let found = finished.or_else(present).ok_or(StateError::NoGeneration(generation))?;
        Ok(LsmView::of(found))
    }

    fn build(&self, generation: u64) -> Result<Box<dyn StateBuilder>, StateError> {
        let mut others = self.others.lock();
        let being_built = others.building.get(&generation).is_some_and(|built| built.strong_count() > 0);
        if being_built || generation == self.generation() {
            return Err(StateError::InUse(generation));
        }
        for (_, passed_over) in std::mem::take(&mut others.finished) {
            passed_over.doom();
        }
        self.group.directory.remove_generation(self.group.id, generation)?;
        let built = Generation::open(&self.shared, &self.group, generation)?;
        others.building.insert(generation, Arc::downgrade(&built));
        Ok(Box::new(LsmBuilder::new(built, self.others.clone())))
    }

    fn switch(&self, generation: u64) -> Result<(), StateError> {
        if generation == self.generation() {
            return Ok(());
        }
        let mut others = self.others.lock();
        let next = others.finished.remove(&generation).ok_or(StateError::NoGeneration(generation))?;
        for (_, passed_over) in std::mem::take(&mut others.finished) {
            passed_over.doom();
        }
        let last = std::mem::replace(&mut *self.present.write(), next.clone());
        last.doom();
        self.shared.compactor.request(&next);
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.present.read().number()
    }

    fn size_bytes(&self) -> u64 {
        self.present().size_bytes()
    }
}

impl fmt::Debug for LsmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LsmState")
            .field("group", &self.group.id)
            .field("present", &*self.present.read())
            .finish()
    }
}

/// A generation as of one checkpoint.
struct LsmView {
    generation: Arc<Generation>,
    pinned: SeqNo,
    checkpoint: Option<Checkpoint>,
}

impl LsmView {
    fn of(generation: Arc<Generation>) -> Arc<dyn StateView> {
        let (pinned, checkpoint) = generation.pin();
        Arc::new(Self { generation, pinned, checkpoint })
    }
}

impl StateView for LsmView {
    fn checkpoint(&self) -> Option<Checkpoint> {
        self.checkpoint.clone()
    }

    fn scan(&self, from: Bound<&[u8]>) -> Scan<'static> {
        self.generation.scan(from, Bound::Unbounded, false, Some(self.pinned))
    }
}

impl Drop for LsmView {
    fn drop(&mut self) {
        self.generation.unpin(self.pinned);
        self.generation.release();
    }
}

impl fmt::Debug for LsmView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LsmView")
            .field("generation", &self.generation)
            .field("pinned", &self.pinned)
            .finish_non_exhaustive()
    }
}
