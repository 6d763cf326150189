//! Reads under a lease, where the leader keeps one; everything else as the core does it.

use conclave_consensus::{Consensus, Effect, Input, ReadMode, ReplicaId, Status, StepError, Time};

/// A core whose reads, asked where it leads, rely on its lease. Without one they are as safe and slower.
#[derive(Debug)]
pub(super) struct LeaseReads(pub(super) Box<dyn Consensus>);

impl Consensus for LeaseReads {
    fn step(&mut self, now: Time, input: Input) -> Result<(), StepError> {
        let leads = self.0.leader() == Some(self.0.replica());
        match input {
            Input::ReadBarrier { id, .. } if leads => {
                self.0.step(now, Input::ReadBarrier { id, mode: ReadMode::Lease })
            }
            other => self.0.step(now, other),
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        self.0.next_deadline()
    }

    fn drain(&mut self, out: &mut Vec<Effect>) {
        self.0.drain(out);
    }

    fn status(&self) -> Status {
        self.0.status()
    }

    fn replica(&self) -> ReplicaId {
        self.0.replica()
    }

    fn leader(&self) -> Option<ReplicaId> {
        self.0.leader()
    }
}
