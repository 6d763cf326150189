//! What breaks, and when.

use super::{World, queue::Event};
use crate::{
    check::Violation,
    clock::{MS, SimTime},
    disk::{Lie, SECTOR},
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
    /// A process ends.
    Kill,
    /// One of the next syncs of a log fails.
    SyncFailure,
    /// A disk is full for a while.
    Full,
    /// A bit rots.
    Rot,
    /// A write is lost or lands elsewhere, although it is confirmed.
    Lie,
    /// A disk is lost.
    DiskLoss,
    /// Members come and go.
    Change,
}

impl Fault {
    const ALL: [Self; 14] = [
        Self::Crash,
        Self::DiskCrash,
        Self::Blackout,
        Self::Partition,
        Self::Pause,
        Self::Jump,
        Self::Transfer,
        Self::Kill,
        Self::SyncFailure,
        Self::Full,
        Self::Rot,
        Self::Lie,
        Self::DiskLoss,
        Self::Change,
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
            Self::Kill => "kill",
            Self::SyncFailure => "sync failure",
            Self::Full => "full disk",
            Self::Rot => "rot",
            Self::Lie => "lie",
            Self::DiskLoss => "disk loss",
            Self::Change => "change of membership",
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
            Fault::Kill => faults.kill_every,
            Fault::SyncFailure => faults.sync_failure_every,
            Fault::Full => faults.full_every,
            Fault::Rot => faults.rot_every,
            Fault::Lie => faults.lie_every,
            Fault::DiskLoss => faults.disk_loss_every,
            Fault::Change => faults.change_every,
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

    /// Power goes right when a node is writing what matters most.
    pub(super) fn ambush(&mut self, node: u64, life: u64, all: bool) {
        if self.context.healed || !self.node(node).is_in_life(life) {
            return;
        }
        if all {
            self.context.counters.blackouts += 1;
            for node in 1..=self.context.options.nodes {
                self.crash(node);
            }
        } else {
            self.crash(node);
        }
    }

    /// Where leaders rely on leases, one that hands over is made not to hear of its end, now and then: it must not serve on.
    fn deafen_leader_under_lease(&mut self, heir: u64) {
        if self.context.options.lease_drift_ppm.is_none() || self.faults.bits() & 1 == 0 {
            return;
        }
        let Some(leader) = self.leader().filter(|leader| *leader != heir) else { return };
        let links = (1..=self.context.options.nodes).filter(|node| *node != leader);
        let until = self.context.now + self.elections(2);
        self.context.net.cut_links(links.map(|node| (node, leader)).collect(), until);
    }

    /// A disk refuses, deceives or dies. Only those of the suspects deceive and die, so that a quorum is never damaged.
    fn fail_disk(&mut self, fault: Fault, one: u64) {
        let segment_bytes = self.context.options.node.segment_bytes;
        let suspect = self.faults.between(1, self.context.options.suspects());
        // A log that boots rewrites its tail, and until it has written something behind that no later frame proves it.
        let at_rest = matches!(fault, Fault::Rot | Fault::Lie | Fault::DiskLoss);
        if at_rest && !self.node(suspect).is_up() {
            return;
        }
        self.context.counters.disk_faults += 1;
        match fault {
            Fault::SyncFailure => {
                let syncs = self.faults.between(1, 4);
                self.node(one).disk.fail_sync_in(syncs);
            }
            Fault::Full => {
                let room = self.faults.below(2 * segment_bytes);
                let room = (self.faults.bits() & 1 == 0).then_some(room);
                let until = self.faults.between(50 * MS, self.context.options.faults.full_max.max(50 * MS));
                let node = self.node(one);
                node.fill_up(room);
                self.context.queue.push(self.context.now + until, Event::Room { node: one });
            }
            Fault::Rot => {
                self.node(suspect).disk.rot();
            }
            Fault::DiskLoss => {
                let node = &mut self.nodes[suspect as usize - 1];
                node.lose_disk(&mut self.context);
            }
            _ => {
                let writes = self.faults.between(1, 8);
                let shift = self.faults.between(1, segment_bytes / SECTOR as u64 - 1);
                let lie = if self.faults.bits() & 1 == 0 { Lie::Lost } else { Lie::Misdirected(shift) };
                self.node(suspect).disk.lie_in(writes, lie);
            }
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
                let in_engine = self.faults.chance(300_000);
                let node = self.node(one);
                if in_engine { node.engine.crash_in(1 + ops / 4) } else { node.disk.cut_in(ops) }
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
                match (self.context.options.lease_drift_ppm, self.leader()) {
                    (Some(_), Some(leader)) if self.faults.bits() & 1 == 0 => {
                        // Its lease is all that it has.
                        let others = (1..=nodes).filter(|node| *node != leader);
                        let links = others.flat_map(|node| [(node, leader), (leader, node)]).collect();
                        self.context.net.cut_links(links, until.max(now + self.elections(3)));
                    }
                    _ => self.context.net.cut(how, nodes, until),
                }
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
                self.deafen_leader_under_lease(heir);
                for node in &mut self.nodes {
                    node.hand_over(&mut self.context, heir)?;
                }
            }
            Fault::Kill => {
                let node = &mut self.nodes[one as usize - 1];
                if node.is_up() {
                    self.context.counters.kills += 1;
                    node.halt(&mut self.context);
                }
            }
            Fault::Change => self.ask_whoever_leads()?,
            Fault::SyncFailure | Fault::Full | Fault::Rot | Fault::Lie | Fault::DiskLoss => {
                self.fail_disk(fault, one);
            }
        }
        Ok(())
    }
}
