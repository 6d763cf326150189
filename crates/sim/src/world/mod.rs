//! A cluster in one thread: nodes, links, clients and faults, moved by a queue of events in simulated time.

mod changes;
mod clients;
mod drills;
mod endings;
mod faults;
mod kv;
mod lease;
mod lease_drills;
mod node;
mod queue;
mod threads;
mod wire;

use std::sync::atomic::Ordering;

use conclave_consensus::{Config, NodeId, ReplicaId, SnapshotMeta};

use self::{
    changes::Membership,
    clients::Clients,
    node::Node,
    queue::{Event, NodeEvent, Op, Queue},
    wire::Wire,
};
pub(crate) use self::{clients::PROBE_KEYS, drills::Drill};
use crate::{
    check::{
        Changes, DurableLog, ElectionSafety, LeaderCompleteness, LogMatching, MembershipRules, ReadFreshness,
        RevisionMonotony, StateMachineSafety, Violation,
    },
    clock::{SECOND, SimTime},
    engine::Engine,
    history::{Ending, History},
    net::Network,
    options::{FaultOptions, NetworkOptions, Options},
    rng::Rng,
    trace::Trace,
};

/// What a run counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Operations whose client had an answer.
    pub answered: u64,
    /// Operations that were refused for certain.
    pub refused: u64,
    /// Operations whose client never knew.
    pub unknown: u64,
    /// Single nodes that lost power, at any moment or inside a disk operation.
    pub crashes: u64,
    /// Of these, inside a disk operation.
    pub disk_crashes: u64,
    /// Times all nodes lost power at once.
    pub blackouts: u64,
    /// Processes killed.
    pub kills: u64,
    /// Nodes that halted, killed or because a sync failed or a disk was full.
    pub halts: u64,
    /// Times a disk was made to fail: syncs, space, bits, lies.
    pub disk_faults: u64,
    /// Nodes that found their log damaged.
    pub damages_found: u64,
    /// Nodes lost for good.
    pub lost: u64,
    /// Nodes that stood still.
    pub pauses: u64,
    /// Clocks that jumped.
    pub jumps: u64,
    /// Attempts to hand leadership over.
    pub transfers: u64,
    /// Times links were cut.
    pub partitions: u64,
    /// Packets lost.
    pub packets_lost: u64,
    /// Packets that came twice.
    pub packets_doubled: u64,
    /// Terms in which somebody led.
    pub elections: u64,
    /// Checkpoints made durable.
    pub checkpoints: u64,
    /// Snapshots installed.
    pub snapshots: u64,
    /// Times that a transfer of one went on from what it had, after its source had failed or changed.
    pub resumed: u64,
    /// Times that one began anew, because nobody could go on with what there was.
    pub begun_anew: u64,
    /// Entries chosen.
    pub entries: u64,
    /// Changes of membership that were asked for.
    pub changes: u64,
    /// Nodes wiped because their replica was removed.
    pub retired: u64,
    /// Configurations chosen.
    pub memberships: u64,
    /// Times a leader fell asleep.
    pub naps: u64,
}

impl Counters {
    /// Everything that broke, packets apart.
    #[must_use]
    pub fn faults(&self) -> u64 {
        let power = self.crashes + self.blackouts + self.kills;
        power + self.pauses + self.jumps + self.transfers + self.partitions + self.disk_faults
    }

    /// Operations asked and ended.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.answered + self.refused + self.unknown
    }

    /// What makes an hour of simulation worth one: how much there was of each, and how much there must be an hour.
    #[must_use]
    pub fn density(&self) -> [(&'static str, u64, u64); 6] {
        [
            ("operations", self.operations(), 100_000),
            ("faults", self.faults(), 200),
            ("crashes", self.crashes, 20),
            ("elections", self.elections, 20),
            ("snapshots", self.snapshots, 10),
            ("membership changes", self.memberships, 10),
        ]
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let mine: [&mut u64; COUNTERS] = self.fields_mut();
        let mut other = *other;
        for (mine, other) in mine.into_iter().zip(other.fields_mut()) {
            *mine += *other;
        }
    }

    fn fields_mut(&mut self) -> [&mut u64; COUNTERS] {
        let Self {
            answered,
            refused,
            unknown,
            crashes,
            disk_crashes,
            blackouts,
            kills,
            halts,
            disk_faults,
            damages_found,
            lost,
            pauses,
            jumps,
            transfers,
            partitions,
            packets_lost,
            packets_doubled,
            elections,
            checkpoints,
            snapshots,
            resumed,
            begun_anew,
            entries,
            memberships,
            changes,
            retired,
            naps,
        } = self;
        [
            answered,
            refused,
            unknown,
            crashes,
            disk_crashes,
            blackouts,
            kills,
            halts,
            disk_faults,
            damages_found,
            lost,
            pauses,
            jumps,
            transfers,
            partitions,
            packets_lost,
            packets_doubled,
            elections,
            checkpoints,
            snapshots,
            resumed,
            begun_anew,
            entries,
            memberships,
            changes,
            retired,
            naps,
        ]
    }
}

/// How many counters there are.
const COUNTERS: usize = 27;

