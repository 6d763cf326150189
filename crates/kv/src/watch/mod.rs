//! Watches: who is told of which changes, as a value without clock, lock or I/O.
//!
//! # Vocabulary
//! A *stream* is a client's; it has *watches*, and a queue of [`Frame`]s that wait to be sent. The *cursor* is the revision up to which the newest changes
//! have been given out. A watch is *synced* if it lacks nothing up to the cursor, *behind* if it reads the history from its own next revision on, *parked*
//! if it is behind and its stream is full.
//!
//! ```text
//!              start in the past                       stream full
//!   create ──────────────────────> behind <─────────┐   ┌─────────> parked
//!      │                             │    has room   └───┼──────────────┘
//!      └── from now on, or later ──> synced <─ caught up ┘
//! ```
//!
//! # Invariants
//! 1. A watch receives every change of its keys that passes its filters, from its start revision on, once, in order; or it is told that it has ended.
//! 2. The changes of one revision are in one frame, or, for a watch that allows it, in consecutive fragments.
//! 3. A watch is first told that it was created.
//! 4. Progress is told of revisions all of whose changes are in the queue already, never of one before the cursor was there; never of 0.
//! 5. A queue holds at most [`Options::queue_bytes_max`] and one page's worth of one watch more. Whoever does not read is parked with a number, the next
//!    revision, and nothing else; nobody waits for it.
//!
//! # How to drive it
//! 1. Streams come and go with [`open`](Hub::open) and [`close`](Hub::close); their requests are [`create`](Hub::create), [`cancel`](Hub::cancel) and
//!    [`ask_progress`](Hub::ask_progress).
//! 2. As long as [`work`](Hub::work) names a page: read it with [`Reader::changes`](crate::Reader::changes), complete it by what [`needs`](Hub::needs) says
//!    with [`Reader::complete`](crate::Reader::complete), and give it to [`advance`](Hub::advance); or tell that it is [`lost`](Hub::lost). The newest changes come
//!    before old ones, so that history holds nobody back for longer than a page.
//! 3. [`ready`](Hub::ready) names streams with something to [`take`](Hub::take).
//!
//! # Deviations from etcd
//! * A watch of a key longer than [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX), which cannot exist, is refused as too large.
//! * A progress request is remembered until all watches of the stream are synced; etcd forgets it.
//! * Events of several revisions may come in one response also to watches that keep up.

mod behind;
mod delivery;
mod event;
mod index;
mod request;
mod slab;
mod stream;

use conclave_api::{errors::EtcdError, etcdserverpb::WatchCreateRequest};

use self::{
    behind::Cohorts,
    index::{Index, Target},
    request::Wishes,
    slab::Slab,
    stream::Stream,
};
pub use self::{
    delivery::Needs,
    request::Refusal,
    stream::{ALL_WATCHES, Body, Frame},
};

/// The most watches of a hub; one more is refused with etcd's "too many requests".
pub const WATCHES_MAX: usize = 1 << 24;

/// How much is sent and kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Once a stream's queue is this long, its watches with more to send are parked. Default 256 KiB.
    pub queue_bytes_max: usize,
    /// A response to which the events of one more revision would be added is sent at once from this length on. Default 256 KiB.
    pub response_bytes_max: usize,
    /// A revision longer than this is sent in fragments where the watch allows it. Default 2 MiB, etcd's.
    pub fragment_bytes_max: usize,
    /// How much of the history is read in one go. Default 256 KiB.
    pub page_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_bytes_max: 256 << 10,
            response_bytes_max: 256 << 10,
            fragment_bytes_max: 2 << 20,
            page_bytes: 256 << 10,
        }
    }
}

/// The number of an open stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl StreamId {
    /// Small, and used again once the stream is closed.
    #[must_use]
    pub fn number(self) -> usize {
        self.0 as usize
    }
}

/// Where the store is when a stream asks for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The newest revision that can be read.
    pub revision: i64,
    /// The oldest that can be watched.
    pub oldest: i64,
}

/// A page to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// The newest changes, from this revision on, for those who keep up.
    Newest(i64),
    /// Older ones, for those who do not.
    History(i64),
}

impl Work {
    /// The first revision to be read.
    #[must_use]
    pub fn from(self) -> i64 {
        let (Self::Newest(from) | Self::History(from)) = self;
        from
    }
}

