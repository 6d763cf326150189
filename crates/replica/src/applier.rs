//! Applies chosen entries of one group and decides when its state is made durable.

use bytes::Bytes;
use conclave_consensus::{Config, Entry, Kind, ProposalId, Slot, SnapshotMeta};
use conclave_storage::{Job, Replies, SnapshotSink, SnapshotSource, StateError, StateMachine};

/// When a checkpoint is taken.
#[derive(Clone, Copy, Debug)]
pub struct CheckpointPolicy {
    /// Once so many bytes live in memory alone. At four times as many, applying waits for the checkpoint under way. Default 24 MiB.
    pub pending_bytes: usize,
    /// Once so many entries were applied since the last: they are what a boot replays. Default 250,000.
    pub entries: u64,
    /// The first after a boot is due at so many percent of either: replicas apply the same entries, and would else all be busy with their
    /// checkpoints at the same moment. Default 100.
    pub first_percent: u8,
}

/// How many times [`CheckpointPolicy::pending_bytes`] may be pending before applying waits.
const SATURATION: usize = 4;

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self { pending_bytes: 24 << 20, entries: 250_000, first_percent: 100 }
    }
}

/// A group's state machine and how far it is.
#[derive(Debug)]
pub struct Applier {
    machine: Box<dyn StateMachine>,
    policy: CheckpointPolicy,
    /// What part of the policy's bounds the next checkpoint waits for.
    due_percent: u8,
    /// The last applied slot, its ballot, and the membership in force there.
    at: SnapshotMeta,
    checkpointed: Slot,
    /// The checkpoint under way.
    running: Option<SnapshotMeta>,
}

impl Applier {
    /// A machine whose state is as of `at`.
    #[must_use]
    pub fn new(machine: Box<dyn StateMachine>, at: SnapshotMeta, policy: CheckpointPolicy) -> Self {
        Self { machine, policy, due_percent: policy.first_percent, checkpointed: at.slot, at, running: None }
    }

    /// The last applied slot.
    #[must_use]
    pub fn applied(&self) -> Slot {
        self.at.slot
    }

