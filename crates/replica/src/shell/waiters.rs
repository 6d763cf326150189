//! Clients that wait for their proposals.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use conclave_consensus::{Epoch, NodeId, ProposalId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::ProposeError;

type Answer = Result<Bytes, ProposeError>;

/// The proposals of this boot that have not been answered.
#[derive(Debug)]
pub(crate) struct Waiters {
    node: NodeId,
    epoch: Epoch,
    counter: AtomicU64,
    waiting_max: usize,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

/// One proposal's place among the waiters; given up when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    waiters: Arc<Waiters>,
    pub(crate) id: ProposalId,
    answer: oneshot::Receiver<Answer>,
}

impl Waiters {
    pub(crate) fn new(node: NodeId, epoch: Epoch, waiting_max: usize) -> Arc<Self> {
        let waiting = Mutex::new(HashMap::new());
        Arc::new(Self { node, epoch, counter: AtomicU64::new(0), waiting_max, waiting })
    }

    pub(crate) fn next_id(&self) -> ProposalId {
        ProposalId::new(self.node, self.epoch, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes a place, or refuses for load.
    pub(crate) fn wait(self: &Arc<Self>) -> Result<Place, ProposeError> {
        let id = self.next_id();
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if waiting.len() >= self.waiting_max {
            return Err(ProposeError::Busy);
        }
        waiting.insert(id.sequence, sender);
        drop(waiting);
        Ok(Place { waiters: Arc::clone(self), id, answer })
    }

    /// Whether the id is of this boot of this node, so that a client may wait for it.
    pub(crate) fn is_ours(&self, id: ProposalId) -> bool {
        id.node == self.node && id.epoch() == self.epoch
    }

    /// Answers in one go.
    pub(crate) fn answer(&self, replies: &mut Vec<(ProposalId, Bytes)>) {
        if replies.is_empty() {
            return;
        }
        let mut waiting = self.waiting.lock();
        let found: Vec<_> = replies
            .drain(..)
            .filter_map(|(id, reply)| Some((waiting.remove(&id.sequence)?, reply)))
            .collect();
        drop(waiting);
        for (sender, reply) in found {
            // A client that went away does not need its answer.
            let _ = sender.send(Ok(reply));
        }
    }

    pub(crate) fn fail(&self, id: ProposalId, why: ProposeError) {
        if self.is_ours(id)
            && let Some(sender) = self.waiting.lock().remove(&id.sequence)
        {
            let _ = sender.send(Err(why));
        }
    }

    pub(crate) fn fail_all(&self, why: ProposeError) {
        for (_, sender) in self.waiting.lock().drain() {
            let _ = sender.send(Err(why));
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().len()
    }
}

impl Place {
    pub(crate) async fn answer(mut self) -> Answer {
        (&mut self.answer).await.unwrap_or(Err(ProposeError::Stopped))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Answered ones were removed by the answer.
        if self.answer.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            self.waiters.waiting.lock().remove(&self.id.sequence);
        }
    }
}