/// How many there are of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Open streams.
    pub streams: usize,
    /// Watches.
    pub watches: usize,
    /// Watches that do not keep up.
    pub behind: usize,
    /// Events that wait to be sent.
    pub pending_events: usize,
    /// Events that were handed to streams.
    pub events: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Synced,
    Behind,
    Parked,
}

#[derive(Debug)]
struct Watch {
    id: i64,
    /// The first revision that it is to see, beyond what it saw as a synced one.
    next: i64,
    target: Target,
    stream: u32,
    wishes: Wishes,
    place: Place,
    /// Nothing was sent to it since progress was due last.
    is_quiet: bool,
}

/// All streams and watches of a store.
#[derive(Debug)]
pub struct Hub {
    options: Options,
    cursor: i64,
    streams: Slab<Stream>,
    watches: Slab<Watch>,
    synced: Index,
    behind: Index,
    cohorts: Cohorts,
    /// Streams that gained frames since [`ready`](Self::ready) was asked last.
    ready: Vec<StreamId>,
    /// Streams that asked for progress and have no answer.
    asking: Vec<u32>,
    slow: usize,
    pending_events: usize,
    events: u64,
}

impl Hub {
    /// A hub for a store that is at a revision.
    #[must_use]
    pub fn new(options: Options, revision: i64) -> Self {
        Self {
            options,
            cursor: revision,
            streams: Slab::default(),
            watches: Slab::default(),
            synced: Index::default(),
            behind: Index::default(),
            cohorts: Cohorts::default(),
            ready: Vec::new(),
            asking: Vec::new(),
            slow: 0,
            pending_events: 0,
            events: 0,
        }
    }

