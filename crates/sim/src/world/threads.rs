//! What a node's threads do for its host: append and sync, apply, write checkpoints, read back, send and take snapshots.
//!
//! Each thread of the real shell is here a queue and an event: work that was queued when the event comes is done at once, and what it
//! leads to is fed to the host. The order of steps is the shell's: see `conclave_replica`'s log, apply and catch-up threads.

use std::collections::BTreeMap;

use bytes::Bytes;
#[cfg(feature = "mutants")]
use conclave_consensus::Mutant;
use conclave_consensus::{
    Config, Entries, Entry, Kind, LogOp, LogReadId, Mark, NodeId, SlotRange, SnapshotMeta,
};
use conclave_replica::{ArrivedPiece, HostInput, PieceRequest, Served};
use conclave_storage::{LogStore, Replies};
use conclave_transport::Packet;

use super::{
    Context, kv,
    node::{GROUP, Node},
    queue::{Event, NodeEvent},
};
use crate::{
    check::{MirrorEntry, Violation},
    history::Ending,
};

/// Work for the log.
#[derive(Debug)]
pub(super) enum LogJob {
    Append { ops: Vec<LogOp>, mark: Option<Mark>, then: Vec<(NodeId, Packet)> },
    Install { mark: Mark, meta: SnapshotMeta },
}

/// What a sync completes.
#[derive(Debug, Default)]
pub(super) struct LogBatch {
    mark: Option<Mark>,
    packets: BTreeMap<NodeId, Vec<Packet>>,
    installs: Vec<(Mark, SnapshotMeta)>,
}

/// Work for the state machine.
#[derive(Debug)]
pub(super) enum ApplyJob {
    Entries(Entries),
    Install { mark: Mark, meta: SnapshotMeta },
}

/// Work beside.
#[derive(Debug)]
pub(super) enum CatchUpJob {
    ReadLog { id: LogReadId, range: SlotRange, bytes_max: u32 },
    Store(ArrivedPiece),
    Forget { fetch: u64 },
    Serve { to: NodeId, request: PieceRequest },
}

impl Node {
    fn later(&self, context: &mut Context, mean: u64, event: NodeEvent) {
        let Some(life) = &self.life else { return };
        let at = context.now + context.latency(mean);
        context.queue.push(at, Event::At { node: self.id, life: life.number, event });
    }

    /// Appends everything that waits, and begins the sync if something depends on it.
    pub(super) fn start_log(&mut self, context: &mut Context) -> Result<(), Violation> {
        let replica = self.replica();
        let Some(life) = &mut self.life else { return Ok(()) };
        if life.log_busy.is_some() || life.logs.is_empty() {
            return Ok(());
        }
        let mut batch = Vec::new();
        let mut done = LogBatch::default();
        for job in life.logs.drain(..) {
            match job {
                LogJob::Append { ops, mark, then } => {
                    context.checks.durable.appended(replica, &ops);
                    batch.push((GROUP, ops));
                    done.mark = mark.or(done.mark);
                    for (to, packet) in then {
                        done.packets.entry(to).or_default().push(packet);
                    }
                }
                LogJob::Install { mark, meta } => {
                    let reset = vec![LogOp::Reset(Box::new(meta.clone()))];
                    context.checks.logs.change(NodeId(self.id), &reset[0])?;
                    let logs = &context.checks.logs;
                    let holds = |slot| logs.at(NodeId(self.id), slot).is_some();
                    context.checks.membership.reset(self.id, &meta, holds);
                    context.checks.durable.appended(replica, &reset);
                    batch.push((GROUP, reset));
                    #[cfg(feature = "mutants")]
                    if Mutant::SwitchedBeforeReset.is_on() {
                        life.applies.push_back(ApplyJob::Install { mark, meta });
                        continue;
                    }
                    done.installs.push((mark, meta));
                }
            }
        }
        if let Err(error) = life.log.append(&batch) {
            return self.log_failed(context, &error);
        }
        if done.mark.is_some() || !done.installs.is_empty() {
            life.log_busy = Some(done);
            if self.hangs {
                return Ok(());
            }
            let node = &context.options.node;
            let mean =
                if context.rng.chance(node.stall_ppm) { context.options.node.stall } else { node.sync };
            self.later(context, mean, NodeEvent::LogDone);
        }
        Ok(())
    }

