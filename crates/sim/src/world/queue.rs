//! What will happen, in order of simulated time; what was scheduled first comes first among equals.

use std::{cmp::Ordering, collections::BinaryHeap};

use conclave_consensus::ReplicaId;
use conclave_transport::Packet;

use super::faults::Fault;
use crate::{clock::SimTime, history::Ending};

/// Names an operation: its place in the history.
pub(crate) type Op = usize;

/// Something that happens at a node.
#[derive(Clone, Debug)]
pub(crate) enum NodeEvent {
    /// The host asked to be woken.
    Tick,
    /// Packets arrive from a node.
    Deliver { from: u64, packets: Vec<Packet> },
    /// The log thread's sync ends.
    LogDone,
    /// The apply thread takes what is queued.
    Apply,
    /// The catch-up thread takes what is queued.
    CatchUp,
    /// A checkpoint's writing ends.
    CheckpointDone,
    /// A client's request arrives.
    Request { op: Op },
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// At a node; of no effect if the node has since lost its life of this number. 0 is for whichever lives.
    At { node: u64, life: u64, event: NodeEvent },
    /// A node gets power again.
    Restart { node: u64, life: u64 },
    /// A node goes on.
    Resume { node: u64 },
    /// A node loses power in the life of this number, or everybody does.
    Ambush { node: u64, life: u64, all: bool },
    /// A full disk has room again.
    Room { node: u64 },
    /// A client thinks of something to ask.
    Think { client: u32 },
    /// A client is told.
    Reply { op: Op, ending: Ending },
    /// A client waits no longer.
    GiveUp { op: Op },
    /// A node is told that a replica is to live there.
    Adopt { node: u64, replica: ReplicaId },
    /// The node of a replica that was removed is wiped.
    Retire { node: u64, replica: ReplicaId },
    /// A node is asked to change who is a member, if it leads; or whoever leads is.
    Change { node: Option<u64> },
    /// Those who leave and those who come are set apart, and the former lose power.
    Sever { leaving: Vec<u64> },
    /// Something breaks.
    Fault(Fault),
}

#[derive(Debug)]
struct Scheduled {
    at: SimTime,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest, since the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// Events to come.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Scheduled>,
    numbers: u64,
}

impl Queue {
    /// Lets an event happen at a time.
    pub(crate) fn push(&mut self, at: SimTime, event: Event) {
        self.numbers += 1;
        self.heap.push(Scheduled { at, number: self.numbers, event });
    }

    /// The next event, if it is due by `until`.
    pub(crate) fn pop(&mut self, until: SimTime) -> Option<(SimTime, Event)> {
        if self.heap.peek()?.at > until {
            return None;
        }
        self.heap.pop().map(|scheduled| (scheduled.at, scheduled.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_then_of_scheduling() {
        let mut queue = Queue::default();
        for (at, client) in [(5, 1), (3, 2), (5, 3), (9, 4)] {
            queue.push(at, Event::Think { client });
        }
        let mut order = Vec::new();
        while let Some((at, Event::Think { client })) = queue.pop(5) {
            order.push((at, client));
        }
        assert_eq!(order, [(3, 2), (5, 1), (5, 3)]);
    }
}
