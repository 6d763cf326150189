//! What breaks, and when.

use super::{World, queue::Event};
use crate::{
    check::Violation,
    clock::{MS, SimTime},
};

/// Something that breaks now and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A node loses power.
    Crash,
    /// A node loses power inside one of its next disk operations.
    DiskCrash,
    /// All nodes lose power.
    Blackout,
    /// Links are cut.
    Partition,
    /// A node stands still.
    Pause,
    /// A clock jumps forward.
    Jump,
    /// Leadership is handed over.
    Transfer,
}

impl Fault {
    const ALL: [Self; 7] = [
        Self::Crash,
        Self::DiskCrash,
        Self::Blackout,
        Self::Partition,
        Self::Pause,
        Self::Jump,
        Self::Transfer,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::DiskCrash => "disk crash",
            Self::Blackout => "blackout",
            Self::Partition => "partition",
            Self::Pause => "pause",
            Self::Jump => "clock jump",
            Self::Transfer => "transfer",
        }
    }
}

impl World {
    fn every(&self, fault: Fault) -> SimTime {
        let faults = &self.context.options.faults;
        match fault {
            Fault::Crash => faults.crash_every,
            Fault::DiskCrash => faults.disk_crash_every,
            Fault::Blackout => faults.blackout_every,
            Fault::Partition => faults.partition_every,
            Fault::Pause => faults.pause_every,
            Fault::Jump => faults.jump_every,
            Fault::Transfer => faults.transfer_every,
        }
    }

    /// Schedules the first of each fault that this run has.
    pub(super) fn begin_faults(&mut self) {
        for fault in Fault::ALL {
            self.schedule(fault);
        }
    }

    fn schedule(&mut self, fault: Fault) {
        let every = self.every(fault);
        if every > 0 {
            let at = self.context.now + self.faults.interval(every);
            self.context.queue.push(at, Event::Fault(fault));
        }
    }

    /// Lets something break, and schedules the next of its kind.
    pub(super) fn break_something(&mut self, fault: Fault) -> Result<(), Violation> {
        if self.context.healed {
            return Ok(());
        }
        self.schedule(fault);
        let nodes = self.context.options.nodes;
        let one = self.faults.between(1, nodes);
        let faults = self.context.options.faults.clone();
        let now = self.context.now;
        self.context.trace.note(now, one, fault.name(), 0, 0);
        match fault {
            Fault::Crash => self.crash(one),
            Fault::DiskCrash => {
                let ops = self.faults.between(1, 12);
                self.node(one).disk.cut_in(ops);
            }
            Fault::Blackout => {
                self.context.counters.blackouts += 1;
                for node in 1..=nodes {
                    self.crash(node);
                }
            }
            Fault::Partition => {
                let until = now + self.faults.between(50 * MS, faults.partition_max.max(50 * MS));
                let how = self.context.net.draw_cut();
                self.context.net.cut(how, nodes, until);
            }
            Fault::Pause => {
                let until = now + self.faults.between(20 * MS, faults.pause_max.max(20 * MS));
                self.context.counters.pauses += 1;
                let node = self.node(one);
                if until > node.paused_until {
                    node.paused_until = until;
                    self.context.queue.push(until, Event::Resume { node: one });
                }
            }
            Fault::Jump => {
                let by = self.faults.between(1, faults.jump_max.max(1));
                self.context.counters.jumps += 1;
                self.node(one).clock.jump(by);
                self.context.wake(one, now);
            }
            Fault::Transfer => {
                let heir = self.faults.between(1, nodes);
                self.context.counters.transfers += 1;
                for node in &mut self.nodes {
                    node.hand_over(&mut self.context, heir)?;
                }
            }
        }
        Ok(())
    }
}