    /// How many there are of everything.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            streams: self.streams.len(),
            watches: self.watches.len(),
            behind: self.slow,
            pending_events: self.pending_events,
            events: self.events,
        }
    }

    /// The revision up to which synced watches lack nothing.
    #[must_use]
    pub fn cursor(&self) -> i64 {
        self.cursor
    }

    /// Opens a stream.
    pub fn open(&mut self) -> StreamId {
        StreamId(self.streams.insert(Stream::default()))
    }

    /// Ends a stream and its watches.
    pub fn close(&mut self, stream: StreamId) {
        let Some(closed) = self.streams.get(stream.0) else { return };
        let watches: Vec<u32> = closed.watches.values().copied().collect();
        self.pending_events -= closed.queued_events();
        for watch in watches {
            self.remove(watch);
        }
        self.streams.remove(stream.0);
        self.asking.retain(|asking| *asking != stream.0);
        self.ready.retain(|ready| *ready != stream);
    }

    /// Whether a stream's next request may be looked at: not before it has read what waits for it.
    #[must_use]
    pub fn has_room(&self, stream: StreamId) -> bool {
        self.streams.get(stream.0).is_some_and(|stream| stream.queued_bytes() < self.options.queue_bytes_max)
    }

    /// Begins a watch, or tells the stream why not.
    pub fn create(&mut self, stream: StreamId, request: &WatchCreateRequest, now: Now) {
        if self.synced.is_empty() {
            // Nobody lacks what came until now.
            self.cursor = self.cursor.max(now.revision);
        }
        match self.admit(stream, request, now) {
            Ok((id, None)) => {
                self.push(stream.0, Frame { watch_id: id, revision: now.revision, body: Body::Created })
            }
            Ok((id, Some(watch))) => {
                self.push(stream.0, Frame { watch_id: id, revision: now.revision, body: Body::Created });
                self.end(watch, now.revision, Body::Compacted(now.oldest));
            }
            Err(refusal) => {
                let body = Body::Refused(refusal);
                self.push(stream.0, Frame { watch_id: ALL_WATCHES, revision: now.revision, body });
            }
        }
    }

    /// Adds a watch; gives its id, and its number if it begins at what is compacted.
    fn admit(
        &mut self,
        stream: StreamId,
        request: &WatchCreateRequest,
        now: Now,
    ) -> Result<(i64, Option<u32>), Refusal> {
        let (target, wishes) = request::read(request)?;
        if self.watches.len() >= WATCHES_MAX {
            return Err(Refusal::Etcd(EtcdError::TooManyRequests));
        }
        let Some(of) = self.streams.get_mut(stream.0) else {
            return Err(Refusal::Etcd(EtcdError::WatchCanceled));
        };
        let id = match request.watch_id {
            0 => of.free_id(),
            id if of.watches.contains_key(&id) => return Err(Refusal::DuplicateId),
            id => id,
        };
        let start = request.start_revision;
        let next = if start == 0 || start > now.revision { start.max(now.revision + 1) } else { start };
        let watch =
            Watch { id, next, target, stream: stream.0, wishes, place: Place::Synced, is_quiet: true };
        let number = self.watches.insert(watch);
        of.watches.insert(id, number);
        self.settle(number, next, None);
        Ok((id, (next < now.oldest).then_some(number)))
    }

    /// Ends a watch as its client asks; an unknown one is none of etcd's errors.
    pub fn cancel(&mut self, stream: StreamId, id: i64, now: Now) {
        let watch = self.streams.get(stream.0).and_then(|stream| stream.watches.get(&id)).copied();
        if let Some(watch) = watch {
            self.end(watch, now.revision, Body::Canceled);
        }
    }

    /// Tells a stream, once all its watches are synced and at least where the store is, how far they have come. A stream without watches is told nothing, as
    /// in etcd.
    pub fn ask_progress(&mut self, stream: StreamId, now: Now) {
        let Some(of) = self.streams.get_mut(stream.0).filter(|of| !of.watches.is_empty()) else { return };
        if of.asked.replace(now.revision).is_none() {
            self.asking.push(stream.0);
        }
        self.answer_progress();
    }

    /// Tells progress to the watches that asked for it regularly and were sent nothing since they were told last: those of every `parts`-th stream, from
    /// `part` on, so that all are not told at once.
    pub fn tell_progress(&mut self, part: usize, parts: usize) {
        let due: Vec<u32> = self
            .streams
            .iter()
            .filter(|(number, _)| *number as usize % parts.max(1) == part)
            .flat_map(|(_, stream)| stream.watches.values().copied())
            .collect();
        for number in due {
            let room = self.watches.get(number).is_some_and(|watch| self.has_room(StreamId(watch.stream)));
            let Some(watch) = self.watches.get_mut(number).filter(|watch| watch.wishes.progress) else {
                continue;
            };
            let is_due = std::mem::replace(&mut watch.is_quiet, true)
                && watch.place == Place::Synced
                && watch.next <= self.cursor + 1;
            if is_due && room {
                let frame = Frame { watch_id: watch.id, revision: self.cursor, body: Body::Progress };
                let stream = watch.stream;
                self.push(stream, frame);
            }
        }
    }

    /// The next page to be read, given the store's newest revision. The same until the page is given to [`advance`](Self::advance).
    pub fn work(&mut self, revision: i64) -> Option<Work> {
        if self.cursor < revision {
            if !self.synced.is_empty() {
                return Some(Work::Newest(self.cursor + 1));
            }
            self.cursor = revision;
            self.answer_progress();
        }
        self.cohorts.turn().map(Work::History)
    }

    /// Names the streams that gained something to take since it was asked last, each once.
    pub fn ready(&mut self, ready: &mut Vec<StreamId>) {
        for stream in &self.ready {
            if let Some(stream) = self.streams.get_mut(stream.0) {
                stream.is_ready = false;
            }
        }
        ready.append(&mut self.ready);
    }

    /// Takes what a stream is to send next.
    pub fn take(&mut self, stream: StreamId) -> Option<Frame> {
        let of = self.streams.get_mut(stream.0)?;
        let frame = of.pop()?;
        self.pending_events -= frame.events();
        // Not at the first room there is, or a slow client would have a page read for every frame.
        if of.queued_bytes() <= self.options.queue_bytes_max / 2 {
            for watch in std::mem::take(&mut of.parked) {
                self.unpark(watch);
            }
            if !self.asking.is_empty() {
                self.answer_progress();
            }
        }
        Some(frame)
    }

    /// Whether there is history to be read, beside what [`work`](Self::work) would say of the newest changes.
    pub fn has_history_to_read(&mut self) -> bool {
        self.cohorts.turn().is_some()
    }

    fn unpark(&mut self, number: u32) {
        if let Some(watch) = self.watches.get_mut(number) {
            watch.place = Place::Behind;
            self.behind.insert(&watch.target, number);
            self.cohorts.insert(watch.next, number);
        }
    }

    /// Puts a watch, which is nowhere or was at `from`, where its next revision belongs.
    fn settle(&mut self, number: u32, next: i64, from: Option<Place>) {
        let Some(watch) = self.watches.get_mut(number) else { return };
        watch.next = next;
        let place = if next > self.cursor { Place::Synced } else { Place::Behind };
        if from != Some(place) {
            let (indexed, was_indexed) = match place {
                Place::Synced => (&mut self.synced, &mut self.behind),
                Place::Behind | Place::Parked => (&mut self.behind, &mut self.synced),
            };
            if from.is_some() {
                was_indexed.remove(&watch.target, number);
            }
            indexed.insert(&watch.target, number);
            let was_slow = from == Some(Place::Behind);
            if was_slow != (place == Place::Behind)
                && let Some(stream) = self.streams.get_mut(watch.stream)
            {
                if was_slow {
                    (stream.behind, self.slow) = (stream.behind - 1, self.slow - 1);
                } else {
                    (stream.behind, self.slow) = (stream.behind + 1, self.slow + 1);
                }
            }
        }
        watch.place = place;
        if place == Place::Behind {
            self.cohorts.insert(next, number);
        }
    }

    /// Sets a watch aside until its stream has room.
    fn park(&mut self, number: u32, next: i64) {
        let Some(watch) = self.watches.get_mut(number) else { return };
        let Some(stream) = self.streams.get_mut(watch.stream) else { return };
        match watch.place {
            Place::Synced => {
                self.synced.remove(&watch.target, number);
                (stream.behind, self.slow) = (stream.behind + 1, self.slow + 1);
            }
            Place::Behind => {
                self.behind.remove(&watch.target, number);
                self.cohorts.remove(watch.next, number);
            }
            Place::Parked => {}
        }
        stream.parked.insert(number);
        (watch.next, watch.place) = (next, Place::Parked);
    }

    /// Removes a watch and tells its stream.
    fn end(&mut self, number: u32, revision: i64, body: Body) {
        if let Some((watch_id, stream)) = self.remove(number) {
            self.push(stream, Frame { watch_id, revision, body });
        }
    }

    fn remove(&mut self, number: u32) -> Option<(i64, u32)> {
        let watch = self.watches.remove(number)?;
        match watch.place {
            Place::Synced => self.synced.remove(&watch.target, number),
            Place::Behind => {
                self.behind.remove(&watch.target, number);
                self.cohorts.remove(watch.next, number);
            }
            Place::Parked => {}
        }
        if let Some(stream) = self.streams.get_mut(watch.stream) {
            stream.watches.remove(&watch.id);
            stream.parked.remove(&number);
            if watch.place != Place::Synced {
                (stream.behind, self.slow) = (stream.behind - 1, self.slow - 1);
            }
        }
        Some((watch.id, watch.stream))
    }

    fn push(&mut self, stream: u32, frame: Frame) {
        let Some(of) = self.streams.get_mut(stream) else { return };
        self.pending_events += frame.events();
        of.push(frame);
        if !std::mem::replace(&mut of.is_ready, true) {
            self.ready.push(StreamId(stream));
        }
    }

    /// Answers the progress requests that can be answered.
    fn answer_progress(&mut self) {
        let asking = std::mem::take(&mut self.asking);
        for number in asking {
            let Some(stream) = self.streams.get(number) else { continue };
            let Some(reached) = stream.asked else { continue };
            let mut watches = stream.watches.values().filter_map(|watch| self.watches.get(*watch));
            let answers = self.cursor >= reached
                && stream.behind == 0
                && self.has_room(StreamId(number))
                && watches.all(|watch| watch.next <= self.cursor + 1);
            if !answers {
                self.asking.push(number);
                continue;
            }
            if let Some(stream) = self.streams.get_mut(number) {
                stream.asked = None;
            }
            let frame = Frame { watch_id: ALL_WATCHES, revision: self.cursor, body: Body::Progress };
            self.push(number, frame);
        }
    }
}
