//! The `apply` and `checkpoint` threads.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use conclave_consensus::{Entries, GroupId, Mark, SnapshotMeta, Time};
use conclave_storage::{Job, Replies, SnapshotSink, SnapshotSource, StateError, background};

use super::{Fatal, Shared, ShellInput, clock};
use crate::{Applier, HostInput, groups::Groups};

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

/// What is to be told of so many applied entries is told, at the latest. Until then it gathers over groups, whose jobs may be small: to wake those
/// who wait costs as much for one entry as for many.
const TOLD_ENTRIES: usize = 128;

/// What clients and the host are to be told.
#[derive(Default)]
struct Tidings {
    replies: Replies,
    inputs: Vec<ShellInput>,
    entries: usize,
}

impl Tidings {
    fn tell(&mut self, shared: &Shared) {
        self.entries = 0;
        shared.waiters.answer(&mut self.replies);
        shared.inbox.push_all(&mut self.inputs);
    }
}

/// A group on the apply thread.
struct Group {
    applier: Applier,
    /// Entries and installs that wait for the checkpoint under way, in order.
    held: VecDeque<ApplyJob>,
}

pub(super) fn run(shared: &Arc<Shared>, appliers: Vec<(GroupId, Applier)>) {
    let mut groups: Groups<Group> = appliers
        .into_iter()
        .map(|(group, applier)| (group, Group { applier, held: VecDeque::new() }))
        .collect();
    for (group, of) in groups.iter() {
        if publish_membership(shared, group, &of.applier) {
            shared.inbox.push(ShellInput::Removed { group });
        }
    }
    let mut jobs = Vec::new();
    let mut tidings = Tidings::default();
    let mut swept = clock::now();
    while shared.applies.take(Some(CHECKPOINT_EVERY), &mut jobs) {
        for job in jobs.drain(..) {
            match job {
                ApplyJob::Entries { group, .. } | ApplyJob::Install { group, .. } => {
                    let Some(of) = groups.get_mut(group) else { continue };
                    of.held.push_back(job);
                    proceed(shared, group, of, &mut tidings);
                }
                ApplyJob::Checkpointed { group } => {
                    let Some(of) = groups.get_mut(group) else { continue };
                    if let Some(meta) = of.applier.checkpointed() {
                        tracing::debug!(%group, slot = %meta.slot, "checkpoint is durable");
                        tidings.inputs.push(ShellInput::Host(HostInput::Checkpointed { group, meta }));
                    }
                    proceed(shared, group, of, &mut tidings);
                }
                // Whoever asked waits on this very channel.
                ApplyJob::Snapshot { group, answer } => {
                    let _ = answer.send(groups.get(group).and_then(|of| of.applier.snapshot()));
                }
                ApplyJob::Receive { group, generation, answer } => {
                    if let Some(of) = groups.get(group) {
                        let _ = answer.send(of.applier.receive(generation));
                    }
                }
            }
        }
        tidings.tell(shared);
        if clock::now().since(swept) >= CHECKPOINT_EVERY {
            swept = clock::now();
            for (group, of) in groups.iter_mut() {
                if let Some(job) = of.applier.checkpoint() {
                    shared.checkpoints.push(CheckpointJob { group, job });
                }
            }
        }
    }
    shared.checkpoints.close();
}

/// Does what is held, as far as the checkpoint under way allows.
fn proceed(shared: &Shared, group: GroupId, of: &mut Group, tidings: &mut Tidings) {
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
                let changed = applier.apply(&entries, &|id| shared.waiters.is_ours(id), &mut tidings.replies);
                tidings.entries += entries.len();
                // Before the answers: a client that has its answer reads it here at once.
                let removed = changed && publish_membership(shared, group, applier);
                let slot = applier.applied();
                if let Some(gate) = shared.gates.get(group) {
                    gate.applied(slot);
                }
                tidings.inputs.push(ShellInput::Host(HostInput::Applied { group, slot }));
                if removed {
                    tidings.inputs.push(ShellInput::Removed { group });
                }
                if tidings.entries >= TOLD_ENTRIES {
                    tidings.tell(shared);
                }
                if let Some(job) = applier.checkpoint_if_due() {
                    shared.checkpoints.push(CheckpointJob { group, job });
                }
            }
            ApplyJob::Install { mark, meta, .. } => {
                install(shared, group, &mut of.applier, mark, &meta, &mut tidings.inputs);
            }
            ApplyJob::Checkpointed { .. } | ApplyJob::Snapshot { .. } | ApplyJob::Receive { .. } => {}
        }
    }
}

fn install(
    shared: &Shared,
    group: GroupId,
    applier: &mut Applier,
    mark: Mark,
    meta: &SnapshotMeta,
    inputs: &mut Vec<ShellInput>,
) {
    match applier.install(meta) {
        Ok(()) => {
            tracing::info!(%group, slot = %meta.slot, "snapshot installed");
            if let Some(gate) = shared.gates.get(group) {
                gate.applied(meta.slot);
            }
            inputs.push(ShellInput::Host(HostInput::Installed { group, mark }));
            if publish_membership(shared, group, applier) {
                inputs.push(ShellInput::Removed { group });
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

/// How long the memory that checkpoints took may stay with the allocator. To give it back costs as much for a small checkpoint as for a large one,
/// and those of many groups are many and small.
const RELEASE_EVERY: Duration = Duration::from_secs(1);

/// Writes one checkpoint after the other.
pub(super) fn run_checkpoints(shared: &Arc<Shared>) {
    background::stand_back();
    let mut taken = Vec::new();
    // When memory is given back; nothing if none was taken since.
    let mut release_at = None;
    loop {
        let wait = release_at.map(|at: Time| at.since(clock::now()));
        if !shared.checkpoints.take(wait, &mut taken) {
            return;
        }
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
            release_at.get_or_insert(began.after(RELEASE_EVERY));
        }
        if release_at.take_if(|at| *at <= clock::now()).is_some() {
            background::release_memory();
        }
    }
}

fn run_job(job: Box<dyn Job>) -> Result<(), StateError> {
    #[cfg(feature = "mutants")]
    if conclave_consensus::Mutant::LogCutBeforeState.is_on() {
        return Ok(());
    }
    job.run()
}
