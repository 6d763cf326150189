//! What waits to be written on one lane to one peer.

use std::collections::{BTreeMap, VecDeque};

use crate::{Packet, packet::Beat, stats::LaneCounters};

/// How much may wait on one lane to one peer. A packet that alone is longer than `bytes_max` is taken when nothing else
/// waits. Control packets may use a quarter more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// Packets.
    pub packets_max: usize,
    /// Bytes, by [`Packet::size_bytes`].
    pub bytes_max: usize,
}

impl QueueBounds {
    /// The default for the consensus lane: 16,384 packets, 32 MiB.
    pub const CONSENSUS: Self = Self { packets_max: 16 << 10, bytes_max: 32 << 20 };
    /// The default for the bulk lane: 256 packets, 16 MiB.
    pub const BULK: Self = Self { packets_max: 256, bytes_max: 16 << 20 };
}

/// A bounded queue in which a newer beat takes the place of the older one, in order otherwise.
#[derive(Debug)]
pub(crate) struct Queue {
    bounds: QueueBounds,
    slots: VecDeque<Packet>,
    /// The number of the slot in front, counted from the beginning of time.
    front: u64,
    beats: BTreeMap<Beat, u64>,
    bytes: usize,
}

impl Queue {
    pub(crate) fn new(bounds: QueueBounds) -> Self {
        Self { bounds, slots: VecDeque::new(), front: 0, beats: BTreeMap::new(), bytes: 0 }
    }

