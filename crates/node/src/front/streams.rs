//! Runs the streams of an HTTP/2 connection in the connection's own task.
//!
//! A task for each stream, as usual, costs every request a task, a wake of that task from the apply thread, and a
//! wake of the connection's. Here the first answer that is ready wakes the connection, which takes all that are
//! ready by then and writes them together. What is given up: the streams of *one* connection do not run on several
//! cores at once.
//!
//! The connection is polled with a waker of its own, since a stream that leaves its answer wakes the connection: on
//! the task's waker that would put the task, which runs already, into the scheduler's queue once more and rouse an
//! idle worker for it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use futures::task::AtomicWaker;
use parking_lot::Mutex;

/// How often a connection is polled before the task lets others run. It also ends the spin of a connection that has
/// used up the runtime's budget: that wakes at once, and makes no progress before the task has yielded.
const POLLS_MAX: usize = 8;

/// How long streams run before what they answered is written: long enough for many short answers to leave together, too short for large ones
/// to gather while the client waits.
const GATHERING: Duration = Duration::from_micros(250);

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Takes the streams that HTTP/2 starts. It is bounded by what a connection is: by the client's concurrent streams.
#[derive(Clone, Default)]
pub(super) struct Streams {
    started: Arc<Mutex<Vec<Stream>>>,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.started.lock().push(Box::pin(stream));
    }
}

impl Streams {
    /// The side that runs what is started.
    pub(super) fn running(self) -> Running {
        let signal = Arc::new(Signal::default());
        // The first poll needs no wake.
        signal.woken.store(true, SeqCst);
        Running { started: self, running: FuturesUnordered::new(), waker: signal.clone().into(), signal }
    }
}

/// Wakes the connection's task, except while it runs: it looks for itself before it stops.
#[derive(Default)]
struct Signal {
    woken: AtomicBool,
    runs: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, SeqCst);
        if !self.runs.load(SeqCst) {
            self.task.wake();
        }
    }
}

/// The streams of a connection.
pub(super) struct Running {
    started: Streams,
    running: FuturesUnordered<Stream>,
    signal: Arc<Signal>,
    waker: Waker,
}

impl Running {
    /// Drives a connection and its streams to the connection's end, which drops the streams that are left. May be
    /// given up and called again, as after the connection was told to end.
    pub(super) async fn drive<C: Future>(&mut self, mut connection: Pin<&mut C>) -> C::Output {
        self.signal.woken.store(true, SeqCst);
        poll_fn(|cx| {
            self.signal.task.register(cx.waker());
            self.signal.runs.store(true, SeqCst);
            for _ in 0..POLLS_MAX {
                if self.signal.woken.swap(false, SeqCst) {
                    let mut own = Context::from_waker(&self.waker);
                    if let Poll::Ready(ended) = connection.as_mut().poll(&mut own) {
                        return Poll::Ready(ended);
                    }
                }
                self.running.extend(self.started.started.lock().drain(..));
                let began = Instant::now();
                while let Poll::Ready(Some(())) = self.running.poll_next_unpin(cx) {
                    if began.elapsed() >= GATHERING {
                        // The connection's turn; whoever is ready is asked again after it.
                        self.signal.woken.store(true, SeqCst);
                        break;
                    }
                }
                if !self.signal.woken.load(SeqCst) {
                    break;
                }
            }
            self.signal.runs.store(false, SeqCst);
            // A wake before the line above was kept back, one after it reaches the task by itself.
            if self.signal.woken.load(SeqCst) {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use hyper::rt::Executor as _;

    use super::*;

    /// Drives streams that each take so long, and says how often the connection had its turn.
    async fn turns_of_the_connection(streams: u32, each_takes: Duration) -> u32 {
        let started = Streams::default();
        let done = Arc::new(Mutex::new(0));
        for _ in 0..streams {
            let done = Arc::clone(&done);
            started.execute(async move {
                std::thread::sleep(each_takes);
                *done.lock() += 1;
            });
        }
        let mut turns = 0;
        let connection = poll_fn(|_| {
            turns += 1;
            if *done.lock() == streams { Poll::Ready(()) } else { Poll::Pending }
        });
        let mut connection = Box::pin(connection);
        let mut running = started.running();
        // All that ends a connection here is that its streams did, of which only its own waker tells it.
        let _ = tokio::time::timeout(Duration::from_secs(5), running.drive(connection.as_mut())).await;
        drop(connection);
        turns
    }

    #[tokio::test]
    async fn large_answers_do_not_wait_for_each_other() {
        let turns = turns_of_the_connection(6, 2 * GATHERING).await;
        assert!(turns > 6, "the connection had {turns} turns for six streams");
    }
}
