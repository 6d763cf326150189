//! One node: what survives a crash, and the life that does not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, atomic::AtomicU64};

use conclave_consensus::{
    Ballot, Epoch, GroupId, LogOp, Mark, NodeId, ProposalId, ReadId, ReplicaId, Slot, SnapshotMeta, Time,
};
use conclave_kv::{Machine, Options as KvOptions, Reader};
use conclave_replica::{
    Applier, BootError, CheckpointPolicy, Host, HostConfig, HostEffect, HostInput, SnapshotReceiver,
    SnapshotServer, begin_epoch, boot_group,
};
use conclave_storage::{Job, LogError, LogStore, MemoryEngine, Preparation, StateEngine, Wal, WalOptions};
use conclave_transport::Packet;

use super::{
    Context, initial, kv,
    lease::LeaseReads,
    queue::{Event, NodeEvent, Op},
    threads::{ApplyJob, CatchUpJob, LogBatch, LogJob},
};
use crate::{
    check::{Violation, check_leader_votes},
    clock::{NodeClock, SECOND, SimTime},
    disk::SimDisk,
    engine::Engine,
    history::{Answer, Ending},
    rng::Rng,
};

/// The only group.
pub(super) const GROUP: GroupId = GroupId(1);
const CLUSTER: u64 = 0xc0c1_a5e5;

/// How far a node's state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) node: u64,
    pub(crate) applied: Slot,
    pub(crate) revision: i64,
    pub(crate) hash: u64,
}

/// A node: its disks and clock, and its process if it runs.
#[derive(Debug)]
pub(crate) struct Node {
    pub(super) id: u64,
    pub(super) clock: NodeClock,
    pub(super) disk: SimDisk,
    pub(super) engine: MemoryEngine,
    pub(super) paused_until: SimTime,
    /// What happened while it stood still.
    pub(super) deferred: Vec<(u64, NodeEvent)>,
    /// Counts lives.
    pub(super) lives: u64,
    pub(super) life: Option<Life>,
    pub(super) rng: Rng,
    /// Its disks have no room for anything new.
    pub(super) full: bool,
    /// Its log's syncs do not return.
    pub(super) hangs: bool,
    /// What its disk holds cannot be trusted, and it refuses to start or has lost everything: out until its replica is replaced.
    pub(super) broken: bool,
    /// The replica that lives here; a node without one is spare.
    pub(super) replica: Option<ReplicaId>,
    /// The last one that did. Ids ascend.
    pub(super) hosted: ReplicaId,
    /// Whether its replica is one of those that the group began with.
    pub(super) founder: bool,
    /// Lives that ended with what the node knew of them: the epochs of the disk it has come after these.
    pub(super) former_lives: u64,
    /// How often its core fell asleep leading.
    pub(super) naps: Arc<AtomicU64>,
}

/// Why a process does not come up.
#[derive(Debug)]
enum StartError {
    Log(LogError),
    Check(Violation),
    Other(String),
}

impl From<LogError> for StartError {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl From<BootError> for StartError {
    fn from(error: BootError) -> Self {
        match error {
            BootError::Log(error) => Self::Log(error),
            other => Self::Other(other.to_string()),
        }
    }
}

fn other(error: impl std::fmt::Display) -> StartError {
    StartError::Other(error.to_string())
}

/// A running process. A crash drops it whole.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) number: u64,
    pub(super) epoch: Epoch,
    pub(super) proposals: u64,
    pub(super) barriers: u64,
    pub(super) host: Host,
    pub(super) ballot: Ballot,
    pub(super) leads: bool,
    pub(super) log: Wal,
    pub(super) applier: Applier,
    /// What the applier's state is as of.
    pub(super) position: SnapshotMeta,
    pub(super) reader: Reader,
    /// The tick that is scheduled.
    pub(super) tick_at: SimTime,
    pub(super) logs: VecDeque<LogJob>,
    pub(super) log_busy: Option<LogBatch>,
    pub(super) applies: VecDeque<ApplyJob>,
    pub(super) apply_busy: bool,
    pub(super) catchups: VecDeque<CatchUpJob>,
    pub(super) catchup_busy: bool,
    pub(super) checkpoint: Option<Box<dyn Job>>,
    pub(super) postponed: Option<(Mark, SnapshotMeta)>,
    pub(super) server: SnapshotServer,
    pub(super) receiver: SnapshotReceiver,
    /// What was counted of its host's fetches.
    pub(super) resumed: u64,
    pub(super) begun_anew: u64,
    /// Clients that wait for their proposal to be applied.
    pub(super) waits: BTreeMap<ProposalId, Op>,
    /// Clients that wait for their read to be confirmed.
    pub(super) barrier_of: BTreeMap<ReadId, Op>,
    /// Confirmed reads that wait for the state to reach their slot.
    pub(super) ready: Vec<(Slot, Op)>,
    /// Changes of membership that were asked of it and have no outcome.
    pub(super) changes: BTreeSet<ProposalId>,
}

