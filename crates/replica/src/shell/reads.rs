//! Linearizable reads, many to a barrier.
//!
//! A read may use any barrier that *began after the read arrived*. So reads gather while a barrier is under way and share the
//! next one. A barrier that fails for want of a leader is begun again; whoever waits sets the limit with a timeout of its own.

use std::{collections::BTreeMap, time::Duration};

use conclave_consensus::{ReadError, ReadId, Slot, Time};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Why a read must not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// Too many reads wait.
    #[error("too many reads wait")]
    Busy,
    /// There is no such group here.
    #[error("no such group")]
    NoGroup,
    /// The node is shutting down.
    #[error("stopped")]
    Stopped,
}

type Reader = oneshot::Sender<Result<(), BarrierError>>;
type Turn = oneshot::Receiver<Result<(), BarrierError>>;

/// How many barriers of a group are under way at a time. With one, reads gather meanwhile and more of them share the next: at 64 clients that
/// served a third more reads than two did.
const ROUNDS_MAX: usize = 1;
/// A barrier that takes longer than this is begun again: its messages may be lost.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The reads of one group.
#[derive(Debug)]
pub(crate) struct ReadGate {
    state: Mutex<State>,
    readers_max: usize,
}

#[derive(Debug, Default)]
struct State {
    applied: Slot,
    readers: usize,
    gathering: Vec<Reader>,
    rounds: BTreeMap<ReadId, (Time, Vec<Reader>)>,
    ready: BTreeMap<Slot, Vec<Reader>>,
    last_id: u64,
    /// Set by a failure: the next barrier waits for the clock.
    paused: bool,
    /// The shell stops: nobody will confirm anything.
    closed: bool,
}

impl ReadGate {
    pub(crate) fn new(applied: Slot, readers_max: usize) -> Self {
        Self { state: Mutex::new(State { applied, ..State::default() }), readers_max }
    }

    /// Lets a reader wait; if a barrier should begin now, says its id.
    pub(crate) fn enter(&self, now: Time) -> Result<(Turn, Option<ReadId>), BarrierError> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        if state.closed {
            return Err(BarrierError::Stopped);
        }
        if state.readers >= self.readers_max {
            return Err(BarrierError::Busy);
        }
        state.readers += 1;
        state.gathering.push(sender);
        Ok((receiver, state.begin(now)))
    }

    /// The barrier is confirmed: its reads may be served once `at` is applied.
    pub(crate) fn confirmed(&self, id: ReadId, at: Slot, now: Time) -> Option<ReadId> {
        let mut state = self.state.lock();
        if let Some((_, readers)) = state.rounds.remove(&id) {
            if at <= state.applied {
                state.release(readers);
            } else {
                state.ready.entry(at).or_default().extend(readers);
            }
        }
        state.begin(now)
    }

    /// The barrier failed.
    pub(crate) fn failed(&self, id: ReadId, why: ReadError) {
        let mut state = self.state.lock();
        let Some((_, readers)) = state.rounds.remove(&id) else { return };
        if why == ReadError::Busy {
            state.readers -= readers.len();
            for reader in readers {
                // A reader that gave up does not need to know.
                let _ = reader.send(Err(BarrierError::Busy));
            }
        } else {
            state.gathering.extend(readers);
            state.paused = true;
        }
    }

    /// Everything up to `slot` is applied.
    pub(crate) fn applied(&self, slot: Slot) {
        let mut state = self.state.lock();
        state.applied = state.applied.max(slot);
        while let Some(first) = state.ready.first_entry().filter(|entry| *entry.key() <= slot) {
            let readers = first.remove();
            state.release(readers);
        }
    }

    pub(crate) fn applied_slot(&self) -> Slot {
        self.state.lock().applied
    }

    /// Called as time goes by: takes up barriers that failed or take too long, and forgets readers that gave up.
    pub(crate) fn tick(&self, now: Time) -> Option<ReadId> {
        let mut state = self.state.lock();
        state.paused = false;
        while let Some(round) =
            state.rounds.first_entry().filter(|round| now.since(round.get().0) >= RETRY_AFTER)
        {
            let (_, readers) = round.remove();
            state.gathering.extend(readers);
        }
        let before = state.gathering.len();
        state.gathering.retain(|reader| !reader.is_closed());
        state.readers -= before - state.gathering.len();
        let mut left = 0;
        for readers in state.ready.values_mut() {
            let before = readers.len();
            readers.retain(|reader| !reader.is_closed());
            left += before - readers.len();
        }
        state.readers -= left;
        state.begin(now)
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(crate) fn is_waiting(&self) -> bool {
        let state = self.state.lock();
        !state.gathering.is_empty() || !state.rounds.is_empty() || !state.ready.is_empty()
    }

    pub(crate) fn fail_all(&self) {
        let mut state = self.state.lock();
        *state = State { applied: state.applied, last_id: state.last_id, closed: true, ..State::default() };
    }
}

