//! Linearizable reads, many to a barrier.
//!
//! A read may use any barrier that *began after the read arrived*. So reads gather while a barrier is under way and share the
//! next one. A barrier that fails for want of a leader is begun again; whoever waits sets the limit with a timeout of its own.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use conclave_consensus::{ReadError, ReadId, Slot, Time};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::clock;

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

/// What a reader's turn brings: it may read, and perhaps the baton.
type Turn = Result<Option<Baton>, BarrierError>;
type Reader = oneshot::Sender<Turn>;

/// How many barriers of a group may be under way at a time; reads that arrive meanwhile gather and share the next. Fewer would leave the
/// network idle while one travels, more would share less.
pub(crate) const ROUNDS_MAX: usize = 3;
/// A barrier that takes longer than this is begun again: its messages may be lost.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The reads of one group.
pub(crate) struct ReadGate {
    state: Mutex<State>,
    readers_max: usize,
    rounds_max: usize,
    /// Has the host begin a barrier.
    begin: Box<dyn Fn(ReadId) + Send + Sync>,
}

#[derive(Debug, Default)]
struct State {
    applied: Slot,
    readers: usize,
    gathering: Vec<Reader>,
    /// Somebody has the baton.
    baton: bool,
    rounds: BTreeMap<ReadId, (Time, Vec<Reader>)>,
    ready: BTreeMap<Slot, Vec<Reader>>,
    last_id: u64,
    /// Set by a failure: the next barrier waits for the clock.
    paused: bool,
    /// The shell stops: nobody will confirm anything.
    closed: bool,
}

/// The right to begin the next barrier, which dropping it does. Who has it lets others come first that are about to ask, since all who
/// gather share the barrier.
#[derive(Debug)]
pub(crate) struct Baton(Arc<ReadGate>);

impl Drop for Baton {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.baton = false;
        self.0.begin(state, clock::now());
    }
}

impl std::fmt::Debug for ReadGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadGate").finish_non_exhaustive()
    }
}

impl ReadGate {
    pub(crate) fn new(
        applied: Slot,
        readers_max: usize,
        rounds_max: usize,
        begin: impl Fn(ReadId) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let state = Mutex::new(State { applied, ..State::default() });
        Arc::new(Self { state, readers_max, rounds_max, begin: Box::new(begin) })
    }