    pub(crate) fn bounds(&self) -> QueueBounds {
        self.bounds
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn packets(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Queues a packet, or drops it and counts why.
    pub(crate) fn push(&mut self, packet: Packet, counters: &LaneCounters) {
        let size = packet.size_bytes();
        let QueueBounds { mut packets_max, mut bytes_max } = self.bounds;
        if packet.is_control() {
            packets_max += packets_max / 4;
            bytes_max += bytes_max / 4;
        }
        let beat = packet.beat();
        if let Some(older) = beat
            .and_then(|beat| self.beats.get(&beat))
            .map(|place| &mut self.slots[usize::try_from(place - self.front).expect("within the queue")])
        {
            // It keeps the place: at the back it would never be sent while the lane takes longer than a beat to drain.
            self.bytes = self.bytes - older.size_bytes() + size;
            *older = packet;
            counters.replaced.add(1);
            return;
        }
        if !self.slots.is_empty() && (self.slots.len() >= packets_max || self.bytes + size > bytes_max) {
            counters.dropped_full.add(1);
            return;
        }
        if let Some(beat) = beat {
            self.beats.insert(beat, self.front + self.slots.len() as u64);
        }
        self.slots.push_back(packet);
        self.bytes += size;
    }

    /// Moves packets of about `bytes_max` in all, at least one if there is one, to the end of `batch`.
    pub(crate) fn take(&mut self, bytes_max: usize, batch: &mut Vec<Packet>) {
        let mut taken = 0;
        while taken < bytes_max
            && let Some(packet) = self.slots.pop_front()
        {
            self.front += 1;
            let size = packet.size_bytes();
            taken += size;
            self.bytes -= size;
            batch.push(packet);
        }
        if self.slots.is_empty() {
            self.beats.clear();
            self.slots.shrink_to(1024);
        } else {
            self.beats.retain(|_, place| *place >= self.front);
        }
    }

    /// Drops everything that waits and says how many packets that were.
    pub(crate) fn clear(&mut self) -> usize {
        let dropped = std::mem::take(&mut self.slots).len();
        self.front += dropped as u64;
        self.beats.clear();
        self.bytes = 0;
        dropped
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{Class, Entries, Epoch, GroupId, Message, ReplicaId};

    use super::*;

    fn message(class: Class, head: u8, group: u64) -> Packet {
        let head = Bytes::copy_from_slice(&[head; 36]);
        let message = Message {
            from: ReplicaId(1),
            to: ReplicaId(2),
            class,
            head: head.into(),
            entries: Entries::default(),
        };
        Packet::Consensus { group: GroupId(group), message }
    }

    fn drained(queue: &mut Queue) -> Vec<Packet> {
        let mut out = Vec::new();
        queue.take(usize::MAX, &mut out);
        assert!(queue.is_empty() && queue.bytes() == 0);
        out
    }

    #[test]
    fn a_newer_beat_takes_the_older_ones_place() {
        let (mut queue, counters) = (Queue::new(QueueBounds::CONSENSUS), LaneCounters::default());
        for packet in [
            message(Class::Beat, 1, 1),
            message(Class::Append, 2, 1),
            message(Class::Beat, 3, 2),
            message(Class::Beat, 4, 1),
        ] {
            queue.push(packet, &counters);
        }
        let expected =
            vec![message(Class::Beat, 4, 1), message(Class::Append, 2, 1), message(Class::Beat, 3, 2)];
        assert_eq!(drained(&mut queue), expected);
        assert_eq!((counters.replaced.value(), counters.dropped_full.value()), (1, 0));
        queue.push(message(Class::Beat, 5, 1), &counters);
        assert_eq!(drained(&mut queue).len(), 1, "a beat already taken is not replaced");
    }

    #[test]
    fn replaced_beats_leave_no_growing_trail() {
        let (mut queue, counters) = (Queue::new(QueueBounds::CONSENSUS), LaneCounters::default());
        queue.push(message(Class::Append, 0, 1), &counters);
        for epoch in 0..10_000 {
            queue.push(Packet::Alive { epoch: Epoch(epoch) }, &counters);
            queue.push(message(Class::Beat, 1, 1), &counters);
        }
        assert!(queue.slots.len() < 128, "{}", queue.slots.len());
        let out = drained(&mut queue);
        assert_eq!(out.len(), 3);
        assert_eq!(out[1], Packet::Alive { epoch: Epoch(9_999) });
    }

    #[test]
    fn when_full_data_goes_first_and_control_has_a_reserve() {
        let bounds = QueueBounds { packets_max: 8, bytes_max: 1 << 20 };
        let (mut queue, counters) = (Queue::new(bounds), LaneCounters::default());
        for nth in 0..10 {
            queue.push(message(Class::Append, nth, 1), &counters);
        }
        assert_eq!((queue.packets(), counters.dropped_full.value()), (8, 2));
        for nth in 0..10 {
            queue.push(message(Class::Control, nth, 1), &counters);
        }
        assert_eq!((queue.packets(), counters.dropped_full.value()), (10, 10));
        let heads: Vec<_> = drained(&mut queue).into_iter().collect();
        assert_eq!(heads[0], message(Class::Append, 0, 1), "the oldest stay");
        assert_eq!(heads[8], message(Class::Control, 0, 1));
    }

    #[test]
    fn bytes_are_bounded_but_one_packet_always_fits() {
        let bounds = QueueBounds { packets_max: 100, bytes_max: 250 };
        let (mut queue, counters) = (Queue::new(bounds), LaneCounters::default());
        queue.push(Packet::Request { id: 1, body: Bytes::from(vec![0; 1000]) }, &counters);
        queue.push(message(Class::Append, 1, 1), &counters);
        assert_eq!((queue.packets(), counters.dropped_full.value()), (1, 1));
        drained(&mut queue);
        for _ in 0..5 {
            queue.push(message(Class::Append, 1, 1), &counters);
        }
        assert_eq!((queue.packets(), queue.bytes()), (2, 200));
        assert_eq!(queue.clear(), 2);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_batch_stops_at_its_bytes_and_order_goes_on_in_the_next() {
        let (mut queue, counters) = (Queue::new(QueueBounds::CONSENSUS), LaneCounters::default());
        for nth in 0..6 {
            queue.push(message(Class::Append, nth, 1), &counters);
        }
        queue.push(message(Class::Beat, 6, 1), &counters);
        let mut batch = Vec::new();
        queue.take(250, &mut batch);
        assert_eq!(batch.len(), 3);
        queue.push(message(Class::Beat, 7, 1), &counters);
        let rest = drained(&mut queue);
        assert_eq!(rest.len(), 4);
        assert_eq!(rest[3], message(Class::Beat, 7, 1));
        assert_eq!(counters.replaced.value(), 1);
    }
}
