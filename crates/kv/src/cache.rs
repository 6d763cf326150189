//! Which values of the last checkpoint stay in memory: the most recently written, up to a bound in bytes.
//!
//! Values that were only *read* are not kept here; the engine keeps its own cache of blocks for those.

use std::{collections::VecDeque, sync::Arc};

/// Payloads (key and value) in the order in which they were written.
#[derive(Debug)]
pub(crate) struct ValueCache {
    payloads: VecDeque<(Arc<[u8]>, u32)>,
    size_bytes: usize,
    bytes_max: usize,
}

impl ValueCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { payloads: VecDeque::new(), size_bytes: 0, bytes_max }
    }

    /// Bytes held, superseded values that wait for their turn to be dropped included.
    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    pub(crate) fn push(&mut self, payload: Arc<[u8]>, key_bytes: u32) {
        self.size_bytes += cost_bytes(&payload);
        self.payloads.push_back((payload, key_bytes));
    }

    /// The oldest payload, if there is more than fits.
    pub(crate) fn overflow(&mut self) -> Option<(Arc<[u8]>, u32)> {
        if self.size_bytes <= self.bytes_max {
            return None;
        }
        let oldest = self.payloads.pop_front()?;
        self.size_bytes -= cost_bytes(&oldest.0);
        Some(oldest)
    }
}

fn cost_bytes(payload: &Arc<[u8]>) -> usize {
    // The counters and rounding of the allocation, and the place in the queue.
    payload.len() + 48
}
