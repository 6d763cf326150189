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

pub(super) async fn run(shared: Arc<Shared>, host: Host) {
    step_on(&shared, host).await;
    // The mailbox is closed by now. What came after it was last emptied may hold the other end of somebody's wait.
    shared.inbox.clear();
}

async fn step_on(shared: &Arc<Shared>, mut host: Host) {
    let mut inputs = Vec::new();
    // Groups of whose reads some may wait: each barrier that a gate begins comes by here.
    let mut reading: BTreeSet<GroupId> = BTreeSet::new();
    let mut proposals = Proposals::default();
    let mut effects = Vec::new();
    let mut out = Outgoing::default();
    host.drain(&mut effects);
    loop {
        if !dispatch(shared, &mut effects, &mut out) {
            return;
        }
        let mut wait = host.next_deadline().map(|at| at.since(clock::now()));
        reading.retain(|group| shared.gates.get(*group).is_some_and(|gate| gate.is_waiting()));
        if !reading.is_empty() {
            wait = Some(wait.map_or(READS_EVERY, |wait| wait.min(READS_EVERY)));
        }
        if !shared.inbox.take(wait, &mut inputs).await {
            return;
        }
        // Read after the inputs arrived: a lease or a silence is never judged by an older clock.
        let now = clock::now();
        for input in inputs.drain(..) {
            match input {
                ShellInput::Host(HostInput::Propose { group, batch }) => {
                    if let Some(full) = proposals.add(group, batch) {
                        host.step(now, full);
                    }
                }
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
        while let Some(joined) = proposals.next() {
            host.step(now, joined);
        }
        if host.next_deadline().is_some_and(|at| at <= now) {
            host.step(now, HostInput::Tick);
        }
        reading.iter().filter_map(|group| shared.gates.get(*group)).for_each(|gate| gate.tick(now));
        host.drain(&mut effects);
        *shared.counters.lock() = host.counters();
    }
}

/// A joined batch that holds this much takes no more: it may have to travel as one packet.
const JOINED_BYTES: usize = 1 << 20;

/// Joins what was proposed to a group since the mailbox was last emptied, so that its core is stepped once for all of it, also where clients of
/// many groups take turns.
#[derive(Default)]
struct Proposals(BTreeMap<GroupId, Joined>);

#[derive(Default)]
struct Joined {
    batch: Vec<Proposal>,
    bytes: usize,
}

impl Joined {
    fn into_input(self, group: GroupId) -> HostInput {
        HostInput::Propose { group, batch: self.batch }
    }
}

impl Proposals {
    /// Adds to the group's batch, and gives it back once it takes no more.
    fn add(&mut self, group: GroupId, batch: Vec<Proposal>) -> Option<HostInput> {
        let joined = self.0.entry(group).or_default();
        joined.bytes += batch.iter().map(|proposal| proposal.payload.len()).sum::<usize>();
        if joined.batch.is_empty() {
            joined.batch = batch;
        } else {
            joined.batch.extend(batch);
        }
        let full = joined.bytes >= JOINED_BYTES;
        if full { self.0.remove(&group).map(|joined| joined.into_input(group)) } else { None }
    }

    /// What was gathered for the next group.
    fn next(&mut self) -> Option<HostInput> {
        self.0.pop_first().map(|(group, joined)| joined.into_input(group))
    }
}

/// Packets and jobs of one drain, gathered so that each queue is locked once, however many groups have something to be done.
#[derive(Default)]
struct Outgoing {
    packets: BTreeMap<NodeId, Vec<Packet>>,
    logs: Vec<LogJob>,
    applies: Vec<ApplyJob>,
}

/// `false` if the host is to stop: then nothing of this drain is sent, since a broken core's word is worth nothing.
fn dispatch(shared: &Arc<Shared>, effects: &mut Vec<HostEffect>, out: &mut Outgoing) -> bool {
    for effect in effects.drain(..) {
        match effect {
            HostEffect::Send { to, packet } => out.packets.entry(to).or_default().push(packet),
            HostEffect::Log { group, ops, mark, then } => {
                out.logs.push(LogJob::Append { group, ops, mark, then });
            }
            HostEffect::Install { group, mark, meta } => out.logs.push(LogJob::Install { group, mark, meta }),
            HostEffect::Apply { group, entries } => {
                if let (Some(committed), Some(last)) = (shared.committed.get(group), entries.last()) {
                    committed.store(last.slot.0, Ordering::Relaxed);
                }
                out.applies.push(ApplyJob::Entries { group, entries });
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
                if let Some(gate) = shared.gates.get(group) {
                    gate.confirmed(id, at);
                }
            }
            HostEffect::ReadFailed { group, id, why } => {
                if let Some(gate) = shared.gates.get(group) {
                    gate.failed(id, why);
                }
            }
            HostEffect::Role { group, ballot, leader, serving } => {
                role(shared, group, Role { ballot, leader, serving })
            }
            HostEffect::Membership { group, config, .. } => {
                shared.configs.lock().insert(group, config);
            }
            HostEffect::Halt { group, why } => {
                shared.halt(Fatal::Broken { group, why });
                return false;
            }
        }
    }
    shared.logs.push_all(&mut out.logs);
    shared.applies.push_all(&mut out.applies);
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use conclave_consensus::{Epoch, ProposalId};

    use super::*;

    fn proposal(sequence: u64, bytes: usize) -> Vec<Proposal> {
        let id = ProposalId::new(NodeId(1), Epoch(1), sequence);
        vec![Proposal { id, payload: Bytes::from(vec![0; bytes]) }]
    }

    fn told(input: Option<HostInput>) -> Option<(u64, Vec<u64>)> {
        match input? {
            HostInput::Propose { group, batch } => {
                Some((group.0, batch.iter().map(|proposal| proposal.id.sequence & 0xff).collect()))
            }
            other => panic!("{other:?} is no proposal"),
        }
    }

    #[test]
    fn what_groups_are_asked_in_turn_reaches_each_core_in_one_step() {
        let mut proposals = Proposals::default();
        for sequence in 0..9 {
            assert!(proposals.add(GroupId(sequence % 3), proposal(sequence, 10)).is_none());
        }
        let mut each = Vec::new();
        while let Some(input) = told(proposals.next()) {
            each.push(input);
        }
        assert_eq!(each, [(0, vec![0, 3, 6]), (1, vec![1, 4, 7]), (2, vec![2, 5, 8])]);
    }

    #[test]
    fn a_batch_that_is_large_enough_waits_for_no_more() {
        let mut proposals = Proposals::default();
        assert!(proposals.add(GroupId(1), proposal(1, JOINED_BYTES - 1)).is_none());
        assert!(proposals.add(GroupId(2), proposal(2, 1)).is_none());
        assert_eq!(told(proposals.add(GroupId(1), proposal(3, 1))), Some((1, vec![1, 3])));
        assert!(proposals.add(GroupId(1), proposal(4, 1)).is_none());
        assert_eq!(told(proposals.next()), Some((1, vec![4])));
        assert_eq!(told(proposals.next()), Some((2, vec![2])));
        assert!(proposals.next().is_none());
    }
}
