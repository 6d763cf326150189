//! Every client could believe that operations happened one after the other, each at some moment between question and answer
//! (Herlihy and Wing, 1990). Judged by `porcupine-rs`, which knows nothing of logs, slots and revisions.
//!
//! Linearizability is local, so each key is judged on its own; what an operation does to several keys is split. That several keys
//! change at one moment is seen by [`check_replay`](super::check_replay).
//!
//! An operation of unknown outcome may have happened at any time after it was asked, or never. Since every write writes a value of
//! its own and every operation tells exactly what it found, a write that nobody saw explains nothing and is left out, and
//! one that was seen must have happened before whoever saw it first had the answer. This keeps the search small without changing its verdict.

use std::{collections::BTreeMap, time::Duration};

use porcupine_rs::{CheckResult, Model, Operation as Timed};

use super::Violation;
use crate::{
    clock::SimTime,
    history::{Action, Ending, History, Key, Operation, Value},
};

const NAME: &str = "linearizability";

/// What an operation did to one key, as far as its client knows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Register {
    Write(Value),
    /// Found this, and left it.
    Found(Option<Value>),
    /// Found this, and left nothing.
    Removed(Option<Value>),
    /// Left nothing, whatever it found.
    RemovedUnseen,
    /// Found the first and wrote the second.
    Swapped(Option<Value>, Value),
}

#[derive(Clone, Debug)]
struct KeyModel;

impl Model for KeyModel {
    type State = Option<Value>;
    type Op = Register;
    type Metadata = usize;

    fn init() -> Self::State {
        None
    }

    fn step(state: &Self::State, op: &Self::Op) -> (bool, Self::State) {
        match op {
            Register::Write(value) => (true, Some(*value)),
            Register::Found(value) => (state == value, *state),
            Register::Removed(value) => (state == value, None),
            Register::RemovedUnseen => (true, None),
            Register::Swapped(expected, value) => (state == expected, Some(*value)),
        }
    }
}

struct Part {
    operation: usize,
    called: SimTime,
    returned: Option<SimTime>,
    register: Register,
}

/// Checks a history. `patience` bounds the search for one key, in real time.
///
/// # Errors
/// If some key's part has no order that explains it, or none was found in time.
pub fn check_linearizability(history: &History, patience: Duration) -> Result<(), Violation> {
    let mut keys: BTreeMap<Key, Vec<Part>> = BTreeMap::new();
    for (index, operation) in history.operations().iter().enumerate() {
        split(operation, &mut |key, register| {
            let (called, returned) = (operation.called, operation.returned());
            keys.entry(key).or_default().push(Part { operation: index, called, returned, register });
        });
    }
    for (key, mut parts) in keys {
        bound_unknown(&mut parts);
        let timed: Vec<Timed<KeyModel>> = parts.iter().map(timed).collect();
        let why = match porcupine_rs::check_operations_timeout(&timed, patience) {
            CheckResult::Ok => continue,
            CheckResult::Illegal => "no order explains",
            CheckResult::Unknown => "no order was found in time for",
        };
        let what = format!("{why} the {} operations on key {key}: {}", parts.len(), narrow(parts, patience));
        return Err(Violation::new(NAME, what));
    }
    Ok(())
}

fn timed(part: &Part) -> Timed<KeyModel> {
    Timed {
        client_id: None,
        call_time: part.called as i64,
        return_time: part.returned.map_or(i64::MAX, |at| at as i64),
        op: part.register.clone(),
        metadata: Some(part.operation),
    }
}

/// Splits an operation by key. What was refused did nothing.
fn split(operation: &Operation, part: &mut impl FnMut(Key, Register)) {
    let answer = match &operation.ending {
        Ending::Answered { answer, .. } => Some(answer),
        Ending::Refused { .. } => return,
        Ending::Unknown => None,
    };
    let seen = |key: Key| {
        answer.and_then(|answer| answer.seen.iter().find(|seen| seen.key == key)).map(|seen| seen.value)
    };
    match &operation.action {
        Action::Put { key, value } => part(*key, Register::Write(*value)),
        Action::PutAll { keys, value } => {
            for key in keys {
                part(*key, Register::Write(*value));
            }
        }
        Action::Swap { key, expect, value } => match answer {
            Some(answer) if answer.done => part(*key, Register::Swapped(*expect, *value)),
            Some(_) => part(*key, Register::Found(seen(*key))),
            None => part(*key, Register::Swapped(*expect, *value)),
        },
        Action::Delete { from, to } => {
            for key in *from..*to {
                let register =
                    if answer.is_some() { Register::Removed(seen(key)) } else { Register::RemovedUnseen };
                part(key, register);
            }
        }
        Action::Read { from, to } if answer.is_some() => {
            for key in *from..*to {
                part(key, Register::Found(seen(key)));
            }
        }
        Action::Read { .. } | Action::Compact { .. } => {}
    }
}