    pub(super) fn log_done(&mut self, context: &mut Context) -> Result<(), Violation> {
        let replica = self.replica();
        let Some(life) = &mut self.life else { return Ok(()) };
        let Some(done) = life.log_busy.take() else { return Ok(()) };
        if let Err(error) = life.log.sync() {
            return self.log_failed(context, &error);
        }
        context.checks.durable.synced(replica);
        context.trace.note(context.now, self.id, "synced", done.mark.map_or(0, |mark| mark.sequence), 0);
        for (mark, meta) in done.installs {
            life.applies.push_back(ApplyJob::Install { mark, meta });
        }
        for (to, packets) in done.packets {
            self.send(context, to, packets)?;
        }
        if let Some(mark) = done.mark {
            self.input(context, HostInput::Logged { group: GROUP, mark })?;
        }
        self.start_log(context)?;
        self.start_apply(context);
        Ok(())
    }

    pub(super) fn start_apply(&mut self, context: &mut Context) {
        let Some(life) = &mut self.life else { return };
        if !life.apply_busy && !life.applies.is_empty() {
            life.apply_busy = true;
            let mean = context.options.node.apply;
            self.later(context, mean, NodeEvent::Apply);
        }
    }

    pub(super) fn apply(&mut self, context: &mut Context) -> Result<(), Violation> {
        let Some(life) = &mut self.life else { return Ok(()) };
        life.apply_busy = false;
        for job in std::mem::take(&mut life.applies) {
            match job {
                ApplyJob::Entries(entries) => self.apply_entries(context, &entries)?,
                ApplyJob::Install { mark, meta } => {
                    let Some(life) = &mut self.life else { return Ok(()) };
                    if life.applier.is_checkpointing() {
                        life.postponed = Some((mark, meta));
                    } else {
                        self.install(context, mark, &meta)?;
                    }
                }
            }
        }
        self.start_apply(context);
        Ok(())
    }

    fn apply_entries(&mut self, context: &mut Context, entries: &[Entry]) -> Result<(), Violation> {
        let (node, replica) = (NodeId(self.id), self.replica());
        let Some(life) = &mut self.life else { return Ok(()) };
        for entry in entries {
            let kept = MirrorEntry::of(entry);
            context.checks.durable.applies(replica, entry.slot, kept)?;
            // In force from its own slot on.
            if let (Kind::Config, Ok(config)) = (entry.kind, Config::decode(&entry.payload)) {
                life.position.config = config;
            }
            (life.position.slot, life.position.ballot) = (entry.slot, entry.ballot);
            if context.checks.machines.apply(node, entry)? {
                let governs_itself = context.engine.governs_itself();
                if !governs_itself {
                    context.check_chosen(entry.slot, kept)?;
                }
                if entry.kind == Kind::Config {
                    context.counters.memberships += 1;
                    context.chosen_config(entry, &life.position.config)?;
                }
                if governs_itself {
                    context.check_chosen(entry.slot, kept)?;
                }
                context.checks.completeness.committed(entry.slot, kept, life.ballot);
            }
        }
        let mut replies = Replies::new();
        let waits = |id| life.waits.contains_key(&id) || life.changes.contains(&id);
        life.applier.apply(entries, &waits, &mut replies);
        let slot = life.applier.applied();
        let revision = life.reader.revision();
        context.trace.note(context.now, self.id, "applied", slot.0, revision as u64);
        context.checks.monotony.at(self.id, revision)?;
        for (id, reply) in replies {
            if life.changes.remove(&id) {
                context.checks.changes.acknowledged(id);
            }
            let Some(op) = life.waits.remove(&id) else { continue };
            let Some(operation) = context.history.get(op) else { continue };
            let answer = kv::decode(&operation.action, reply)
                .map_err(|what| Violation::new("reply", format!("operation {op}: {what}")))?;
            context.reply(op, Ending::Answered { at: 0, answer });
        }
        self.serve_reads(context)?;
        self.input(context, HostInput::Applied { group: GROUP, slot })?;
        self.start_checkpoint(context)
    }

    fn start_checkpoint(&mut self, context: &mut Context) -> Result<(), Violation> {
        let Some(life) = &mut self.life else { return Ok(()) };
        let Some(job) = life.applier.checkpoint_if_due() else { return Ok(()) };
        life.checkpoint = Some(job);
        #[cfg(feature = "mutants")]
        let meta = life.position.clone();
        let mean = context.options.node.checkpoint;
        self.later(context, mean, NodeEvent::CheckpointDone);
        #[cfg(feature = "mutants")]
        if Mutant::LogCutBeforeState.is_on() {
            return self.input(context, HostInput::Checkpointed { group: GROUP, meta });
        }
        Ok(())
    }

