//! What clients asked and what they were told.

use conclave_consensus::ProposalId;

use crate::clock::SimTime;

/// A key of the simulated load; [`key_bytes`] is how it is stored.
pub type Key = u32;

/// A value of the simulated load. Every write writes one that no other write writes, so that whoever reads it knows whose it is.
pub type Value = u64;

/// The bytes of a key: fixed width, so that keys order as their numbers do.
#[must_use]
pub fn key_bytes(key: Key) -> Vec<u8> {
    format!("k{key:08}").into_bytes()
}

/// The key that bytes stand for.
#[must_use]
pub fn key_of(bytes: &[u8]) -> Option<Key> {
    std::str::from_utf8(bytes.strip_prefix(b"k")?).ok()?.parse().ok()
}

/// The bytes of a value: its number, and padding whose length the number decides.
#[must_use]
pub fn value_bytes(value: Value) -> Vec<u8> {
    let padding = (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize;
    let mut bytes = Vec::with_capacity(8 + padding);
    bytes.extend_from_slice(&value.to_be_bytes());
    bytes.resize(8 + padding, b'.');
    bytes
}

/// The value that bytes stand for, if they are whole.
#[must_use]
pub fn value_of(bytes: &[u8]) -> Option<Value> {
    let (number, _) = bytes.split_first_chunk::<8>()?;
    let value = Value::from_be_bytes(*number);
    (value_bytes(value) == bytes).then_some(value)
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes a key.
    Put {
        /// Which.
        key: Key,
        /// What.
        value: Value,
    },
    /// Deletes the keys `from..to` and asks what they held.
    Delete {
        /// The first key.
        from: Key,
        /// The key after the last.
        to: Key,
    },
    /// Writes a key if it holds `expect` (`None`: if it does not exist), else reads it.
    Swap {
        /// Which.
        key: Key,
        /// What it must hold.
        expect: Option<Value>,
        /// What to write.
        value: Value,
    },
    /// Writes several keys in one transaction, all the same value.
    PutAll {
        /// Which, ascending.
        keys: Vec<Key>,
        /// What.
        value: Value,
    },
    /// Forgets what is older than a revision.
    Compact {
        /// The oldest revision to keep readable.
        revision: i64,
    },
    /// Reads the keys `from..to`, linearizable.
    Read {
        /// The first key.
        from: Key,
        /// The key after the last.
        to: Key,
    },
}

impl Action {
    /// Whether it goes through the log.
    #[must_use]
    pub fn is_proposal(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }
}

/// A key as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub key: Key,
    /// What it holds.
    pub value: Value,
    /// The revision that wrote it.
    pub modified: i64,
    /// The revision that created it.
    pub created: i64,
    /// How many writes since its creation.
    pub version: i64,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The store's revision as of the operation.
    pub revision: i64,
    /// For a swap: whether it wrote. True for everything else that was done, false for a compaction that was refused.
    pub done: bool,
    /// What was read: the keys of a read, those deleted, or what stood in a swap's way. Ascending.
    pub seen: Vec<Seen>,
}

/// How an operation ended for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With an answer.
    Answered {
        /// When.
        at: SimTime,
        /// What.
        answer: Answer,
    },
    /// With an error that says that it did not happen.
    Refused {
        /// When.
        at: SimTime,
    },
    /// With silence, or an error that leaves it open.
    Unknown,
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who.
    pub client: u32,
    /// At which node.
    pub node: u64,
    /// When it was asked.
    pub called: SimTime,
    /// What.
    pub action: Action,
    /// Its name in the log; nobody's for a read.
    pub id: ProposalId,
    /// How it ended.
    pub ending: Ending,
}

impl Operation {
    /// The answer, if there was one.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        match &self.ending {
            Ending::Answered { answer, .. } => Some(answer),
            _ => None,
        }
    }

    /// When the client knew its outcome, if ever.
    #[must_use]
    pub fn returned(&self) -> Option<SimTime> {
        match self.ending {
            Ending::Answered { at, .. } | Ending::Refused { at } => Some(at),
            Ending::Unknown => None,
        }
    }
}

/// All operations of a run, in the order in which they were asked.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
}

impl History {
    /// Records that a client asks; the number names the operation.
    pub fn call(&mut self, client: u32, node: u64, called: SimTime, action: Action, id: ProposalId) -> usize {
        self.operations.push(Operation { client, node, called, action, id, ending: Ending::Unknown });
        self.operations.len() - 1
    }

    /// Records the name that an operation was given on its way into the log.
    ///
    /// # Panics
    /// If there is no such operation, or it has a name: a defect of the simulator.
    pub fn name(&mut self, operation: usize, id: ProposalId) {
        let operation = &mut self.operations[operation];
        assert!(operation.id.is_none(), "an operation is proposed once");
        operation.id = id;
    }

    /// Records how an operation ended.
    ///
    /// # Panics
    /// If there is no such operation or it has ended: a defect of the simulator.
    pub fn end(&mut self, operation: usize, ending: Ending) {
        let operation = &mut self.operations[operation];
        assert_eq!(operation.ending, Ending::Unknown, "an operation ends once");
        operation.ending = ending;
    }

    /// One operation.
    #[must_use]
    pub fn get(&self, operation: usize) -> Option<&Operation> {
        self.operations.get(operation)
    }

    /// All of them.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_come_back() {
        for key in [0, 1, 99_999_999] {
            assert_eq!(key_of(&key_bytes(key)), Some(key));
        }
        for value in [0, 1, 77, u64::MAX] {
            let mut bytes = value_bytes(value);
            assert_eq!(value_of(&bytes), Some(value));
            bytes.push(b'.');
            assert_eq!(value_of(&bytes), None, "a value is whole or it is none");
        }
        assert!(key_bytes(9) < key_bytes(10));
    }
}
