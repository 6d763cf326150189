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

/// Answers other nodes' questions. Called from the transport's tasks: it must answer from memory.
pub trait Answerer: Send + Sync + fmt::Debug {
    /// The answer to a question; the encoding of both is the service's own. Bytes that are no question get an empty answer.
    fn answer(&self, from: NodeId, question: Bytes) -> Bytes;
}

/// How many questions may wait for their answers.
const CALLS_MAX: usize = 1_024;

#[derive(Debug)]
pub(crate) struct Calls {
    counter: AtomicU64,
    waiting: Mutex<HashMap<u64, (NodeId, oneshot::Sender<Bytes>)>>,
    answerer: Option<Arc<dyn Answerer>>,
}

impl Calls {
    pub(crate) fn new(answerer: Option<Arc<dyn Answerer>>) -> Self {
        Self { counter: AtomicU64::new(1), waiting: Mutex::new(HashMap::new()), answerer }
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
    pub(crate) fn receive(&self, from: NodeId, packets: &mut Vec<Packet>, transport: &dyn Transport) {
        let of_calls = |packet: &Packet| matches!(packet, Packet::Request { .. } | Packet::Response { .. });
        if !packets.iter().any(of_calls) {
            return;
        }
        let mut answers = Vec::new();
        packets.retain(|packet| match packet {
            Packet::Request { id, body } => {
                if let Some(answerer) = &self.answerer {
                    answers.push(Packet::Response { id: *id, body: answerer.answer(from, body.clone()) });
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
        if !answers.is_empty() {
            transport.send(from, &mut answers);
        }
    }
}
