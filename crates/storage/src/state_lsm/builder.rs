//! Building a generation from a snapshot, in bounded memory: what arrives is ingested run by run, each above the last, and the
//! checkpoint record comes alone at the end. Until it is there, the generation counts as never built.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{generation::Generation, store::Others};
use crate::{Checkpoint, Pair, StateBuilder, StateError, state_memory::Order};

/// Bytes gathered before they are ingested.
const RUN_BYTES: usize = 32 * 1024 * 1024;

/// A generation under construction.
pub(super) struct LsmBuilder {
    generation: Option<Arc<Generation>>,
    others: Arc<Mutex<Others>>,
    order: Order,
    run: Vec<(Bytes, Option<Bytes>)>,
    run_bytes: usize,
}

impl LsmBuilder {
    pub(super) fn new(generation: Arc<Generation>, others: Arc<Mutex<Others>>) -> Self {
        Self { generation: Some(generation), others, order: Order::default(), run: Vec::new(), run_bytes: 0 }
    }

    fn flush(&mut self) -> Result<(), StateError> {
        self.run_bytes = 0;
        let run = std::mem::take(&mut self.run);
        match &self.generation {
            Some(generation) if !run.is_empty() => generation.ingest(None, &mut run.into_iter()),
            _ => Ok(()),
        }
    }
}

impl StateBuilder for LsmBuilder {
    fn add(&mut self, pairs: &mut dyn Iterator<Item = Pair>) -> Result<(), StateError> {
        for (key, value) in pairs {
            self.order.check(&key)?;
            self.run_bytes += key.len() + value.len();
            self.run.push((key, Some(value)));
            if self.run_bytes >= RUN_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, checkpoint: Checkpoint) -> Result<(), StateError> {
        self.flush()?;
        if let Some(generation) = &self.generation {
            generation.ingest(Some(checkpoint), &mut std::iter::empty())?;
        }
        if let Some(generation) = self.generation.take() {
            let mut others = self.others.lock();
            others.building.remove(&generation.number());
            others.finished.insert(generation.number(), generation);
        }
        Ok(())
    }
}

impl Drop for LsmBuilder {
    fn drop(&mut self) {
        if let Some(generation) = self.generation.take() {
            generation.doom();
        }
    }
}

impl fmt::Debug for LsmBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LsmBuilder")
            .field("generation", &self.generation)
            .field("run_bytes", &self.run_bytes)
            .finish_non_exhaustive()
    }
}