impl Node {
    pub(super) fn new(id: u64, founder: bool, rng: &mut Rng) -> Self {
        let replica = founder.then_some(ReplicaId(id));
        Self {
            id,
            clock: NodeClock::new(0, 0, 0),
            disk: SimDisk::new(rng.fork()),
            engine: MemoryEngine::new(),
            paused_until: 0,
            deferred: Vec::new(),
            lives: 0,
            life: None,
            rng: rng.fork(),
            full: false,
            hangs: false,
            broken: false,
            replica,
            hosted: replica.unwrap_or_default(),
            founder,
            former_lives: 0,
            naps: Arc::default(),
        }
    }

    /// The replica that lives here, or nobody.
    pub(super) fn replica(&self) -> ReplicaId {
        self.replica.unwrap_or_default()
    }

    /// Whether a replica lives here, and its disks hold what it was promised.
    pub(super) fn is_sound(&self) -> bool {
        self.replica.is_some() && !self.broken
    }

    pub(super) fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// Whether it is down since its life of this number ended.
    pub(super) fn is_down(&self, life: u64) -> bool {
        self.life.is_none() && self.lives == life && self.is_sound()
    }

    pub(super) fn is_in_life(&self, number: u64) -> bool {
        self.life.as_ref().is_some_and(|life| life.number == number)
    }

    pub(super) fn leads(&self) -> Option<Ballot> {
        self.life.as_ref().filter(|life| life.leads).map(|life| life.ballot)
    }

    /// Power is back: the process starts from what the disks hold.
    pub(super) fn boot(&mut self, context: &mut Context) -> Result<(), Violation> {
        self.lives += 1;
        context.wire.boots(self.id);
        let drift = context.options.faults.drift_ppm;
        let drift = match (context.options.lease_drift_ppm, self.rng.below(2 * drift + 1)) {
            // A lease is most in danger between clocks that use up the whole bound.
            (Some(_), draw) => {
                if draw & 1 == 0 {
                    drift as i64
                } else {
                    -(drift as i64)
                }
            }
            (None, draw) => draw as i64 - drift as i64,
        };
        self.clock = NodeClock::new(context.now, self.rng.below(1000 * SECOND), drift);
        context.trace.note(context.now, self.id, "boot", self.lives, 0);
        match self.start(context) {
            Ok(life) => self.life = Some(life),
            Err(_) if self.disk.is_dead() => {
                context.counters.disk_crashes += 1;
                self.crash(context);
                return Ok(());
            }
            Err(StartError::Log(error)) => return self.log_failed(context, &error),
            Err(StartError::Check(violation)) => return Err(violation),
            Err(StartError::Other(why)) => {
                return Err(Violation::new("recovery", format!("node {} cannot start: {why}", self.id)));
            }
        }
        self.told_of_boot(context)?;
        self.drain(context)
    }

