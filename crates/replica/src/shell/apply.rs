//! The `apply` and `checkpoint` threads.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use conclave_consensus::{Entries, GroupId, Mark, SnapshotMeta};
use conclave_storage::{Job, Replies, SnapshotSink, SnapshotSource, StateError, background};

use super::{Fatal, Shared, ShellInput, clock};
use crate::{Applier, HostInput};

/// Work for the apply thread, which owns the state machines.
#[derive(Debug)]
pub(crate) enum ApplyJob {
    Entries { group: GroupId, entries: Entries },
    Install { group: GroupId, mark: Mark, meta: SnapshotMeta },
    Checkpointed { group: GroupId },
    Snapshot { group: GroupId, answer: SyncSender<Option<Box<dyn SnapshotSource>>> },
    Receive { group: GroupId, generation: u64, answer: SyncSender<Result<Box<dyn SnapshotSink>, StateError>> },
}

/// A checkpoint to be written.
#[derive(Debug)]
pub(crate) struct CheckpointJob {
    group: GroupId,
    job: Box<dyn Job>,
}

/// How long a group's last entries may wait for a checkpoint when too few come to make one due: a boot replays less, and what was compacted
/// leaves the disk.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// A group on the apply thread.
struct Group {
    applier: Applier,
    /// Entries and installs that wait for the checkpoint under way, in order.
    held: VecDeque<ApplyJob>,
}

pub(super) fn run(shared: &Arc<Shared>, appliers: BTreeMap<GroupId, Applier>) {
    let mut groups: BTreeMap<GroupId, Group> = appliers
        .into_iter()
        .map(|(group, applier)| (group, Group { applier, held: VecDeque::new() }))
        .collect();
    for (group, of) in &groups {
        if publish_membership(shared, *group, &of.applier) {
            shared.inbox.push(ShellInput::Removed { group: *group });
        }
    }
    let mut jobs = Vec::new();
    let mut replies = Vec::new();
    let mut swept = clock::now();
    while shared.applies.take(Some(CHECKPOINT_EVERY), &mut jobs) {
        for job in jobs.drain(..) {
            match job {
                ApplyJob::Entries { group, .. } | ApplyJob::Install { group, .. } => {
                    let Some(of) = groups.get_mut(&group) else { continue };
                    of.held.push_back(job);
                    proceed(shared, group, of, &mut replies);
                }
                ApplyJob::Checkpointed { group } => {
                    let Some(of) = groups.get_mut(&group) else { continue };
                    if let Some(meta) = of.applier.checkpointed() {
                        tracing::debug!(%group, slot = %meta.slot, "checkpoint is durable");
                        shared.inbox.push(ShellInput::Host(HostInput::Checkpointed { group, meta }));
                    }
                    proceed(shared, group, of, &mut replies);
                }
                // Whoever asked waits on this very channel.
                ApplyJob::Snapshot { group, answer } => {
                    let _ = answer.send(groups.get(&group).and_then(|of| of.applier.snapshot()));
                }
                ApplyJob::Receive { group, generation, answer } => {
                    if let Some(of) = groups.get(&group) {
                        let _ = answer.send(of.applier.receive(generation));
                    }
                }
            }
        }
        if clock::now().since(swept) >= CHECKPOINT_EVERY {
            swept = clock::now();
            for (group, of) in &mut groups {
                if let Some(job) = of.applier.checkpoint() {
                    shared.checkpoints.push(CheckpointJob { group: *group, job });
                }
            }
        }
    }
    shared.checkpoints.close();
}

/// Does what is held, as far as the checkpoint under way allows.
fn proceed(shared: &Arc<Shared>, group: GroupId, of: &mut Group, replies: &mut Replies) {
    while let Some(job) = of.held.pop_front() {
        match job {
            ApplyJob::Entries { .. } if of.applier.is_saturated() => {
                of.held.push_front(job);
                return;
            }
            // Both would write to the engine.
            ApplyJob::Install { .. } if of.applier.is_checkpointing() => {
                of.held.push_front(job);
                return;
            }
            ApplyJob::Entries { entries, .. } => {
                let applier = &mut of.applier;
                let changed = applier.apply(&entries, &|id| shared.waiters.is_ours(id), replies);
                // Before the answers: a client that has its answer reads it here at once.
                let removed = changed && publish_membership(shared, group, applier);
                let slot = applier.applied();
                if let Some(gate) = shared.gates.get(&group) {
                    gate.applied(slot);
                }
                shared.waiters.answer(replies);
                shared.inbox.push(ShellInput::Host(HostInput::Applied { group, slot }));
                if removed {
                    shared.inbox.push(ShellInput::Removed { group });
                }
                if let Some(job) = applier.checkpoint_if_due() {
                    shared.checkpoints.push(CheckpointJob { group, job });
                }
            }
            ApplyJob::Install { mark, meta, .. } => install(shared, group, &mut of.applier, mark, &meta),
            ApplyJob::Checkpointed { .. } | ApplyJob::Snapshot { .. } | ApplyJob::Receive { .. } => {}
        }
    }
}

fn install(shared: &Arc<Shared>, group: GroupId, applier: &mut Applier, mark: Mark, meta: &SnapshotMeta) {
    match applier.install(meta) {
        Ok(()) => {
            tracing::info!(%group, slot = %meta.slot, "snapshot installed");
            if let Some(gate) = shared.gates.get(&group) {
                gate.applied(meta.slot);
            }
            shared.inbox.push(ShellInput::Host(HostInput::Installed { group, mark }));
            if publish_membership(shared, group, applier) {
                shared.inbox.push(ShellInput::Removed { group });
            }
        }
        Err(source) => shared.halt(Fatal::State { group, source }),
    }
}

/// Shows which membership is committed and applied. Says whether it has removed this node's replica.
fn publish_membership(shared: &Shared, group: GroupId, applier: &Applier) -> bool {
    let config = applier.config();
    if let Some(sender) = shared.memberships.get(&group) {
        sender.send_if_modified(|shown| {
            let changed = shown != config;
            if changed {
                shown.clone_from(config);
            }
            changed
        });
    }
    shared.replicas.get(&group).is_some_and(|replica| config.has_removed(*replica))
}

/// Writes one checkpoint after the other.
pub(super) fn run_checkpoints(shared: &Arc<Shared>) {
    background::stand_back();
    let mut taken = Vec::new();
    while shared.checkpoints.take(None, &mut taken) {
        for CheckpointJob { group, job } in taken.drain(..) {
            let began = clock::now();
            match run_job(job) {
                Ok(()) => {
                    if let Some(observer) = &shared.observer {
                        observer.checkpointed(group, clock::now().since(began));
                    }
                    shared.applies.push(ApplyJob::Checkpointed { group });
                }
                Err(source) => {
                    shared.halt(Fatal::State { group, source });
                    return;
                }
            }
        }
        background::release_memory();
    }
}

fn run_job(job: Box<dyn Job>) -> Result<(), StateError> {
    #[cfg(feature = "mutants")]
    if conclave_consensus::Mutant::LogCutBeforeState.is_on() {
        return Ok(());
    }
    job.run()
}
