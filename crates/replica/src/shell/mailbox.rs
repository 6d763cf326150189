//! A bounded queue into a thread or a task, taken whole: one wake-up serves everything that came meanwhile.

use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

/// Many senders, one taker, which waits as its bell does: a thread on a [`Condvar`], a task on a [`Notify`].
#[derive(Debug)]
pub(crate) struct Mailbox<T, B = Condvar> {
    state: Mutex<State<T>>,
    bell: B,
    items_max: usize,
}

/// What wakes the taker.
pub(crate) trait Bell: Default {
    fn ring(&self);
}

impl Bell for Condvar {
    fn ring(&self) {
        self.notify_one();
    }
}

impl Bell for Notify {
    fn ring(&self) {
        self.notify_one();
    }
}

#[derive(Debug)]
struct State<T> {
    items: Vec<T>,
    closed: bool,
    waiting: bool,
}

/// Why something was not put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

impl<T, B: Bell> Mailbox<T, B> {
    pub(crate) fn new(items_max: usize) -> Self {
        let state = State { items: Vec::new(), closed: false, waiting: false };
        Self { state: Mutex::new(state), bell: B::default(), items_max }
    }

    /// Puts an item in unless the bound is met.
    pub(crate) fn offer(&self, item: T) -> Result<(), Refused> {
        self.put(item, self.items_max)
    }

    /// Puts in what must not be lost: completions, whose number is bounded by what was asked for.
    pub(crate) fn push(&self, item: T) {
        // Closed means the taker is gone and with it whoever cared.
        let _ = self.put(item, usize::MAX);
    }

    /// Puts in as [`push`](Self::push) does, in order, and takes the lock and rings once for all.
    pub(crate) fn push_all(&self, items: &mut Vec<T>) {
        if items.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            items.clear();
            return;
        }
        if state.items.is_empty() {
            std::mem::swap(&mut state.items, items)
        } else {
            state.items.append(items)
        }
        self.wake(state);
    }

    fn put(&self, item: T, items_max: usize) -> Result<(), Refused> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.items.len() >= items_max {
            return Err(Refused::Full);
        }
        state.items.push(item);
        self.wake(state);
        Ok(())
    }

    fn wake(&self, mut state: MutexGuard<'_, State<T>>) {
        let wake = std::mem::take(&mut state.waiting);
        drop(state);
        if wake {
            self.bell.ring();
        }
    }

    /// Throws away what waits: its taker is gone, and whoever waits for an answer must see that.
    pub(crate) fn clear(&self) {
        self.state.lock().items.clear();
    }

    /// Lets nothing more in and wakes the taker.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.bell.ring();
    }
}

impl<T> Mailbox<T, Condvar> {
    /// Waits for items, at most `wait` long, and swaps them into the empty `into`. `false` once closed and empty.
    pub(crate) fn take(&self, wait: Option<Duration>, into: &mut Vec<T>) -> bool {
        debug_assert!(into.is_empty(), "what is taken replaces what was there");
        let mut state = self.state.lock();
        if state.items.is_empty() && !state.closed {
            state.waiting = true;
            match wait {
                Some(wait) => {
                    self.bell.wait_for(&mut state, wait);
                }
                None => {
                    while state.items.is_empty() && !state.closed {
                        state.waiting = true;
                        self.bell.wait(&mut state);
                    }
                }
            }
            state.waiting = false;
        }
        std::mem::swap(&mut state.items, into);
        !(into.is_empty() && state.closed)
    }
}

impl<T> Mailbox<T, Notify> {
    /// As a thread's `take`. To be called by one task.
    pub(crate) async fn take(&self, wait: Option<Duration>, into: &mut Vec<T>) -> bool {
        debug_assert!(into.is_empty(), "what is taken replaces what was there");
        let idle = {
            let mut state = self.state.lock();
            state.waiting = state.items.is_empty() && !state.closed;
            state.waiting
        };
        // A ring between looking and waiting is kept for us.
        match wait {
            // Senders that never rest must not keep the runtime's other tasks from their turn; and what those send is taken too.
            _ if !idle => tokio::task::yield_now().await,
            Some(wait) => drop(tokio::time::timeout(wait, self.bell.notified()).await),
            None => self.bell.notified().await,
        }
        let mut state = self.state.lock();
        state.waiting = false;
        std::mem::swap(&mut state.items, into);
        !(into.is_empty() && state.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_beyond_its_bound_but_never_a_completion() {
        let mailbox = Mailbox::<_, Condvar>::new(1);
        assert_eq!(mailbox.offer(1), Ok(()));
        assert_eq!(mailbox.offer(2), Err(Refused::Full));
        mailbox.push(3);
        let mut taken = Vec::new();
        assert!(mailbox.take(None, &mut taken));
        assert_eq!(taken, [1, 3]);
    }

    #[test]
    fn many_come_in_order_behind_what_is_there_and_none_after_the_end() {
        let mailbox = Mailbox::<_, Condvar>::new(1);
        mailbox.push_all(&mut vec![1, 2]);
        mailbox.push_all(&mut vec![3, 4]);
        mailbox.push_all(&mut Vec::new());
        let mut taken = Vec::new();
        assert!(mailbox.take(None, &mut taken));
        assert_eq!(std::mem::take(&mut taken), [1, 2, 3, 4]);
        mailbox.close();
        let mut late = vec![5];
        mailbox.push_all(&mut late);
        assert!(late.is_empty() && !mailbox.take(None, &mut taken));
    }

    #[test]
    fn closed_gives_what_it_holds_and_then_ends() {
        let mailbox = Mailbox::<_, Condvar>::new(8);
        mailbox.push(1);
        mailbox.close();
        assert_eq!(mailbox.offer(2), Err(Refused::Closed));
        let mut taken = Vec::new();
        assert!(mailbox.take(None, &mut taken));
        taken.clear();
        assert!(!mailbox.take(None, &mut taken));
    }

    #[tokio::test]
    async fn a_task_is_woken_by_an_item_by_its_time_and_by_the_end() {
        let mailbox = std::sync::Arc::new(Mailbox::<u32, Notify>::new(8));
        let sender = std::sync::Arc::clone(&mailbox);
        let mut taken = Vec::new();
        let sending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            sender.push(1);
        });
        assert!(mailbox.take(None, &mut taken).await);
        assert_eq!(std::mem::take(&mut taken), [1]);
        sending.join().unwrap();
        assert!(mailbox.take(Some(Duration::from_millis(1)), &mut taken).await);
        assert!(taken.is_empty());
        mailbox.push(2);
        mailbox.close();
        assert!(mailbox.take(None, &mut taken).await);
        taken.clear();
        assert!(!mailbox.take(None, &mut taken).await);
    }
}