    fn start(&mut self, context: &mut Context) -> Result<Life, StartError> {
        let options = &context.options;
        let wal = WalOptions {
            log_id: self.id,
            segment_bytes: options.node.segment_bytes,
            preparation: Preparation::Inline,
            ..WalOptions::default()
        };
        let log = Wal::open(self.disk.mount(), wal)?;
        let Epoch(epoch) = begin_epoch(&log, CLUSTER, NodeId(self.id))?;
        let epoch = Epoch(self.former_lives + epoch);
        let reset = log.state(GROUP).reset;
        let generation = reset.as_ref().map_or(0, |meta| meta.generation);
        // Little enough that reads go to the engine all the time.
        let kv = KvOptions { value_cache_bytes: options.node.value_cache_bytes, ..KvOptions::default() };
        let store = self.engine.store(GROUP, generation).map_err(other)?;
        let state = store.checkpoint().map(|checkpoint| SnapshotMeta { generation, ..checkpoint.meta });
        let (machine, reader) = Machine::open(Arc::clone(&store), kv).map_err(other)?;
        let now = self.clock.read(context.now);
        // A replica that was added is told by its leader.
        let initial = if self.founder { initial(options) } else { SnapshotMeta::default() };
        let seed = self.rng.bits();
        let boot = boot_group(&log, GROUP, self.replica(), state.clone(), &initial.config, now, seed)?;
        let state = state.unwrap_or(initial);
        let first = state.slot.next();
        let checks = &mut context.checks;
        checks
            .logs
            .reboot(NodeId(self.id), first, Some(state.ballot), &boot.entries)
            .map_err(StartError::Check)?;
        checks.durable.booted(self.replica(), first, &boot.entries).map_err(StartError::Check)?;
        checks.membership.booted(self.id, state.slot, &state.config, &boot.entries);
        let core = context.engine.boot(boot, options).map_err(other)?;
        let core = LeaseReads::new(core, Arc::clone(&self.naps));
        let mut config = HostConfig::of(NodeId(self.id), epoch);
        if let Some(sleep) = options.sleep {
            (config.alive_every, config.alive_for) = (Some(sleep.alive_every), sleep.alive_for);
        }
        let mut host = Host::new(config);
        host.add_group(GROUP, Box::new(core), state.generation);
        let policy = CheckpointPolicy {
            pending_bytes: options.node.checkpoint_bytes,
            entries: options.node.checkpoint_entries,
            first_percent: (30 * self.id).min(100) as u8,
        };
        Ok(Life {
            number: self.lives,
            epoch,
            proposals: 0,
            barriers: 0,
            host,
            ballot: Ballot::default(),
            leads: false,
            log,
            applier: Applier::new(Box::new(machine), state.clone(), policy),
            position: state,
            reader,
            tick_at: SimTime::MAX,
            logs: VecDeque::new(),
            log_busy: None,
            applies: VecDeque::new(),
            apply_busy: false,
            catchups: VecDeque::new(),
            catchup_busy: false,
            checkpoint: None,
            postponed: None,
            server: SnapshotServer::new(options.node.piece_bytes),
            receiver: SnapshotReceiver::default(),
            resumed: 0,
            begun_anew: 0,
            waits: BTreeMap::new(),
            barrier_of: BTreeMap::new(),
            ready: Vec::new(),
            changes: BTreeSet::new(),
        })
    }

    fn told_of_boot(&mut self, context: &mut Context) -> Result<(), Violation> {
        let Some(life) = &mut self.life else { return Ok(()) };
        context.checks.machines.restored(NodeId(self.id), life.position.slot, life.position.ballot)?;
        context.checks.monotony.booted(self.id, life.reader.revision())?;
        context.checks.membership.restored(self.id, life.position.slot, &life.position.config)?;
        if let Some(status) = life.host.status(GROUP) {
            life.ballot = status.ballot;
        }
        Ok(())
    }

    /// Something happens here, or will once the node goes on.
    pub(super) fn happen(
        &mut self,
        context: &mut Context,
        life: u64,
        event: NodeEvent,
    ) -> Result<(), Violation> {
        if self.paused_until > context.now && self.life.is_some() {
            self.deferred.push((life, event));
            return Ok(());
        }
        let alive = self.life.as_ref().map(|life| life.number);
        if alive.is_none() || (life != 0 && alive != Some(life)) {
            if let (NodeEvent::Request { op }, None) = (&event, alive) {
                context.reply(*op, Ending::Refused { at: 0 });
            }
            return Ok(());
        }
        match event {
            NodeEvent::Tick => self.tick(context),
            NodeEvent::Deliver { from, packets } => {
                context.trace.note(context.now, self.id, "deliver", from, packets.len() as u64);
                let engine = context.engine;
                let say =
                    || packets.iter().map(|packet| describe(engine, packet)).collect::<Vec<_>>().join("; ");
                context.trace.say(say);
                self.input(context, HostInput::Packets { from: NodeId(from), packets })
            }
            NodeEvent::LogDone => self.log_done(context),
            NodeEvent::Apply => self.apply(context),
            NodeEvent::CatchUp => self.catch_up(context),
            NodeEvent::CheckpointDone => self.checkpoint_done(context),
            NodeEvent::Request { op } => self.request(context, op),
        }
    }

