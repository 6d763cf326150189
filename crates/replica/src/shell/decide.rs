//! The task that steps the host. It never waits but for its mailbox, so it lives beside the transport's tasks: what a peer says goes
//! through the host and what it answers goes out again on one thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use conclave_consensus::{GroupId, NodeId, Proposal};
use conclave_transport::Packet;

use super::{Fatal, Role, Shared, ShellInput, apply::ApplyJob, catchup::CatchupJob, clock, log::LogJob};
use crate::{Host, HostEffect, HostInput, ProposeError};

/// How often reads that wait for a leader are looked at.
const READS_EVERY: Duration = Duration::from_millis(50);

pub(super) async fn run(shared: Arc<Shared>, mut host: Host) {
    let shared = &shared;
    let mut inputs = Vec::new();
    // Groups of whose reads some may wait: each barrier that a gate begins comes by here.
    let mut reading: BTreeSet<GroupId> = BTreeSet::new();
    let mut effects = Vec::new();
    let mut out = Outgoing::default();
    host.drain(&mut effects);
    loop {
        if !dispatch(shared, &mut effects, &mut out) {
            return;
        }
        let mut wait = host.next_deadline().map(|at| at.since(clock::now()));
        reading.retain(|group| shared.gates.get(group).is_some_and(|gate| gate.is_waiting()));
        if !reading.is_empty() {
            wait = Some(wait.map_or(READS_EVERY, |wait| wait.min(READS_EVERY)));
        }
        if !shared.inbox.take(wait, &mut inputs).await {
            return;
        }
        // Read after the inputs arrived: a lease or a silence is never judged by an older clock.
        let now = clock::now();
        for input in Proposals::join(inputs.drain(..)) {
            match input {
                ShellInput::Host(input) => {
                    if let HostInput::ReadBarrier { group, .. } = &input {
                        reading.insert(*group);
                    }
                    host.step(now, input);
                }
                // Whoever asked may have gone.
                ShellInput::Status { group, answer } => drop(answer.send(host.status(group))),
                // What the core had to say about it has left: it came with the entries.
                ShellInput::Removed { group } => {
                    shared.waiters.fail_all(ProposeError::Unknown);
                    shared.halt(Fatal::Removed { group });
                    return;
                }
            }
        }
        if host.next_deadline().is_some_and(|at| at <= now) {
            host.step(now, HostInput::Tick);
        }
        reading.iter().filter_map(|group| shared.gates.get(group)).for_each(|gate| gate.tick(now));
        host.drain(&mut effects);
        *shared.counters.lock() = host.counters();
    }
}

/// A joined batch that holds this much takes no more: it may have to travel as one packet.
const JOINED_BYTES: usize = 1 << 20;

/// Joins neighbouring proposals of a group, so that the core is stepped once for them.
struct Proposals<I: Iterator> {
    inputs: std::iter::Peekable<I>,
}

impl<I: Iterator<Item = ShellInput>> Proposals<I> {
    fn join(inputs: I) -> Self {
        Self { inputs: inputs.peekable() }
    }
}

impl<I: Iterator<Item = ShellInput>> Iterator for Proposals<I> {
    type Item = ShellInput;

    fn next(&mut self) -> Option<ShellInput> {
        let mut first = self.inputs.next()?;
        if let ShellInput::Host(HostInput::Propose { group, batch }) = &mut first {
            let same = |next: &ShellInput| matches!(next, ShellInput::Host(HostInput::Propose { group: g, .. }) if g == group);
            let bytes_of =
                |batch: &[Proposal]| batch.iter().map(|proposal| proposal.payload.len()).sum::<usize>();
            let mut bytes = bytes_of(batch);
            while bytes < JOINED_BYTES
                && let Some(ShellInput::Host(HostInput::Propose { batch: more, .. })) =
                    self.inputs.next_if(same)
            {
                bytes += bytes_of(&more);
                batch.extend(more);
            }
        }
        Some(first)
    }
}

/// Packets and jobs of one drain, gathered so that each queue is locked once.
#[derive(Default)]
struct Outgoing {
    packets: BTreeMap<NodeId, Vec<Packet>>,
}

/// `false` if the host is to stop: then nothing of this drain is sent, since a broken core's word is worth nothing.
fn dispatch(shared: &Arc<Shared>, effects: &mut Vec<HostEffect>, out: &mut Outgoing) -> bool {
    for effect in effects.drain(..) {
        match effect {
            HostEffect::Send { to, packet } => out.packets.entry(to).or_default().push(packet),
            HostEffect::Log { group, ops, mark, then } => {
                shared.logs.push(LogJob::Append { group, ops, mark, then });
            }
            HostEffect::Install { group, mark, meta } => {
                shared.logs.push(LogJob::Install { group, mark, meta })
            }
            HostEffect::Apply { group, entries } => {
                if let (Some(committed), Some(last)) = (shared.committed.get(&group), entries.last()) {
                    committed.store(last.slot.0, Ordering::Relaxed);
                }
                shared.applies.push(ApplyJob::Entries { group, entries });
            }
            HostEffect::ReadLog { group, id, range, bytes_max } => {
                shared.catchups.push(CatchupJob::ReadLog { group, id, range, bytes_max });
            }
            HostEffect::StorePiece { group, piece } => {
                shared.catchups.push(CatchupJob::Store { group, piece });
            }
            HostEffect::ForgetFetch { group, fetch } => {
                shared.catchups.push(CatchupJob::Forget { group, fetch });
            }
            HostEffect::ServePiece { to, group, request } => {
                // Refused when too many wait: the asker asks again.
                let _ = shared.catchups.offer(CatchupJob::Serve { to, group, request });
            }
            HostEffect::Failed { id, why } => shared.waiters.fail(id, why),
            HostEffect::ChangeRefused { id, why } => shared.waiters.refuse(id, why),
            HostEffect::ReadReady { group, id, at } => {
                if let Some(gate) = shared.gates.get(&group) {
                    gate.confirmed(id, at);
                }
            }
            HostEffect::ReadFailed { group, id, why } => {
                if let Some(gate) = shared.gates.get(&group) {
                    gate.failed(id, why);
                }
            }
            HostEffect::Role { group, ballot, leader, serving } => {
                role(shared, group, Role { ballot, leader, serving })
            }
            HostEffect::Membership { group, config } => {
                shared.configs.lock().insert(group, config);
            }
            HostEffect::Halt { group, why } => {
                shared.halt(Fatal::Broken { group, why });
                return false;
            }
        }
    }
    for (to, packets) in &mut out.packets {
        if !packets.is_empty() {
            shared.transport().send(*to, packets);
            packets.clear();
        }
    }
    true
}

fn role(shared: &Shared, group: GroupId, role: Role) {
    let Some(sender) = shared.roles.get(&group) else { return };
    sender.send_if_modified(|old| {
        if *old == role {
            return false;
        }
        if old.leader != role.leader {
            match role.leader {
                Some(leader) => tracing::info!(%group, leader = format_args!("{:x}", leader.0), term = role.ballot.round, "leader elected"),
                None => tracing::warn!(%group, term = role.ballot.round, "lost leader"),
            }
        }
        *old = role;
        true
    });
}