    /// Lets a reader wait, and perhaps gives it the baton.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<(oneshot::Receiver<Turn>, Option<Baton>), BarrierError> {
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
        Ok((receiver, self.baton(&mut state)))
    }

    /// The barrier is confirmed: its reads may be served once `at` is applied.
    pub(crate) fn confirmed(self: &Arc<Self>, id: ReadId, at: Slot) {
        let mut state = self.state.lock();
        let Some((_, readers)) = state.rounds.remove(&id) else { return };
        let mut baton = self.baton(&mut state);
        if at <= state.applied {
            state.release(readers, &mut baton);
        } else {
            state.ready.entry(at).or_default().extend(readers);
        }
        drop(state);
        // Nobody took it: the next barrier begins at once.
        drop(baton);
    }

    /// The baton, if a barrier may begin and nobody has it.
    fn baton(self: &Arc<Self>, state: &mut State) -> Option<Baton> {
        if state.baton || !self.may_begin(state) {
            return None;
        }
        state.baton = true;
        Some(Baton(Arc::clone(self)))
    }

    fn may_begin(&self, state: &State) -> bool {
        !state.gathering.is_empty() && state.rounds.len() < self.rounds_max && !state.paused
    }

    fn begin(&self, mut state: MutexGuard<'_, State>, now: Time) {
        if !self.may_begin(&state) {
            return;
        }
        state.last_id += 1;
        let id = ReadId(state.last_id);
        let readers = std::mem::take(&mut state.gathering);
        state.rounds.insert(id, (now, readers));
        drop(state);
        (self.begin)(id);
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
            state.release(readers, &mut None);
        }
    }

    pub(crate) fn applied_slot(&self) -> Slot {
        self.state.lock().applied
    }

    /// Called as time goes by: takes up barriers that failed or take too long, and forgets readers that gave up.
    pub(crate) fn tick(&self, now: Time) {
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
        self.begin(state, now);
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
    /// The first that still waits gets the baton. It must not be dropped here, where the state is locked.
    fn release(&mut self, readers: Vec<Reader>, baton: &mut Option<Baton>) {
        self.readers -= readers.len();
        for reader in readers {
            // A reader that gave up does not need its turn.
            if let Err(Ok(kept)) = reader.send(Ok(baton.take())) {
                *baton = kept;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gate with one barrier at a time, and the barriers that it had begun.
    fn gate(applied: u64, readers_max: usize) -> (Arc<ReadGate>, Arc<Mutex<Vec<ReadId>>>) {
        let begun = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&begun);
        (ReadGate::new(Slot(applied), readers_max, 1, move |id| told.lock().push(id)), begun)
    }

    #[test]
    fn a_read_never_uses_a_barrier_begun_before_it() {
        let (gate, begun) = gate(0, 8);
        let (mut first, baton) = gate.enter().unwrap();
        assert_eq!(*begun.lock(), []);
        drop(baton.unwrap());
        assert_eq!(*begun.lock(), [ReadId(1)]);
        let (mut second, none) = gate.enter().unwrap();
        let (mut third, none_either) = gate.enter().unwrap();
        assert!(none.is_none() && none_either.is_none(), "they gather while one is under way");
        gate.confirmed(ReadId(1), Slot(0));
        let baton = first.try_recv().unwrap().unwrap();
        assert!(second.try_recv().is_err() && third.try_recv().is_err(), "not the one under way");
        assert_eq!(begun.lock().len(), 1);
        drop(baton.unwrap());
        assert_eq!(*begun.lock(), [ReadId(1), ReadId(2)]);
        gate.confirmed(ReadId(2), Slot(0));
        assert!(second.try_recv().is_ok() && third.try_recv().is_ok(), "they share the next");
        assert_eq!(begun.lock().len(), 2, "nobody waits");
    }

    #[test]
    fn who_comes_before_the_baton_is_dropped_shares_the_barrier() {
        let (gate, begun) = gate(0, 8);
        let (mut first, baton) = gate.enter().unwrap();
        let (mut second, none) = gate.enter().unwrap();
        assert!(none.is_none());
        drop(baton);
        gate.confirmed(ReadId(1), Slot(0));
        assert!(first.try_recv().is_ok() && second.try_recv().is_ok());
        assert_eq!(*begun.lock(), [ReadId(1)]);
    }

    #[test]
    fn a_baton_is_not_lost_with_the_reader_it_was_meant_for() {
        let (gate, begun) = gate(0, 8);
        let (first, baton) = gate.enter().unwrap();
        drop(baton);
        let (mut second, _) = gate.enter().unwrap();
        drop(first);
        gate.confirmed(ReadId(1), Slot(0));
        assert_eq!(*begun.lock(), [ReadId(1), ReadId(2)]);
        let (third, _) = gate.enter().unwrap();
        gate.confirmed(ReadId(2), Slot(0));
        // Released with the baton in its hand, and gone before it looked.
        drop(second.try_recv().unwrap().unwrap().unwrap());
        assert_eq!(*begun.lock(), [ReadId(1), ReadId(2), ReadId(3)]);
        drop(third);
    }

    #[test]
    fn a_read_waits_for_what_its_barrier_saw_to_be_applied() {
        let (gate, _) = gate(4, 8);
        let (mut read, baton) = gate.enter().unwrap();
        drop(baton);
        let (_next, _) = gate.enter().unwrap();
        gate.confirmed(ReadId(1), Slot(5));
        assert!(read.try_recv().is_err());
        gate.applied(Slot(5));
        assert!(read.try_recv().is_ok());
    }

    #[test]
    fn a_failed_or_lost_barrier_is_begun_again() {
        let (gate, begun) = gate(0, 8);
        let (mut read, baton) = gate.enter().unwrap();
        drop(baton);
        gate.failed(ReadId(1), ReadError::NoLeader);
        assert!(read.try_recv().is_err());
        gate.tick(Time(1));
        gate.tick(Time(1).after(RETRY_AFTER));
        assert_eq!(*begun.lock(), [1, 2, 3].map(ReadId));
        gate.confirmed(ReadId(2), Slot(0));
        assert!(read.try_recv().is_err(), "a late answer is nobody's");
        gate.confirmed(ReadId(3), Slot(0));
        assert!(read.try_recv().is_ok());
    }

    #[test]
    fn readers_are_bounded_and_leave_when_they_give_up() {
        let (gate, begun) = gate(0, 1);
        let (read, baton) = gate.enter().unwrap();
        assert_eq!(gate.enter().unwrap_err(), BarrierError::Busy);
        drop(baton);
        gate.failed(ReadId(1), ReadError::NoLeader);
        drop(read);
        gate.tick(Time(1));
        assert_eq!(begun.lock().len(), 1);
        assert!(gate.enter().is_ok());
    }

    #[test]
    fn a_closed_gate_lets_nobody_wait() {
        let (gate, begun) = gate(0, 8);
        let (mut read, baton) = gate.enter().unwrap();
        gate.fail_all();
        drop(baton);
        assert!(read.try_recv().is_err() && gate.enter().is_err());
        assert_eq!(*begun.lock(), []);
    }
}