    /// The node goes on, if nothing else holds it.
    pub(super) fn resume(&mut self, context: &mut Context) -> Result<(), Violation> {
        if self.paused_until > context.now {
            return Ok(());
        }
        for (life, event) in std::mem::take(&mut self.deferred) {
            self.happen(context, life, event)?;
        }
        Ok(())
    }

    fn request(&mut self, context: &mut Context, op: Op) -> Result<(), Violation> {
        let Some(life) = &mut self.life else { return Ok(()) };
        let Some(operation) = context.history.get(op) else { return Ok(()) };
        match kv::encode(&operation.action) {
            Some(payload) => {
                let id = life.next_proposal(self.id);
                life.waits.insert(id, op);
                context.history.name(op, id);
                let batch = vec![conclave_consensus::Proposal { id, payload }];
                self.input(context, HostInput::Propose { group: GROUP, batch })
            }
            None => {
                life.barriers += 1;
                let id = ReadId(life.barriers);
                life.barrier_of.insert(id, op);
                self.input(context, HostInput::ReadBarrier { group: GROUP, id })
            }
        }
    }

    /// If this node leads, it is asked to hand over.
    pub(super) fn hand_over(&mut self, context: &mut Context, heir: u64) -> Result<(), Violation> {
        let Some(life) = self.life.as_mut().filter(|life| life.leads) else { return Ok(()) };
        if self.paused_until > context.now {
            return Ok(());
        }
        let id = life.next_proposal(self.id);
        self.input(context, HostInput::Transfer { group: GROUP, id, to: NodeId(heir) })
    }

    fn tick(&mut self, context: &mut Context) -> Result<(), Violation> {
        let now = self.clock.read(context.now);
        let Some(life) = &mut self.life else { return Ok(()) };
        if life.tick_at <= context.now {
            life.tick_at = SimTime::MAX;
        }
        if life.host.next_deadline().is_some_and(|at| at <= now) {
            context.trace.note(context.now, self.id, "tick", 0, 0);
            return self.input(context, HostInput::Tick);
        }
        self.arm(context);
        Ok(())
    }

    /// Steps the host, at the time its clock shows now.
    pub(super) fn input(&mut self, context: &mut Context, input: HostInput) -> Result<(), Violation> {
        let now = self.clock.read(context.now);
        let Some(life) = &mut self.life else { return Ok(()) };
        life.host.step(now, input);
        if life.host.next_deadline().is_some_and(|at| at <= now) {
            life.host.step(now, HostInput::Tick);
        }
        self.drain(context)
    }

    /// Carries out what the host wants.
    fn drain(&mut self, context: &mut Context) -> Result<(), Violation> {
        let mut effects = Vec::new();
        if let Some(life) = &mut self.life {
            life.host.drain(&mut effects);
            let counted = life.host.counters();
            context.counters.resumed += counted.fetches_resumed - life.resumed;
            context.counters.begun_anew += counted.fetches_anew - life.begun_anew;
            (life.resumed, life.begun_anew) = (counted.fetches_resumed, counted.fetches_anew);
        }
        let mut packets: BTreeMap<NodeId, Vec<Packet>> = BTreeMap::new();
        for effect in effects {
            if let HostEffect::Send { to, packet } = effect {
                packets.entry(to).or_default().push(packet);
            } else {
                self.effect(context, effect)?;
            }
        }
        for (to, packets) in packets {
            self.send(context, to, packets)?;
        }
        self.arm(context);
        self.start_log(context)?;
        self.start_apply(context);
        self.start_catch_up(context);
        Ok(())
    }

