//! One stream: its watches, and what waits to be sent on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::request::Refusal;

/// What a response costs beside its events, on the wire and in memory, about.
const FRAME_BYTES: usize = 96;

/// One response of a watch stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which watch; [`ALL_WATCHES`] for all of the stream, or for one that was refused.
    pub watch_id: i64,
    /// The revision of the response's header.
    pub revision: i64,
    /// What it says.
    pub body: Body,
}

/// The id that no watch has: of answers to progress requests, and of refusals.
pub const ALL_WATCHES: i64 = -1;

/// What a response says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The watch has begun.
    Created,
    /// There is no such watch, and why.
    Refused(Refusal),
    /// The watch has ended, as its client asked.
    Canceled,
    /// The watch has ended, as what it was to see next is older than this, the oldest revision that can be watched.
    Compacted(i64),
    /// All up to the header's revision was sent.
    Progress,
    /// Events, each encoded as field 11 of a response with its tag and length.
    Events {
        /// In order.
        events: Vec<Bytes>,
        /// Whether more of the same revision follows.
        fragment: bool,
    },
}

impl Frame {
    /// About how much memory it takes, and how long it is on the wire.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match &self.body {
            Body::Events { events, .. } => FRAME_BYTES + events.iter().map(Bytes::len).sum::<usize>(),
            _ => FRAME_BYTES,
        }
    }

    pub(super) fn events(&self) -> usize {
        match &self.body {
            Body::Events { events, .. } => events.len(),
            _ => 0,
        }
    }
}

/// What the hub knows of a stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The watches' numbers by id.
    pub(super) watches: BTreeMap<i64, u32>,
    /// Those that wait for room.
    pub(super) parked: BTreeSet<u32>,
    /// How many do not keep up, those included.
    pub(super) behind: usize,
    /// From where on an id is looked for.
    next_id: i64,
    frames: VecDeque<Frame>,
    frames_bytes: usize,
    /// The revision that the answer to a progress request has to have reached, if one was asked for.
    pub(super) asked: Option<i64>,
    /// Whether it is among those with something to take.
    pub(super) is_ready: bool,
}

impl Stream {
    /// An id that no watch of the stream has, as etcd chooses it.
    pub(super) fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }

    pub(super) fn push(&mut self, frame: Frame) {
        self.frames_bytes += frame.size_bytes();
        self.frames.push_back(frame);
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.frames_bytes -= frame.size_bytes();
        if self.frames.is_empty() {
            // An idle stream keeps nothing.
            self.frames = VecDeque::new();
        }
        Some(frame)
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.frames_bytes
    }

    pub(super) fn queued_events(&self) -> usize {
        self.frames.iter().map(Frame::events).sum()
    }
}