    /// The membership as of the last applied slot.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.at.config
    }

    /// Applies entries and collects what waiting clients are told: of a change of membership, that it is made. Says whether there was one.
    ///
    /// # Panics
    /// If the entries do not continue where the last call ended: applying them would corrupt the state, and the process must stop.
    pub fn apply(
        &mut self,
        entries: &[Entry],
        waits: &dyn Fn(ProposalId) -> bool,
        replies: &mut Replies,
    ) -> bool {
        let Some(last) = entries.last() else { return false };
        let mut changed = false;
        for (entry, expected) in entries.iter().zip(self.at.slot.0 + 1..) {
            assert_eq!(entry.slot.0, expected, "entries are applied in order, each once");
            if entry.kind == Kind::Config {
                changed = true;
                // The core refused malformed ones before they could be chosen.
                self.at.config =
                    Config::decode(&entry.payload).expect("a chosen configuration is well-formed");
                if waits(entry.id) {
                    replies.push((entry.id, Bytes::new()));
                }
            }
        }
        self.machine.apply(entries, waits, replies);
        (self.at.slot, self.at.ballot) = (last.slot, last.ballot);
        changed
    }

    /// A checkpoint to be run elsewhere, if one is due.
    pub fn checkpoint_if_due(&mut self) -> Option<Box<dyn Job>> {
        let entries = self.at.slot.0 - self.checkpointed.0;
        let part = |whole: u64| (u128::from(whole) * u128::from(self.due_percent) / 100) as u64;
        let due = entries >= part(self.policy.entries)
            || self.machine.pending_bytes() as u64 >= part(self.policy.pending_bytes as u64);
        if due { self.checkpoint() } else { None }
    }

    /// A checkpoint to be run elsewhere, if there is anything new and none is under way.
    pub fn checkpoint(&mut self) -> Option<Box<dyn Job>> {
        if self.running.is_some() || self.at.slot == self.checkpointed {
            return None;
        }
        let job = self.machine.checkpoint(self.at.clone())?;
        self.due_percent = 100;
        self.running = Some(self.at.clone());
        Some(job)
    }

    /// The job that [`checkpoint`](Self::checkpoint) gave is done: says which state is durable now. `None` if a snapshot was installed meanwhile.
    pub fn checkpointed(&mut self) -> Option<SnapshotMeta> {
        let meta = self.running.take()?;
        self.checkpointed = meta.slot;
        self.machine.checkpointed();
        Some(meta)
    }

    /// The last checkpoint, to be streamed.
    #[must_use]
    pub fn snapshot(&self) -> Option<Box<dyn SnapshotSource>> {
        self.machine.snapshot()
    }

    /// Begins to take in a snapshot beside the present state.
    ///
    /// # Errors
    /// The engine's.
    pub fn receive(&self, generation: u64) -> Result<Box<dyn SnapshotSink>, StateError> {
        self.machine.receive(generation)
    }

    /// Whether a checkpoint is under way and so much is pending that nothing should be applied before it is done: else memory would grow for as
    /// long as clients write faster than the disk takes it.
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.running.is_some() && self.machine.pending_bytes() >= SATURATION * self.policy.pending_bytes
    }

    /// Whether a checkpoint is being written: an install waits for its end, since both write to the engine.
    #[must_use]
    pub fn is_checkpointing(&self) -> bool {
        self.running.is_some()
    }

    /// Switches to an installed snapshot, already durable in the log.
    ///
    /// # Errors
    /// The engine's; the process must stop, since the log no longer holds what led to the present state.
    pub fn install(&mut self, meta: &SnapshotMeta) -> Result<(), StateError> {
        self.machine.install(meta)?;
        self.at = meta.clone();
        self.checkpointed = meta.slot;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use conclave_consensus::{Ballot, Epoch, NodeId};

    use super::*;

    /// Remembers how many bytes it was given.
    #[derive(Debug, Default)]
    struct Bytewise(usize);

    #[derive(Debug)]
    struct Nothing;

    impl Job for Nothing {
        fn run(self: Box<Self>) -> Result<(), StateError> {
            Ok(())
        }
    }

    impl StateMachine for Bytewise {
        fn apply(&mut self, entries: &[Entry], _: &dyn Fn(ProposalId) -> bool, _: &mut Replies) {
            self.0 += entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
        }

        fn pending_bytes(&self) -> usize {
            self.0
        }

        fn checkpoint(&mut self, _: SnapshotMeta) -> Option<Box<dyn Job>> {
            Some(Box::new(Nothing))
        }

        fn checkpointed(&mut self) {
            self.0 = 0;
        }

        fn snapshot(&self) -> Option<Box<dyn SnapshotSource>> {
            None
        }

        fn receive(&self, generation: u64) -> Result<Box<dyn SnapshotSink>, StateError> {
            Err(StateError::NoGeneration(generation))
        }

        fn install(&mut self, _: &SnapshotMeta) -> Result<(), StateError> {
            Ok(())
        }
    }

    /// After which entries of ten bytes a checkpoint was due.
    fn due_after(policy: CheckpointPolicy, entries: u64) -> Vec<u64> {
        let mut applier = Applier::new(Box::new(Bytewise::default()), SnapshotMeta::default(), policy);
        let mut due = Vec::new();
        for slot in 1..=entries {
            let id = ProposalId::new(NodeId(1), Epoch(1), slot);
            let (slot, ballot) = (Slot(slot), Ballot::term(1));
            let entry =
                Entry { slot, ballot, kind: Kind::Command, id, payload: Bytes::from_static(b"0123456789") };
            applier.apply(&[entry], &|_| false, &mut Replies::new());
            if applier.checkpoint_if_due().is_some() {
                due.push(slot.0);
                applier.checkpointed();
            }
        }
        due
    }

    #[test]
    fn replicas_that_apply_the_same_take_their_checkpoints_apart() {
        let by_bytes =
            |first_percent| CheckpointPolicy { pending_bytes: 90, entries: u64::MAX, first_percent };
        assert_eq!(due_after(by_bytes(100), 30), [9, 18, 27]);
        assert_eq!(due_after(by_bytes(33), 30), [3, 12, 21, 30]);
        let by_entries =
            |first_percent| CheckpointPolicy { pending_bytes: usize::MAX, entries: 6, first_percent };
        assert_eq!(due_after(by_entries(100), 20), [6, 12, 18]);
        assert_eq!(due_after(by_entries(50), 20), [3, 9, 15]);
    }
}