    fn effect(&mut self, context: &mut Context, effect: HostEffect) -> Result<(), Violation> {
        let node = NodeId(self.id);
        let Some(life) = &mut self.life else { return Ok(()) };
        match effect {
            HostEffect::Send { .. } => {}
            HostEffect::Membership { config, committed, .. } => {
                if committed {
                    context.committed_config(&config);
                }
                self.told_of_members(context, &config);
            }
            HostEffect::ChangeRefused { id, .. } => {
                life.changes.remove(&id);
                context.checks.changes.refused(id);
            }
            HostEffect::Log { ops, mark, then, .. } => {
                let number = life.number;
                ops.iter().try_for_each(|op| self.note_members(context, op))?;
                for op in &ops {
                    context.checks.logs.change(node, op)?;
                    if matches!(op, LogOp::Meta(_) | LogOp::TruncateFrom(_)) {
                        context.lie_in_wait(self.id, number);
                    }
                }
                if let Some(life) = &mut self.life {
                    life.logs.push_back(LogJob::Append { ops, mark, then });
                }
            }
            HostEffect::Install { mark, meta, .. } => {
                context.lie_in_wait(self.id, life.number);
                life.logs.push_back(LogJob::Install { mark, meta });
            }
            HostEffect::Apply { entries, .. } => life.applies.push_back(ApplyJob::Entries(entries)),
            HostEffect::ReadLog { id, range, bytes_max, .. } => {
                life.catchups.push_back(CatchUpJob::ReadLog { id, range, bytes_max });
            }
            HostEffect::StorePiece { piece, .. } => life.catchups.push_back(CatchUpJob::Store(piece)),
            HostEffect::ForgetFetch { fetch, .. } => life.catchups.push_back(CatchUpJob::Forget { fetch }),
            HostEffect::ServePiece { to, request, .. } => {
                life.catchups.push_back(CatchUpJob::Serve { to, request });
            }
            HostEffect::Failed { id, why } => {
                if life.changes.remove(&id) {
                    use conclave_replica::ProposeError::{Stopped, Unknown};
                    if !matches!(why, Unknown | Stopped) {
                        context.checks.changes.refused(id);
                    }
                }
                if let Some(op) = life.waits.remove(&id) {
                    use conclave_replica::ProposeError::{Stopped, Unknown};
                    let open = matches!(why, Unknown | Stopped);
                    let ending = if open { Ending::Unknown } else { Ending::Refused { at: 0 } };
                    context.reply(op, ending);
                }
            }
            HostEffect::ReadReady { id, at, .. } => {
                if let Some(op) = life.barrier_of.remove(&id) {
                    life.ready.push((at, op));
                    self.serve_reads(context)?;
                }
            }
            HostEffect::ReadFailed { id, .. } => {
                if let Some(op) = life.barrier_of.remove(&id) {
                    context.reply(op, Ending::Refused { at: 0 });
                }
            }
            HostEffect::Role { ballot, leader, serving, .. } => {
                context.trace.note(context.now, self.id, "role", ballot.round, leader.map_or(0, |n| n.0));
                let led = life.leads && life.ballot == ballot;
                life.ballot = ballot;
                life.leads = leader == Some(node);
                if life.leads {
                    context.checks.elections.leads(node, ballot)?;
                    if let (false, Some(status)) = (led, life.host.status(GROUP)) {
                        let rules = &context.checks.membership;
                        let had_vote = rules.had_vote(status.replica);
                        if context.engine.governs_itself() {
                            let configs = rules.from(self.id, status.committed);
                            check_leader_votes(node, status.replica, configs, had_vote)?;
                        } else {
                            // That of its ballot, to the end: it leads the others to the next, with or without a vote there.
                            let config = rules.numbered(self.id, ballot.config, Slot(u64::MAX));
                            check_leader_votes(node, status.replica, config.into_iter(), false)?;
                        }
                    }
                    if !serving {
                        context.ambush_new_leader(self.id);
                        context.checks.completeness.leads(node, ballot, &context.checks.logs)?;
                    }
                }
            }
            HostEffect::Halt { why, .. } => {
                let what = format!("node {} halts: {why}", self.id);
                return Err(Violation::new("broken invariant of a core", what));
            }
        }
        Ok(())
    }

