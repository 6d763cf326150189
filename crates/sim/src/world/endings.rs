//! How a node's life ends: its power is cut, its process is killed, or it halts because a disk failed it.

use conclave_storage::{LogError, StateError};

use super::{
    Context,
    node::Node,
    queue::{Event, Op},
};
use crate::{check::Violation, clock::MS, history::Ending};

impl Node {
    /// The log failed: a crash if the power went inside it, a halt if its disk was made to fail, else something that must not be.
    ///
    /// Damage is to be told from everything else and never to be served: who meets it halts for good.
    pub(super) fn log_failed(&mut self, context: &mut Context, error: &LogError) -> Result<(), Violation> {
        if self.disk.is_dead() {
            context.counters.disk_crashes += 1;
            self.crash(context);
            return Ok(());
        }
        match error {
            // Where the header itself is hit, it may no longer look like this log's.
            LogError::Damaged { .. } | LogError::Foreign { .. } if self.disk.is_damaged() => {
                context.trace.say(|| format!("node {}: {error}", self.id));
                context.counters.damages_found += 1;
                self.lose(context);
            }
            LogError::Full if self.disk.is_limited() => self.halt(context),
            LogError::Io { .. } if self.disk.has_failed_sync() => self.halt(context),
            LogError::Misuse(_) => {
                return Err(Violation::new("misused log", format!("node {}: {error}", self.id)));
            }
            other => return Err(Violation::new("recovery", format!("node {}: {other}", self.id))),
        }
        Ok(())
    }

    /// The state engine failed, likewise.
    pub(super) fn state_failed(
        &mut self,
        context: &mut Context,
        error: &StateError,
    ) -> Result<(), Violation> {
        match error {
            _ if self.engine.has_crashed() => self.crash(context),
            StateError::Full if self.full => self.halt(context),
            other => return Err(Violation::new("state", format!("node {}: {other}", self.id))),
        }
        Ok(())
    }

    /// Power is gone: the process with all its memory, and some of what the disk had not synced.
    pub(super) fn crash(&mut self, context: &mut Context) {
        if self.life.is_none() && !self.disk.is_dead() {
            return;
        }
        context.counters.crashes += u64::from(self.life.is_some());
        self.end_life(context);
        let outcome = self.disk.power_cut();
        context.trace.note(context.now, self.id, "power cut", outcome.lost, outcome.kept + outcome.between);
        self.restart_later(context);
    }

    /// The process ends; what it wrote is in the system's cache, synced or not.
    pub(super) fn halt(&mut self, context: &mut Context) {
        context.counters.halts += 1;
        self.end_life(context);
        self.disk.exit();
        context.trace.note(context.now, self.id, "halt", 0, 0);
        self.restart_later(context);
    }

    /// It cannot be brought back as the replica it was.
    pub(super) fn lose(&mut self, context: &mut Context) {
        context.counters.lost += 1;
        self.end_life(context);
        self.disk.exit();
        self.broken = true;
        context.trace.note(context.now, self.id, "lost", 0, 0);
    }

    /// Its disks are gone, and empty ones take their place.
    pub(super) fn lose_disk(&mut self, context: &mut Context) {
        self.lose(context);
        self.disk.replace();
        self.engine = conclave_storage::MemoryEngine::new();
        #[cfg(feature = "mutants")]
        if conclave_consensus::Mutant::DiskLossSameId.is_on() {
            context.checks.durable.forget(self.replica());
            self.broken = false;
            self.restart_later(context);
        }
    }

    /// From now on there is no room in the state, and in the log for nothing or for so many bytes more than it has allocated.
    pub(super) fn fill_up(&mut self, bytes: Option<u64>) {
        self.full = true;
        self.disk.limit(bytes.map_or(0, |bytes| self.disk.used_bytes() + bytes));
        self.engine.set_full(true);
    }

    /// There is room again.
    pub(super) fn make_room(&mut self) {
        self.full = false;
        self.disk.limit(u64::MAX);
        self.engine.set_full(false);
    }

    pub(super) fn end_life(&mut self, context: &mut Context) {
        self.engine.crash();
        self.deferred.clear();
        let Some(life) = self.life.take() else { return };
        let orphans = life.waits.into_values().chain(life.barrier_of.into_values());
        let orphans: Vec<Op> = orphans.chain(life.ready.into_iter().map(|(_, op)| op)).collect();
        for op in orphans {
            context.reply(op, Ending::Unknown);
        }
    }

    fn restart_later(&mut self, context: &mut Context) {
        let down = 5 * MS + self.rng.below(context.options.faults.down_max.max(1));
        context.queue.push(context.now + down, Event::Restart { node: self.id, life: self.lives });
    }
}
