//! A bounded queue into a thread, taken whole: one wake-up serves everything that came meanwhile.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Many senders, one taker.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    items_max: usize,
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

impl<T> Mailbox<T> {
    pub(crate) fn new(items_max: usize) -> Self {
        let state = State { items: Vec::new(), closed: false, waiting: false };
        Self { state: Mutex::new(state), filled: Condvar::new(), items_max }
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

    fn put(&self, item: T, items_max: usize) -> Result<(), Refused> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.items.len() >= items_max {
            return Err(Refused::Full);
        }
        state.items.push(item);
        let wake = std::mem::take(&mut state.waiting);
        drop(state);
        if wake {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Waits for items, at most `wait` long, and swaps them into the empty `into`. `false` once closed and empty.
    pub(crate) fn take(&self, wait: Option<Duration>, into: &mut Vec<T>) -> bool {
        debug_assert!(into.is_empty(), "what is taken replaces what was there");
        let mut state = self.state.lock();
        if state.items.is_empty() && !state.closed {
            state.waiting = true;
            match wait {
                Some(wait) => {
                    self.filled.wait_for(&mut state, wait);
                }
                None => {
                    while state.items.is_empty() && !state.closed {
                        state.waiting = true;
                        self.filled.wait(&mut state);
                    }
                }
            }
            state.waiting = false;
        }
        std::mem::swap(&mut state.items, into);
        !(into.is_empty() && state.closed)
    }

    /// Throws away what waits: its taker is gone, and whoever waits for an answer must see that.
    pub(crate) fn clear(&self) {
        self.state.lock().items.clear();
    }

    /// Lets nothing more in and wakes the taker.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        drop(state);
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_beyond_its_bound_but_never_a_completion() {
        let mailbox = Mailbox::new(1);
        assert_eq!(mailbox.offer(1), Ok(()));
        assert_eq!(mailbox.offer(2), Err(Refused::Full));
        mailbox.push(3);
        let mut taken = Vec::new();
        assert!(mailbox.take(None, &mut taken));
        assert_eq!(taken, [1, 3]);
    }

    #[test]
    fn closed_gives_what_it_holds_and_then_ends() {
        let mailbox = Mailbox::new(8);
        mailbox.push(1);
        mailbox.close();
        assert_eq!(mailbox.offer(2), Err(Refused::Closed));
        let mut taken = Vec::new();
        assert!(mailbox.take(None, &mut taken));
        taken.clear();
        assert!(!mailbox.take(None, &mut taken));
    }
}
