//! The hub, and the thread that reads for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use conclave_api::errors::EtcdError;
use conclave_api::etcdserverpb::WatchCreateRequest;
use conclave_kv::watch::{Frame, Hub, Options, Stats, StreamId, Work};
use conclave_kv::{HistoryError, Reader, RevisionObserver};
use parking_lot::{Mutex, MutexGuard};

use crate::backend::Backend;
use crate::config::{Config, REQUEST_OVERHEAD_BYTES};

/// Progress is told to so many parts of the streams one after the other, so that it does not come all at once.
const PROGRESS_PARTS: usize = 16;
/// What an interval that was not read from flags is at least.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(10);
/// So many election timeouts in a row without a leader end the streams that demand one: etcd's number.
const LEADERLESS_MAX: u32 = 3;
/// How long the thread rests after the store failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// All watches of a node.
#[derive(Debug)]
pub(crate) struct Watches {
    shared: Arc<Shared>,
}

/// What the thread shares with streams.
struct Shared {
    inner: Mutex<Inner>,
    reader: Reader,
    /// How many streams are open: with none, nobody need be told of anything.
    open: AtomicUsize,
    /// The thread has something to look at that it does not know of.
    signalled: AtomicBool,
    stopped: AtomicBool,
    thread: Mutex<Option<Thread>>,
    page_bytes: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("open", &self.open).finish_non_exhaustive()
    }
}

struct Inner {
    hub: Hub,
    streams: Vec<Option<Seat>>,
    /// Streams that demand a leader.
    demanding: usize,
}

/// What is known of a stream beside the hub.
struct Seat {
    waker: Option<Waker>,
    demands_leader: bool,
    /// Why the stream is over.
    ended: Option<End>,
}

/// Why a stream ends by the server's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    NoLeader,
    StoreFailed,
}

impl RevisionObserver for Shared {
    fn advanced(&self) {
        if self.open.load(SeqCst) > 0 {
            self.signal();
        }
    }
}

impl Shared {
    fn signal(&self) {
        if !self.signalled.swap(true, SeqCst)
            && let Some(thread) = &*self.thread.lock()
        {
            thread.unpark();
        }
    }
}

impl Watches {
    /// Begins with the store as it is, with a thread of its own.
    pub(crate) fn new(config: &Config, backend: Arc<dyn Backend>) -> Self {
        let reader = backend.reader().clone();
        let options = Options {
            fragment_bytes_max: (config.max_request_bytes + REQUEST_OVERHEAD_BYTES) as usize,
            ..Options::default()
        };
        let hub = Hub::new(options, reader.revision());
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner { hub, streams: Vec::new(), demanding: 0 }),
            reader: reader.clone(),
            open: AtomicUsize::new(0),
            signalled: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            thread: Mutex::new(None),
            page_bytes: options.page_bytes,
        });
        let observer: Arc<dyn RevisionObserver> = shared.clone();
        reader.observe(&observer);
        let pump = Pump {
            shared: shared.clone(),
            backend,
            election_timeout: config.election_timeout,
            progress_pause: config.watch_progress_notify_interval.max(PROGRESS_INTERVAL_MIN)
                / PROGRESS_PARTS as u32,
            part: 0,
            leaderless: 0,
        };
        if let Err(error) = thread::Builder::new().name("conclave-watch".to_owned()).spawn(move || pump.run())
        {
            tracing::error!(error = &error as &dyn std::error::Error, "no thread for watches");
            shared.stopped.store(true, SeqCst);
        }
        Self { shared }
    }

    /// How many there are of everything.
    pub(crate) fn stats(&self) -> Stats {
        self.shared.inner.lock().hub.stats()
    }

    /// Opens a stream, unless nobody would serve it.
    pub(super) fn open(&self, demands_leader: bool) -> Option<OpenStream> {
        if self.shared.stopped.load(SeqCst) {
            return None;
        }
        self.shared.open.fetch_add(1, SeqCst);
        let inner = &mut *self.shared.inner.lock();
        let id = inner.hub.open();
        if inner.streams.len() <= id.number() {
            inner.streams.resize_with(id.number() + 1, || None);
        }
        inner.streams[id.number()] = Some(Seat { waker: None, demands_leader, ended: None });
        inner.demanding += usize::from(demands_leader);
        // Time matters from now on.
        self.shared.signal();
        Some(OpenStream { shared: self.shared.clone(), id })
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        self.shared.signal();
    }
}

/// An open stream; dropped, it is closed.
pub(super) struct OpenStream {
    shared: Arc<Shared>,
    id: StreamId,
}

/// What a stream finds when it is polled.
#[derive(Debug)]
pub(super) enum Next {
    Frame(Frame),
    Ended(End),
    /// It is woken when there is something.
    Nothing,
}