impl State {
    fn begin(&mut self, now: Time) -> Option<ReadId> {
        if self.gathering.is_empty() || self.rounds.len() >= ROUNDS_MAX || self.paused {
            return None;
        }
        self.last_id += 1;
        let id = ReadId(self.last_id);
        self.rounds.insert(id, (now, std::mem::take(&mut self.gathering)));
        Some(id)
    }

    fn release(&mut self, readers: Vec<Reader>) {
        self.readers -= readers.len();
        for reader in readers {
            // A reader that gave up does not need its turn.
            let _ = reader.send(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_never_uses_a_barrier_begun_before_it() {
        let gate = ReadGate::new(Slot(0), 8);
        let (mut first, began) = gate.enter(Time(0)).unwrap();
        assert_eq!(began, Some(ReadId(1)));
        let (mut second, none) = gate.enter(Time(0)).unwrap();
        let (mut third, none_either) = gate.enter(Time(0)).unwrap();
        assert_eq!((none, none_either), (None, None), "they gather while one is under way");
        assert_eq!(gate.confirmed(ReadId(1), Slot(0), Time(1)), Some(ReadId(2)));
        assert!(first.try_recv().is_ok());
        assert!(second.try_recv().is_err() && third.try_recv().is_err(), "not the one under way");
        assert_eq!(gate.confirmed(ReadId(2), Slot(0), Time(1)), None);
        assert!(second.try_recv().is_ok() && third.try_recv().is_ok(), "they share the next");
    }

    #[test]
    fn a_read_waits_for_what_its_barrier_saw_to_be_applied() {
        let gate = ReadGate::new(Slot(4), 8);
        let (mut read, began) = gate.enter(Time(0)).unwrap();
        gate.confirmed(began.unwrap(), Slot(5), Time(0));
        assert!(read.try_recv().is_err());
        gate.applied(Slot(5));
        assert!(read.try_recv().is_ok());
    }

    #[test]
    fn a_failed_or_lost_barrier_is_begun_again() {
        let gate = ReadGate::new(Slot(0), 8);
        let (mut read, began) = gate.enter(Time(0)).unwrap();
        gate.failed(began.unwrap(), ReadError::NoLeader);
        assert!(read.try_recv().is_err());
        let again = gate.tick(Time(1)).unwrap();
        let late = gate.tick(Time(0).after(RETRY_AFTER).after(RETRY_AFTER)).unwrap();
        assert_ne!(again, late);
        assert_eq!(gate.confirmed(again, Slot(0), Time(2)), None, "its late answer is nobody's");
        assert!(read.try_recv().is_err());
        gate.confirmed(late, Slot(0), Time(2));
        assert!(read.try_recv().is_ok());
    }

    #[test]
    fn readers_are_bounded_and_leave_when_they_give_up() {
        let gate = ReadGate::new(Slot(0), 1);
        let (read, began) = gate.enter(Time(0)).unwrap();
        assert_eq!(gate.enter(Time(0)).unwrap_err(), BarrierError::Busy);
        gate.failed(began.unwrap(), ReadError::NoLeader);
        drop(read);
        assert_eq!(gate.tick(Time(1)), None);
        assert!(gate.enter(Time(1)).is_ok());
    }
}