    pub(super) fn checkpoint_done(&mut self, context: &mut Context) -> Result<(), Violation> {
        let Some(life) = &mut self.life else { return Ok(()) };
        let Some(job) = life.checkpoint.take() else { return Ok(()) };
        if let Err(error) = job.run() {
            return self.state_failed(context, &error);
        }
        let Some(life) = &mut self.life else { return Ok(()) };
        let Some(meta) = life.applier.checkpointed() else { return Ok(()) };
        context.checks.membership.restored(self.id, meta.slot, &meta.config)?;
        context.counters.checkpoints += 1;
        context.trace.note(context.now, self.id, "checkpoint", meta.slot.0, 0);
        match life.postponed.take() {
            Some((mark, meta)) => self.install(context, mark, &meta),
            None => self.input(context, HostInput::Checkpointed { group: GROUP, meta }),
        }
    }

    fn install(&mut self, context: &mut Context, mark: Mark, meta: &SnapshotMeta) -> Result<(), Violation> {
        let Some(life) = &mut self.life else { return Ok(()) };
        if let Err(error) = life.applier.install(meta) {
            return self.state_failed(context, &error);
        }
        life.position = meta.clone();
        context.counters.snapshots += 1;
        context.trace.note(context.now, self.id, "installed", meta.slot.0, meta.generation);
        context.checks.machines.restored(NodeId(self.id), meta.slot, meta.ballot)?;
        context.checks.monotony.at(self.id, life.reader.revision())?;
        context.checks.membership.restored(self.id, meta.slot, &meta.config)?;
        self.serve_reads(context)?;
        self.input(context, HostInput::Installed { group: GROUP, mark })
    }

    /// Answers the confirmed reads whose slot the state has reached.
    pub(super) fn serve_reads(&mut self, context: &mut Context) -> Result<(), Violation> {
        let Some(life) = &mut self.life else { return Ok(()) };
        let applied = life.applier.applied();
        let mut due = Vec::new();
        life.ready.retain(|(at, op)| {
            let wait = *at > applied;
            if !wait {
                due.push(*op);
            }
            wait
        });
        for op in due {
            let Some(crate::history::Action::Read { from, to }) =
                context.history.get(op).map(|operation| operation.action.clone())
            else {
                continue;
            };
            let answer = self.read(from, to)?;
            context.reply(op, Ending::Answered { at: 0, answer });
        }
        Ok(())
    }

    pub(super) fn start_catch_up(&mut self, context: &mut Context) {
        let Some(life) = &mut self.life else { return };
        if !life.catchup_busy && !life.catchups.is_empty() {
            life.catchup_busy = true;
            let mean = context.options.node.read;
            self.later(context, mean, NodeEvent::CatchUp);
        }
    }

    pub(super) fn catch_up(&mut self, context: &mut Context) -> Result<(), Violation> {
        let Some(life) = &mut self.life else { return Ok(()) };
        life.catchup_busy = false;
        for job in std::mem::take(&mut life.catchups) {
            let Some(life) = &mut self.life else { return Ok(()) };
            match job {
                CatchUpJob::ReadLog { id, range, bytes_max } => {
                    match life.log.read(GROUP, range, bytes_max as usize) {
                        Ok(result) => self.input(context, HostInput::LogRead { group: GROUP, id, result })?,
                        Err(error) => self.log_failed(context, &error)?,
                    }
                }
                CatchUpJob::Store(piece) => {
                    let (applier, receiver) = (&life.applier, &mut life.receiver);
                    let mut open = |generation| applier.receive(generation);
                    let input = receiver.store(GROUP, piece, &mut open);
                    if self.engine.has_crashed() {
                        self.crash(context);
                        return Ok(());
                    }
                    self.input(context, input)?;
                }
                CatchUpJob::Forget { fetch } => life.receiver.forget(fetch),
                CatchUpJob::Serve { to, request } => {
                    let (applier, server) = (&life.applier, &mut life.server);
                    let PieceRequest { fetch, have, .. } = request;
                    let (after, body, last) = match server.serve(to, request, &mut || applier.snapshot()) {
                        Ok(Served::Piece { after, body, last }) => (after, body, last),
                        Ok(Served::Gone) => (have, Bytes::new(), true),
                        Ok(Served::Later) => (have, Bytes::new(), false),
                        Ok(Served::Nothing) => continue,
                        Err(error) => {
                            self.state_failed(context, &error)?;
                            continue;
                        }
                    };
                    if !last {
                        context.disturb_transfer(self.id, life.number, to.0);
                    }
                    let packet = Packet::SnapshotPiece { group: GROUP, fetch, after, body, last };
                    self.send(context, to, vec![packet])?;
                }
            }
        }
        self.start_catch_up(context);
        Ok(())
    }
}