/// The checkers that watch a run while it goes on.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) elections: ElectionSafety,
    pub(crate) logs: LogMatching,
    pub(crate) durable: DurableLog,
    pub(crate) completeness: LeaderCompleteness,
    pub(crate) machines: StateMachineSafety,
    pub(crate) freshness: ReadFreshness,
    pub(crate) monotony: RevisionMonotony,
    pub(crate) membership: MembershipRules,
    pub(crate) changes: Changes,
}

/// What everyone in a world shares.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) now: SimTime,
    pub(crate) options: Options,
    pub(crate) engine: Engine,
    pub(crate) queue: Queue,
    /// Latencies of nodes.
    pub(crate) rng: Rng,
    pub(crate) net: Network,
    wire: Wire,
    pub(crate) trace: Trace,
    pub(crate) checks: Checks,
    pub(crate) history: History,
    pub(crate) counters: Counters,
    pub(crate) membership: Membership,
    /// The faults are over.
    pub(crate) healed: bool,
}

impl Context {
    /// A latency around a mean.
    pub(crate) fn latency(&mut self, mean: SimTime) -> SimTime {
        1 + self.rng.below(2 * mean)
    }

    /// Lets a node look at its clock at a time.
    pub(crate) fn wake(&mut self, node: u64, at: SimTime) {
        self.queue.push(at, Event::At { node, life: 0, event: NodeEvent::Tick });
    }

    /// A node begins to write what matters: perhaps its power goes, or everybody's, before that is durable or right after.
    pub(crate) fn lie_in_wait(&mut self, node: u64, life: u64) {
        if self.rng.chance(self.options.faults.ambush_ppm) {
            let at = self.now + self.rng.below(3 * self.options.node.sync);
            let all = self.rng.bits() & 1 == 0;
            self.queue.push(at, Event::Ambush { node, life, all });
        }
    }

    /// A piece of a snapshot leaves, and there is more: perhaps the power of its source goes, or the link breaks for longer than anybody waits.
    pub(crate) fn disturb_transfer(&mut self, from: u64, life: u64, to: u64) {
        if self.healed || !self.rng.chance(self.options.faults.ambush_ppm) {
            return;
        }
        if self.rng.bits() & 1 == 0 {
            let at = self.now + self.rng.below(3 * self.options.node.sync);
            self.queue.push(at, Event::Ambush { node: from, life, all: false });
        } else {
            let until = self.now + self.rng.between(SECOND, 7 * SECOND);
            self.net.cut_links(vec![(from, to), (to, from)], until);
        }
    }

    /// Lets a client hear how its operation ended, a little later.
    pub(crate) fn reply(&mut self, op: Op, mut ending: Ending) {
        let heard = self.now + self.rng.between(20_000, 2_000_000);
        if let Ending::Answered { at, .. } | Ending::Refused { at } = &mut ending {
            *at = heard;
        }
        self.queue.push(heard, Event::Reply { op, ending });
    }
}

/// The cluster and everything around it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) context: Context,
    nodes: Vec<Node>,
    clients: Clients,
    /// When and where faults strike.
    faults: Rng,
    /// A second, and its events so far.
    second: (SimTime, u64),
}

/// An ordinary second has about a thousand.
const EVENTS_A_SECOND_MAX: u64 = 50_000;

impl World {
    /// A cluster whose nodes have just booted for the first time.
    pub(crate) fn new(
        mut rng: Rng,
        options: Options,
        engine: Engine,
        print: bool,
    ) -> Result<Self, Violation> {
        let net = Network::new(rng.fork(), options.network.clone());
        let clients = Clients::new(rng.fork());
        let faults = rng.fork();
        let ids: Vec<u64> = (1..=options.nodes).collect();
        let nodes = ids.iter().map(|id| Node::new(*id, *id <= options.members, &mut rng)).collect();
        let founding = initial(&options).config;
        let checks = Checks {
            logs: LogMatching::of(engine.matches_logs()),
            membership: MembershipRules::of(&founding, engine.governs_itself()),
            changes: Changes::founded_as(founding.clone()),
            ..Checks::default()
        };
        let membership = Membership::new(founding);
        let context = Context {
            now: 0,
            options,
            engine,
            queue: Queue::default(),
            rng: rng.fork(),
            net,
            wire: Wire::new(rng.fork()),
            trace: Trace::new(print),
            checks,
            history: History::default(),
            counters: Counters::default(),
            membership,
            healed: false,
        };
        let mut world = Self { context, nodes, clients, faults, second: (0, 0) };
        for node in world.nodes.iter_mut().filter(|node| node.replica.is_some()) {
            node.boot(&mut world.context)?;
        }
        Ok(world)
    }

    /// Lets the load and the faults begin.
    pub(crate) fn begin(&mut self) {
        self.clients.begin(&mut self.context);
        self.begin_faults();
    }

