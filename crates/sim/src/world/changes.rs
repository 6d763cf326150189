//! Members that come and go: an operator who asks whoever leads, starts a replica where a configuration names one, and wipes its node when
//! it was removed. The node is spare then, and its next replica has another id.
//!
//! A replica lives from the moment any log names it, committed or not, and is destroyed only after a configuration without it is chosen.
//! A node with a higher id to host drops the lower one: whoever allotted it led, and served, after that one's removal was decided.

use std::collections::{BTreeMap, BTreeSet};

#[cfg(feature = "mutants")]
use conclave_consensus::Mutant::ReplicaIdReused;
use conclave_consensus::{Config, Entry, LogOp, MembershipChange, NodeId, ReplicaId, Slot};
use conclave_replica::HostInput;

use super::{
    Context, World,
    node::{GROUP, Node},
    queue::Event,
};
use crate::{
    check::{JointLeft, MirrorEntry, Violation},
    clock::{MS, SECOND, SimTime},
};

/// The fewest voters that the operator leaves, and the most that it makes.
const VOTERS: std::ops::RangeInclusive<usize> = 3..=5;
/// How many learners there are at most.
const LEARNERS_MAX: usize = 2;
/// How often it thinks of something else when what it thought of would not do.
const THOUGHTS: u32 = 12;
/// How many election timeouts a leader that serves may stay in a joint configuration: one for a transfer to be given up, and time to spare.
const JOINT_ELECTIONS: u32 = 4;
/// How long it may take, after the faults, until every member is well.
const SETTLES: SimTime = 60 * SECOND;

/// What is known of members from what was chosen.
#[derive(Debug)]
pub(crate) struct Membership {
    /// The last configuration.
    config: Config,
    /// Replicas that live or lived.
    adopted: BTreeSet<ReplicaId>,
    /// Replicas that the last chosen configurations removed, and that live until that is there for good.
    leaving: BTreeMap<ReplicaId, NodeId>,
}

impl Membership {
    pub(super) fn new(config: Config) -> Self {
        let adopted = config.members().collect();
        Self { config, adopted, leaving: BTreeMap::new() }
    }

    /// The last chosen configuration.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }
}

impl Context {
    /// A configuration is chosen.
    ///
    /// # Errors
    /// If it is none that may follow.
    pub(super) fn chosen_config(&mut self, entry: &Entry, config: &Config) -> Result<(), Violation> {
        self.checks.membership.chosen(entry.slot, config)?;
        let before = self.checks.changes.chosen(entry.id, config)?;
        self.membership.config = config.clone();
        for (replica, node) in &config.nodes {
            if !before.nodes.contains_key(replica) {
                self.queue.push(self.now, Event::Adopt { node: node.0, replica: *replica });
            }
        }
        for (replica, node) in before.nodes {
            if !config.nodes.contains_key(&replica) {
                self.membership.leaving.insert(replica, node);
            }
        }
        if !self.engine.settles() {
            self.committed_config(config);
        }
        Ok(())
    }

    /// An entry is chosen, by the last chosen configuration.
    ///
    /// # Errors
    /// If no quorum of it holds the entry durably.
    pub(super) fn check_chosen(&self, slot: Slot, entry: MirrorEntry) -> Result<(), Violation> {
        let governs = (self.checks.membership.last_chosen(), &self.membership.config);
        self.checks.durable.chosen(slot, entry, governs)
    }

    /// Whom a configuration that is there for good does not name may be destroyed.
    pub(super) fn committed_config(&mut self, config: &Config) {
        let leaving = std::mem::take(&mut self.membership.leaving);
        let (gone, stay): (Vec<_>, _) =
            leaving.into_iter().partition(|(replica, _)| config.has_removed(*replica));
        self.membership.leaving = stay.into_iter().collect();
        for (replica, node) in gone {
            let at = self.now + self.rng.below(self.options.faults.retire_max.max(1));
            self.queue.push(at, Event::Retire { node: node.0, replica });
        }
    }

    /// Right after an election, before anything of the term is committed, is when a change must be refused.
    pub(super) fn ambush_new_leader(&mut self, node: u64) {
        if self.rng_of_changes(self.options.faults.change_ambush_ppm) {
            let at = self.now + self.rng.below(2 * MS);
            self.queue.push(at, Event::Change { node: Some(node) });
        }
    }

