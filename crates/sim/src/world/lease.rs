//! The core as a node runs it: reads under a lease, where the leader keeps one, and a count of the times it fell asleep leading.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use conclave_consensus::{Consensus, Effect, Input, ReadMode, ReplicaId, Status, StepError, Time};
use conclave_raft::Raft;

/// A core whose reads, asked where it leads, rely on its lease. Without one they are as safe and slower.
#[derive(Debug)]
pub(super) struct LeaseReads {
    core: Raft,
    sleeps: bool,
    naps: Arc<AtomicU64>,
}

impl LeaseReads {
    pub(super) fn new(core: Raft, naps: Arc<AtomicU64>) -> Self {
        Self { core, sleeps: false, naps }
    }
}

impl Consensus for LeaseReads {
    fn step(&mut self, now: Time, input: Input) -> Result<(), StepError> {
        let leads = self.core.leader() == Some(self.core.replica());
        match input {
            Input::ReadBarrier { id, .. } if leads => {
                self.core.step(now, Input::ReadBarrier { id, mode: ReadMode::Lease })
            }
            other => self.core.step(now, other),
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        self.core.next_deadline()
    }

    fn drain(&mut self, out: &mut Vec<Effect>) {
        self.core.drain(out);
        let leads = self.core.leader() == Some(self.core.replica());
        let sleeps = leads && self.core.next_deadline().is_none();
        if sleeps && !self.sleeps {
            self.naps.fetch_add(1, Ordering::Relaxed);
        }
        self.sleeps = sleeps;
    }

    fn status(&self) -> Status {
        self.core.status()
    }

    fn replica(&self) -> ReplicaId {
        self.core.replica()
    }

    fn leader(&self) -> Option<ReplicaId> {
        self.core.leader()
    }
}
