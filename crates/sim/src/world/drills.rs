//! Drills: one thing goes wrong on a cluster that is otherwise well, and what must go on, goes on.
//!
//! The phase of faults shows that nothing unsafe happens whatever breaks; it cannot show much about progress, since in it nothing need
//! progress. Here a majority is well throughout, so writes must succeed (thesis, sections 3.10, 6.2, 9.6).

use super::{World, queue::Event};
use crate::{
    check::Violation,
    clock::{SECOND, SimTime},
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drill {
    /// Nothing: leadership is handed over, and the heir must have it.
    Transfer,
    /// The leader hears nobody: it must go, and the others write on.
    DeafLeader,
    /// The leader's disk hangs: it must go, and the others write on.
    HungDisk,
    /// One follower does not hear the leader; the other boots again and again and must not help to depose the leader it hears.
    Reboots,
    /// A follower is given leadership while nobody hears it: it stands in a term of its own, and must find back when it is heard.
    LostElection,
    /// Of three, a leader alone with an entry truncates it for the next leader, loses power before that is durable, and leads again.
    Resurrection,
}

/// How often the others may ask, two election timeouts each time, after the leader is of no use: one passes until it is found out, then
/// there is an election as after any failure.
const ATTEMPTS: u32 = 4;
/// Less than any packet takes.
const STEP: SimTime = 50_000;
/// How often the follower boots.
const REBOOTS: u32 = 6;

impl Drill {
    pub(crate) const ALL: [Self; 6] = [
        Self::Transfer,
        Self::DeafLeader,
        Self::HungDisk,
        Self::Reboots,
        Self::LostElection,
        Self::Resurrection,
    ];
}

impl World {
    /// Holds a drill, if there is a leader and enough nodes are well to do without one. Afterwards nothing is cut or hangs.
    pub(crate) fn drill(&mut self, drill: Drill) -> Result<(), Violation> {
        let Some(leader) = self.leader() else { return Ok(()) };
        let voters: Vec<u64> = self.healthy().into_iter().filter(|node| self.votes(*node)).collect();
        let others: Vec<u64> = voters.iter().copied().filter(|node| *node != leader).collect();
        let config = self.context.membership.config();
        let (majority, members) = (config.voters.len() / 2 + 1, config.nodes.len());
        match drill {
            Drill::Transfer => self.drill_transfer(&others)?,
            Drill::Resurrection => {
                if let ([one, two], 3) = (others.as_slice(), members) {
                    self.drill_resurrection(leader, [*one, *two])?;
                }
            }
            Drill::LostElection => self.drill_lost_election(&others)?,
            _ if others.len() < majority => {}
            Drill::DeafLeader => self.drill_deaf(leader, &others)?,
            Drill::HungDisk => self.drill_hung(leader, &others)?,
            Drill::Reboots => {
                if let ([apart, rebooted], 3) = (others.as_slice(), members) {
                    self.drill_reboots(leader, *apart, *rebooted)?;
                }
            }
        }
        self.context.net.heal(crate::options::NetworkOptions::healthy());
        self.run_until(self.context.now + 2 * SECOND)
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |node: &super::Node| node.leads().map(|ballot| (ballot, node.id));
        self.nodes.iter().filter_map(leads).max().map(|(_, id)| id)
    }

    /// So many election timeouts.
    pub(crate) fn elections(&self, count: u32) -> SimTime {
        u64::try_from((self.context.options.timing.election * count).as_nanos()).unwrap_or(SimTime::MAX)
    }

    /// Whoever leads is to make this node the leader.
    pub(crate) fn hand_over(&mut self, heir: u64) -> Result<(), Violation> {
        self.nodes.iter_mut().try_for_each(|node| node.hand_over(&mut self.context, heir))
    }

    fn drill_transfer(&mut self, others: &[u64]) -> Result<(), Violation> {
        let Some(heir) = others.first().copied() else { return Ok(()) };
        self.hand_over(heir)?;
        self.run_until(self.context.now + self.elections(2))?;
        match self.leader() {
            Some(leader) if leader == heir => Ok(()),
            leader => {
                let what = format!("node {heir} was given leadership; {leader:?} leads");
                Err(Violation::new("transfer", what))
            }
        }
    }

    fn drill_lost_election(&mut self, others: &[u64]) -> Result<(), Violation> {
        let Some(heir) = others.first().copied() else { return Ok(()) };
        let all = 1..=self.context.options.nodes;
        let links = all.filter(|node| *node != heir).map(|node| (heir, node)).collect();
        self.context.net.cut_links(links, self.context.now + self.elections(1) / 2);
        for node in &mut self.nodes {
            node.hand_over(&mut self.context, heir)?;
        }
        self.run_until(self.context.now + self.elections(1))?;
        self.must_write(&[heir], self.elections(2), ATTEMPTS, "after a lost election")
    }

    /// What became of the entry is unknown to its client all the while: it is chosen in the end, or it is not.
    fn drill_resurrection(&mut self, old: u64, others: [u64; 2]) -> Result<(), Violation> {
        let both = |a, b| [(a, b), (b, a)];
        let apart = others.iter().flat_map(|node| both(old, *node)).collect();
        self.context.net.cut_links(apart, SimTime::MAX);
        self.probe(&[old], self.elections(20));
        // In steps shorter than a packet takes: the new leader must be alone with what it writes first.
        let until = self.context.now + self.elections(6);
        while self.leader().is_none_or(|leader| leader == old) && self.context.now < until {
            self.run_until(self.context.now + STEP)?;
        }
        let Some(new) = self.leader().filter(|new| *new != old) else { return Ok(()) };
        let third = others[0] + others[1] - new;
        self.context.net.heal(crate::options::NetworkOptions::healthy());
        let links = both(third, old).into_iter().chain(both(third, new)).collect();
        self.context.net.cut_links(links, SimTime::MAX);
        self.nodes[third as usize - 1].halt(&mut self.context);
        // The old leader learns of the new one, durably; what it does to its log then does not become durable.
        let ballot = self.node(new).leads();
        let until = self.context.now + self.elections(1);
        while !self.node(old).is_settled_in(ballot) && self.context.now < until {
            self.run_until(self.context.now + STEP)?;
        }
        self.node(old).hangs = true;
        self.run_until(self.context.now + self.elections(1) / 2)?;
        self.node(old).hangs = false;
        self.crash(old);
        self.context.net.heal(crate::options::NetworkOptions::healthy());
        let links = both(new, old).into_iter().chain(both(new, third)).collect();
        self.context.net.cut_links(links, SimTime::MAX);
        self.run_until(self.context.now + self.elections(2))?;
        if self.node(old).broken || self.node(third).broken {
            // Its end brought earlier damage of its disk to light, and the one that is left is no quorum.
            return Ok(());
        }
        self.must_write(&[old, third], self.elections(2), ATTEMPTS, "after a leader was cut off")
    }

    fn drill_deaf(&mut self, leader: u64, others: &[u64]) -> Result<(), Violation> {
        let all = 1..=self.context.options.nodes;
        let links = all.filter(|node| *node != leader).map(|node| (node, leader)).collect();
        self.context.net.cut_links(links, SimTime::MAX);
        self.others_write(others, "hears nobody")
    }

    fn drill_hung(&mut self, leader: u64, others: &[u64]) -> Result<(), Violation> {
        self.node(leader).hangs = true;
        // Something has to be written for a disk to hang.
        self.probe(others, self.elections(1));
        self.run_until(self.context.now + self.elections(3))?;
        if self.leader() == Some(leader) && self.node(leader).is_syncing() {
            let what = format!("node {leader} leads three election timeouts after its disk began to hang");
            return Err(Violation::new("hung leader", what));
        }
        let done = self.others_write(others, "has a disk that hangs");
        let context = &mut self.context;
        self.nodes[leader as usize - 1].stop_hanging(context);
        done
    }

    fn drill_reboots(&mut self, leader: u64, apart: u64, rebooted: u64) -> Result<(), Violation> {
        let before = self.node(leader).leads();
        self.context.net.cut_links(vec![(leader, apart), (apart, leader)], SimTime::MAX);
        self.run_until(self.context.now + self.elections(3))?;
        for _ in 0..REBOOTS {
            if self.node(leader).leads() == before {
                let node = &mut self.nodes[rebooted as usize - 1];
                node.halt(&mut self.context);
            }
            self.run_until(self.context.now + self.elections(1))?;
        }
        if self.node(leader).leads() == before {
            return Ok(());
        }
        let what = format!(
            "node {leader} led and was heard by node {rebooted}, which booted; node {:?} leads now",
            self.leader()
        );
        Err(Violation::new("stable leader", what))
    }

    fn others_write(&mut self, others: &[u64], why: &str) -> Result<(), Violation> {
        // What went to the old leader is lost, and its client asks again.
        let patience = self.elections(2);
        self.must_write(others, patience, ATTEMPTS, &format!("while the leader {why}"))
    }

    /// Every one of these nodes gets a write through: each attempt may take `patience`.
    pub(crate) fn must_write(
        &mut self,
        nodes: &[u64],
        patience: SimTime,
        attempts: u32,
        when: &str,
    ) -> Result<(), Violation> {
        let mut nodes = nodes.to_vec();
        let mut last = Vec::new();
        for _ in 0..attempts {
            last = self.probe(&nodes, patience);
            let until = self.context.now + patience + SECOND;
            while self.context.now < until && !last.iter().all(|op| self.is_answered(*op)) {
                self.run_until(until.min(self.context.now + SECOND / 10))?;
            }
            last.retain(|op| !self.is_answered(*op));
            nodes = last.iter().filter_map(|op| Some(self.context.history.get(*op)?.node)).collect();
            if nodes.is_empty() {
                return Ok(());
            }
        }
        let unanswered: Vec<_> = last.iter().map(|op| self.context.history.get(*op)).collect();
        Err(Violation::new("liveness", format!("{when}: no answer in time to {unanswered:?}")))
    }

    pub(crate) fn is_answered(&self, op: super::Op) -> bool {
        self.context.history.get(op).is_some_and(|operation| operation.answer().is_some())
    }
}

impl super::Node {
    fn is_syncing(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.log_busy.is_some())
    }

    /// Whether it knows of the ballot, and nothing is being written.
    fn is_settled_in(&self, ballot: Option<conclave_consensus::Ballot>) -> bool {
        let known = self.life.as_ref().is_some_and(|life| Some(life.ballot) == ballot);
        known && !self.is_syncing()
    }

    /// The disk answers again.
    fn stop_hanging(&mut self, context: &mut super::Context) {
        self.hangs = false;
        if let Some(life) = self.life.as_ref().filter(|life| life.log_busy.is_some()) {
            let event = Event::At { node: self.id, life: life.number, event: super::NodeEvent::LogDone };
            context.queue.push(context.now + 1, event);
        }
    }
}