    /// Draws only where members change, so that a run without that is the run it would be.
    fn rng_of_changes(&mut self, ppm: u64) -> bool {
        ppm > 0 && self.rng.chance(ppm)
    }
}

impl Node {
    /// A configuration is in force here, committed or not: who it names lives.
    pub(super) fn told_of_members(&self, context: &mut Context, config: &Config) {
        for (replica, node) in &config.nodes {
            let known = context.membership.adopted.contains(replica);
            // Whoever adds a replica starts it, whether or not one of its name was here before.
            #[cfg(feature = "mutants")]
            let known = known && !(self.leads().is_some() && ReplicaIdReused.is_on());
            if !known {
                let at = context.now + context.rng.between(20_000, 5 * MS);
                context.queue.push(at, Event::Adopt { node: node.0, replica: *replica });
            }
        }
    }

    /// What is done to the log here, as far as members are concerned.
    pub(super) fn note_members(&self, context: &mut Context, op: &LogOp) -> Result<(), Violation> {
        let leads = self.life.as_ref().filter(|life| life.leads).map(|life| life.ballot);
        context.checks.durable.asked(op);
        let rules = &mut context.checks.membership;
        let joint = rules.in_force(self.id).filter(|config| config.is_joint()).cloned();
        rules.change(self.id, op, leads, &context.checks.durable)?;
        let ends = leads.is_some() && rules.in_force(self.id).is_some_and(|config| !config.is_joint());
        if let (Some(joint), true) = (joint, ends)
            && context.rng_of_changes(context.options.faults.change_ambush_ppm)
        {
            let leaving =
                joint.outgoing.difference(&joint.voters).filter_map(|replica| joint.nodes.get(replica));
            let leaving: Vec<u64> = leaving.map(|node| node.0).collect();
            let at = context.now + context.rng.below(40 * MS);
            context.queue.push(at, Event::Sever { leaving });
        }
        Ok(())
    }

    /// A replica is to live here.
    pub(super) fn adopt(&mut self, context: &mut Context, replica: ReplicaId) -> Result<(), Violation> {
        let is_member = context.membership.config.nodes.get(&replica) == Some(&NodeId(self.id));
        #[cfg(feature = "mutants")]
        let is_member = is_member || ReplicaIdReused.is_on();
        if self.replica == Some(replica) || (replica <= self.hosted && !is_member) {
            return Ok(());
        }
        if self.replica.is_some() {
            self.wipe(context);
        }
        context.membership.adopted.insert(replica);
        (self.replica, self.hosted) = (Some(replica), replica);
        context.trace.note(context.now, self.id, "adopt", replica.0, 0);
        self.boot(context)
    }

    /// The replica was removed, if it still lives here.
    pub(super) fn retire(&mut self, context: &mut Context, replica: ReplicaId) {
        if self.replica != Some(replica) || context.membership.config.nodes.contains_key(&replica) {
            return;
        }
        context.counters.retired += 1;
        context.trace.note(context.now, self.id, "retire", replica.0, 0);
        self.wipe(context);
        if context.rng_of_changes(context.options.faults.change_ambush_ppm) {
            let at = context.now + context.rng.below(50 * MS);
            context.queue.push(at, Event::Change { node: None });
        }
    }

    /// Nothing is left of its replica.
    fn wipe(&mut self, context: &mut Context) {
        self.end_life(context);
        self.disk.exit();
        self.disk.replace();
        self.engine = conclave_storage::MemoryEngine::new();
        self.make_room();
        // What it held counts on: it may have been chosen by this disk, and be applied nowhere yet.
        #[cfg(feature = "mutants")]
        if ReplicaIdReused.is_on() {
            context.checks.durable.forget(self.replica());
        }
        (self.replica, self.founder, self.broken, self.hangs) = (None, false, false, false);
        self.former_lives = self.lives;
    }

    /// What this node has in force, if it leads and does not stand still.
    fn leads_with(&self, now: SimTime) -> Option<(ReplicaId, Config)> {
        let life = self.life.as_ref().filter(|life| life.leads && self.paused_until <= now)?;
        let status = life.host.status(GROUP)?;
        Some((status.replica, status.config))
    }