impl OpenStream {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock()
    }

    /// Whether its next request may be read.
    pub(super) fn has_room(&self) -> bool {
        self.inner().hub.has_room(self.id)
    }

    pub(super) fn create(&self, request: &WatchCreateRequest) {
        let mut inner = self.inner();
        // As of now, under the hub's lock: nothing can be given out in between.
        let now = self.shared.reader.now();
        inner.hub.create(self.id, request, now);
        let has_work = inner.hub.work(now.revision).is_some();
        drop(inner);
        if has_work {
            self.shared.signal();
        }
    }

    pub(super) fn cancel(&self, watch_id: i64) {
        let now = self.shared.reader.now();
        self.inner().hub.cancel(self.id, watch_id, now);
    }

    pub(super) fn ask_progress(&self) {
        let mut inner = self.inner();
        let now = self.shared.reader.now();
        inner.hub.ask_progress(self.id, now);
        let has_work = inner.hub.work(now.revision).is_some();
        drop(inner);
        if has_work {
            self.shared.signal();
        }
    }

    /// The next thing to send, or a promise to wake whoever polls.
    pub(super) fn next(&self, cx: &Context<'_>) -> Next {
        let mut inner = self.inner();
        let Inner { hub, streams, .. } = &mut *inner;
        let Some(seat) = streams.get_mut(self.id.number()).and_then(Option::as_mut) else {
            return Next::Ended(End::StoreFailed);
        };
        if let Some(end) = seat.ended {
            return Next::Ended(end);
        }
        let Some(frame) = hub.take(self.id) else {
            seat.waker = Some(cx.waker().clone());
            return Next::Nothing;
        };
        let has_history = hub.has_history_to_read();
        drop(inner);
        if has_history {
            self.shared.signal();
        }
        Next::Frame(frame)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut inner = self.inner();
        inner.hub.close(self.id);
        if let Some(seat) = inner.streams.get_mut(self.id.number()).and_then(Option::take) {
            inner.demanding -= usize::from(seat.demands_leader);
        }
        drop(inner);
        self.shared.open.fetch_sub(1, SeqCst);
    }
}

impl Inner {
    /// The wakers of streams with something to send.
    fn wakers(&mut self) -> Vec<Waker> {
        let mut ready = Vec::new();
        self.hub.ready(&mut ready);
        let waker_of = |id: StreamId| self.streams.get_mut(id.number())?.as_mut()?.waker.take();
        ready.into_iter().filter_map(waker_of).collect()
    }

    /// Ends streams.
    fn end(&mut self, which: impl Fn(&Seat) -> bool, end: End) -> Vec<Waker> {
        let seats = self.streams.iter_mut().flatten().filter(|seat| which(seat));
        seats
            .filter_map(|seat| {
                seat.ended = Some(end);
                seat.waker.take()
            })
            .collect()
    }
}

/// What the thread has for itself.
struct Pump {
    shared: Arc<Shared>,
    backend: Arc<dyn Backend>,
    election_timeout: Duration,
    progress_pause: Duration,
    part: usize,
    leaderless: u32,
}

/// Should the thread panic, nobody must wait for it.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.stopped.store(true, SeqCst);
        let wakers = self.0.inner.lock().end(|_| true, End::StoreFailed);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Pump {
    fn run(mut self) {
        let _farewell = Farewell(self.shared.clone());
        // Whoever signals before this is heard below.
        *self.shared.thread.lock() = Some(thread::current());
        let mut progress_at = Instant::now() + self.progress_pause;
        let mut leader_at = Instant::now() + self.election_timeout;
        while !self.shared.stopped.load(SeqCst) {
            self.shared.signalled.store(false, SeqCst);
            self.read_all();
            let now = Instant::now();
            if progress_at <= now {
                progress_at = now + self.progress_pause;
                self.tell_progress();
            }
            let demanding = self.shared.inner.lock().demanding > 0;
            if !demanding {
                leader_at = now + self.election_timeout;
            } else if leader_at <= now {
                leader_at = now + self.election_timeout;
                self.look_for_leader();
            }
            let until = if demanding { progress_at.min(leader_at) } else { progress_at };
            if self.shared.signalled.load(SeqCst) {
                continue;
            }
            if self.shared.open.load(SeqCst) > 0 {
                thread::park_timeout(until.saturating_duration_since(now));
            } else {
                thread::park();
            }
        }
    }

    /// Reads whatever there is to read.
    fn read_all(&self) {
        loop {
            if self.shared.stopped.load(SeqCst) || !self.page() {
                return;
            }
        }
    }

    /// Reads one page and gives it out; whether there was one.
    fn page(&self) -> bool {
        let Shared { inner, reader, .. } = &*self.shared;
        let Some(work) = inner.lock().hub.work(reader.revision()) else { return false };
        let outcome = self.read(work);
        let mut inner = inner.lock();
        match outcome {
            Ok(page) => inner.hub.advance(work, page),
            Err(HistoryError::Compacted(oldest)) => inner.hub.lost(work, oldest),
            Err(HistoryError::Engine(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "watches cannot be served");
                let wakers = inner.end(|_| true, End::StoreFailed);
                drop(inner);
                wakers.into_iter().for_each(Waker::wake);
                thread::sleep(FAILURE_PAUSE);
                return true;
            }
        }
        let wakers = inner.wakers();
        drop(inner);
        // A waker may run something of its own: not under the lock.
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    fn read(&self, work: Work) -> Result<conclave_kv::Changes, HistoryError> {
        let Shared { inner, reader, page_bytes, .. } = &*self.shared;
        let mut page = reader.changes(work.from(), *page_bytes)?;
        let needs = inner.lock().hub.needs(work, &page);
        if !needs.is_empty() {
            reader.complete(&mut page, &needs)?;
        }
        Ok(page)
    }

    fn tell_progress(&mut self) {
        let mut inner = self.shared.inner.lock();
        inner.hub.tell_progress(self.part, PROGRESS_PARTS);
        self.part = (self.part + 1) % PROGRESS_PARTS;
        let wakers = inner.wakers();
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Reconnecting is dear, so a stream is not ended by one election.
    fn look_for_leader(&mut self) {
        if self.backend.raft().leader.is_some() {
            self.leaderless = 0;
            return;
        }
        self.leaderless += 1;
        if self.leaderless >= LEADERLESS_MAX {
            let wakers = self.shared.inner.lock().end(|seat| seat.demands_leader, End::NoLeader);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl From<End> for tonic::Status {
    fn from(end: End) -> Self {
        match end {
            End::NoLeader => EtcdError::NoLeader.into(),
            End::StoreFailed => Self::internal("the store cannot be read"),
        }
    }
}

const _: () = assert!(size_of::<Seat>() <= 32, "one for each stream");