/// Leaves out unknown writes that nobody saw, and bounds those that were seen.
fn bound_unknown(parts: &mut Vec<Part>) {
    let mut seen: BTreeMap<Value, SimTime> = BTreeMap::new();
    loop {
        let before = seen.clone();
        for part in parts.iter() {
            let saw = match &part.register {
                Register::Found(value) | Register::Removed(value) | Register::Swapped(value, _) => *value,
                Register::Write(_) | Register::RemovedUnseen => None,
            };
            // A swap of unknown outcome saw what it expected only if its own value was seen.
            let until = match (&part.register, part.returned) {
                (_, Some(at)) => Some(at),
                (Register::Swapped(_, wrote), None) => seen.get(wrote).copied(),
                _ => None,
            };
            if let (Some(value), Some(until)) = (saw, until) {
                let first = seen.entry(value).or_insert(until);
                *first = (*first).min(until);
            }
        }
        if seen == before {
            break;
        }
    }
    parts.retain_mut(|part| {
        let (None, Register::Write(value) | Register::Swapped(_, value)) = (part.returned, &part.register)
        else {
            return true;
        };
        part.returned = seen.get(value).copied();
        part.returned.is_some()
    });
}

/// The shortest failing beginning of a key's history, for people: its last few operations.
fn narrow(mut parts: Vec<Part>, patience: Duration) -> String {
    parts.sort_by_key(|part| part.called);
    let (mut good, mut bad) = (0, parts.len());
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        let timed: Vec<_> = parts[..middle].iter().map(timed).collect();
        match porcupine_rs::check_operations_timeout(&timed, patience) {
            CheckResult::Ok => good = middle,
            _ => bad = middle,
        }
    }
    let from = bad.saturating_sub(12);
    let lines: Vec<String> = parts[from..bad]
        .iter()
        .map(|part| format!("[{} {}..{:?} {:?}]", part.operation, part.called, part.returned, part.register))
        .collect();
    lines.join(" ")
}

#[cfg(test)]
mod tests {
    use conclave_consensus::ProposalId;

    use super::*;
    use crate::history::{Answer, Seen};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn put(history: &mut History, value: Value, from: SimTime, to: Option<SimTime>) {
        let call = history.call(1, 1, from, Action::Put { key: 1, value }, ProposalId::NONE);
        if let Some(at) = to {
            history.end(call, answered(at, None));
        }
    }

    fn read(history: &mut History, value: Option<Value>, from: SimTime, to: SimTime) {
        let call = history.call(2, 1, from, Action::Read { from: 1, to: 2 }, ProposalId::NONE);
        history.end(call, answered(to, value));
    }

    fn answered(at: SimTime, value: Option<Value>) -> Ending {
        let seen = value.map(|value| Seen { key: 1, value, modified: 0, created: 0, version: 0 });
        Ending::Answered { at, answer: Answer { revision: 0, done: true, seen: seen.into_iter().collect() } }
    }

    #[test]
    fn fires_on_a_stale_read() {
        let mut history = History::default();
        put(&mut history, 7, 1, Some(2));
        put(&mut history, 8, 3, Some(4));
        read(&mut history, Some(7), 5, 6);
        assert_eq!(check_linearizability(&history, PATIENCE).unwrap_err().invariant, NAME);
    }

    #[test]
    fn a_concurrent_read_may_see_either() {
        for value in [7, 8] {
            let mut history = History::default();
            put(&mut history, 7, 1, Some(2));
            put(&mut history, 8, 3, Some(6));
            read(&mut history, Some(value), 4, 5);
            assert_eq!(check_linearizability(&history, PATIENCE), Ok(()));
        }
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_not_twice() {
        let mut history = History::default();
        put(&mut history, 7, 1, None);
        read(&mut history, None, 2, 3);
        assert_eq!(check_linearizability(&history, PATIENCE), Ok(()));
        read(&mut history, Some(7), 4, 5);
        assert_eq!(check_linearizability(&history, PATIENCE), Ok(()));
        put(&mut history, 8, 6, Some(7));
        assert_eq!(check_linearizability(&history, PATIENCE), Ok(()));
        read(&mut history, Some(7), 8, 9);
        assert!(check_linearizability(&history, PATIENCE).is_err(), "it was overwritten");
    }

    #[test]
    fn fires_on_a_refused_write_that_was_seen() {
        let mut history = History::default();
        let call = history.call(1, 1, 1, Action::Put { key: 1, value: 7 }, ProposalId::NONE);
        history.end(call, Ending::Refused { at: 2 });
        read(&mut history, Some(7), 3, 4);
        assert!(check_linearizability(&history, PATIENCE).is_err());
    }

    #[test]
    fn a_chain_of_unknown_swaps_is_explained() {
        let mut history = History::default();
        put(&mut history, 1, 1, None);
        for (expect, value) in [(1, 2), (2, 3)] {
            let action = Action::Swap { key: 1, expect: Some(expect), value };
            history.call(1, 1, 2, action, ProposalId::NONE);
        }
        read(&mut history, Some(3), 3, 4);
        assert_eq!(check_linearizability(&history, PATIENCE), Ok(()));
    }
}
