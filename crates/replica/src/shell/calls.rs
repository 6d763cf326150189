//! Questions from one node's service to another's, over the same transport.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use conclave_consensus::NodeId;
use conclave_transport::{Packet, Transport};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Answers other nodes' questions. Called from the transport's tasks: what cannot be answered from memory is answered later.
pub trait Answerer: Send + Sync + fmt::Debug {
    /// Answers a question, at once or from any thread or task; the encoding of both is the service's own. Bytes that are no question get an
    /// empty answer.
    fn answer(&self, from: NodeId, question: Bytes, respond: Responder);
}

/// The way back to whoever asked. Dropped, it answers nothing, and the asker's time runs out.
#[derive(Debug)]
pub struct Responder {
    to: NodeId,
    id: u64,
    transport: Arc<dyn Transport>,
    /// Counts the questions being answered.
    _open: Arc<()>,
}

impl Responder {
    /// Answers.
    pub fn send(self, body: Bytes) {
        self.transport.send(self.to, &mut vec![Packet::Response { id: self.id, body }]);
    }
}

/// How many questions of others may be under way here; more are not answered.
const QUESTIONS_MAX: usize = 1_024;

/// How many questions may wait for their answers.
const CALLS_MAX: usize = 1_024;

#[derive(Debug)]
pub(crate) struct Calls {
    counter: AtomicU64,
    waiting: Mutex<HashMap<u64, (NodeId, oneshot::Sender<Bytes>)>>,
    answerer: Option<Arc<dyn Answerer>>,
    /// Shared with each [`Responder`].
    open: Arc<()>,
}

impl Calls {
    pub(crate) fn new(answerer: Option<Arc<dyn Answerer>>) -> Self {
        Self { counter: AtomicU64::new(1), waiting: Mutex::new(HashMap::new()), answerer, open: Arc::new(()) }
    }

    /// Asks, and gives the receiver of the answer; nothing if too many wait.
    pub(crate) fn ask(
        &self,
        to: NodeId,
        body: Bytes,
        transport: &dyn Transport,
    ) -> Option<oneshot::Receiver<Bytes>> {
        let (sender, receiver) = oneshot::channel();
        let id = self.counter.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, (_, sender)| !sender.is_closed());
        if waiting.len() >= CALLS_MAX {
            return None;
        }
        waiting.insert(id, (to, sender));
        drop(waiting);
        transport.send(to, &mut vec![Packet::Request { id, body }]);
        Some(receiver)
    }

    /// Takes the packets that are of calls out of those that arrived. The rest is the host's.
    pub(crate) fn receive(&self, from: NodeId, packets: &mut Vec<Packet>, transport: &Arc<dyn Transport>) {
        let of_calls = |packet: &Packet| matches!(packet, Packet::Request { .. } | Packet::Response { .. });
        if !packets.iter().any(of_calls) {
            return;
        }
        packets.retain(|packet| match packet {
            Packet::Request { id, body } => {
                if let Some(answerer) = &self.answerer
                    && Arc::strong_count(&self.open) <= QUESTIONS_MAX
                {
                    let (transport, open) = (Arc::clone(transport), Arc::clone(&self.open));
                    answerer.answer(
                        from,
                        body.clone(),
                        Responder { to: from, id: *id, transport, _open: open },
                    );
                }
                false
            }
            Packet::Response { id, body } => {
                let mut waiting = self.waiting.lock();
                if waiting.get(id).is_some_and(|(asked, _)| *asked == from)
                    && let Some((_, sender)) = waiting.remove(id)
                {
                    // Whoever asked may have gone.
                    let _ = sender.send(body.clone());
                }
                false
            }
            _ => true,
        });
    }
}