    /// Hands packets to the links. Now and then each travels alone, so that they may overtake one another.
    pub(super) fn send(
        &mut self,
        context: &mut Context,
        to: NodeId,
        packets: Vec<Packet>,
    ) -> Result<(), Violation> {
        let packets = if context.net.is_wire() {
            context.wire.pass(self.id, to.0, packets, context.net.garbled_ppm())?
        } else {
            packets
        };
        let alone = context.options.network.reordering_ppm > 0 && !context.healed;
        let mut lanes: Vec<Vec<Packet>> = Vec::new();
        for packet in packets {
            match lanes.last_mut().filter(|lane| !alone && lane[0].lane() == packet.lane()) {
                Some(lane) => lane.push(packet),
                None => lanes.push(vec![packet]),
            }
        }
        for packets in lanes {
            // A transport gives what it gives once. Engines bear more than that, and are made to.
            let once = packets.iter().any(|p| matches!(p, Packet::Forward { .. } | Packet::Refused { .. }));
            let [first, second] = context.net.route(context.now, self.id, to.0, packets[0].lane());
            let mut arrive = |at: Option<SimTime>, packets: Vec<Packet>| {
                if let Some(at) = at {
                    let event = NodeEvent::Deliver { from: self.id, packets };
                    context.queue.push(at, Event::At { node: to.0, life: 0, event });
                }
            };
            if second.is_some() && !once {
                arrive(second, packets.clone());
            }
            arrive(first, packets);
        }
        Ok(())
    }

    fn arm(&mut self, context: &mut Context) {
        let Some(life) = &mut self.life else { return };
        let Some(deadline) = life.host.next_deadline() else { return };
        if deadline == Time(u64::MAX) {
            return;
        }
        let at = self.clock.when(deadline).max(context.now + 1);
        if at < life.tick_at {
            life.tick_at = at;
            let event = Event::At { node: self.id, life: life.number, event: NodeEvent::Tick };
            context.queue.push(at, event);
        }
    }

    /// How far its state is; `None` if it is down.
    pub(super) fn state(&self) -> Option<State> {
        let life = self.life.as_ref()?;
        let revision = life.reader.revision();
        let hash = life.reader.hash_kv(revision).map_or(0, |hash| u64::from(hash.hash));
        Some(State { node: self.id, applied: life.applier.applied(), revision, hash })
    }

    /// Where it stands, for people.
    pub(super) fn describe(&self) -> String {
        let Some(life) = &self.life else { return format!("node {} is down", self.id) };
        format!(
            "node {}: applied {}, log {:?} busy {}, apply {:?} busy {}, catch-up {:?} busy {}, \
             checkpoint {}, postponed {:?}, waits {}, barriers {}, ready {:?}, host due {:?} at {:?}, {:?}",
            self.id,
            life.applier.applied(),
            life.logs,
            life.log_busy.is_some(),
            life.applies,
            life.apply_busy,
            life.catchups,
            life.catchup_busy,
            life.checkpoint.is_some(),
            life.postponed,
            life.waits.len(),
            life.barrier_of.len(),
            life.ready,
            life.host.next_deadline(),
            life.tick_at,
            life.host.status(GROUP),
        )
    }

    /// What it holds in `from..to`.
    pub(super) fn read(&self, from: u32, to: u32) -> Result<Answer, Violation> {
        let broken = |what: String| Violation::new("read", format!("node {}: {what}", self.id));
        let Some(life) = &self.life else { return Err(broken("is down".to_owned())) };
        let response = life.reader.range(&kv::range(from, to)).map_err(|error| broken(error.to_string()))?;
        kv::answer_of(&response).map_err(broken)
    }
}

/// A packet, for people.
fn describe(engine: Engine, packet: &Packet) -> String {
    match packet {
        Packet::Consensus { message, .. } => engine.describe(message),
        Packet::Forward { batch, .. } => format!("forward of {} proposals", batch.len()),
        Packet::SnapshotPiece { fetch, after, body, last, .. } => {
            format!("piece {} of fetch {fetch}, {} bytes, last {last}", after.pieces, body.len())
        }
        other => format!("{other:?}"),
    }
}

impl Life {
    pub(super) fn next_proposal(&mut self, node: u64) -> ProposalId {
        self.proposals += 1;
        ProposalId::new(NodeId(node), self.epoch, self.proposals)
    }
}
