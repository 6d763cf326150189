//! The `apply` and `checkpoint` threads.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc::SyncSender},
};

use conclave_consensus::{Entry, GroupId, Mark, SnapshotMeta};
use conclave_storage::{Job, SnapshotSink, SnapshotSource, StateError};

use super::{Fatal, Shared, ShellInput, clock, mailbox::Mailbox};
use crate::{Applier, HostInput};

/// Work for the apply thread, which owns the state machines.
#[derive(Debug)]
pub(crate) enum ApplyJob {
    Entries { group: GroupId, entries: Vec<Entry> },
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

pub(super) fn run(
    shared: &Arc<Shared>,
    mut appliers: BTreeMap<GroupId, Applier>,
    checkpoints: &Mailbox<CheckpointJob>,
) {
    let mut jobs = Vec::new();
    let mut replies = Vec::new();
    // An install waits here for the checkpoint under way: both write to the engine.
    let mut postponed: BTreeMap<GroupId, (Mark, SnapshotMeta)> = BTreeMap::new();
    while shared.applies.take(None, &mut jobs) {
        for job in jobs.drain(..) {
            match job {
                ApplyJob::Entries { group, entries } => {
                    let Some(applier) = appliers.get_mut(&group) else { continue };
                    applier.apply(&entries, &|id| shared.waiters.is_ours(id), &mut replies);
                    // Before the answers: a client that has its answer reads it here at once.
                    let slot = applier.applied();
                    if let Some(gate) = shared.gates.get(&group) {
                        gate.applied(slot);
                    }
                    shared.waiters.answer(&mut replies);
                    shared.inbox.push(ShellInput::Host(HostInput::Applied { group, slot }));
                    if let Some(job) = applier.checkpoint_if_due() {
                        checkpoints.push(CheckpointJob { group, job });
                    }
                }
                ApplyJob::Install { group, mark, meta } => {
                    let Some(applier) = appliers.get_mut(&group) else { continue };
                    if applier.is_checkpointing() {
                        postponed.insert(group, (mark, meta));
                    } else {
                        install(shared, group, applier, mark, &meta);
                    }
                }
                ApplyJob::Checkpointed { group } => {
                    let Some(applier) = appliers.get_mut(&group) else { continue };
                    if let Some(meta) = applier.checkpointed() {
                        tracing::debug!(%group, slot = %meta.slot, "checkpoint is durable");
                        if let Some((mark, install_meta)) = postponed.remove(&group) {
                            install(shared, group, applier, mark, &install_meta);
                        } else {
                            shared.inbox.push(ShellInput::Host(HostInput::Checkpointed { group, meta }));
                        }
                    }
                }
                // Whoever asked waits on this very channel.
                ApplyJob::Snapshot { group, answer } => {
                    let _ = answer.send(appliers.get(&group).and_then(Applier::snapshot));
                }
                ApplyJob::Receive { group, generation, answer } => {
                    if let Some(applier) = appliers.get(&group) {
                        let _ = answer.send(applier.receive(generation));
                    }
                }
            }
        }
    }
    checkpoints.close();
}

fn install(shared: &Arc<Shared>, group: GroupId, applier: &mut Applier, mark: Mark, meta: &SnapshotMeta) {
    match applier.install(meta) {
        Ok(()) => {
            tracing::info!(%group, slot = %meta.slot, "snapshot installed");
            if let Some(gate) = shared.gates.get(&group) {
                gate.applied(meta.slot);
            }
            shared.inbox.push(ShellInput::Host(HostInput::Installed { group, mark }));
        }
        Err(source) => shared.halt(Fatal::State { group, source }),
    }
}

/// Writes one checkpoint after the other.
pub(super) fn run_checkpoints(shared: &Arc<Shared>, jobs: &Mailbox<CheckpointJob>) {
    let mut taken = Vec::new();
    while jobs.take(None, &mut taken) {
        for CheckpointJob { group, job } in taken.drain(..) {
            let began = clock::now();
            let done = if mutant_log_is_cut_before_state_is_persisted() { Ok(()) } else { job.run() };
            match done {
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
    }
}

/// The mutant of a host that cuts the log below a checkpoint that was never written: named by
/// `CONCLAVE_MUTANT=log-cut-before-state-is-persisted`, in builds that have the feature `mutants` only.
fn mutant_log_is_cut_before_state_is_persisted() -> bool {
    #[cfg(feature = "mutants")]
    return std::env::var_os("CONCLAVE_MUTANT")
        .is_some_and(|name| name == "log-cut-before-state-is-persisted");
    #[cfg(not(feature = "mutants"))]
    false
}