    /// Lets time pass.
    pub(crate) fn run_until(&mut self, until: SimTime) -> Result<(), Violation> {
        while let Some((at, event)) = self.context.queue.pop(until) {
            if self.second.0 != at / SECOND {
                self.second = (at / SECOND, 0);
            }
            self.second.1 += 1;
            if self.second.1 > EVENTS_A_SECOND_MAX {
                let what =
                    format!("more than {EVENTS_A_SECOND_MAX} events in one second: messages breed messages");
                return Err(Violation::new("storm", what));
            }
            self.context.now = at;
            self.happen(event)?;
        }
        self.context.now = until;
        Ok(())
    }

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        let context = &mut self.context;
        match event {
            Event::At { node, life, event } => {
                let node = &mut self.nodes[node as usize - 1];
                return node.happen(context, life, event);
            }
            Event::Restart { node, life } => {
                let node = &mut self.nodes[node as usize - 1];
                if node.is_down(life) {
                    return node.boot(context);
                }
            }
            Event::Ambush { node, life, all } => self.ambush(node, life, all),
            Event::Room { node } => self.nodes[node as usize - 1].make_room(),
            Event::Resume { node } => return self.nodes[node as usize - 1].resume(context),
            Event::Think { client } => self.clients.think(context, client),
            Event::Reply { op, ending } => {
                context.trace.note(context.now, 0, "reply", op as u64, ending_code(&ending));
                return self.clients.reply(context, op, ending);
            }
            Event::GiveUp { op } => self.clients.give_up(context, op),
            Event::Adopt { node, replica } => return self.nodes[node as usize - 1].adopt(context, replica),
            Event::Retire { node, replica } => self.nodes[node as usize - 1].retire(context, replica),
            Event::Change { node } => return self.ask(node),
            Event::Sever { leaving } => self.sever(&leaving),
            Event::Fault(fault) => return self.break_something(fault),
        }
        Ok(())
    }

    /// A node loses power.
    pub(crate) fn crash(&mut self, id: u64) {
        let node = &mut self.nodes[id as usize - 1];
        node.crash(&mut self.context);
    }

    /// Ends all faults: links are whole, disks quick, everyone goes on and stays up.
    pub(crate) fn heal(&mut self) -> Result<(), Violation> {
        let context = &mut self.context;
        context.healed = true;
        context.net.heal(NetworkOptions::healthy());
        context.options.faults = FaultOptions::none();
        context.options.node.stall_ppm = 0;
        for node in &mut self.nodes {
            node.disk.behave();
            node.engine.crash_in(u64::MAX);
            node.make_room();
            node.paused_until = 0;
            node.resume(context)?;
            if !node.is_up() && node.is_sound() {
                node.boot(context)?;
            }
        }
        Ok(())
    }

    /// The members' nodes that were not lost for good.
    pub(crate) fn healthy(&self) -> Vec<u64> {
        self.members().map(|node| node.id).collect()
    }

    fn members(&self) -> impl Iterator<Item = &Node> {
        let config = self.context.membership.config();
        self.nodes.iter().filter(|node| {
            node.is_sound()
                && node.replica.and_then(|replica| config.nodes.get(&replica)) == Some(&NodeId(node.id))
        })
    }

    /// Lets nobody ask anything new.
    pub(crate) fn stop_load(&mut self) {
        self.clients.stop();
    }

    /// Writes once through each of these nodes.
    pub(crate) fn probe(&mut self, nodes: &[u64], patience: SimTime) -> Vec<Op> {
        nodes.iter().map(|node| self.clients.probe(&mut self.context, *node, patience)).collect()
    }

    /// How far the state of each node is that was not lost, and the hash of all it holds; `None` while one is down.
    pub(crate) fn states(&self) -> Option<Vec<node::State>> {
        self.members().map(Node::state).collect()
    }

    /// Where every node stands, for people.
    pub(crate) fn describe(&self) -> Vec<String> {
        self.nodes.iter().map(Node::describe).collect()
    }

    /// What a node holds in `from..to`.
    pub(crate) fn read(&self, node: u64, from: u32, to: u32) -> Result<crate::history::Answer, Violation> {
        self.nodes[node as usize - 1].read(from, to)
    }

    /// The counters, those of links and checkers included.
    pub(crate) fn counters(&self) -> Counters {
        let net = self.context.net.counters();
        Counters {
            partitions: net.partitions,
            packets_lost: net.lost,
            packets_doubled: net.duplicated,
            elections: self.context.checks.elections.elections() as u64,
            entries: self.context.checks.machines.last().0,
            naps: self.nodes.iter().map(|node| node.naps.load(Ordering::Relaxed)).sum(),
            ..self.context.counters
        }
    }
}

fn ending_code(ending: &Ending) -> u64 {
    match ending {
        Ending::Answered { answer, .. } => answer.revision as u64,
        Ending::Refused { .. } => u64::MAX - 1,
        Ending::Unknown => u64::MAX,
    }
}

/// The state before anything: replica i on node i for each member, the first of them with a vote.
fn initial(options: &Options) -> SnapshotMeta {
    let replicas = (1..=options.members).map(ReplicaId);
    let mut config = Config::of_voters(replicas.map(|replica| (replica, NodeId(replica.0))));
    config.learners = config.voters.split_off(&ReplicaId(options.voters + 1));
    config.quorums = options.quorums;
    SnapshotMeta { config, ..SnapshotMeta::default() }
}
