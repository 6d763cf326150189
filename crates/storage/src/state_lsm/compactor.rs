//! The thread that merges, one step of one tree at a time and every tree in its turn.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::Ordering,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread::JoinHandle,
};

use super::{from_io, generation::Generation};
use crate::{StateError, background};

/// The handle of the thread. The thread ends with it, after the step under way.
///
/// The queue is bounded by the number of trees: a tree is in it at most once.
pub(super) struct Compactor {
    queue: Option<Sender<Weak<Generation>>>,
    thread: Option<JoinHandle<()>>,
}

impl Compactor {
    pub(super) fn start() -> Result<Self, StateError> {
        let (queue, requests) = channel();
        let thread = std::thread::Builder::new()
            .name("state-compactor".to_owned())
            .spawn(move || run(&requests))
            .map_err(from_io)?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Asks for a tree to be merged if it needs it.
    pub(super) fn request(&self, generation: &Arc<Generation>) {
        if generation.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(queue) = &self.queue {
            // The thread ends only after the queue is closed, so this cannot fail while `self` lives.
            let _ = queue.send(Arc::downgrade(generation));
        }
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the state compactor panicked");
        }
    }
}

/// Merges until the queue is closed. A failed merge leaves the tree as it was: the next ingestion asks again, and once too many
/// runs have gathered it merges itself and returns the error.
fn run(requests: &Receiver<Weak<Generation>>) {
    background::stand_back();
    while let Ok(first) = requests.recv() {
        let mut turn = VecDeque::from([first]);
        while let Some(weak) = turn.pop_front() {
            if let Some(generation) = weak.upgrade() {
                generation.queued.store(false, Ordering::Release);
                match generation.compact() {
                    Ok(true) => turn.push_back(weak),
                    Ok(false) => {}
                    Err(error) => tracing::error!(?generation, %error, "merging state failed"),
                }
            }
            match requests.try_recv() {
                Ok(next) => turn.push_back(next),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
        }
        background::release_memory();
    }
}