    fn reconfigure(
        &mut self,
        context: &mut Context,
        changes: Vec<MembershipChange>,
    ) -> Result<(), Violation> {
        let Some(life) = &mut self.life else { return Ok(()) };
        let id = life.next_proposal(self.id);
        life.changes.insert(id);
        context.checks.changes.asked(id, &changes);
        context.counters.changes += 1;
        context.trace.note(context.now, self.id, "reconfigure", id.sequence, changes.len() as u64);
        context.trace.say(|| format!("{changes:?}"));
        self.input(context, HostInput::Reconfigure { group: GROUP, id, changes })
    }
}

impl World {
    /// Whether a node's replica has a vote in what was chosen last.
    pub(super) fn votes(&self, node: u64) -> bool {
        let replica = self.nodes[node as usize - 1].replica;
        replica.is_some_and(|replica| self.context.membership.config.voters.contains(&replica))
    }

    pub(super) fn ask_whoever_leads(&mut self) -> Result<(), Violation> {
        (1..=self.context.options.nodes).try_for_each(|node| self.ask(Some(node)))
    }

    /// Asks for something, if the node leads.
    pub(super) fn ask(&mut self, node: Option<u64>) -> Result<(), Violation> {
        let Some(node) = node else { return self.ask_whoever_leads() };
        if self.context.healed {
            return Ok(());
        }
        let now = self.context.now;
        let Some((leader, config)) = self.node(node).leads_with(now) else { return Ok(()) };
        for _ in 0..THOUGHTS {
            let changes = self.think_of_changes(leader, &config);
            if self.will_do(&config, &changes, *VOTERS.start()) {
                let node = &mut self.nodes[node as usize - 1];
                return node.reconfigure(&mut self.context, changes);
            }
        }
        Ok(())
    }

    fn think_of_changes(&mut self, leader: ReplicaId, config: &Config) -> Vec<MembershipChange> {
        use MembershipChange::{AddLearner, AddVoter, Promote, Remove};
        let mut spares = self.spares(config);
        let members: Vec<ReplicaId> = config.members().collect();
        let voters: Vec<ReplicaId> = config.voters.iter().copied().collect();
        if members.is_empty() || voters.is_empty() {
            return Vec::new();
        }
        let ill: Vec<ReplicaId> =
            members.iter().copied().filter(|replica| self.is_ill(config, *replica)).collect();
        let rng = &mut self.faults;
        let mut spare = |rng: &mut crate::rng::Rng| {
            (!spares.is_empty()).then(|| NodeId(spares.swap_remove(rng.below(spares.len() as u64) as usize)))
        };
        let mut changes = Vec::new();
        match rng.below(8) {
            0 => changes.extend(spare(rng).map(AddVoter)),
            1 => changes.extend(spare(rng).map(AddLearner)),
            2 => changes.extend(config.learners.first().copied().map(Promote)),
            3 => changes.push(Remove(*rng.pick(&members))),
            4 => changes.push(Remove(leader)),
            5 if !ill.is_empty() => changes.push(Remove(*rng.pick(&ill))),
            kind => {
                // A swap of as many as there are spares for, or of one.
                let count = if kind == 7 { 2 } else { 1 };
                for _ in 0..count {
                    let gone = *rng.pick(if ill.is_empty() { &voters } else { &ill });
                    if let (Some(node), false) = (spare(rng), changes.contains(&Remove(gone))) {
                        changes.extend([AddVoter(node), Remove(gone)]);
                    }
                }
            }
        }
        changes
    }

    /// Nodes without a member.
    fn spares(&self, config: &Config) -> Vec<u64> {
        let taken = |node: &u64| config.nodes.values().any(|at| at.0 == *node);
        (1..=self.context.options.nodes).filter(|node| !taken(node)).collect()
    }

    /// Whether a member cannot come back as what it was.
    fn is_ill(&self, config: &Config, replica: ReplicaId) -> bool {
        let Some(node) = config.nodes.get(&replica).and_then(|node| self.nodes.get(node.0 as usize - 1))
        else {
            return true;
        };
        node.replica == Some(replica) && node.broken
    }

    /// Whether changes are possible, and leave a majority of voters on disks that neither deceive nor die.
    fn will_do(&self, config: &Config, changes: &[MembershipChange], voters_min: usize) -> bool {
        let Ok(next) = config.changed(changes, ReplicaId(0)) else { return false };
        let suspects = self.context.options.suspects();
        let at_risk = |replica: &&ReplicaId| next.nodes.get(replica).is_none_or(|node| node.0 <= suspects);
        let risks = next.voters.iter().filter(at_risk).count();
        (voters_min..=*VOTERS.end()).contains(&next.voters.len())
            && next.learners.len() <= LEARNERS_MAX
            && 2 * risks < next.voters.len()
    }

