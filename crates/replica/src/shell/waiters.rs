//! Clients that wait for their proposals and changes of membership.

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

use crate::{ProposeError, ReconfigureError};

/// Who waits for an entry.
#[derive(Debug)]
pub(crate) enum Waiting {
    Command(oneshot::Sender<Result<Bytes, ProposeError>>),
    Change(oneshot::Sender<Result<(), ReconfigureError>>),
}

/// What is waited for.
pub(crate) trait Outcome: Sized {
    fn waiting(sender: oneshot::Sender<Self>) -> Waiting;
}

impl Outcome for Result<Bytes, ProposeError> {
    fn waiting(sender: oneshot::Sender<Self>) -> Waiting {
        Waiting::Command(sender)
    }
}

impl Outcome for Result<(), ReconfigureError> {
    fn waiting(sender: oneshot::Sender<Self>) -> Waiting {
        Waiting::Change(sender)
    }
}

/// A client that went away does not need its answer, nor to know why there is none.
impl Waiting {
    /// The entry was applied.
    fn answer(self, reply: Bytes) {
        let _gone = match self {
            Self::Command(sender) => sender.send(Ok(reply)).is_err(),
            Self::Change(sender) => sender.send(Ok(())).is_err(),
        };
    }

    fn fail(self, why: ProposeError) {
        let _gone = match self {
            Self::Command(sender) => sender.send(Err(why)).is_err(),
            Self::Change(sender) => sender.send(Err(why.into())).is_err(),
        };
    }
}

/// The proposals of this boot that have not been answered.
#[derive(Debug)]
pub(crate) struct Waiters {
    node: NodeId,
    epoch: Epoch,
    counter: AtomicU64,
    waiting_max: usize,
    waiting: Mutex<HashMap<u64, Waiting>>,
}

/// One proposal's place among the waiters; given up when dropped.
#[derive(Debug)]
pub(crate) struct Place<T> {
    waiters: Arc<Waiters>,
    pub(crate) id: ProposalId,
    answer: oneshot::Receiver<T>,
}

impl Waiters {
    pub(crate) fn new(node: NodeId, epoch: Epoch, waiting_max: usize) -> Arc<Self> {
        let waiting = Mutex::new(HashMap::new());
        Arc::new(Self { node, epoch, counter: AtomicU64::new(0), waiting_max, waiting })
    }

    pub(crate) fn next_id(&self) -> ProposalId {
        ProposalId::new(self.node, self.epoch, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes a place; nothing if too many wait.
    pub(crate) fn wait<T: Outcome>(self: &Arc<Self>) -> Option<Place<T>> {
        let id = self.next_id();
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if waiting.len() >= self.waiting_max {
            return None;
        }
        waiting.insert(id.sequence, T::waiting(sender));
        drop(waiting);
        Some(Place { waiters: Arc::clone(self), id, answer })
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
        for (waiting, reply) in found {
            waiting.answer(reply);
        }
    }

    pub(crate) fn fail(&self, id: ProposalId, why: ProposeError) {
        if let Some(waiting) = self.take(id) {
            waiting.fail(why);
        }
    }

    /// A change of membership was not begun.
    pub(crate) fn refuse(&self, id: ProposalId, why: ReconfigureError) {
        if let Some(Waiting::Change(sender)) = self.take(id) {
            let _ = sender.send(Err(why));
        }
    }

    fn take(&self, id: ProposalId) -> Option<Waiting> {
        if self.is_ours(id) { self.waiting.lock().remove(&id.sequence) } else { None }
    }

    pub(crate) fn fail_all(&self, why: ProposeError) {
        for (_, waiting) in self.waiting.lock().drain() {
            waiting.fail(why);
        }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().len()
    }
}

impl<T> Place<T> {
    /// The outcome; nothing if there will be none, since the shell stopped.
    pub(crate) async fn answer(mut self) -> Option<T> {
        (&mut self.answer).await.ok()
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        // Answered ones were removed by the answer.
        if matches!(self.answer.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            self.waiters.waiting.lock().remove(&self.id.sequence);
        }
    }
}