    /// Power goes at those who leave, which hear nobody else for a while, or at some of those who stay besides.
    pub(super) fn sever(&mut self, leaving: &[u64]) {
        if self.context.healed {
            return;
        }
        let mut apart = leaving.to_vec();
        let nodes = self.context.options.nodes;
        if self.faults.bits() & 1 == 0 {
            let one = self.faults.between(1, nodes);
            apart.push(one);
        }
        let sides = |node: u64| apart.contains(&node);
        let links = (1..=nodes).flat_map(|from| (1..=nodes).map(move |to| (from, to)));
        let links = links.filter(|(from, to)| sides(*from) != sides(*to)).collect();
        let until = self.context.now + self.faults.between(SECOND, 5 * SECOND);
        self.context.net.cut_links(links, until);
        for node in apart {
            self.crash(node);
        }
    }

    /// After the faults: every replica that cannot come back is replaced by a change of membership, and whatever was asked comes to an end.
    ///
    /// # Errors
    /// If that takes too long.
    pub(crate) fn settle_members(&mut self) -> Result<(), Violation> {
        if !self.context.options.has_spares() {
            return Ok(());
        }
        let until = self.context.now + SETTLES;
        let mut joint = JointLeft::default();
        while !self.is_settled()? {
            let serves = self.leader().filter(|node| self.serves(*node)).map(NodeId);
            let (now, patience) = (self.context.now, self.elections(JOINT_ELECTIONS));
            joint.at(now, serves, self.context.membership.config(), patience)?;
            if self.context.now >= until {
                let what = format!(
                    "members are not well {} s after the heal: {:?}",
                    SETTLES / SECOND,
                    self.context.membership.config
                );
                return Err(Violation::new("liveness", what));
            }
            self.run_until(self.context.now + SECOND / 2)?;
        }
        Ok(())
    }

    /// Whether all members are well and no change is under way. Does something about it where one is not.
    fn is_settled(&mut self) -> Result<bool, Violation> {
        let config = self.context.membership.config.clone();
        let leader = self.leader();
        let agrees = leader
            .and_then(|node| self.node(node).leads_with(SimTime::MAX))
            .is_some_and(|(_, in_force)| in_force == config);
        let open =
            self.nodes.iter().filter_map(|node| node.life.as_ref()).any(|life| !life.changes.is_empty());
        if config.is_joint() || !agrees || open {
            return Ok(false);
        }
        let remedies = self.remedies(&config);
        match (remedies.into_iter().find(|changes| self.will_do(&config, changes, 1)), leader) {
            (Some(changes), Some(node)) => {
                let node = &mut self.nodes[node as usize - 1];
                node.reconfigure(&mut self.context, changes)?;
                Ok(false)
            }
            _ => Ok(config.members().all(|replica| self.lives(&config, replica))),
        }
    }

    /// What would make the group well, the best first.
    fn remedies(&self, config: &Config) -> Vec<Vec<MembershipChange>> {
        use MembershipChange::{AddVoter, Remove};
        let spares = self.spares(config);
        let mut remedies = Vec::new();
        for ill in config.members().filter(|replica| self.is_ill(config, *replica)) {
            if config.voters.contains(&ill) {
                remedies.extend(spares.iter().map(|node| vec![AddVoter(NodeId(*node)), Remove(ill)]));
            }
            remedies.push(vec![Remove(ill)]);
        }
        if config.voters.len() < *VOTERS.start() {
            remedies.extend(spares.iter().map(|node| vec![AddVoter(NodeId(*node))]));
        }
        remedies
    }

    fn serves(&self, node: u64) -> bool {
        let life = self.nodes[node as usize - 1].life.as_ref();
        life.and_then(|life| life.host.status(GROUP)).is_some_and(|status| status.serving)
    }

    fn lives(&self, config: &Config, replica: ReplicaId) -> bool {
        let node = config.nodes.get(&replica).and_then(|node| self.nodes.get(node.0 as usize - 1));
        node.is_some_and(|node| node.replica == Some(replica) && node.is_up())
    }
}
